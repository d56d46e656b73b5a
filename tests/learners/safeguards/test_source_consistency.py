"""A source that contradicts the others is found; one that says something else, less, or nothing to compare is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from learners.config.rewards import TopicReward
from learners.safeguards.reward_ledger import Ledger, LedgerEntry
from learners.safeguards.source_consistency import MOST, THRESHOLD, Finding, Quarantine, SourceRule, source_rules

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
            reported = source(value)
            if reported is not None:
                ledger.credit(name, reported, f"s-{start + n}")
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


def ranked(**ranks: int | None) -> Quarantine:
    """All sources rate the same."""
    return Quarantine({name: SourceRule("comfort", rank) for name, rank in ranks.items()})


def test_a_flipped_source_of_less_authority_is_named_and_the_other_one_stays() -> None:
    court = ranked(world=2, liar=1)
    found = watch(court, walk(600), {"world": same, "liar": sometimes(flipped, 0.25)})
    assert [(f.kind, f.source) for _, f in found] == [("contradicts", "liar")]
    second, finding = found[0]
    assert second < 300
    assert court.names == {"liar"}
    assert finding.figures["discordant"] > 0.8
    assert finding.figures["against"] == ["world"]
    assert finding.figures["evidence"] >= THRESHOLD


def test_the_number_of_messages_does_not_make_a_source_right() -> None:
    court = ranked(sensor=1, person=3)
    found = watch(court, walk(2_400, seed=8), {"sensor": flipped, "person": sometimes(same, 0.05)})
    assert [(f.kind, f.source) for _, f in found] == [("contradicts", "sensor")]


def test_sources_that_never_reward_the_same_decision_are_compared_over_time() -> None:
    turns = np.random.default_rng(2).random(100_000) < 0.2
    count = iter(range(100_000))
    turn = {"liar": False}

    def world(value: float) -> float | None:
        turn["liar"] = bool(turns[next(count)])
        return None if turn["liar"] else value

    def liar(value: float) -> float | None:
        return -value if turn["liar"] else None

    found = watch(ranked(world=2, liar=1), walk(900, seed=3), {"world": world, "liar": liar})
    assert [(f.kind, f.source) for _, f in found] == [("contradicts", "liar")]


def test_scaled_and_shifted_sources_contradict_no_one() -> None:
    sources: dict[str, Source] = {
        "world": same, "tenth": lambda value: value / 10, "grumpy": lambda value: value - 5.0, "constant": lambda _: 1.0,
    }  # fmt: skip
    assert watch(ranked(world=2, tenth=1, grumpy=1, constant=1), walk(900, seed=5), sources) == []


def test_gain_and_price_are_no_contradiction_unless_the_settings_say_that_both_rate_the_same() -> None:
    sources: dict[str, Source] = {"comfort": same, "energy": lambda value: -0.3 * value}
    rules = {"comfort": SourceRule("comfort", 2), "energy": SourceRule("energy", 1)}
    assert watch(Quarantine(rules), walk(600), sources) == []
    assert watch(Quarantine(), walk(300), sources) == []
    assert watch(ranked(comfort=2, energy=1), walk(600), sources) != []


def test_without_a_difference_of_authority_both_are_reported() -> None:
    for court in (ranked(one=1, two=1), ranked(one=2, two=None)):
        found = watch(court, walk(300), {"one": same, "two": flipped})
        assert {f.kind for _, f in found} == {"disagree"}
        assert not court.isolated


def test_honest_hours_earn_no_credit_for_later_lies() -> None:
    count = iter(range(100_000))
    found = watch(
        ranked(world=2, liar=1), walk(2_400, seed=9),
        {"world": same, "liar": lambda value: value if next(count) < 1_800 * RATE_HZ else -value},
    )  # fmt: skip
    assert [f.source for _, f in found] == ["liar"]
    assert 1_800 < found[0][0] < 2_300


def test_a_source_that_lies_half_of_the_time_is_found() -> None:
    rng = np.random.default_rng(11)
    court = ranked(world=2, liar=1)
    found = watch(court, walk(7_200, seed=11), {"world": same, "liar": lambda v: v if rng.random() < 0.5 else -v})
    assert [f.source for _, f in found] == ["liar"]


def test_slow_honest_sources_with_errors_of_their_own_are_not_quarantined() -> None:
    rng = np.random.default_rng(12)
    slow = np.cumsum(rng.normal(size=36_000)) / 50
    sources: dict[str, Source] = {
        "one": lambda v: v + 0.3 * float(rng.normal()), "two": lambda v: v + 0.3 * float(rng.normal()),
    }  # fmt: skip
    assert watch(ranked(one=2, two=1), slow.tolist(), sources) == []


def test_the_tick_s_own_rewards_are_compared_where_the_settings_say_so() -> None:
    rules = {"liar": SourceRule("tick", 1)}
    found = watch(Quarantine(rules), walk(600), {"liar": flipped}, own=same)
    assert [(f.source, f.figures["against"]) for _, f in found] == [("liar", ["rewards of the tick"])]
    assert watch(Quarantine(), walk(300), {"liar": flipped}, own=same) == []


def test_being_late_is_no_way_around() -> None:
    court, ledger, found = ranked(world=2, liar=1), Ledger(1.0), []
    truth = walk(400)
    for n, value in enumerate(truth):
        ledger.decided(LedgerEntry(f"s-{n}", n / RATE_HZ, "a", acted=True, refused=False))
        ledger.credit("world", value, f"s-{n}")
        for entry in ledger.settle(n / RATE_HZ):
            court.observe(entry)
        late = ledger.credit("liar", -truth[n - 50], f"s-{n - 50}")
        found += [] if late is None else court.judge(late, "liar")
    assert [finding.source for finding in found] == ["liar"]


def test_a_released_source_is_never_quarantined_again_and_all_survives_a_restart() -> None:
    court = ranked(world=2, liar=1)
    watch(court, walk(400), {"world": same, "liar": sometimes(flipped, 0.25)})
    again = ranked(world=2, liar=1)
    again.restore(court.dump())
    assert again.names == {"liar"}
    assert again.release("liar")
    assert not again.release("liar")
    found = watch(again, walk(400), {"world": same, "liar": sometimes(flipped, 0.25)})
    assert {finding.kind for _, finding in found} == {"disagree"}
    assert not again.isolated
    once_more = Quarantine()
    once_more.restore(again.dump())
    assert once_more.released == {"liar"}


def test_the_file_is_checked_and_the_comparisons_are_bounded() -> None:
    with pytest.raises(ValueError, match="format"):
        Quarantine().restore({"format": 9, "kept": {}, "released": []})
    before = Quarantine()
    before.restore({"format": 1, "kept": {"liar": {}}, "released": [], "weights": {"liar": 3}})
    assert before.names == {"liar"}
    court = ranked(**{f"s{n}": 1 for n in range(40)})
    entry = LedgerEntry("s-0", 0.0, "a", acted=True, refused=False, rewards={f"s{n}": 1.0 for n in range(40)})
    court.observe(entry)
    assert len(court.comparisons) == MOST


def test_rules_come_from_the_settings_of_the_rewards() -> None:
    reward = TopicReward.model_validate(
        {
            "name": "wire",
            "kind": "topic",
            "sources": {"ann": {"rates": "comfort", "authority": "operator"}, "lamp": {"rates": "comfort", "authority": 7},
                        "bob": {"rates": "energy"}},
        }
    )  # fmt: skip
    rules = source_rules([reward])
    assert rules == {
        "ann": SourceRule("comfort", 3),
        "lamp": SourceRule("comfort", 7),
        "bob": SourceRule("energy", None),
    }
