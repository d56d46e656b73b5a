"""The uplink's relay of a fleet's stop in the world of `gate_model.py`: a process of its own, with two connections, a file and a life.

The relay and both connections are the real ones, down to the acknowledgement of each message. It can be killed at any await; the
fleet's broker sends again what was not acknowledged, and the file is on the disk of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import aiomqtt
import orjson
from gate_model import TOPICS, Client, Group, Line, open_session, parsed

from runtime.fleet.stop import relay as relay_module
from runtime.fleet.stop.messages import StopTopics
from runtime.fleet.stop.relay import SESSION_S, StopRelay
from runtime.mqtt import Address, Connection
from runtime.mqtt.connection_types import PublishMessage

if TYPE_CHECKING:
    from gate_model import World

STOPS = StopTopics("arms")
PASSED_S = 4.0
"""Within this time a stop reaches a gate that is there: some attempts, and a write that is tried again."""


class File:
    """`PendingStops` in memory, on the disk of the model."""

    path = "stops.json"

    def __init__(self, world: World) -> None:
        self.world = world
        self.content: dict[str, str] = {}

    def load(self) -> dict[str, str]:
        return dict(self.content)

    def save(self, stops: Mapping[str, str]) -> None:
        if self.world.disk.broken:
            raise OSError(28, "No space left on device")
        self.content = dict(stops)


class RelayProcess:
    """The newest run of the process, and the fleet's broker."""

    def __init__(self, world: World) -> None:
        self.world, self.file = world, File(world)
        self.unacknowledged: dict[int, bytes] = {}
        """What the fleet's broker stores, by identifier of the packet."""
        self.owed = False
        """The fleet's broker took a stop that has not reached the agent's broker."""
        self._number = 0
        time = SimpleNamespace(monotonic=lambda: world.loop.now_s, time=lambda: world.wall_s)
        self._patches: list[Any] = [
            mock.patch.object(relay_module, "time", time),
            mock.patch.object(relay_module, "WRITE_AGAIN_S", 0.2),
        ]
        for patch in self._patches:
            patch.start()
        world.listeners.append(self.hear)
        self._start()

    def _start(self) -> None:
        fleet = Connection(Address("fleet", 1883), "fleet-stop", session_s=SESSION_S, handlers_acknowledge=True)
        local = Connection(Address("model", 1883), "model-fleet")
        outbox: Any = SimpleNamespace(post=lambda _kind, _fields: None)
        file: Any = self.file
        relay = StopRelay(fleet, local, STOPS, "model", outbox, file, gate_s=0.3, retry_s=(0.1, 0.4))
        self.relay = relay
        self.fleet, self.local = Line(fleet, Client(self._answered)), Line(local, Client(self._sent))
        self.job = self.world.loop.create_task(relay.run())
        self.job.add_done_callback(lambda job: job.cancelled() or job.exception())

    def close(self) -> None:
        self._end()
        for patch in self._patches:
            patch.stop()

    def kill(self) -> None:
        """kill -9, and a new start."""
        self._end()
        stored = self.unacknowledged or self.file.content
        self.world.check(not self.owed or stored, "a stop of the fleet is stored nowhere")
        self._start()

    def _end(self) -> None:
        for line in (self.fleet, self.local):
            self.lose(line)
        self.job.cancel()
        self.world.loop.spin(8)

    # --- both brokers

    def connect(self) -> None:
        """Both brokers are there; the fleet's one sends again what it stores."""
        for line, left in ((self.local, self._sent), (self.fleet, self._answered)):
            if line.group is None:
                self._open(line, Client(left))
        self.world.loop.spin(4)

    def _open(self, line: Line, client: Client) -> None:
        line.group, line.client = Group(self.world.loop), client
        client._client = SimpleNamespace(ack=lambda number, _qos: self.unacknowledged.pop(number, None))  # type: ignore[attr-defined]
        connection = line.connection
        connection._group, connection._client = line.group, client  # type: ignore[assignment]
        self.world.loop.run_until_complete(open_session(connection, client))
        if line is self.fleet:
            for number in list(self.unacknowledged):
                self._deliver_stop(number)
            return
        for out in list(self.world.retained.values()):
            self.hear(out)

    def lose(self, line: Line) -> None:
        """A connection ends; what was under way has no acknowledgement."""
        if line.group is None:
            return
        under_way, line.client.under_way = line.client.under_way, []
        for _, settled in under_way:
            settled(aiomqtt.MqttError("lost"))
        self.world.drop(line)
        line.connection._greeted = False

    def stop(self, payload: bytes) -> None:
        """The fleet's broker takes a stop, and passes it on where the relay is connected."""
        self._number += 1
        self.unacknowledged[self._number] = payload
        self.owed = True
        if self.fleet.group is not None:
            self._deliver_stop(self._number)

    def _deliver_stop(self, number: int) -> None:
        raw: Any = SimpleNamespace(
            topic=aiomqtt.Topic(STOPS.of("model")),
            payload=self.unacknowledged[number],
            qos=1,
            retain=False,
            mid=number,
            properties=None,
            session=self.fleet.client,
        )
        self.world.in_loop(lambda: self.fleet.connection._dispatch(raw))

    def hear(self, out: PublishMessage) -> None:
        """A message that the agent's broker has accepted."""
        connection = self.local.connection
        if self.local.group is None or not connection._inbound._routes(aiomqtt.Topic(out.topic)):
            return
        raw: Any = SimpleNamespace(
            topic=aiomqtt.Topic(out.topic),
            payload=out.payload,
            qos=1,
            retain=out.retain,
            properties=parsed(out.properties),
        )
        self.world.in_loop(lambda: connection._inbound.dispatch(raw))

    def deliver(self) -> None:
        """Both brokers accept what the relay has sent; the agent's one passes a stop to the gate."""
        for line in (self.local, self.fleet):
            accepted, line.client.under_way = line.client.under_way, []
            for out, settled in accepted:
                if out.topic == TOPICS("stop"):
                    self.owed = False
                    self.world.stop(out.payload, properties=parsed(out.properties))
                settled(None)
        self.world.settle_loop()

    # --- what must hold

    def _sent(self, out: PublishMessage) -> None:
        if out.topic.startswith("reflexd/echo/"):
            return
        is_stop = out.topic == TOPICS("stop") and orjson.loads(out.payload)["engaged"] is True
        self.world.check(is_stop and not out.retain, f"the relay publishes {out.payload!r} on {out.topic}")

    def _answered(self, out: PublishMessage) -> None:
        if out.topic == STOPS.answer("model") and orjson.loads(out.payload)["outcome"] == "stopped":
            self.world.check(not self.owed, "the fleet's answer is `stopped`, and a stop has not reached the gate")

    def kill_amid(self, happens: Callable[[], None], turns: int) -> None:
        """kill -9 a few turns of the loop after something happens."""
        happens()
        self.world.loop.spin(turns)
        self.kill()

    def must_pass(self) -> None:
        """With both brokers and the gate there, a stop reaches the gate."""
        world = self.world
        world.prompt = True
        world.connect(world.safety)
        world.connect(world.requests)
        until_s = world.loop.now_s + PASSED_S
        while self.owed and world.loop.now_s < until_s:
            self.connect()
            self.deliver()
            world.wait(0.05)
        world.check(not self.owed, f"a stop of the fleet has not reached the gate after {PASSED_S:g} s")
