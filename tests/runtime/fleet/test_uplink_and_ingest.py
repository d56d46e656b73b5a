"""Real processes around a real broker: what a device sent is on the fleet's disk once, whoever is killed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from fleet_parts import covered, device, ingest_on, row_numbers, running, started, uplink_of
from fleet_world import closed_rows, fill, rows_on_disk, ticks

from fakes import Mosquitto, eventually
from learners.ipc.outbox import Outbox
from runtime.fleet.uplink import ByteBudget
from runtime.mqtt import Address, Connection

KILLS = int(os.environ.get("FLEET_KILLS", "1"))
"""Times that all processes are killed."""


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


async def test_rows_that_are_too_large_are_an_event_once_an_hour(tmp_path: Path) -> None:
    uplink = uplink_of(device(tmp_path, "mqtt://127.0.0.1:1"))
    for rows, now_s in ((0, 0.0), (3, 10.0), (5, 20.0), (9, 3_611.0)):
        uplink.queue.counts["too_large"] = rows
        uplink.post_too_large(now_s)
    events = Outbox(tmp_path / "robot" / "learner" / "outbox").collect()
    assert [(event.kind, event.fields["rows"]) for event in events] == [
        ("fleet_rows_too_large", 3),
        ("fleet_rows_too_large", 6),
    ]
    uplink.queue.close()
