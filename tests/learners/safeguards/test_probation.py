"""What a probation says, decision by decision, and that it goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from learners.safeguards.probation import FILE, IDLE_S, PATIENCE, Probation, ProbationVerdict, on_probation
from learners.safeguards.reward_ledger import LedgerEntry
from learners.safeguards.version_statistics import KEPT, KEPT_EPISODES

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
) -> Iterator[LedgerEntry]:
    rng = np.random.default_rng([seed, start_s])
    for n in range(seconds * RATE_HZ):
        stamp_s = start_s + n / RATE_HZ
        rewards = {"world": float(rng.normal(mean, 0.4)), "liar": -9.0}
        yield LedgerEntry(f"{version}-{stamp_s}", stamp_s, version, acted, bool(rng.random() < refused), None, rewards)


LIES = frozenset({"liar"})


def watched(probation: Probation, entries: Iterator[LedgerEntry]) -> ProbationVerdict | None:
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
    assert trial.compared.rewards is not None
    assert trial.compared.rewards.reference.count == 30


def test_rewards_of_others_decisions_do_not_count() -> None:
    probation = good()
    probation.acts("b", 120.0)
    assert watched(probation, decisions("a", 20, -1.0, start_s=120)) is None
    assert watched(probation, decisions("b", 20, -1.0, start_s=140, acted=False)) is None
    assert probation.figures()["n"] == probation.figures()["seconds"] == 0


def episodes(version: str, lengths: Sequence[int], start_s: float = 0.0) -> Iterator[LedgerEntry]:
    """A reward of 1 a tick and an end after so many: every second earns the same, and only returns tell."""
    stamp_s = start_s
    for length in lengths:
        for n in range(length):
            stamp_s += 1 / RATE_HZ
            name = f"{version}-{stamp_s}"
            yield LedgerEntry(name, stamp_s, version, True, False, None, {"world": 1.0}, done=n == length - 1)


def balancing(version: str = "a") -> Probation:
    """A version is known that holds the pole for 20 s; the first episode was another's when it began."""
    probation = Probation(lasts_s=30.0)
    probation.trust(version)
    watched(probation, episodes(version, [200] * 9))
    assert list(probation.known.returns) == [200.0] * 8
    return probation


def test_shorter_episodes_take_a_version_out_though_every_tick_earns_the_same() -> None:
    probation = balancing()
    probation.acts("b", 180.0)
    verdict = watched(probation, episodes("b", [90, 60, 65, 55, 62, 58], start_s=180))
    assert verdict is not None
    assert (verdict.passed, verdict.why, verdict.before) == (False, "returns", "a")
    assert verdict.figures["mean_now"] == verdict.figures["mean_before"] == 1.0
    told = verdict.figures["returns"]
    assert (told["mean_before"], told["mean_now"], told["n"]) == (200.0, 60.0, 3)
    assert told["margin"] == pytest.approx(0.05 * 200)


def test_probation_waits_for_three_whole_episodes_and_the_next_reference_has_at_least_five() -> None:
    probation = balancing()
    probation.acts("b", 180.0)
    verdict = watched(probation, episodes("b", [90, 200, 200, 200, 200], start_s=180))
    assert verdict is not None
    assert (verdict.passed, verdict.figures["seconds"]) == (True, 60)  # 9 + 20 + 20 are over 30, but only two are whole
    probation.trust("b")
    assert list(probation.known.returns) == [200.0] * 5  # two of `a` and three of `b`
    watched(probation, episodes("b", [150] * 3, start_s=240))
    assert list(probation.known.returns)[:5] + list(probation.known.returns)[6:] == [200.0] * 5 + [150.0] * 2
    watched(probation, episodes("b", [200] * 30, start_s=300))
    assert len(probation.known.returns) == len(probation.known.lengths) == KEPT_EPISODES


def test_an_episode_that_never_ends_counts_after_three_times_the_longest() -> None:
    probation = Probation(lasts_s=300.0)
    probation.trust("a")
    down = [replace(entry, rewards={"world": -1.0}) for entry in episodes("a", [80] * 9)]
    watched(probation, iter(down))
    probation.acts("b", 72.0)
    hanging = [replace(entry, rewards={"world": -1.0}, done=False) for entry in episodes("b", [2_000], start_s=72)]
    verdict = watched(probation, iter(hanging))
    assert verdict is not None
    assert (verdict.why, verdict.figures["returns"]["mean_now"]) == ("returns", -240.0)


def test_an_episode_somebody_took_part_in_is_nobodys() -> None:
    probation = balancing()
    ticks = list(episodes("a", [200, 200], start_s=180))
    ticks[100] = replace(ticks[100], acted=False)
    watched(probation, iter(ticks))
    assert list(probation.known.returns) == [200.0] * 9
    probation.acts("b", 220.0)
    watched(probation, episodes("b", [50, 50], start_s=220))
    watched(probation, episodes("a", [10, 10], start_s=230))
    probation.trust("a")
    watched(probation, episodes("a", [30, 200], start_s=240))
    assert list(probation.known.returns) == [200.0] * 10


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
    assert "no earlier version" in verdict.figures["not_compared"]
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
    assert (trial.before, trial.compared.rewards is not None) == ("a", True)
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


def test_returns_outlive_a_restart() -> None:
    one = balancing()
    one.acts("b", 180.0)
    watched(one, episodes("b", [90, 150, 160], start_s=180))
    again = Probation(lasts_s=30.0)
    again.restore(orjson.loads(orjson.dumps(one.dump())))
    assert again.figures() == one.figures()
    assert again.figures()["returns"]["n"] == 2
    older = one.dump()
    for body in (older["known"], older["trial"]["watched"]):
        del body["returns"], body["lengths"]
    again.restore(older)
    assert "returns" not in again.figures()
    broken = one.dump()
    del broken["known"]["lengths"][0]
    with pytest.raises(ValueError, match="8 returns of 7 episodes"):
        again.restore(broken)


def test_memory_is_bounded() -> None:
    probation = good(seconds=KEPT + 100)
    assert len(probation.known.rewards) == KEPT


def test_others_read_whether_one_is_under_way(tmp_path: Path) -> None:
    assert not on_probation(tmp_path, 0.0)
    probation = good()
    probation.acts("b", 100.0)
    (tmp_path / FILE).write_bytes(orjson.dumps(probation.dump()))
    assert on_probation(tmp_path, 101.0)
    assert not on_probation(tmp_path, 100.0 + IDLE_S)  # it does not act
    watched(probation, decisions("b", 3, 1.0, start_s=120))
    (tmp_path / FILE).write_bytes(orjson.dumps(probation.dump()))
    assert on_probation(tmp_path, 100.0 + IDLE_S)
    assert not on_probation(tmp_path, 100.0 + PATIENCE * 30.0)
    probation.trust("b")
    (tmp_path / FILE).write_bytes(orjson.dumps(probation.dump()))
    assert not on_probation(tmp_path, 101.0)
    (tmp_path / FILE).write_bytes(b"{")
    assert not on_probation(tmp_path, 101.0)
