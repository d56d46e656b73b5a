"""An ingest, or the uplink of a settings file, as a process that a test may kill: `ingest PORT FOLDER NAME` or `uplink CONFIG`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fleet_world import BEGUN_S

from learners.fleet_data.parquet_log import ParquetLog
from runtime.config.loader import load
from runtime.fleet.ingest import Ingest
from runtime.fleet.topics import FleetTopics
from runtime.fleet.uplink_process import build
from runtime.mqtt import Address


async def ingest(port: str, folder: str, name: str) -> None:
    address, topics = Address("127.0.0.1", int(port)), FleetTopics("arms")
    await Ingest(name, address, ParquetLog(Path(folder), "arms"), topics, wall=lambda: BEGUN_S).run()


async def uplink(path: str) -> None:
    config = load(Path(path)).config
    assert config.fleet is not None
    made = build(config, config.fleet)
    made.answer_s, made.poll_s = (0.5, 1.0), 0.05
    await made.run()


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    asyncio.run({"ingest": ingest, "uplink": uplink}[role](*arguments))
