"""Several seeds: which a text names, each in a process of its own, compared by interquartile means; settings by name."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from learners.gym import seeds
from learners.gym.comparison import groups, interquartile_mean
from learners.gym.lock_step import TrainSettings
from learners.gym.results_file import settings_values, write_failed, write_not_ended
from learners.gym.seeds import parse, train_seeds
from learners.gym.set_values import with_values
from runtime.cli.main import main


def write(folder: Path, seed: int, score: float | None, algorithm: str = "xqc", settings: object = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    final = None if score is None else {"mean": score}
    body = {
        "environment": "CartPole-v1", "algorithm": algorithm, "steps": 100, "seed": seed, "final": final, "stopped": None,
        "evaluations": [{"step": 50, "mean": 20.0 + seed}, {"step": 100, "mean": score or 0.0}],
        "settings": settings,
    }  # fmt: skip
    (folder / "results.json").write_bytes(orjson.dumps(body))


def test_seeds_are_listed_as_numbers_and_ranges() -> None:
    assert parse("0-3") == [0, 1, 2, 3]
    assert parse("7, 2,2-4") == [2, 3, 4, 7]
    for wrong in ("", "3-1", "a", "1-", "-1", "0-5000", "0..3", "2147483648"):
        with pytest.raises(ValueError, match="seeds"):
            parse(wrong)


def test_a_failed_seed_stops_no_other(tmp_path: Path) -> None:
    received: dict[int, tuple[int, str]] = {}
    program = "import sys, os; print('first'); sys.stdout.flush(); os.write(1, b'l\\xe4st words\\n'); sys.exit(int(sys.argv[1] == '1'))"

    def report(seed: int, code: int, line: str) -> None:
        received[seed] = (code, line)

    def command(seed: int) -> list[str]:
        return [sys.executable, "-S", "-c", program, str(seed)] if seed < 3 else ["/nowhere/program"]

    failed = train_seeds([0, 1, 3, 2], command, lambda seed: tmp_path / str(seed) / "log", report, workers=2)
    assert failed == [1, 3]
    words = "l\ufffdst words"
    assert received == {
        0: (0, words),
        1: (1, words),
        2: (0, words),
        3: (127, "/nowhere/program: No such file or directory"),
    }
    assert (tmp_path / "1" / "log").read_bytes() == b"first\nl\xe4st words\n"


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["term", "int"]
)
def test_a_signal_ends_the_processes(tmp_path: Path, number: signal.Signals, raised: type[BaseException]) -> None:
    """Each process sends the signal to this one, and would then run for a minute."""
    received: dict[int, int] = {}
    program = f"import os, time; os.kill(os.getppid(), {int(number)}); time.sleep(60)"
    former = signal.getsignal(number)
    with pytest.raises(raised):
        train_seeds(
            [0, 1],
            lambda _: [sys.executable, "-S", "-c", program],
            lambda seed: tmp_path / f"log-{seed}",
            lambda seed, code, _: received.update({seed: code}),
            workers=1,
        )
    assert received == {0: -signal.SIGTERM}
    assert signal.getsignal(number) is former


def test_the_interquartile_mean_leaves_outliers_out() -> None:
    middle, low, high = interquartile_mean([-1_000.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 900.0])
    assert middle == pytest.approx(3.5)
    assert low <= middle <= high
    assert interquartile_mean([5.0]) == (5.0, 5.0, 5.0)
    assert interquartile_mean([1.0, 2.0, 900.0])[0] == pytest.approx((1 + 4 * 2 + 900) / 6)
    chance = np.random.default_rng(0)
    inside = 0
    for seed in range(100):
        _, low, high = interquartile_mean(chance.normal(size=30).tolist(), seed)
        inside += low <= 0 <= high
    assert inside >= 85  # a 95 % interval, for the mean of a symmetric distribution


def test_compare_names_the_failed_seeds_and_draws(tmp_path: Path) -> None:
    for seed, score in enumerate([500.0, 100.0, 480.0]):
        write(tmp_path / "new" / f"seed-{seed}", seed, score)
    write(tmp_path / "old" / "seed-0", 0, None, "dqn")
    done = CliRunner().invoke(
        main,
        ["compare", str(tmp_path / "new"), str(tmp_path / "old"), "--least", "450", "--plot", str(tmp_path / "p.png")],
    )
    assert done.exit_code == 0, done.output
    new, old, _ = done.output.splitlines()
    assert "new: CartPole-v1 xqc 100 steps  3 of 3 seeds ended  mean 360.0" in new
    assert new.endswith("lowest 100.0  failed: 1")
    assert old.endswith("no result  failed: 0")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert [group.failed(None) for group in groups([tmp_path / "new"])] == [[]]


def test_folders_of_one_name_and_other_settings_are_rows_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "before" / "cart" / "seed-0", 0, 100.0)
    write(tmp_path / "after" / "cart" / "seed-0", 0, 200.0)
    write(tmp_path / "mixed" / "a", 0, 1.0, settings={"batch": 32, "gamma": 0.9})
    write(tmp_path / "mixed" / "b", 0, 2.0, settings={"batch": 64, "gamma": 0.9})
    folders = [tmp_path / "before" / "cart", tmp_path / "after" / "cart", tmp_path / "mixed"]
    task = "CartPole-v1 xqc 100 steps"
    assert [(group.name, group.scores) for group in groups([*folders, folders[0]])] == [
        (f"before/cart: {task}", [100.0]),
        (f"after/cart: {task}", [200.0]),
        (f"mixed: {task} batch=32", [1.0]),
        (f"mixed: {task} batch=64", [2.0]),
    ]
    monkeypatch.chdir(folders[0])
    assert [group.name for group in groups([Path()])] == [f"cart: {task}"]


def test_a_seed_that_did_not_end_stays_in_the_comparison(tmp_path: Path) -> None:
    settings = TrainSettings()
    for seed in range(3):  # an earlier training
        write(tmp_path / f"seed-{seed}", seed, 500.0)
        write_not_ended(tmp_path / f"seed-{seed}", "CartPole-v1", 100, seed, settings)
    write(tmp_path / "seed-0", 0, 400.0, "dqn", settings_values(settings))
    write_failed(tmp_path / "seed-0", "too late: this one ended")
    write_failed(tmp_path / "seed-2", "exit code 2: no memory")
    (group,) = groups([tmp_path])
    assert group.name.endswith(": CartPole-v1 dqn 100 steps")
    assert [one.problem for one in group.results] == ["", "not ended", "exit code 2: no memory"]
    assert "  1 of 3 seeds ended  mean 400.0" in group.row(None)
    assert group.row(None).endswith("failed: 1 (not ended), 2")


def test_only_the_requested_seeds_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "seed-7", 7, 500.0)
    write(tmp_path / "seed-1", 1, 500.0)

    def fail(
        numbers: Sequence[int], _: object, __: object, report: Callable[[int, int, str], None], ___: object
    ) -> list[int]:
        for seed in numbers:
            report(seed, 3, "no memory")
        return list(numbers)

    monkeypatch.setattr(seeds, "train_seeds", fail)
    done = CliRunner().invoke(main, ["train", "CartPole-v1", "--seeds", "0-1", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "0 of 2 seeds ended  no result  failed: 0, 1" in done.output


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    assert "no results.json" in CliRunner().invoke(main, ["compare", str(tmp_path)]).output
    (tmp_path / "results.json").write_bytes(b'{"final": 3}')
    done = CliRunner().invoke(main, ["compare", str(tmp_path)])
    assert done.exit_code == 2
    assert "not a result of `reflexd train`" in done.output


def test_settings_of_the_daemon_are_those_of_a_training() -> None:
    made = with_values(
        TrainSettings(),
        {"learner.batch": 128, "learner.updates_per_step": 2, "policy.hidden": [64, 64], "policy.algorithm": "xqc"},
    )
    assert (made.batch, made.choice_batch, made.updates_per_step, made.hidden) == (128, 128, 2, (64, 64))
    assert made.algorithm == "xqc"
    for name, value, problem in (
        ("learner.save_every_s", 3, "does not use it"),
        ("learner.batch", -1, "greater than or equal to 8"),
        ("learner.updates_per_step", 0.5, "whole number"),
        ("policy.algorithm", "magic", "Input should be"),
        ("learner.warmup", None, "null is not a value"),
    ):
        with pytest.raises(ValueError, match=problem):
            with_values(TrainSettings(), {name: value})


def test_contradictions_of_options_are_refused_in_one_line(tmp_path: Path) -> None:
    for given, problem in (
        (["--set", "learner.batch"], "write NAME=VALUE"),
        (["--set", "policy.hidden=[1"], "not YAML"),
        (["--set", "learner.warmup=null"], "--set learner.warmup: null is not a value"),
        (["--set", "learner.batch=64", "--set", "learner.batch=32"], "--set learner.batch: given twice"),
        (["--set", "policy.algorithm=dqn", "--algorithm", "xqc"], "the same setting"),
        (["--seed", "0", "--seeds", "1-2"], "--seed and --seeds exclude each other"),
    ):
        done = CliRunner().invoke(main, ["train", "CartPole-v1", "--out", str(tmp_path / "run"), *given])
        assert done.exit_code == 2
        assert problem in done.output
        assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "run").exists()
