"""A source that contradicts the others is found; one that says something else, less, or nothing to compare is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from learners.safeguards.reward_ledger import Ledger, LedgerEntry
from learners.safeguards.source_consistency import MOST, Finding, Quarantine

RATE_HZ = 10
Source = Callable[[float], float | None]


def walk(seconds: int, seed: int = 0) -> list[float]:
    """Rewards as they may be: wandering over a few seconds."""
    rng = np.random.default_rng(seed)
    level, values = 1.0, []
    for _ in range(seconds * RATE_HZ):
        level += 0.1 * (0.6 - level) + rng.normal(0.0, 0.25)
        values.append(float(np.clip(level, -1, 2)))
    return values


def watch(
    court: Quarantine, truth: list[float], sources: dict[str, Source], own: Source = lambda _: None, start: int = 0
) -> list[tuple[int, Finding]]:
    """Findings, each with the second it came in."""
    ledger, found = Ledger(1.0), []
    for n, value in enumerate(truth):
        ledger.decided(LedgerEntry(f"s-{start + n}", n / RATE_HZ, "a", acted=True, refused=False, own=own(value)))
        for name, source in sources.items():
            said = source(value)
            if said is not None:
                ledger.credit(name, said, f"s-{start + n}")
        for entry in ledger.settle(n / RATE_HZ):
            one = entry
            found += [(n // RATE_HZ, finding) for finding in court.observe(one, lambda one=one: ledger.around(one))]  # type: ignore[misc]
    return found


def same(value: float) -> float:
    return value


def flipped(value: float) -> float:
    return -value


def sometimes(source: Callable[[float], float], share: float, seed: int = 1) -> Source:
    rng = np.random.default_rng(seed)
    return lambda value: source(value) if rng.random() < share else None


def test_a_flipped_source_is_named_within_minutes_and_the_honest_one_stays() -> None:
    court = Quarantine()
    found = watch(court, walk(300), {"world": same, "liar": sometimes(flipped, 0.25)})
    assert [(f.kind, f.source) for _, f in found] == [("contradicts", "liar")]
    second, finding = found[0]
    assert second < 150
    assert court.names == {"liar"}
    assert finding.figures["discordant"] > 0.9
    assert finding.figures["against"] == ["world"]
    assert finding.figures["evidence"] >= 1 / finding.figures["alpha"]


def test_sources_that_never_reward_the_same_decision_are_compared_over_time() -> None:
    turns = np.random.default_rng(2).random(100_000) < 0.2
    count = iter(range(100_000))
    whose = {"liar": False}

    def world(value: float) -> float | None:
        whose["liar"] = bool(turns[next(count)])
        return None if whose["liar"] else value

    def liar(value: float) -> float | None:
        return -value if whose["liar"] else None

    found = watch(Quarantine(), walk(900, seed=3), {"world": world, "liar": liar})
    assert [(f.kind, f.source) for _, f in found] == [("contradicts", "liar")]


def test_scaled_shifted_and_unrelated_sources_contradict_nobody() -> None:
    rng = np.random.default_rng(4)
    sources: dict[str, Source] = {
        "world": same,
        "tenth": lambda value: value / 10,
        "grumpy": lambda value: value - 5.0,
        "other": lambda _: float(rng.normal()),
        "constant": lambda _: 1.0,
    }
    assert watch(Quarantine(), walk(900, seed=5), sources) == []


def test_one_source_alone_has_nobody_to_contradict() -> None:
    assert watch(Quarantine(), walk(120), {"world": flipped}) == []


def test_two_of_equal_weight_are_both_left_and_it_is_said() -> None:
    court = Quarantine()
    found = watch(court, walk(200), {"one": same, "two": flipped})
    assert {f.kind for _, f in found} == {"disagree"}
    assert not court.kept


def test_among_three_the_odd_one_out_is_found() -> None:
    found = watch(Quarantine(), walk(300), {"one": same, "two": same, "odd": flipped})
    assert [(f.kind, f.source) for _, f in found] == [("contradicts", "odd")]


def test_a_source_against_the_tick_s_own_rewards_is_found_without_a_majority() -> None:
    found = watch(Quarantine(), walk(300), {"liar": flipped}, own=same)
    assert [(f.source, f.figures["against"]) for _, f in found] == [("liar", ["rewards of the tick"])]
    rng = np.random.default_rng(6)
    price = watch(Quarantine(), walk(600), {"world": same}, own=lambda value: -0.3 * value + float(rng.normal(0, 0.5)))
    assert price == []  # effort is priced: often the other way round, which contradicts nothing


def test_being_late_is_no_way_around() -> None:
    court, ledger, found = Quarantine(), Ledger(1.0), []
    court.observe(LedgerEntry("s", 0.0, "a", acted=True, refused=False, rewards={"world": 1.0}))
    truth = walk(200)
    for n, value in enumerate(truth):
        ledger.decided(LedgerEntry(f"s-{n}", n / RATE_HZ, "a", acted=True, refused=False))
        ledger.credit("world", value, f"s-{n}")
        for entry in ledger.settle(n / RATE_HZ):
            court.observe(entry)
        late = ledger.credit("liar", -truth[n - 50], f"s-{n - 50}")
        found += [] if late is None else court.judge(late, "liar")
    assert [finding.source for finding in found] == ["liar"]


def test_released_sources_are_trusted_and_all_survives_a_restart() -> None:
    court = Quarantine()
    watch(court, walk(200), {"world": same, "liar": sometimes(flipped, 0.25)})
    again = Quarantine()
    again.restore(court.dump())
    assert again.names == {"liar"}
    assert again.standings["world"].weight == court.standings["world"].weight > 1_000
    assert again.release("liar")
    assert not again.release("liar")
    assert watch(again, walk(200), {"world": same, "liar": sometimes(flipped, 0.25)}) == []
    once_more = Quarantine()
    once_more.restore(again.dump())
    assert once_more.released == {"liar"}


def test_the_file_is_checked_and_bounded() -> None:
    with pytest.raises(ValueError, match="format"):
        Quarantine().restore({"format": 9, "kept": {}, "released": [], "weights": {}})
    court = Quarantine()
    weights = {f"s{n}": n for n in range(MOST + 100)}
    court.restore({"format": 1, "kept": {}, "released": [], "weights": weights})
    assert len(court.standings) == MOST
    assert f"s{MOST + 99}" in court.standings
