"""A state folder that someone copied back by hand: rows under numbers that the fleet has for other rows are stored, not lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fleet_world import BEGUN_S, IDENTITY, fill, queue, rows_on_disk, ticks

from learners.fleet_data.parquet_log import ParquetLog
from learners.fleet_data.segment import unpack


def drain(state: Path, log: ParquetLog) -> list[str]:
    """Send everything; return the outcomes."""
    uplink, outcomes = queue(state), list[str]()
    for _ in range(40):
        pending = uplink.next(IDENTITY)
        if pending is not None:
            stored = log.append(unpack(pending.payload))
            outcomes.append(stored.outcome)
            uplink.acknowledge(pending.digest, stored.last)
    uplink.close()
    return outcomes


@pytest.mark.parametrize(("copied", "lost"), [(640, 160), (320, 64), (512, 500)])
def test_every_row_of_the_new_life_is_stored(tmp_path: Path, copied: int, lost: int) -> None:
    state, log = tmp_path / "state", ParquetLog(tmp_path / "fleet", "arms")
    fill(state, ticks(0, copied, session="A"))
    drain(state, log)
    shutil.copytree(state, tmp_path / "copy")
    fill(state, ticks(copied, copied + lost, session="A"))
    drain(state, log)
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "copy", state)
    fill(state, ticks(copied, copied + 1_500, session="B", begun_s=BEGUN_S + 30))
    outcomes = drain(state, log)
    rows = [row["row"] for row in rows_on_disk(tmp_path / "fleet" / "arms") if row["session"] == "B"]
    assert "overlap" in outcomes or "duplicate" in outcomes, "the case is made"
    assert min(rows) == copied + 1
    assert len(rows) == len(set(rows)) == max(rows) - copied
