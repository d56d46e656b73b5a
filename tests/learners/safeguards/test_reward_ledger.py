"""Rewards find their decision and its version, in time or late."""

from __future__ import annotations

from learners.safeguards.reward_ledger import MOST, Ledger, LedgerEntry


def entry(n: int, version: str = "a") -> LedgerEntry:
    return LedgerEntry(f"s-{n}", n / 10, version, acted=True, refused=False)


def filled(count: int = 30) -> Ledger:
    ledger = Ledger(settle_s=1.0)
    for n in range(count):
        ledger.decided(entry(n))
    return ledger


def test_by_name_and_by_time() -> None:
    ledger = filled()
    assert ledger.credit("w", 1.0, "s-20") is None
    assert ledger.credit("w", 0.5, ledger.decision_at(2.05)) is None
    settled = {one.decision: one for one in ledger.settle(5.0)}
    assert settled["s-20"].rewards == {"w": 1.5}
    assert settled["s-20"].total() == 1.5
    assert settled["s-21"].total() is None


def test_unknown_decisions_are_counted() -> None:
    ledger = filled()
    ledger.credit("w", 1.0, "other")
    ledger.credit("w", 1.0, ledger.decision_at(99.0))  # long after the last one
    ledger.credit("w", 1.0, ledger.decision_at(-1.0))
    assert ledger.counts["unknown"] == 3


def test_settled_ones_are_given_once_and_late_rewards_name_them() -> None:
    ledger = filled()
    assert [one.decision for one in ledger.settle(2.0)] == [f"s-{n}" for n in range(11)]
    assert ledger.settle(2.0) == []
    late = ledger.credit("w", 1.0, "s-3")
    assert late is not None
    assert late.rewards == {"w": 1.0}
    assert ledger.counts["late"] == 1


def test_sources_left_out_do_not_count_and_the_own_reward_does() -> None:
    one = entry(0)
    one.own = 0.25
    one.rewards = {"w": 1.0, "x": -9.0}
    assert one.total(frozenset({"x"})) == 1.25


def test_neighbours_in_time() -> None:
    ledger = filled(40)
    settled = ledger.settle(3.0)
    near = {one.decision for one in ledger.around(settled[-1])}
    assert near == {f"s-{n}" for n in (*range(15, 20), *range(21, 26))}


def test_memory_is_bounded() -> None:
    ledger = filled(MOST + 50)
    assert len(ledger.settle(1e9)) == MOST
    for n in range(MOST):
        ledger.decided(entry(10_000 + n))
    ledger.settle(1e9)
    assert ledger.credit("w", 1.0, "s-100") is None
    assert ledger.decision_at(10.05) is None
    assert len(ledger._timeline) == MOST


def test_a_clock_that_is_set_back_delays_nothing_and_rewards_find_the_new_decisions() -> None:
    """The clock shows the last 3 seconds once more; the decisions of the two passes alternate in time."""
    ledger = filled()
    assert len(ledger.settle(2.9)) == 20
    again = [LedgerEntry(f"t-{n}", n / 10 + 0.05, "b", acted=True, refused=False) for n in range(30)]
    ledger.decided(again[0])
    assert [one.decision for one in ledger.settle(0.05)] == [f"s-{n}" for n in range(20, 30)]
    for one in again[1:]:
        ledger.decided(one)
        assert ledger.decision_at(one.stamp_s + 0.09) == one.decision
    assert [one.decision for one in ledger.settle(1.04)] == []
    assert len(ledger.settle(4.0)) == 30
    for n in range(MOST):
        ledger.decided(LedgerEntry(f"u-{n}", 5.0 + n, "b", acted=True, refused=False))
    ledger.settle(1e6)
    for n in range(MOST):  # all that was before is forgotten
        ledger.decided(LedgerEntry(f"v-{n}", 1e6 + n, "b", acted=True, refused=False))
    ledger.settle(2e6)
    assert ledger.decision_at(5.0) is None
