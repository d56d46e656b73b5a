"""One agent has its part of a full store: what it sends alone, or calls demonstrations, displaces no other agent's rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from fleet_world import ticks

from learners.experience.transition import Transition
from learners.fleet_data.merging.merged_database import MergedDatabase, agent_of, session_name
from learners.fleet_data.trust.agent_shares import FAIR

MAX_BYTES = 1_500_000
HONEST = ("arm-1", "arm-2", "arm-3")
ROWS = 600
"""Of an honest agent: three of them have about two thirds of the store."""


def opened(folder: Path) -> MergedDatabase:
    return MergedDatabase(folder, max_bytes=MAX_BYTES, reserve=0.25)


def merge(database: MergedDatabase, agent: str, rows: Iterable[Transition], *, every: int = 256, **flags: bool) -> None:
    """Store rows of an agent, and trim between as the merger does."""
    found = list(rows)
    for start in range(0, len(found), every):
        with database:
            for each in found[start : start + every]:
                database.add(replace(each, session=session_name(agent, each.session), failure=False, **flags))
            database.trim(2e9)


def counts(database: MergedDatabase, condition: str = "1") -> Counter[str]:
    return Counter(
        agent_of(session) for (session,) in database._db.execute(f"SELECT session FROM transitions WHERE {condition}")
    )


def honest(database: MergedDatabase) -> None:
    """Rows of three agents; every tenth turn is a correction."""
    for turn in range(0, ROWS, 60):
        for agent in HONEST:
            merge(database, agent, ticks(turn, turn + 60, width=64), intervention=turn % 600 == 300)


@pytest.mark.parametrize("flags", [{}, {"demonstration": True}, {"intervention": True}, {"success": True}])
def test_an_agent_that_sends_alone_has_its_part_and_the_others_keep_theirs(
    tmp_path: Path, flags: dict[str, bool]
) -> None:
    database = opened(tmp_path)
    honest(database)
    corrections = counts(database, "intervention")
    assert set(counts(database).values()) == {ROWS}
    merge(database, "liar", ticks(0, 2_500, width=64), **flags)
    assert database.bytes <= MAX_BYTES
    part = database.shares()
    assert part["liar"] <= FAIR / 4 + 0.02
    assert sum(part[name] for name in HONEST) >= 1 - FAIR / 4 - 0.04
    left = counts(database, "intervention")
    assert all(left[name] >= corrections[name] for name in HONEST)
    newest = [
        tick
        for (tick,) in database._db.execute("SELECT tick FROM transitions WHERE session LIKE 'liar/%' ORDER BY row")
    ]
    assert newest[-1] == 2_499  # its own newest rows train, not its oldest
    database.close()
    again = opened(tmp_path)  # a restart counts the same
    assert again.shares() == pytest.approx(part, abs=0.04)
    merge(again, "liar", ticks(2_500, 3_000, width=64), **flags)
    assert again.shares()["liar"] <= FAIR / 4 + 0.02
    again.close()


def test_agents_that_are_gone_for_good_make_room(tmp_path: Path) -> None:
    database = opened(tmp_path)
    honest(database)
    database.protected = ["arm-9"]
    merge(database, "arm-9", ticks(0, 3_000, width=64))
    assert database.shares()["arm-9"] > 0.7
    assert database.bytes <= MAX_BYTES
    database.close()


def test_a_single_agent_has_all_of_the_store_and_its_corrections_stay(tmp_path: Path) -> None:
    database = opened(tmp_path)
    merge(database, "arm-1", ticks(0, 64, width=64), intervention=True)
    merge(database, "arm-1", ticks(64, 3_000, width=64))
    assert 0.9 < database.shares()["arm-1"] <= 1
    assert counts(database, "intervention")["arm-1"] == 64
    database.close()


def test_equal_agents_lose_their_oldest_rows_alike(tmp_path: Path) -> None:
    database = opened(tmp_path)
    for turn in range(0, 1_200, 64):
        for agent in HONEST:
            merge(database, agent, ticks(turn, turn + 64, width=64))
    found = counts(database)
    assert max(found.values()) - min(found.values()) <= 128
    for agent in HONEST:
        own = [
            row[0]
            for row in database._db.execute(
                "SELECT tick FROM transitions WHERE session LIKE ? ORDER BY row", (f"{agent}/%",)
            )
        ]
        assert own == list(range(own[0], 1_216))  # one run of neighbours: only the oldest are gone
    database.close()


def test_the_room_of_an_excluded_agent_is_free_at_once(tmp_path: Path) -> None:
    """Its bytes counted until the next start, and the others lost their oldest rows for it."""
    database = opened(tmp_path)
    honest(database)
    merge(database, "liar", ticks(0, 300, width=64))
    used = database.bytes
    with database:
        assert database.exclude("liar", "lies") > 0
    assert database.bytes < 0.95 * used
    assert "liar" not in database.shares()
    for agent in HONEST:
        merge(database, agent, ticks(ROWS, ROWS + 80, width=64))
    assert set(counts(database).values()) == {ROWS + 80}
    again = opened(tmp_path)
    assert (again.bytes, again.shares()) == (database.bytes, pytest.approx(database.shares(), abs=0.05))
