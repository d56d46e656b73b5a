"""A device's experience, and what a fleet has on disk, for tests of the fleet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fakes import FakeClock
from learners.config.learner import ExperienceSettings
from learners.experience.database import BLOCK, Database
from learners.experience.records import Mark
from learners.experience.transition import Transition
from learners.fleet_data.uplink_queue import UplinkIdentity, UplinkQueue

BEGUN_S = 1_800_000_000.0
IDENTITY = UplinkIdentity(group="arms", agent="robot", spec="5" * 64, daemon="0.1.0")
FAILURES = (40, 300)
"""Ticks of `fill` that fail; row numbers are one above."""


def ticks(
    start: int, stop: int, *, width: int = 4, version: str = "v1", session: str = "s", begun_s: float = BEGUN_S
) -> Iterable[Transition]:
    """Ticks of one session, one each 20 ms, with some that fail."""
    random = np.random.default_rng(start)
    for tick in range(start, stop):
        yield Transition(
            session,
            tick,
            f"{session}-{tick}",
            begun_s + 0.02 * tick,
            "000001-aaaaaaaa",
            tokens={"joints": random.normal(size=(1, width)).astype(np.float32)},
            encoder_versions={"joints": version},
            present={"joints": True},
            actions={"head": "left"},
            probabilities={"head": 0.25},
            failure=tick in FAILURES,
        )


def database(state: Path) -> Database:
    """The writer of the experience of a state folder."""
    folder = state / "experience"
    folder.mkdir(parents=True, exist_ok=True)
    s = ExperienceSettings()
    return Database(folder, max_bytes=1 << 30, reserve=0.25, raw_retention_s=s.raw_retention_s)


def fill(state: Path, transitions: Iterable[Transition], marks: Iterable[Mark] = ()) -> None:
    """Store ticks and marks as the agent does."""
    db = database(state)
    with db:
        for each in transitions:
            db.add(each)
        for mark in marks:
            assert db.mark(mark)
    db.close()


def queue(state: Path, *, bytes_per_hour: float = 1e12, after_s: float = 3_600.0, **more: Any) -> UplinkQueue:
    """The queue of an uplink, an hour after the experience began."""
    clock = FakeClock(BEGUN_S + after_s)
    return UplinkQueue(state, bytes_per_hour=bytes_per_hour, max_age_s=1e6, clock=clock.now, **more)


def rows_on_disk(folder: Path, part: str = "rows") -> list[dict[str, Any]]:
    """Every row of a part of a group's log, with the agent of its file."""
    found = []
    for path in sorted((folder / part).rglob("*.parquet")):
        agent = path.parent.name.removeprefix("agent=")
        found += [{**row, "agent": agent} for row in pq.ParquetFile(path).read().to_pylist()]
    return found


def closed_rows(count: int) -> list[int]:
    """Numbers of the rows in closed blocks of a store with `count` rows."""
    return list(range(1, count // BLOCK * BLOCK))


def one_payload(state: Path) -> bytes:
    """Return one segment of 70 rows as it is sent."""
    fill(state, ticks(1_000, 1_070))
    uplink = queue(state)
    pending = uplink.next(IDENTITY)
    uplink.close()
    assert pending is not None
    return pending.payload
