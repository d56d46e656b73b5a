"""A training that was killed and resumed equals one that was not; another training is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from learners.checkpoints import manifest
from learners.gym.lock_step import GymTrainer, TrainSettings
from learners.gym.saved_training import FOLDER
from learners.gym.train import train

TINY = TrainSettings(
    batch=16,
    choice_batch=16,
    warmup=32,
    choice_warmup=32,
    hidden=(16, 16),
    evaluate_every=200,
    evaluation_episodes=1,
    selection_episodes=1,
    final_episodes=1,
    keep=2,
    save_every=50,
    memory_bytes=1 << 15,
)
TIMES = {"wall_s", "env_steps_per_s", "updates_per_s"}


class Killed(Exception):  # noqa: N818 - it is a signal, no error
    """The process ends."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, environment: str, steps: int, **options: Any) -> None:
    """Train, and end without a word at a step."""
    learn = GymTrainer._learn

    def dying(self: GymTrainer, at: int) -> None:
        if at == step:
            raise Killed
        learn(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(GymTrainer, "_learn", dying)
        with pytest.raises(Killed):
            train(environment, steps, 5, progress=False, **options)


def same(results: dict[str, Any]) -> dict[str, Any]:
    """Return what may not depend on a resume; the checkpoint's name contains the hash of every weight, the key signs it."""
    return {name: value for name, value in results.items() if name not in {*TIMES, "resumed_at", "key"}}


@pytest.mark.parametrize(
    ("environment", "algorithm", "steps"),
    [("CartPole-v1", "auto", 300), ("Pendulum-v1", "xqc", 240)],
)
def test_a_resumed_training_equals_one_that_was_not_killed(
    environment: str, algorithm: Any, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replay is full before the save, so both of its rings are taken up too."""
    options: dict[str, Any] = {"settings": TINY, "algorithm": algorithm}
    whole = train(environment, steps, 5, tmp_path / "whole", progress=False, **options)
    assert whole["resumed_at"] is None
    assert not (tmp_path / "whole" / FOLDER).exists()
    killed_at(steps - 10, monkeypatch, environment, steps, out=tmp_path / "killed", **options)
    resumed = train(environment, steps, 5, tmp_path / "killed", progress=False, resume=True, **options)
    assert 50 <= resumed["resumed_at"] < steps - 10
    assert same(resumed) == same(whole)
    again = train(environment, steps, 5, tmp_path / "killed", progress=False, resume=True, **options)
    assert again == resumed, "what has ended is not trained again"


def test_another_training_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at(150, monkeypatch, "CartPole-v1", 200, out=tmp_path, settings=TINY)
    with pytest.raises(ValueError, match="of another training: choice_batch is 16, not 32"):
        train("CartPole-v1", 200, 5, tmp_path, settings=replace(TINY, choice_batch=32), progress=False, resume=True)
    with pytest.raises(ValueError, match="seed is 5, not 6"):
        train("CartPole-v1", 200, 6, tmp_path, settings=TINY, progress=False, resume=True)
    with pytest.raises(ValueError, match="train at least as many, not 20"):
        train("CartPole-v1", 20, 5, tmp_path, settings=TINY, progress=False, resume=True)
    for weights in (tmp_path / FOLDER).glob("*/policy.safetensors"):
        weights.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot be read: .*; train without --resume"):
        train("CartPole-v1", 200, 5, tmp_path, settings=TINY, progress=False, resume=True)
    results = train("CartPole-v1", 60, 5, tmp_path, settings=TINY, progress=False)
    assert results["resumed_at"] is None, "without --resume it begins again"


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_someone_else_is_never_deleted(tmp_path: Path, *, resume: bool) -> None:
    thesis = tmp_path / FOLDER / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(ValueError, match=r"contains thesis.txt, which is no saved training; choose another --out"):
        train("CartPole-v1", 60, 5, tmp_path, settings=TINY, progress=False, resume=resume)
    assert thesis.read_text() == "years of work"
    elsewhere = tmp_path / "out"
    elsewhere.mkdir()
    (elsewhere / FOLDER).symlink_to(thesis.parent)
    with pytest.raises(ValueError, match="is not a folder"):
        train("CartPole-v1", 60, 5, elsewhere, settings=TINY, progress=False, resume=resume)


def test_a_full_disk_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = manifest.write_synced

    def full(path: Path, content: bytes) -> None:
        if FOLDER in path.parts:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(manifest, "write_synced", full)
    with pytest.warns(UserWarning, match="not saved for --resume, the training goes on: .*No space left"):
        results = train("CartPole-v1", 90, 5, tmp_path, settings=TINY, progress=False)
    assert results["stopped"] is None


def test_other_demonstrations_are_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at(85, monkeypatch, "CartPole-v1", 90, out=tmp_path, settings=TINY, demonstrations=1)
    options: dict[str, Any] = {"settings": TINY, "progress": False, "resume": True}
    with pytest.raises(ValueError, match="of another training: demonstrations is 1, not 0"):
        train("CartPole-v1", 90, 5, tmp_path, **options)
    saved = {path: path.read_bytes() for path in (tmp_path / FOLDER).rglob("*") if path.is_file()}
    train("CartPole-v1", 90, 5, tmp_path, demonstrations=1, **options)
    with pytest.raises(ValueError, match="has ended: demonstrations is 1, not 2"):
        train("CartPole-v1", 90, 5, tmp_path, demonstrations=2, **options)
    for path, content in saved.items():  # as after a kill between the results and the end
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    train("CartPole-v1", 90, 5, tmp_path, demonstrations=1, **options)
    assert not (tmp_path / FOLDER).exists()


def test_results_of_another_form_are_refused(tmp_path: Path) -> None:
    for text in ("[]", "null", "3", ""):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match="train without --resume"):
            train("CartPole-v1", 60, 5, tmp_path, settings=TINY, progress=False, resume=True)
