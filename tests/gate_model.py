"""A model of the world around the gate: broker, devices, disk and clocks that a test moves by hand, and what must always hold.

The gate, its host, its latches and both connections are the real ones, down to the queue of the publisher; only aiomqtt's
client, the disk and the clocks are replaced. Time is virtual, so nothing here waits.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import aiomqtt
import orjson
from gate_stop_listener import ListenerProcess
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from actuators.actions import Value
from actuators.config import GateSettings, requirements
from actuators.safety.decisions import MODES, Proposal
from actuators.safety.forbid_rules import Rule, known_names, unsafe_rests
from actuators.safety.gate import MAX_READINGS_AGE_S
from actuators.wire import CommandWriter
from runtime.config.schema import Config
from runtime.gate import host as host_module
from runtime.gate import ipc, latches, operator_commands
from runtime.gate.build import build_host
from runtime.gate.host import GateHost
from runtime.gate.info import InfoBuilder
from runtime.gate.operator_commands import OperatorCommands
from runtime.gate.status import StatusPublisher
from runtime.gate.stop.follower import STOP_LISTENER
from runtime.mqtt import Connection, Limit, connection, publisher, subscriber
from runtime.mqtt.aiomqtt_client import outcome
from runtime.mqtt.connection_types import Message, PublishMessage
from runtime.mqtt.packets import Settled
from runtime.mqtt.topics import Topics
from runtime.process.systemd import Notifier
from sensors.config import fields_of

TOPICS = Topics("model")
PERIOD_S = 0.1
OUTGOING = 10
"""Ordinary messages that may be under way: few, so that the queue fills soon."""
TOO_WARM = "room.warmth < 30"
"""A condition of the lamp; the agent names it among the stale streams while it does not hold."""
MIN_HOLD_S = 0.12
"""For which the lamp keeps a value: more than two ticks."""
SETTINGS: dict[str, Any] = {
    "agent": "model",
    "tick": {"rate_hz": 1 / PERIOD_S},
    "streams": {
        "eyes": {"kind": "telemetry", "source": "topic", "fields": ["a"], "required": True},
        "air": {"kind": "telemetry", "source": "topic", "fields": ["a"]},
        "room": {"kind": "telemetry", "source": "topic", "fields": ["window", "load", "warmth"]},
    },
    "actuators": {
        "arm": {"kind": "continuous", "low": [-1], "high": [1], "max_rate": [1], "safe": [0], "out_of_range": "clamp"},
        "wheel": {"kind": "continuous", "low": [-1], "high": [1], "max_rate": [1], "out_of_range": "clamp"},
        "heater": {"kind": "choice", "choices": ["OFF", "ON"], "safe": "OFF"},
        "fan": {"kind": "choice", "choices": ["OFF", "ON"], "safe": "OFF", "requires": ["air"]},
        "lamp": {
            "kind": "choice",
            "choices": ["OFF", "ON"],
            "safe": "OFF",
            "requires": [TOO_WARM],
            "min_hold_s": MIN_HOLD_S,
        },
    },
    "learner": {"enabled": False},
}
FORBID = (
    "heater == 'ON' and fan == 'OFF'",
    "arm[0] > 0.5 and lamp == 'ON'",
    "heater == 'ON' and room.window > 0.5",
    "(arm[0] > 0.2 or lamp == 'ON') and room.load > 0.5",
)
POOL = (
    *FORBID,
    "arm[0] > 0.5 and wheel[0] < -0.3",
    "wheel[0] > 0.4 and heater == 'ON'",
    "abs(arm[0] - wheel[0]) > 0.8 and fan == 'ON'",
    "fan == 'ON' and lamp == 'ON'",
    "wheel[0] < -0.2 and fan == 'OFF' and heater == 'ON'",
    "heater == 'ON' and wheel[0] > 0.4 and room.load > 0.5",
    "not (lamp == 'OFF' or arm[0] < 0.3 or heater == 'OFF')",
)
"""Rules from which mixtures draw."""
QUIET = {"room": {"window": 0.0, "load": 0.0}}
"""Telemetry with which nothing is forbidden."""
STEP_S = 2 * PERIOD_S
"""A step is at most that of `max_rate` in this time."""
INSTANT_S = 1e-6
"""Between two messages: no two have one time of arrival."""
LONG_S = 0.2
LATCHED_S = 0.6
"""Longer than the stop listener waits before it tries to write again."""
BOUND_S = 0.5
"""Without proposals: the period, the dead-man and a few repeats."""


@dataclass(frozen=True)
class Mixture:
    """Actuators and rules of one world."""

    actuators: dict[str, dict[str, Any]]
    forbid: tuple[str, ...]

    @classmethod
    def of(cls, changes: dict[str, dict[str, Any]], forbid: tuple[str, ...]) -> Mixture:
        """Return the usual actuators with changes, and those rules that `reflexd check` lets pass with them."""
        actuators = {name: each | changes.get(name, {}) for name, each in SETTINGS["actuators"].items()}
        config = Config.model_validate(SETTINGS | {"actuators": actuators, "gate": {"forbid": []}, "state_dir": "."})
        streams = {name: fields_of(each) for name, each in config.streams.items()}
        problems = unsafe_rests(config.actuators, GateSettings(forbid=forbid), streams)
        return cls(actuators, tuple(text for index, text in enumerate(forbid) if index not in problems))

    def safe(self, name: str) -> Value | None:
        """Return the safe value; None where the actuator holds."""
        safe = self.actuators[name].get("safe", "hold")
        return tuple(map(float, safe)) if isinstance(safe, list) else None if safe == "hold" else str(safe)


class Loop(asyncio.SelectorEventLoop):
    """An event loop with the model's clock."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def spin(self, turns: int = 4) -> None:
        """Run what is ready."""
        for _ in range(turns):
            if not self._ready and not (self._scheduled and self._scheduled[0].when() <= self.now_s):  # type: ignore[attr-defined] # of every loop of asyncio
                return
            self.call_soon(self.stop)
            self.run_forever()


class Disk:
    """The file of the latches."""

    def __init__(self) -> None:
        self.content: dict[str, object] | None = None
        self.broken = False

    def save(self, _path: Path, content: dict[str, object]) -> None:
        if self.broken:
            raise OSError(28, "No space left on device")
        self.content = orjson.loads(orjson.dumps(content))

    def load(self, _path: Path) -> dict[str, object] | None:
        return self.content


class Latch:
    """The file of the stop listener, in memory, on the same disk."""

    def __init__(self, disk: Disk, now: Callable[[], float]) -> None:
        self.found: tuple[int, str] | None = None
        self.disk, self.now = disk, now

    @classmethod
    def of(cls, _state_dir: Path) -> Latch:
        return cls.of_world

    of_world: Latch

    def write(self, reason: str) -> None:
        self._must_work()
        self.found = (round(self.now() * 1e9), reason)

    def read(self) -> tuple[int, str] | None:
        return self.found

    def exists(self) -> bool:
        return self.found is not None

    def is_on_disk_of_this_machine(self) -> bool:
        return True

    def is_absent(self) -> bool:
        return self.found is None

    def remove(self) -> None:
        if self.found is not None:
            self._must_work()
            self.found = None

    def _must_work(self) -> None:
        if self.disk.broken:
            raise OSError(28, "No space left on device")


class Client:
    """aiomqtt's client as the connection sees it: publishes wait until the broker acknowledges them, in order."""

    def __init__(
        self, left: Callable[[PublishMessage], None], grants: Callable[[str], int] = lambda _filter: 1
    ) -> None:
        self.left, self.grants = left, grants
        self.under_way: list[tuple[PublishMessage, Settled]] = []
        self.unacknowledged: dict[int, PublishMessage] = {}
        """What the broker has sent with QoS 1, by number: it sends that again in the next session."""
        self._client = SimpleNamespace(ack=lambda number, _qos: self.unacknowledged.pop(number, None))
        self._number = 0

    def sent(self, out: PublishMessage) -> int:
        """Number a message that the broker sends."""
        self._number += 1
        if out.qos:
            self.unacknowledged[self._number] = out
        return self._number

    def submit(self, out: PublishMessage, settled: Settled) -> None:
        self.left(out)
        self.under_way.append((out, settled))

    async def subscribe(self, filters: list[Any], timeout: float | None = None) -> list[ReasonCode]:  # noqa: ASYNC109 - as aiomqtt names it
        return [ReasonCode(PacketTypes.SUBACK, identifier=self.grants(name)) for name, _ in filters]  # type: ignore[no-untyped-call]


class Group:
    """The task group of a session."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.tasks: set[asyncio.Task[Any]] = set()

    def create_task(self, job: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        task = self.loop.create_task(job, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


async def inline(call: Callable[..., Any], *args: Any) -> Any:
    """A thread of the model: it runs in the next turn of the loop."""
    await asyncio.sleep(0)
    return call(*args)


async def for_ever(_connection: Connection) -> None:
    """In place of a connection's own work, which the model does."""
    await asyncio.get_running_loop().create_future()


def take(client: Client, out: PublishMessage, settled: Settled, *, urgent: bool = False) -> None:
    client.submit(out, settled)


async def take_and_wait(client: Client, out: PublishMessage, _timeout_s: float | None = None) -> None:
    future, settled = outcome()
    client.submit(out, settled)
    await future


def parsed(properties: Any) -> Any:
    """The properties of a message as its receiver gets them from paho; those that a test made itself stay as they are."""
    if not isinstance(properties, bytes):
        return properties
    found = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    _, size = found.unpack(properties)  # type: ignore[no-untyped-call]
    assert size == len(properties)
    return found


def dispatch(line: Line, out: PublishMessage) -> None:
    """Pass a message to a connection as its queue does; one of QoS 1 stays with the broker where handlers acknowledge."""
    raw: Any = SimpleNamespace(
        topic=aiomqtt.Topic(out.topic),
        payload=out.payload,
        qos=out.qos,
        retain=out.retain,
        properties=parsed(out.properties),
        session=line.client,
    )
    if line.connection.handlers_acknowledge:
        raw.mid = line.client.sent(out)
    line.connection._dispatch(raw)


def unfinished(line: Line) -> list[PublishMessage]:
    """Take what the broker will send again."""
    found = list(line.client.unacknowledged.values())
    line.client.unacknowledged.clear()
    return found


async def open_session(connection: Connection, client: Client) -> None:
    connection._sender.begin(client)  # type: ignore[arg-type]
    await connection._greet(client)  # type: ignore[arg-type]


@dataclass
class Line:
    """One connection and the broker's end of it."""

    connection: Connection
    client: Client
    group: Group | None = None
    away: list[PublishMessage] = field(default_factory=list)
    """What the broker stores while the session is away."""


class BrokenPromiseError(AssertionError):
    """A promise was broken."""


class World:
    """Everything, with the promises checked at each message that leaves."""

    def __init__(self, arm: str = "auto", mode: str = "autonomous", mixture: Mixture | None = None) -> None:
        self.mixture = mixture or Mixture(SETTINGS["actuators"], FORBID)
        self.loop = Loop()
        self.wall_s = 1_700_000_000.0
        self.disk = Disk()
        self.latch = Latch.of_world = Latch(self.disk, lambda: self.loop.now_s)
        self.turns: int | None = None
        """So far the loop runs after each thing that happens; None: until all is done, disk and broker included."""
        self.folder = Path(tempfile.gettempdir()) / "reflexd-gate-model"
        self.arm_setting = arm
        self.devices: dict[str, Value | None] = dict.fromkeys(SETTINGS["actuators"])
        self.last_seq: dict[str, tuple[str, int]] = {}
        self.tick_number = 0
        self.prompt = True
        self.refuses_stop: int | None = None
        """The code with which the broker refuses, or weakens, the gate's next subscriptions to the stop."""
        self.deaf = False
        """It did so at the gate's newest subscription."""
        self.refuses_listener: int | None = None
        """As `refuses_stop`, for the stop listener."""
        self.listener_deaf = False
        """The gate knows from the stop listener that it hears no stop."""
        self.is_stored = False
        """The stop in force came with QoS 1: a kill loses it only where the broker has its acknowledgement."""
        self.slept_s = 0.0
        self.woke_s = float("-inf")
        """When the machine was suspended last, for `slept_s` in all."""
        self.agrees = True
        """The proposal that is judged was made with the gate's settings."""
        self.is_old = False
        """The proposal that is judged is from before that."""
        self.boots = 0
        self.broken: list[str] = []
        self.event_types: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.listeners: list[Callable[[PublishMessage], None]] = []
        """Called with each message of the gate that the broker accepts."""
        self.retained: dict[str, PublishMessage] = {}
        self.stepped_s = 0.0
        """By how much the wall clock was set since the holds were published."""
        self._patches: list[Any] = [
            mock.patch.object(publisher, "submit", take),
            mock.patch.object(connection, "publish", take_and_wait),
            mock.patch.object(subscriber, "time", SimpleNamespace(monotonic=lambda: self.loop.now_s)),
            mock.patch.object(operator_commands, "REQUESTS", Limit(1e6, 1_000_000)),
            mock.patch.object(operator_commands, "OVERRIDES", Limit(1e6, 1_000_000)),
            mock.patch.object(latches, "save", self.disk.save),
            mock.patch.object(latches, "load", self.disk.load),
            mock.patch.object(latches, "StopLatch", Latch),
            mock.patch.object(host_module, "StopLatch", Latch),
            mock.patch.object(asyncio, "to_thread", inline),
            mock.patch.object(Connection, "run", for_ever),
            mock.patch.object(StatusPublisher, "event", self._watched(StatusPublisher.event, self._announced)),
            mock.patch.object(Connection, "send_newest", self._watched(Connection.send_newest, self._status_published)),
            mock.patch.object(Connection, "reply", self._watched(Connection.reply, self._answered)),
        ]
        for patch in self._patches:
            patch.start()
        asyncio.set_event_loop(self.loop)
        self.stop_in_force = self.release_without_arm = False
        self.is_dead = False
        """There is no supervisor, so no gate."""
        self.latched_only: tuple[bool, bool] | None = None
        """The listener alone has the stop, because the gate is dead or its loop has not read the channel yet: what was granted
        before, and whether a release waited for arming."""
        self.listener = ListenerProcess(self)
        self.stored: list[PublishMessage] = []
        """What the broker stores for the gate while it is dead."""
        self.granted = arm == "auto"
        config = self._config(mode)
        streams = {name: fields_of(each) for name, each in config.streams.items()}
        self.rules = [Rule(text, known_names(config.actuators), streams) for text in self.mixture.forbid]
        self.requires = {
            name: requirements(each.requires, frozenset(config.required_streams))
            for name, each in config.actuators.items()
        }
        self.telemetry: dict[str, dict[str, float]] = QUIET
        """What the agent reads; it sends it with each proposal."""
        self.start(mode)

    @staticmethod
    def _watched(method: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
        def watched(owner: Any, *args: Any, **more: Any) -> Any:
            check(*args)
            return method(owner, *args, **more)

        return watched

    def close(self) -> None:
        self._end_daemon()
        self.listener.kill()
        self.loop.close()
        asyncio.set_event_loop(None)
        for patch in self._patches:
            patch.stop()

    # --- the daemon

    def _config(self, mode: str) -> Config:
        gate = {"arm": self.arm_setting, "reconcile_s": 0.3, "forbid": list(self.mixture.forbid)}
        more = {"mode": mode, "gate": gate, "state_dir": self.folder, "actuators": self.mixture.actuators}
        return Config.model_validate(SETTINGS | more)

    def start(self, mode: str) -> None:
        """A new run of the daemon, with what is on the disk."""
        config = self._config(mode)
        self.boots += 1
        host: GateHost = build_host(
            config, Notifier(), InfoBuilder(config, "0"), now=lambda: self.loop.now_s, wall=lambda: self.wall_s
        )
        host.slept, host._slept_s = (lambda: self.slept_s), self.slept_s
        host.devices.commands = CommandWriter(TOPICS.base, config.actuators, f"boot-{self.boots}")
        host.safety.max_outgoing = host.connection.max_outgoing = OUTGOING
        host.safety._sender.limit = host.connection._sender.limit = OUTGOING
        self.host, self.mode, self.lost = host, mode, 0
        self.operators = OperatorCommands(host, self._reload)
        self.serving = [self.loop.create_task(job) for job in (self.operators.serve(), host.listener.follow_latch())]
        self.arm_waits = False
        self.is_dead = self.listener_deaf = False
        self.safety = self.new_line(host.safety)
        self.safety.away, self.stored = self.stored, []
        self.requests = self.new_line(host.connection)
        self.readings: dict[str, dict[str, float]] = {}
        """What the gate may know of the telemetry."""
        self.stale: frozenset[str] = frozenset()
        self.ever: dict[str, Value] = {}
        """The newest command of each actuator that left in this run of the daemon."""
        self.moves_s: dict[str, float] = {}
        """Since when an actuator has commands of the policy or of a person; absent while the newest one is a safe action."""
        self.commanded: dict[str, Value] = {}
        self.session: dict[str, list[Value]] = {}
        self.reported: dict[str, Value] = {}
        self.known: dict[str, Value] = {}
        self.queued: dict[str, Value] = {}
        """The newest command of each actuator that the gate has decided on in this run of the daemon."""
        self.changed_s: dict[str, float] = {}
        """When its value changed."""
        self.newest: dict[str, Value] = {}
        wanted = (self.disk.content or {}).get("wanted")
        self.granted = self.arm_setting == "auto" and wanted is not False
        self.release_without_arm = self.release_without_arm and wanted is False
        for name, latched in ((self.disk.content or {}).get("modes") or {}).items():  # type: ignore[attr-defined]
            now = host.gate.modes[name]
            self.check(MODES.index(now) <= MODES.index(mode), f"{name}: mode {now} although the settings say {mode}")
            requested = latched != (self.disk.content or {}).get("configured")
            self.check(
                not requested or MODES.index(now) <= MODES.index(latched),
                f"{name}: mode {now} although {latched} was asked",
            )
        if self._is_saved():
            self.stop_in_force = True
        self.check(not self._is_saved() or host.gate.stopped, "a saved stop is lost over a restart")
        self.latched_only = None
        self.listener.start()
        left = (self.disk.content or {}).get("moved") or []
        self.connect(self.safety)
        for name in left if isinstance(left, list) else ():
            if name in self.mixture.actuators and (safe := self.mixture.safe(name)) is not None:
                first = self.session.get(name, [None])[0]
                self.check(first == safe, f"{name} was left moving, and the first command of the next run is {first}")
        self.check(not self.stop_in_force or host.gate.stopped, "a stop that the broker stored is lost")
        self.connect(self.requests)

    def _is_saved(self) -> bool:
        """Return whether a stop is on the disk, in either file."""
        return bool((self.disk.content or {}).get("stopped")) or self.latch.found is not None

    async def _reload(self) -> dict[str, Any]:
        return {}

    def die_amid(self, happens: Callable[[], None], turns: int, mode: str, *, written: bool) -> None:
        """kill -9 a few turns of the loop after something happens, so at any await that follows from it.

        `written`: the latches are on the disk, and nothing that waits for them has run yet.
        """
        self.turns = turns
        happens()
        if written and not self.disk.broken:
            self.disk.save(Path(), dict(self.host.gate.latches))
        self.turns = None
        self.kill(mode)

    def stop_a_dead_gate(self, mode: str, payload: bytes, qos: int, *, released: bool, after_s: float) -> None:
        """kill -9 of the supervisor, a stop that its listener and the broker's store alone can take, and a new start."""
        self._die()
        self.loop.now_s += after_s
        self.loop.spin(8)
        self.stop(payload, qos=qos)
        if released:
            self.stop(b'{"engaged": false}', qos=qos)
        self.must_be_latched()
        if self.latched_only is not None and self.latch.found is None:
            self._lose_the_stop()
        self.start(mode)

    def _end_daemon(self) -> None:
        for task in self.serving:
            task.cancel()
        self.drop(self.safety)
        self.stored, self.safety.away = self.safety.away, []
        self.drop(self.requests)
        self.loop.spin(8)

    def kill(self, mode: str) -> None:
        """kill -9 and a new start."""
        self._die()
        self.start(mode)

    def _die(self) -> None:
        """kill -9 of the supervisor; its listener outlives it, and writes what it has heard."""
        saved = self.host.latches.moved  # not the file, which a test may have edited
        for name, since_s in self.moves_s.items() if self.host.latches.is_saved else ():
            known = self.host._ticked_s <= since_s or self.mixture.safe(name) is None or name in saved
            self.check(known, f"{name} moves, and the disk does not say so")
        self._end_daemon()
        self.is_dead = True
        self.listener.orphan()
        self.loop.spin(8)
        if self.stop_in_force and not self._is_saved():
            self.check("stopped" not in self.event_types[self.stop_event :], "an announced stop was not on the disk")
            self.check(not self.is_stored or self.stored, "a stop of QoS 1 is neither on the disk nor with the broker")
            if not self.stored:
                self._lose_the_stop()

    def _lose_the_stop(self) -> None:
        """The one process that had heard of the stop is gone, and nothing has announced it."""
        self.stop_in_force = False
        if self.latched_only is not None:
            self.granted, self.release_without_arm = self.latched_only
            self.latched_only = None

    def must_be_latched(self) -> None:
        """With a disk that works, a stop that the listener has read is in its file."""
        self.loop.now_s += LATCHED_S
        self.loop.spin(16)
        is_latched = self.latched_only is None or self.disk.broken or self.latch.found is not None
        self.check(is_latched, "the stop listener has not latched the stop")

    def change_the_listener(self, what: str) -> None:
        """Something happens to the process of the stop listener."""
        match what:
            case "kill":
                self.listener.kill()
                if self.latched_only is not None and self.latch.found is None:
                    self._lose_the_stop()
            case "start":
                self.change_the_listener("kill")
                self.listener.start()
            case "freeze":
                self.listener.frozen = True
            case "thaw":
                self.listener.thaw()
            case "lose":
                self.listener.lose()
            case _:
                self.listener.connect()
        self.settle_loop()

    def kill_the_listener_amid(self, happens: Callable[[], None], turns: int) -> None:
        """kill -9 of the listener a few turns of the loop after something happens; the supervisor starts another one."""
        self.turns = turns
        happens()
        self.turns = None
        self.change_the_listener("start")

    # --- the broker

    def new_line(self, connection: Connection) -> Line:
        """A connection that is not open."""
        return Line(connection, self._new_client(connection))

    def _new_client(self, connection: Connection) -> Client:
        if connection is self.host.safety:
            return Client(self._left, self._grants)
        is_listener = connection.identifier.endswith("-gate-stop")
        return Client(self._left, self._grants_listener if is_listener else lambda _filter: 1)

    def _grants(self, topic_filter: str) -> int:
        """Return how the broker acknowledges a subscription; it is noted for the gate's own to `stop`."""
        if topic_filter != TOPICS("stop"):
            return 1
        self.deaf = self.refuses_stop is not None
        return 1 if self.refuses_stop is None else self.refuses_stop

    def _grants_listener(self, _filter: str) -> int:
        return 1 if self.refuses_listener is None else self.refuses_listener

    def subscribe_again(self) -> None:
        """The gate asks again for what the broker refused; its own pause between two attempts is left out."""
        if self.safety.group is None or not self.host.safety.denials:
            return
        known = self.host.safety._inbound.subscriptions
        job = self.host.safety._join(self.safety.client, [known[name] for name in self.host.safety.denials])  # type: ignore[arg-type]
        self.loop.run_until_complete(job)
        self.settle_loop()

    def sleep(self, seconds: float) -> None:
        """The machine is suspended: no clock counts it but that of the wall and that of the boot."""
        self.slept_s += seconds
        self.wall_s += seconds
        self.woke_s = self.loop.now_s
        self.disarmed()

    def open_line(self, line: Line, *, resumed: bool) -> None:
        """Open a connection; `resumed`: the broker has stored messages for its session."""
        line.group, line.client = Group(self.loop), self._new_client(line.connection)
        connection = line.connection
        connection._inbound.resumed_s = self.loop.now_s if resumed else float("-inf")
        connection._group = line.group  # type: ignore[assignment]
        connection._client = line.client  # type: ignore[assignment]
        self.loop.run_until_complete(open_session(connection, line.client))

    def connect(self, line: Line) -> None:
        if line.group is not None:
            return
        if line is self.safety:
            self.session, self.commanded, self.received = {}, {}, set[str]()
            self.disarmed()
        away, line.away = line.away, []
        if line is self.safety and any(
            not _is_release(out.payload) and (out.payload or not out.retain) for out in away
        ):
            self._stop_is_in_force(is_stored=True)  # perhaps again, after a release
        self.open_line(line, resumed=bool(away))
        for out in away:
            self._dispatch(line, out)
        self.settle_loop()

    def lose(self, line: Line) -> None:
        """The connection ends; what was under way may or may not have arrived."""
        if line.group is None:
            return
        self.drop(line)
        line.connection._greeted = False
        if line is self.safety:
            self.disarmed()
        line.connection.on_connection_change(False, "lost")
        self.settle_loop()

    def drop(self, line: Line) -> None:
        if line.group is None:
            return
        line.connection._leave()
        line.client.under_way.clear()
        line.away[:0] = unfinished(line)
        for task in list(line.group.tasks):
            task.cancel()
        line.group = None

    def deliver(self, line: Line, count: int = 1_000) -> None:
        """The broker takes the next messages and acknowledges them."""
        taken, line.client.under_way = line.client.under_way[:count], line.client.under_way[count:]
        for out, settled in taken:
            self._carried_out(out)
            settled(None)
        self.loop.spin(2)

    def swallow(self, line: Line) -> None:
        """What is under way is lost although the connection lasts."""
        taken, line.client.under_way = line.client.under_way, []
        for _, settled in taken:
            settled(aiomqtt.MqttError("Operation timed out"))
        self.loop.spin(2)

    def _carried_out(self, out: PublishMessage) -> None:
        if out.retain:
            self.retained[out.topic] = out
        for hear in self.listeners:
            hear(out)
        level = out.topic.split("/")
        if len(level) == 5 and level[2] == "act":
            body = orjson.loads(out.payload)
            self.devices[level[3]] = _value(body["value"])
            self.last_seq[level[3]] = (body["boot"], body["seq"])

    # --- what arrives

    def arrive(
        self, line: Line, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1, properties: Any = None
    ) -> None:
        """A message for the gate; the broker stores QoS 1 messages of the safety connection while it is away."""
        out = PublishMessage(topic, payload, qos, retain, properties)
        if self.is_dead or line.group is None:
            if line is self.safety and qos:
                (self.stored if self.is_dead else line.away).append(out)
            return
        self._dispatch(line, out)
        self.settle_loop()

    def _dispatch(self, line: Line, out: PublishMessage) -> None:
        self.loop.now_s += INSTANT_S
        self.pass_on(line, out)

    def pass_on(self, line: Line, out: PublishMessage) -> None:
        """The broker sends a message on a connection."""
        self.in_loop(partial(dispatch, line, out))

    def in_loop(self, call: Callable[[], None]) -> None:
        """Call it inside the running loop."""

        async def run() -> None:
            call()

        self.loop.run_until_complete(run())

    def stop(self, payload: bytes, *, retain: bool = False, qos: int = 1, properties: Any = None) -> None:
        """Any message on `stop`: for the gate, and for the stop listener."""
        self.loop.spin()  # what has left already has left
        plain = _is_release(payload)
        ignored = (not payload and retain) or (plain and retain)
        is_away = self.is_dead or self.safety.group is None
        resumed = self.loop.now_s - self.safety.connection._inbound.resumed_s < subscriber.RESUMED_S
        resumed = resumed or self.host.has_stalled(self.loop.now_s)
        out = PublishMessage(TOPICS("stop"), payload, qos, retain, properties)
        if not ignored and not plain:
            latched = self.listener.hear(out)
            if not is_away or qos or latched:
                if is_away and not qos and not self.stop_in_force:
                    self.latched_only = self.granted, self.release_without_arm
                elif self.latched_only is not None:
                    self.latched_only = None
                self._stop_is_in_force(is_stored=qos > 0)
        else:
            latched = self.listener.hear(out)
            is_fresh = plain and not retain and not is_away and not resumed
            if is_fresh and self.stop_in_force:
                self.stop_in_force, self.release_without_arm = False, not self.arm_waits
                self.granted = self.granted or self.arm_waits
                self.latched_only = None
            elif plain and not retain and latched and self.latched_only is not None and not self.is_dead:
                self._lose_the_stop()  # the newest message was a release, and the gate has heard of neither
        self.arrive(self.safety, TOPICS("stop"), payload, retain=retain, qos=qos, properties=properties)
        if not is_away:
            self.check(self.host.gate.stopped == self.stop_in_force, "the stop is not what was last sent")
        elif latched and not (plain or ignored) and not self.is_dead:
            self.settle_loop()
            reached = self.host.gate.stopped or self.turns is not None
            self.check(reached, "the stop listener has a stop, and the gate without a connection does not have it")

    def _stop_is_in_force(self, *, is_stored: bool) -> None:
        self.is_stored = is_stored or (self.is_stored and self.stop_in_force)
        self.stop_in_force, self.stop_event = True, len(self.event_types)
        self.granted = self.arm_waits = False

    def request(self, verb: str, payload: bytes, *, retain: bool = False, properties: Any = None) -> None:
        """Any request."""
        self.loop.spin()
        is_exact = payload in (b"", b"{}") and not retain and self.requests.group
        is_exact = is_exact and not self.host.has_stalled(self.loop.now_s)
        if verb == "arm" and is_exact:
            self.arm_waits = self.host.gate.stopped
            if not self.arm_waits:
                self.granted, self.release_without_arm = True, False
        if verb == "disarm" and not retain and self.requests.group:
            self.disarmed()
            self.granted = self.arm_waits = False
        properties = properties or SimpleNamespace(ResponseTopic=TOPICS("response", "other"), CorrelationData=b"c")
        self.arrive(self.requests, TOPICS("request", verb), payload, retain=retain, properties=properties)

    def disarmed(self) -> None:
        """A cause of disarming: with `arm: request` the request to arm ends."""
        self.granted = self.granted and self.arm_setting == "auto"
        self.arm_waits = self.arm_waits and self.arm_setting == "auto"

    def propose(
        self,
        actions: dict[str, Any],
        *,
        stale: tuple[str, ...] = (),
        ready: bool = True,
        age_s: float = 0.0,
        shadow: bool = False,
        agreement: str | None = None,
    ) -> None:
        """One tick of the agent, with its telemetry; `agreement` None is that of the gate."""
        self.tick_number += 1
        proposal = Proposal(
            self.tick_number,
            f"d{self.tick_number}",
            "p",
            self.loop.now_s - age_s,
            actions,
            stale,
            ready,
            readings=self.telemetry,
            shadow=shadow,
            agreement=self.host.channel.agreement if agreement is None else agreement,
        )
        self.agrees = proposal.agreement == self.host.channel.agreement
        is_recent = 0 <= self.loop.now_s - proposal.stamp_s <= MAX_READINGS_AGE_S
        self.readings = self.telemetry if is_recent else {}
        self.stale = frozenset(stale)
        self.is_old = proposal.stamp_s <= self.woke_s
        self.readings = {} if self.is_old or not self.agrees else self.readings
        self.frame(ipc.pack(proposal))
        if self.turns is None and self.host.gate.armed:
            self._check_telemetry()

    def frame(self, data: bytes) -> None:
        """Any bytes from the agent."""
        self.host.channel._reader.end = SimpleNamespace(send=lambda _data: None)  # type: ignore[assignment]
        self.host.channel.receive(data)
        self.settle_loop()

    def report(self, name: str, value: Any, *, retain: bool = False, answers: bool = False) -> None:
        """A device reports, truly or not."""
        boot, seq = self.last_seq.get(name, (None, None)) if answers else (None, None)
        payload = orjson.dumps({"value": value, "boot": boot, "seq": seq})
        if self.requests.group is not None:
            self._note_report(name, value, retain=retain)
        self.arrive(self.requests, TOPICS.state(name), payload, retain=retain)

    def _note_report(self, name: str, value: Any, *, retain: bool) -> None:
        settings = SETTINGS["actuators"][name]
        value = list(value) if isinstance(value, tuple) else value
        if settings["kind"] == "choice":
            fits = value in settings["choices"]
        else:
            numbers = value if isinstance(value, list) else [value]
            fits = len(numbers) == 1 and isinstance(numbers[0], int | float) and not isinstance(numbers[0], bool)
            fits = fits and -1.02 <= numbers[0] <= 1.02
        if not fits:
            return
        truth = (
            value
            if isinstance(value, str)
            else (max(-1.0, min(1.0, float(value[0] if isinstance(value, list) else value))),)
        )
        if retain and (name in self.session or name in self.received):
            return
        self.received.add(name)
        self.reported[name] = self.newest[name] = truth
        if name not in self.session:
            self.known[name] = truth

    # --- time

    def freeze(self, seconds: float) -> None:
        """The process of the gate does not run, as after SIGSTOP; what arrives meanwhile is read before anything else."""
        self.loop.now_s += seconds
        self.wall_s += seconds

    def wait(self, seconds: float) -> None:
        """Time passes in steps of 10 ms, in a longer wait of 50 ms, as on a busy machine; the host ticks when it wants to."""
        tick_s = 0.01 if seconds < LONG_S else 0.05
        for _ in range(max(1, round(seconds / tick_s))):
            self.loop.now_s += tick_s
            self.wall_s += tick_s
            if self.host.is_woken or self.host.due_s() <= self.loop.now_s:
                self.host.tick()
            else:
                self._nothing_may_be_due()
            self.settle_loop()
            self._check_modes()

    def _nothing_may_be_due(self) -> None:
        """Between two ticks of the host, a tick would decide nothing and publish nothing."""
        gate, publisher = self.host.gate, self.host.publisher
        if self.host.ending:
            return
        armed = gate.armed
        self.check(not gate.tick(self.loop.now_s), "a decision was due and the host had not asked for the time")
        self.check(gate.armed == armed == publisher._armed, "arming was due and the host had not asked for the time")
        self.check(not self.host.listener._stated or self.host.safety.connected, "a stop of the listener waits")
        published = publisher._published
        publisher.publish_changes()
        in_time = published is None or published == publisher._published
        self.check(in_time, "a status was due and the host had not asked for the time")

    def _check_modes(self) -> None:
        """Outside `autonomous`, and without a hold, an actuator has its safe value."""
        gate = self.host.gate
        for name, value in self.commanded.items():
            is_free = gate.modes[name] != "autonomous" and gate.holds[name] is None
            if is_free and self.mixture.safe(name) is not None and self.safety.group is not None:
                self.check(
                    value == self.mixture.safe(name), f"{name} keeps {value} in mode {gate.modes[name]} without a hold"
                )

    def settle_loop(self) -> None:
        """Run what is ready, write the latches, and let a prompt broker deliver."""
        if self.host.gate.counters["lost"] != self.lost:
            self.lost = self.host.gate.counters["lost"]
            self.readings = {}
            self.disarmed()
        if self.turns is not None:
            self.loop.spin(self.turns)
            return
        self.loop.spin(3)
        if not self.is_dead:
            self._follow_the_latch()
            if self.host.latches._dirty.is_set():
                self.host.latches.write_now()
        if self.prompt:
            for line in (self.safety, self.requests):
                if line.group is not None:
                    self.deliver(line)
        if self.broken:
            raise BrokenPromiseError(self.broken[0])

    def _follow_the_latch(self) -> None:
        """The gate may have found the file of the stop listener."""
        if not self.host.gate.stopped:
            return
        if not self.stop_in_force and self.host.publisher.stop_reason.startswith(STOP_LISTENER):
            self._stop_is_in_force(is_stored=False)  # late: the release came before it
        self.latched_only = None

    def must_come_to_rest(self) -> None:
        """No proposals, a working broker: every device gets its safe action within the bound."""
        self.prompt = True
        self.connect(self.safety)
        self.wait(BOUND_S)
        gate = self.host.gate
        self.check(not gate.owed() or any(gate._actuators[n].answers for n in gate.owed()), f"{gate.owed()} are owed")
        saved = self.disk.broken or not self.stop_in_force or self._on_disk("stopped", value=True)
        self.check(saved, "the disk works and does not have the stop")
        for name in self.mixture.actuators:
            safe = self.mixture.safe(name)
            if safe is None or not gate._actuators[name].commanded:
                continue
            self.check(
                self.devices[name] == safe,
                f"{name} has {self.devices[name]} {BOUND_S} s after the last proposal",
            )

    # --- what leaves

    def _left(self, out: PublishMessage) -> None:
        level = out.topic.split("/")[2:]
        body = _json(out.payload)
        if level[0] == "act":
            self._command_left(level[1], _value(body["value"]), body["policy"])

    def _command_left(self, name: str, value: Value, policy: str) -> None:
        if policy != "gate":
            self.check(not self._must_be_stopped(), f"{policy} moves {name} although the stop is engaged")
            self.check(not self.release_without_arm, f"{policy} moves {name} after a release without arming")
            self.check(not self.deaf, f"{policy} moves {name} although the gate cannot hear a stop")
            self.check(not self.listener_deaf, f"{policy} moves {name} although the stop listener cannot hear a stop")
            self.check(self.granted, f"{policy} moves {name} although nothing was asked to arm since the disarming")
            if policy != "override":
                self.check(self.host.gate.modes[name] == "autonomous", f"the policy moves {name} in another mode")
                self.check(
                    not self.is_old, f"the policy moves {name} by a proposal from before the machine was suspended"
                )
                self.check(self.agrees, f"the policy moves {name} with other settings than the gate's")
                missing = self.stale & self.requires[name]
                self.check(not missing, f"the policy moves {name} while {sorted(missing)} is stale or does not hold")
            self._check_step(name, value)
        self._check_rules(name, value, policy)
        if policy == "gate":
            self.moves_s.pop(name, None)
        else:
            self.moves_s.setdefault(name, self.loop.now_s)
        self.ever[name] = self.commanded[name] = value
        self.session.setdefault(name, []).append(value)
        self.known[name] = value

    def _must_be_stopped(self) -> bool:
        """Whether the gate must know of the stop."""
        return self.stop_in_force and self.latched_only is None

    def _check_step(self, name: str, value: Value) -> None:
        rate = self.mixture.actuators[name].get("max_rate")
        if not isinstance(value, tuple) or rate is None:
            return
        safe, largest = self.mixture.safe(name), rate[0] * STEP_S + 1e-6
        before = (
            [self.commanded[name]] if name in self.commanded else [self.known.get(name, safe), self.newest.get(name)]
        )
        starts = [start for start in before if isinstance(start, tuple)]
        self.check(starts, f"{name} moves to {value} although nothing is known of it")
        near = any(abs(value[0] - start[0]) <= largest for start in starts)
        self.check(near, f"{name} steps from {starts} to {value}")
        has = self.devices[name]
        if name not in self.commanded and name not in self.received and isinstance(has, tuple) and name in self.ever:
            self.check(abs(value[0] - has[0]) <= largest, f"{name} steps from {has}, which it has, to {value}")

    def _check_rules(self, name: str, value: Value, policy: str) -> None:
        for rule in self.rules:
            if name not in rule.names:
                continue
            others = {n: self._may_have(n) for n in rule.names if n != name}
            if not all(others.values()):
                continue
            would = rule.broken({**others, name: [value]}, self.readings)
            now = rule.broken({**others, name: self._may_have(name) or [value]}, self.readings)
            left = would is None or (now is not None and would.degree < now.degree)
            if (
                rule.streams
            ):  # there are no steps out of the zone; the gate brings one actuator after the other out of it
                left = would is None or (policy == "gate" and now is not None and would.degree <= now.degree)
            self.check(left, f"{name} = {value} with {others} and {self.readings}: {rule.text} is broken")

    def _check_telemetry(self) -> None:
        """After a tick, nothing that this gate has commanded breaks a rule with the telemetry of that tick."""
        for rule in self.rules:
            commanded = {name: [self.ever[name]] for name in rule.names if name in self.ever}
            domains = {name: commanded.get(name, [self.mixture.safe(name)]) for name in rule.names}
            if rule.streams and commanded and self.safety.group is not None and [None] not in domains.values():
                broken = rule.broken(domains, self.readings)
                self.check(broken is None, f"{domains} stay with {self.readings}: {rule.text} is broken")

    def _may_have(self, name: str) -> list[Value]:
        return [v for v in (self.commanded.get(name), self.reported.get(name)) if v is not None][:1]

    def _check_hold(self, name: str, value: Value, policy: str) -> None:
        """No value of the lamp but a safe one ends another one sooner than `min_hold_s`; what it reports already is no change."""
        if value in (self.queued.get(name), self.newest.get(name)):
            self.queued[name] = value
            return
        held_s = self.loop.now_s - self.changed_s.get(name, float("-inf"))
        is_held = held_s < self.mixture.actuators[name].get("min_hold_s", 0.0) - INSTANT_S
        self.check(policy == "gate" or not is_held, f"{policy} changes {name} to {value} after {held_s:.3f} s")
        self.queued[name], self.changed_s[name] = value, self.loop.now_s

    def _status_published(self, key: str, topic: str, payload: bytes, *_: object) -> None:
        level = topic.split("/")
        if level[2] == "act":
            body = _json(payload)
            self._check_hold(level[3], _value(body["value"]), body["policy"])
        if key == "status" and _json(payload)["state"] == "stopped":
            self.check(self._on_disk("stopped", value=True), "status `stopped` is not on the disk")

    def _announced(self, kind: str, data: dict[str, Any]) -> None:
        self.event_types.append(kind)
        self.events.append((kind, data))
        if kind == "stopped":
            self.check(self._on_disk("stopped", value=True), "event `stopped` is not on the disk")
        if kind == "mode_changed":
            self.check(
                (self.disk.content or {}).get("modes") == data["modes"], "event `mode_changed` is not on the disk"
            )

    def _answered(self, request: Message, payload: bytes, _fallback: str) -> None:
        self.arm_waits = self.arm_waits and not request.topic.endswith("/request/arm")
        if _json(payload).get("data") == {"armed": False}:
            self.check(self._on_disk("wanted", value=False), "a disarming was answered before it was on the disk")

    def _on_disk(self, name: str, *, value: object) -> bool:
        return (self.disk.content or {}).get(name) == value

    stop_event = 0

    def check(self, condition: object, promise: str) -> None:
        """Fail if a promise is broken."""
        if not condition:
            self.broken.append(promise)
            raise BrokenPromiseError(promise)


def _value(value: Any) -> Value:
    return tuple(value) if isinstance(value, list) else str(value)


def _is_release(payload: bytes) -> bool:
    """Whether it is `{"engaged": false}`, perhaps with the name of a sender, and nothing else."""
    try:
        pairs = json.loads(payload.decode(), object_pairs_hook=lambda pairs: pairs)
    except ValueError:
        return False
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        return False
    body = dict(pairs)
    is_named = isinstance(body.get("source", ""), str) and len(body.get("source", "")) <= 64
    return (
        body.get("engaged") is False
        and is_named
        and len(pairs) == len(body) <= 2
        and set(body) <= {"engaged", "source"}
    )


def _json(payload: bytes) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None


__all__ = ["FORBID", "POOL", "SETTINGS", "BrokenPromiseError", "Mixture", "World"]
