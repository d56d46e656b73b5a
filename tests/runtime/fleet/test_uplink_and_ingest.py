"""Real processes around a real broker: what a device sent is on the fleet's disk once, whoever is killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from fleet_world import closed_rows, fill, rows_on_disk, ticks

from fakes import Mosquitto, eventually
from learners.fleet.parquet_log import ParquetLog
from learners.ipc.outbox import Outbox
from runtime.config.loader import load
from runtime.fleet.__main__ import build
from runtime.fleet.ingest import Ingest
from runtime.fleet.topics import FleetTopics
from runtime.fleet.uplink import ByteBudget, Uplink
from runtime.mqtt import Address, Connection

KILLS = int(os.environ.get("FLEET_KILLS", "1"))
ROOT = Path(__file__).resolve().parents[3]
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
    return Ingest(name, Address("127.0.0.1", broker.port), ParquetLog(folder, "arms"), FleetTopics("arms"))


def covered(folder: Path, agent: str = "robot") -> int:
    """The last row up to which the rest of an agent's experience is on the fleet's disk."""
    path = folder / "arms" / "agents" / agent / "position.json"
    lanes = next(iter(orjson.loads(path.read_bytes()).values())) if path.exists() else {}
    return int(lanes.get("rest", 0))


def row_numbers(folder: Path) -> list[int]:
    return sorted(row["row"] for row in rows_on_disk(folder / "arms"))


async def test_kill_9_of_uplink_and_ingest_loses_and_repeats_no_row(tmp_path: Path, broker: Mosquitto) -> None:
    path, data = device(tmp_path, broker.url), tmp_path / "data"
    begun_s, stored = time.time() - 1_000, 0
    roles = {"ingest": ("ingest", broker.port, data, "ingest-0"), "uplink": ("uplink", path)}
    children = {name: started(*role) for name, role in roles.items()}
    try:
        for _ in range(KILLS):
            fill(tmp_path / "robot", ticks(stored, stored + 320, width=700, begun_s=begun_s))
            stored += 320
            before = covered(data)
            await eventually(lambda before=before: covered(data) > before, "a segment on disk")  # type: ignore[misc]
            for each in children.values():
                each.kill()
                each.wait()
            children = {name: started(*role) for name, role in roles.items()}
        await eventually(lambda: covered(data) == stored - 1, "all closed rows on disk", 90)
        assert row_numbers(data) == closed_rows(stored)
    finally:
        for each in children.values():
            each.kill()
            each.wait()


async def test_two_ingests_share_the_agents_and_refuse_a_stranger(tmp_path: Path, broker: Mosquitto) -> None:
    data = tmp_path / "data"
    ingests = [ingest_on(broker, data, f"ingest-{number}") for number in range(2)]
    uplinks = []
    for agent in ("one", "two", "three"):
        path = device(tmp_path, broker.url, agent)
        fill(tmp_path / agent, ticks(0, 200, begun_s=time.time() - 1_000, session=agent))
        uplinks.append(uplink_of(path))
    stranger, answers = Connection(Address("127.0.0.1", broker.port), "stranger"), list[Any]()
    stranger.subscribe("reflexd/fleet/arms/ack/+", lambda message: answers.append(orjson.loads(message.payload)))
    async with running(*ingests, *uplinks, stranger):
        agents = ("one", "two", "three")
        await eventually(lambda: all(covered(data, agent) == 191 for agent in agents), "all rows on disk")
        taken = next(data.rglob("agent=one/*.parquet"))
        stranger.enqueue("reflexd/fleet/arms/up/two", b"no segment", qos=1)
        await eventually(lambda: any(answer["refused"] for answer in answers), "a refusal")
    assert taken.exists()
    assert len(rows_on_disk(data / "arms")) == 3 * 191
    assert sum(ingest.counts["stored"] for ingest in ingests) == 6
    assert sum(ingest.counts["refused"] for ingest in ingests) == 1


async def test_rows_of_another_spec_are_apart_and_the_agent_learns_why(tmp_path: Path, broker: Mosquitto) -> None:
    data = tmp_path / "data"
    begun_s = time.time() - 1_000
    first = uplink_of(device(tmp_path, broker.url, "first"))
    other = uplink_of(device(tmp_path, broker.url, "other", spec=b'{"other": 1}'))
    for agent in ("first", "other"):
        fill(tmp_path / agent, ticks(1_000, 1_100, begun_s=begun_s))
    async with running(ingest_on(broker, data), first):
        await eventually(lambda: covered(data, "first") == 95, "rows of the first")
    async with running(ingest_on(broker, data), other):
        await eventually(lambda: other.apart is not None, "the reason")
    assert {row["agent"] for row in rows_on_disk(data / "arms")} == {"first"}
    assert {row["agent"] for row in rows_on_disk(data / "arms", "apart")} == {"other"}
    events = Outbox(tmp_path / "other" / "learner" / "outbox").collect()
    assert [event.kind for event in events] == ["fleet_rows_apart"]
    assert "differs from the fleet's" in events[0].fields["reason"]


def test_the_budget_saves_a_burst_and_no_more() -> None:
    now_s = 0.0
    budget = ByteBudget(3_600.0, burst=100.0, clock=lambda: now_s)
    assert budget.wait_s(100) == 0
    budget.spend(100)
    assert budget.wait_s(60) == pytest.approx(60)
    now_s = 30.0
    assert budget.wait_s(60) == pytest.approx(30)
    now_s = 10_000.0
    assert budget.wait_s(100) == 0
    assert budget.wait_s(101) > 0
