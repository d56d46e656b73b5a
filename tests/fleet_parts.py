"""Parts of a fleet around a real broker, in this process and in processes of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
from fleet_world import BEGUN_S, rows_on_disk

from fakes import Mosquitto
from learners.fleet_data.parquet_log import ParquetLog
from runtime.config.loader import load
from runtime.fleet.ingest import Ingest
from runtime.fleet.topics import FleetTopics
from runtime.fleet.uplink import Uplink
from runtime.fleet.uplink_process import build
from runtime.mqtt import Address, Connection

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
agent: {agent}
state_dir: {state}
streams: {{joints: {{kind: telemetry, source: "topic:joints", fields: [a]}}}}
actuators: {{head: {{kind: choice, choices: [left, right], safe: left}}}}
fleet: {{group: {group}, url: "{url}", upload_kib_per_hour: 1000000}}
"""


def device(folder: Path, url: str, agent: str = "robot", group: str = "arms", spec: bytes = b"{}") -> Path:
    """Settings and the spec of an agent; its experience began 1,000 s ago."""
    state = folder / agent
    (state / "learner").mkdir(parents=True)
    (state / "learner" / "spec.json").write_bytes(spec)
    os.utime(state / "learner" / "spec.json", (1e9, 1e9))
    path = folder / f"{agent}.yaml"
    path.write_text(CONFIG.format(agent=agent, state=state, url=url, group=group))
    return path


def started(*arguments: object) -> subprocess.Popen[bytes]:
    script = ROOT / "tests" / "fleet_child.py"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen([sys.executable, str(script), *map(str, arguments)], env=environment)


@asynccontextmanager
async def running(*parts: Ingest | Uplink | Connection) -> AsyncIterator[None]:
    """Parts of a fleet in this process, connected."""
    tasks = [asyncio.create_task(part.run()) for part in parts]
    try:
        for part in parts:
            await (part if isinstance(part, Connection) else part.link).up()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def uplink_of(path: Path) -> Uplink:
    config = load(path).config
    assert config.fleet is not None
    uplink = build(config, config.fleet)
    uplink.answer_s, uplink.poll_s = (0.5, 1.0), 0.02
    return uplink


def ingest_on(broker: Mosquitto, folder: Path, name: str = "ingest-0") -> Ingest:
    address, topics = Address("127.0.0.1", broker.port), FleetTopics("arms")
    return Ingest(name, address, ParquetLog(folder, "arms"), topics, wall=lambda: BEGUN_S)


def covered(folder: Path, agent: str = "robot") -> int:
    """The last row up to which the rest of an agent's experience is on the fleet's disk."""
    path = folder / "arms" / "agents" / agent / "position.json"
    lanes = next(iter(orjson.loads(path.read_bytes()).values())) if path.exists() else {}
    return int(lanes.get("rest", 0))


def row_numbers(folder: Path) -> list[int]:
    return sorted(row["row"] for row in rows_on_disk(folder / "arms"))
