"""What Home Assistant hears over a real broker: discovery, birth, state."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from fakes import Mosquitto
from runtime.config.loader import load
from runtime.gate import ipc
from runtime.monitoring.home_assistant import BIRTH_TOPIC, Announcer, Discovery
from runtime.mqtt import Address, Connection, Message

CONFIG = load(Path(__file__).parents[3] / "configs" / "home.yaml").config


@asynccontextmanager
async def up(broker: Mosquitto, name: str, *filters: str) -> AsyncIterator[tuple[Connection, asyncio.Queue[Message]]]:
    link = Connection(Address("127.0.0.1", broker.port), name)
    received: asyncio.Queue[Message] = asyncio.Queue()
    for each in filters:
        link.subscribe(each, received.put_nowait, retained="send")
    task = asyncio.create_task(link.run())
    try:
        await asyncio.wait_for(link.up(), 60)
        yield link, received
    finally:
        task.cancel()
        await asyncio.wait([task])


async def next_on(received: asyncio.Queue[Message], topic: str) -> Message:
    async with asyncio.timeout(60):
        while (message := await received.get()).topic != topic:
            pass
    return message


async def test_home_assistant_hears_who_is_there_how_it_is_and_when_it_is_gone(broker: Mosquitto) -> None:
    discovery = Discovery(CONFIG, "0.1.0")
    health = {"policy": "000002", "mode": "shadow", "tick": {"p50_ms": 12.0}}
    async with (
        up(broker, "agent") as (link, _),
        up(broker, "home", "homeassistant/#", "reflexd/home/homeassistant/state") as (ha, received),
    ):
        outcomes = {"lamp": ipc.Outcome(True, None, "ON", "policy")}
        gate = SimpleNamespace(latest=ipc.GateVerdict("d", True, False, {}, outcomes))
        announcer = Announcer(discovery, link, SimpleNamespace(payload=lambda: health), gate)  # type: ignore[arg-type]
        link.subscribe(BIRTH_TOPIC, announcer.home_assistant_started)
        link.subscribe("reflexd/home/status", announcer.status_changed, retained="send")
        task = asyncio.create_task(announcer.run())
        assert json.loads((await next_on(received, discovery.topic)).payload)["dev"]["ids"] == ["reflexd_home"]
        state = json.loads((await next_on(received, discovery.state_topic)).payload)
        assert (state["policy"], state["actions"]) == ("000002", {"lamp": "ON"})
        ha.enqueue("reflexd/home/status", b'{"state": "online"}', qos=1, retain=True)
        ha.enqueue("homeassistant/status", b"online", qos=1)
        await next_on(received, discovery.topic)
        assert json.loads((await next_on(received, discovery.state_topic)).payload)["status"] == "online"
        task.cancel()
        await asyncio.wait([task])


async def test_state_comes_at_its_pace_and_no_faster(broker: Mosquitto) -> None:
    discovery = Discovery(CONFIG, "0.1.0")
    asked_s: list[float] = []

    def health() -> dict[str, object]:
        asked_s.append(time.monotonic())
        return {}

    async with up(broker, "agent") as (link, _), up(broker, "home", discovery.state_topic) as (_, received):
        task = asyncio.create_task(
            Announcer(
                discovery, link, SimpleNamespace(payload=health), SimpleNamespace(latest=None), period_s=0.2
            ).run()
        )
        for _ in range(2):
            await next_on(received, discovery.state_topic)
        task.cancel()
        await asyncio.wait([task])
    assert min(later_s - before_s for before_s, later_s in pairwise(asked_s)) > 0.15
