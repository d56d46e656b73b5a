"""Several seeds: which a text names, each in a process of its own, compared by interquartile means; settings by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from learners.gym.comparison import groups, interquartile_mean
from learners.gym.seeds import parse, train_seeds
from learners.gym.set_values import with_values
from learners.gym.trainer import TrainSettings
from runtime.cli.main import main


def write(folder: Path, seed: int, score: float | None, algorithm: str = "xqc") -> None:
    folder.mkdir(parents=True)
    final = None if score is None else {"mean": score}
    body = {
        "environment": "CartPole-v1", "algorithm": algorithm, "steps": 100, "seed": seed, "final": final, "stopped": None,
        "evaluations": [{"step": 50, "mean": 20.0 + seed}, {"step": 100, "mean": score or 0.0}],
    }  # fmt: skip
    (folder / "results.json").write_bytes(orjson.dumps(body))


def test_seeds_are_listed_as_numbers_and_ranges() -> None:
    assert parse("0-3") == [0, 1, 2, 3]
    assert parse("7, 2,2-4") == [2, 3, 4, 7]
    for wrong in ("", "3-1", "a", "1-", "-1", "0-5000", "0..3"):
        with pytest.raises(ValueError, match="seeds"):
            parse(wrong)


def test_a_failed_seed_stops_no_other() -> None:
    told: dict[int, tuple[int, str]] = {}
    program = "import sys; print('first'); print('last words'); sys.exit(int(sys.argv[1] == '1'))"

    def report(seed: int, code: int, line: str) -> None:
        told[seed] = (code, line)

    failed = train_seeds([0, 1, 2], lambda seed: [sys.executable, "-S", "-c", program, str(seed)], report, workers=2)
    assert failed == [1]
    assert told == {0: (0, "last words"), 1: (1, "last words"), 2: (0, "last words")}


def test_the_interquartile_mean_leaves_outliers_out() -> None:
    middle, low, high = interquartile_mean([-1_000.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 900.0])
    assert middle == pytest.approx(3.5)
    assert low <= middle <= high
    assert interquartile_mean([5.0]) == (5.0, 5.0, 5.0)
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
    assert "new: CartPole-v1 xqc 100 steps  3 seeds  mean 360.0" in new
    assert new.endswith("lowest 100.0  failed: 1")
    assert old.endswith("no result  failed: 0")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert [group.failed(None) for group in groups([tmp_path / "new"])] == [[]]


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
    ):
        with pytest.raises(ValueError, match=problem):
            with_values(TrainSettings(), {name: value})


def test_a_value_without_a_name_is_refused(tmp_path: Path) -> None:
    for given, problem in (("learner.batch", "write NAME=VALUE"), ("policy.hidden=[1", "not YAML")):
        done = CliRunner().invoke(main, ["train", "CartPole-v1", "--out", str(tmp_path / "run"), "--set", given])
        assert done.exit_code == 2
        assert problem in done.output
