"""What a probation says, decision by decision, and that it goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest

from learners.ledger import Entry
from learners.probation import FILE, IDLE_S, PATIENCE, Probation, Verdict, under_way
from learners.watched import KEPT

RATE_HZ = 10


def decisions(
    version: str,
    seconds: int,
    mean: float,
    *,
    start_s: int = 0,
    refused: float = 0.0,
    acted: bool = True,
    seed: int = 0,
) -> Iterator[Entry]:
    rng = np.random.default_rng([seed, start_s])
    for n in range(seconds * RATE_HZ):
        stamp_s = start_s + n / RATE_HZ
        rewards = {"world": float(rng.normal(mean, 0.4)), "liar": -9.0}
        yield Entry(f"{version}-{stamp_s}", stamp_s, version, acted, bool(rng.random() < refused), None, rewards)


LIES = frozenset({"liar"})


def watched(probation: Probation, entries: Iterator[Entry]) -> Verdict | None:
    return probation.observe(entries, LIES)


def good(seconds: int = 120) -> Probation:
    probation = Probation(lasts_s=30.0)
    probation.trust("a")
    assert watched(probation, decisions("a", seconds, 1.0)) is None
    return probation


def test_a_worse_version_is_taken_out_within_seconds() -> None:
    probation = good()
    trial = probation.acts("b", 120.0)
    assert trial is not None
    verdict = watched(probation, decisions("b", 20, 0.0, start_s=120))
    assert verdict is not None
    assert (verdict.version, verdict.before, verdict.passed, verdict.why) == ("b", "a", False, "rewards")
    figures = verdict.figures
    assert figures["mean_now"] < figures["bound"] < figures["mean_before"] == pytest.approx(1.0, abs=0.05)
    assert figures["n"] <= 8
    assert figures["n_before"] == 119


def test_an_equal_one_passes_and_is_the_next_one_s_reference() -> None:
    probation = good()
    probation.acts("b", 120.0)
    verdict = watched(probation, decisions("b", 40, 1.0, start_s=120))
    assert verdict is not None
    assert (verdict.passed, verdict.why, verdict.figures["seconds"]) == (True, "time", 30)
    probation.trust("b")
    assert (probation.good, list(probation.confirmed)) == ("b", ["a", "b"])
    assert len(probation.known.rewards) == 30
    trial = probation.acts("c", 160.0)
    assert trial is not None
    assert trial.rewards is not None
    assert trial.rewards.reference.count == 30


def test_rewards_of_others_decisions_do_not_count() -> None:
    probation = good()
    probation.acts("b", 120.0)
    assert watched(probation, decisions("a", 20, -1.0, start_s=120)) is None
    assert watched(probation, decisions("b", 20, -1.0, start_s=140, acted=False)) is None
    assert probation.figures()["n"] == probation.figures()["seconds"] == 0


def test_refusals_alone_take_a_version_out() -> None:
    probation = good()
    probation.acts("b", 120.0)
    verdict = watched(probation, decisions("b", 20, 1.0, start_s=120, refused=0.7))
    assert verdict is not None
    assert (verdict.passed, verdict.why) == (False, "refusals")
    assert verdict.figures["refused_before"] == 0.0
    assert verdict.figures["refused_now"] > verdict.figures["refused_limit"] == pytest.approx(0.1)


def test_without_a_version_before_it_is_only_timed_and_says_so() -> None:
    probation = Probation(lasts_s=10.0)
    trial = probation.acts("a", 0.0)
    assert trial is not None
    verdict = watched(probation, decisions("a", 20, -1.0, refused=0.9))
    assert verdict is not None
    assert (verdict.passed, verdict.before) == (True, None)
    assert "no version before" in verdict.figures["not_compared"]
    assert probation.crashed() is None


def test_a_version_known_too_shortly_is_no_reference() -> None:
    probation = good(seconds=5)
    probation.acts("b", 5.0)
    assert "10 are needed" in probation.figures()["not_compared"]


def test_what_acted_before_stands_in_while_nothing_has_passed() -> None:
    probation = Probation(lasts_s=60.0)
    probation.acts("a", 0.0)
    watched(probation, decisions("a", 30, 1.0))
    trial = probation.acts("b", 30.0)
    assert trial is not None
    assert (trial.before, trial.rewards is not None) == ("a", True)
    superseding = probation.acts("c", 31.0)
    assert superseding is not None
    assert superseding.before == "a"


def test_known_versions_act_without_probation() -> None:
    probation = good()
    probation.acts("b", 120.0)
    assert probation.acts("b", 121.0) is None
    assert probation.acts("a", 122.0) is None
    assert (probation.trial, probation.good) == (None, "a")
    assert len(probation.known.rewards) == 119
    assert Probation(lasts_s=0.0).acts("x", 0.0) is None


def test_dying_twice_on_probation_is_a_verdict() -> None:
    probation = good()
    assert probation.crashed() is None
    probation.acts("b", 120.0)
    assert probation.crashed() is None
    verdict = probation.crashed()
    assert verdict is not None
    assert (verdict.why, verdict.figures["crashes"]) == ("crashes", 2)


def test_it_goes_on_after_a_restart_as_if_nothing_had_been() -> None:
    one = good()
    one.acts("b", 120.0)
    watched(one, decisions("b", 6, 0.8, start_s=120, refused=0.05))
    again = Probation(lasts_s=30.0)
    again.restore(orjson.loads(orjson.dumps(one.dump())))
    before, after = one.figures(), again.figures()
    assert after == before
    with pytest.raises(ValueError, match="format"):
        again.restore({**one.dump(), "format": 2})


def test_memory_is_bounded() -> None:
    probation = good(seconds=KEPT + 100)
    assert len(probation.known.rewards) == KEPT


def test_others_read_whether_one_is_under_way(tmp_path: Path) -> None:
    assert not under_way(tmp_path, 0.0)
    probation = good()
    probation.acts("b", 100.0)
    (tmp_path / FILE).write_bytes(orjson.dumps(probation.dump()))
    assert under_way(tmp_path, 101.0)
    assert not under_way(tmp_path, 100.0 + IDLE_S)  # it does not act
    watched(probation, decisions("b", 3, 1.0, start_s=120))
    (tmp_path / FILE).write_bytes(orjson.dumps(probation.dump()))
    assert under_way(tmp_path, 100.0 + IDLE_S)
    assert not under_way(tmp_path, 100.0 + PATIENCE * 30.0)
    probation.trust("b")
    (tmp_path / FILE).write_bytes(orjson.dumps(probation.dump()))
    assert not under_way(tmp_path, 101.0)
    (tmp_path / FILE).write_bytes(b"{")
    assert not under_way(tmp_path, 101.0)
