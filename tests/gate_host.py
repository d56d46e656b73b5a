"""The gate's host on a real broker with a real socket pair; the test is agent, device and operator."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from wire_helpers import running

from actuators.safety.decisions import Proposal
from fakes import Mosquitto, eventually
from runtime.config.schema import Config
from runtime.gate import ipc
from runtime.gate.build import build_host
from runtime.gate.host import GateHost
from runtime.gate.info import InfoBuilder
from runtime.gate.operator_commands import OperatorCommands
from runtime.mqtt import Address, Connection, Message
from runtime.mqtt.subscriber import RESUMED_S
from runtime.mqtt.topics import Refused, Topics, encode
from runtime.process.systemd import Notifier

TOPICS = Topics("tester")
SETTINGS: dict[str, Any] = {
    "agent": "tester",
    "tick": {"rate_hz": 20},
    "streams": {"joints": {"kind": "telemetry", "source": "topic", "fields": ["a"], "required": True}},
    "actuators": {
        "head": {"kind": "choice", "choices": ["left", "stay", "right"], "safe": "stay"},
        "arm": {"kind": "continuous", "low": [-1, -1], "high": [1, 1], "safe": [0, 0]},
        "lamp": {
            "kind": "choice",
            "choices": ["OFF", "ON"],
            "safe": "OFF",
            "topic": "zigbee2mqtt/lamp/set",
            "payload": '{"state": "${value}"}',
            "state_topic": "zigbee2mqtt/lamp",
            "state_value": "state",
        },
    },
    "gate": {"reconcile_s": 0.1},
    "learner": {"enabled": False},
}


def resumed(world: World) -> bool:
    """Whether the broker may still be sending what it stored while the gate was away."""
    return time.monotonic() - world.host.safety._inbound.resumed_s < RESUMED_S


class World:
    """Everything around the host."""

    def __init__(self, host: GateHost, outside: Connection, agent: socket.socket) -> None:
        self.host, self.outside, self.agent = host, outside, agent
        self.messages: list[Message] = []
        self.reloads = 0
        outside.subscribe("#", self.messages.append, retained="send")
        self.ticks = 0

    def of(self, *parts: str) -> list[Any]:
        topic = TOPICS(*parts)
        return [orjson.loads(m.payload) for m in self.messages if m.topic == topic and m.payload]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.of("event") if event["type"] == kind]

    def commands(self, name: str = "head") -> list[dict[str, Any]]:
        return self.of("act", name, "set")

    async def reload(self) -> dict[str, Any]:
        self.reloads += 1
        if self.reloads == 2:
            raise Refused("line 3: no")
        return {"changed": []}

    def proposal(self, actions: dict[str, Any], **more: Any) -> Proposal:
        """The next proposal of the agent."""
        self.ticks += 1
        agreement = self.host.channel.agreement
        values = {"stamp_s": time.monotonic(), "actions": actions, "agreement": agreement} | more
        return Proposal(tick=self.ticks, decision=f"d{self.ticks}", policy="p1", **values)

    async def propose(self, actions: dict[str, Any], **more: Any) -> ipc.GateVerdict:
        """One tick of the agent."""
        proposal = self.proposal(actions, **more)
        loop = asyncio.get_running_loop()
        self.agent.send(ipc.pack(proposal))
        async with asyncio.timeout(60):
            while True:
                verdict = ipc.unpack(await loop.sock_recv(self.agent, ipc.MAX_MESSAGE))
                assert isinstance(verdict, ipc.GateVerdict)
                if verdict.decision == proposal.decision:
                    return verdict

    async def armed(self, *, ask_again: bool = False) -> None:
        """Tick until the gate is armed; on a busy machine the dead-man may act in between, and a request to arm ends with it."""
        async with asyncio.timeout(60):
            while not (await self.propose({})).armed:
                if ask_again:
                    await self.ask("arm")
                await asyncio.sleep(0.02)

    async def ticks_of(self, count: int) -> None:
        """Propose nothing a number of times."""
        for _ in range(count):
            await self.propose({})
            await asyncio.sleep(0.02)

    async def moving(self, value: str) -> None:
        """Tick until the head received `value`; a slow machine may let the dead-man act in between."""
        async with asyncio.timeout(60):
            while not (await self.propose({"head": value})).outcomes["head"].sent:  # noqa: ASYNC110 - the agent's own pace
                await asyncio.sleep(0.02)
        await eventually(lambda: any(c["value"] == value for c in self.commands()))

    async def ask(self, verb: str, **body: Any) -> dict[str, Any]:
        answer = await self.outside.request(
            TOPICS("request", verb), encode(body) if body else b"", reply_to=TOPICS("response", "me"), timeout_s=60
        )
        data: dict[str, Any] = orjson.loads(answer.payload)
        return data

    async def send(self, topic: str, body: dict[str, Any], *, retain: bool = False) -> None:
        await self.outside.publish(topic, encode(body), retain=retain)


def make_host(folder: Path, port: int, **changes: Any) -> GateHost:
    url = {"mqtt": {"url": f"mqtt://127.0.0.1:{port}"}}
    config = Config.model_validate(SETTINGS | {"state_dir": folder} | url | changes)
    return build_host(config, Notifier(), InfoBuilder(config, "1.2.3"))


@asynccontextmanager
async def world_of(folder: Path, broker: Mosquitto, **changes: Any) -> AsyncIterator[World]:
    host = make_host(folder, broker.port, **changes)
    gate_end, agent_end = ipc.pair()
    world = World(host, Connection(Address("127.0.0.1", broker.port), "outside"), agent_end)
    operators = OperatorCommands(host, world.reload)
    async with running(world.outside), running(host.safety), running(host.connection):
        jobs = [
            asyncio.create_task(job)
            for job in (host.run(), host.latches.run(), host.listener.follow_latch(), operators.serve())
        ]
        host.channel.attach(gate_end)
        try:
            yield world
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)
            host.channel.detach()
            agent_end.close()
