"""Rewards with a time stamp find their decision; the agent's ledger and the experience store find the same one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.experience.database import Database
from learners.experience.reader import Reader
from learners.experience.records import Credit
from learners.experience.transition import Transition
from learners.rewards.credit_assignment import MAX_DELAY_S, decision_in_force
from learners.safeguards.reward_ledger import Ledger, LedgerEntry

TIMELINE = [(10.0, "a"), (10.1, "b"), (10.1, "c"), (10.2, "d")]


@pytest.mark.parametrize(
    ("stamp_s", "expected"),
    [
        (9.99, None),
        (10.0, "a"),
        (10.05, "a"),
        (10.1, "c"),
        (10.2, "d"),
        (10.2 + MAX_DELAY_S - 0.01, "d"),
        (10.21 + MAX_DELAY_S, None),
    ],
)
def test_newest_decision_at_or_before_the_stamp(stamp_s: float, expected: str | None) -> None:
    assert decision_in_force(TIMELINE, stamp_s) == expected


def test_no_decision_at_all() -> None:
    assert decision_in_force([], 1.0) is None


seconds = st.integers(0, 600).map(lambda tenths: 1_750_000_000.0 + tenths / 10)


@settings(max_examples=50, deadline=None)  # each makes a database
@given(stamps=st.lists(seconds, min_size=1, max_size=30), rewards=st.lists(seconds, min_size=1, max_size=8))
def test_ledger_and_store_agree_even_where_the_wall_clock_went_back(stamps: list[float], rewards: list[float]) -> None:
    ledger = Ledger(settle_s=1.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = Database(folder, max_bytes=10**9, reserve=0.1, raw_retention_s=1.0)
        with database:
            for n, stamp_s in enumerate(stamps):
                ledger.decided(LedgerEntry(f"s-{n}", stamp_s, "v", acted=True, refused=False))
                database.add(Transition("s", n, f"s-{n}", stamp_s, "v"))
            ledger.settle(stamps[0])
            for n, stamp_s in enumerate(rewards):
                database.credit(Credit(1.0, None, stamp_s, False, f"source-{n}"), stamp_s)
        database.close()
        with Reader(folder) as reader:
            decisions = {row.row: row.transition.decision for row in reader.rows(0, 1_000)}
            found = {one.source: decisions[one.row] for one in reader.rewards()}
    for n, stamp_s in enumerate(rewards):
        assert found.get(f"source-{n}") == ledger.decision_at(stamp_s)
