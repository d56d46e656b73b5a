"""The gate's input and output: the agent's socket, the broker, the clock and the latches around `actuators/gate.py`.

It alone publishes actuator topics. Everything here runs on the supervisor's loop, which does little else, so that a command
or a safe action leaves within a millisecond. What may move is decided by the gate, not here; what the operator's requests are
is in `gatedesk.py`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from actuators.gate import Gate
from actuators.rulings import Ruling
from actuators.wire import Commands, Report, WireError, parse_state, state_topic
from runtime import latches, link
from runtime.mqtt import Connection, Message, MqttLost
from runtime.refusals import Refusals
from runtime.settings import Config
from runtime.systemd import Feeder
from runtime.topics import Refused, Topics, encode

log = structlog.get_logger(__name__)

TICK_S = 0.01
"""How often time is told to the gate: the dead-man is late by this at most."""
AGAIN_S = 0.25
"""A safe action that a device of ours has not acknowledged is sent again: it may have been away, or the command too old."""
PROPOSE_EVERY = 10
"""Ticks after which an unchanged proposal is offered again: whoever comes later sees it too."""
FAREWELL_S = 2.0
"""For the broker to take the last status; longer than a reconnection takes."""
AT_ONCE = 16
"""Proposals taken in one turn of the loop."""


@dataclass(slots=True)
class GateHost:
    """Carries rulings to devices, verdicts to the agent, and news to the world. Create it inside the running loop."""

    config: Config
    gate: Gate
    commands: Commands
    connection: Connection
    latch_file: Path
    feeder: Feeder
    describe: Callable[[str, str], dict[str, Any]]
    """The `info` payload for a policy version and a mode."""
    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    counts: Counter[str] = field(default_factory=Counter)
    refusals: Refusals = field(default_factory=Refusals)
    restarts: dict[str, int] = field(default_factory=dict)
    """How often each child was started again; the agent, which has the metrics, may be among them."""
    policy: str = ""
    spoke_s: float | None = None
    """When the agent last spoke, whatever became of it since; None before it first did."""
    heard_s: float | None = None
    """When the agent last spoke; None before it first did and after it was lost."""
    stale: tuple[str, ...] = ()
    ready: bool = False
    was_ready: bool = False
    ending: bool = False
    _end: socket.socket | None = None
    _unanswered: dict[str, float] = field(default_factory=dict)
    """Actuators whose last command is not acknowledged, and when it was sent."""
    _speakers: set[str] = field(default_factory=set)
    """Devices that say which command they answer."""
    _told: tuple[Any, ...] = ()
    _told_info: tuple[str, str] = ("", "")
    _armed: bool = False
    _proposals: dict[str, Any] = field(default_factory=dict)
    _dirty: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    topics: Topics = field(init=False)

    def __post_init__(self) -> None:
        self.topics = Topics(self.config.agent)
        self.connection.hello = self.hello
        self.connection.changed = self.changed
        for name, each in self.config.actuators.items():
            topic = state_topic(self.topics.base, name, each)
            self.connection.on(topic, partial(self.reported, name), retained="send")

    # --- the agent

    def attach(self, end: socket.socket) -> None:
        """Listen to a new agent."""
        self.detach()
        self._end = end
        self.spoke_s = None
        self._loop.add_reader(end.fileno(), self._readable)

    def detach(self) -> None:
        """Stop listening to the agent; the gate is not told."""
        if self._end is not None:
            self._loop.remove_reader(self._end.fileno())
            self._end.close()
            self._end = None

    def _readable(self) -> None:
        for _ in range(AT_ONCE):
            if self._end is None:
                return
            try:
                data = self._end.recv(link.MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.gone()
                return
            self._proposed(data)

    def gone(self) -> None:
        """The agent's end is closed."""
        self.detach()
        self._lost("closed")

    def _proposed(self, data: bytes) -> None:
        try:
            message = link.unpack(data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.counts["malformed proposal"] += 1
            log.warning("gate.malformed", reason=str(error))
            return
        if not isinstance(message, link.Proposal) or self.ending:
            return
        now_s = self.now()
        self.heard_s = self.spoke_s = now_s
        self.stale, self.policy = message.stale, message.policy
        self.ready = message.ready
        self.was_ready = self.was_ready or message.ready
        rulings = self.gate.judge(message, now_s)
        self.carry(rulings, message)
        self._propose(message, rulings)
        self._answer(message, rulings)
        self.settled()

    def _propose(self, message: link.Proposal, rulings: list[Ruling]) -> None:
        """What the policy would do, where a person decides: offered anew while it changes, and gone when it is too old."""
        for ruling in rulings:
            name = ruling.actuator
            if ruling.rule != "mode" or self.gate.modes.get(name) != "assist":
                continue
            value, ttl_ms = message.actions.get(name), self.config.actuators[name].ttl_ms
            if value is None or (value == self._proposals.get(name) and message.tick % PROPOSE_EVERY):
                continue
            self._proposals[name] = value
            body = {
                "value": value,
                "decision": message.decision,
                "policy": message.policy,
                "stamp": self.wall(),
                "ttl_ms": ttl_ms,
            }
            self.connection.post(self.topics("proposal", name), encode(body), expiry_s=max(1.0, ttl_ms / 1_000))

    def _answer(self, proposal: link.Proposal, rulings: list[Ruling]) -> None:
        by_name = {ruling.actuator: ruling for ruling in rulings}
        outcomes = {name: self._outcome(name, by_name.get(name)) for name in self.config.actuators}
        gate = self.gate
        refused, restarts = self.refused(), dict(self.restarts)
        verdict = link.Verdict(proposal.decision, gate.armed, gate.stopped, gate.modes, outcomes, refused, restarts)
        try:
            assert self._end is not None
            self._end.send(link.pack(verdict))
        except OSError:  # full: the agent is stuck; closed: end-of-file follows
            self.counts["unsent verdict"] += 1
            return
        self.feeder.ticked(
            ready=proposal.ready, stale=proposal.stale, now_s=self.now(), status=f"policy {self.policy}: ticking"
        )

    def refused(self) -> dict[str, dict[str, int]]:
        """The gate's refusals by actuator and rule; under "" what concerns none that is configured."""
        out: dict[str, dict[str, int]] = {}
        for (name, rule), count in self.gate.refused.items():
            out.setdefault(name, {})[rule] = count
        nobody = {rule: count for rule in ("lost", "unknown_actuator") if (count := self.gate.counters[rule])}
        return out | ({"": nobody} if nobody else {})

    def _outcome(self, name: str, ruling: Ruling | None) -> link.Outcome:
        value, by = self.gate.told(name)
        sent = ruling is not None and ruling.sent
        return link.Outcome(sent, ruling.rule if ruling else None, value, by)

    def _lost(self, cause: str) -> None:
        self.heard_s, self.ready = None, False
        if self.ending:
            return
        self.carry(self.gate.lost(self.now()))
        self.event("agent_lost", {"cause": cause})
        self.settled()

    # --- devices

    def carry(self, rulings: Iterable[Ruling], proposal: link.Proposal | None = None) -> None:
        """Send what is to be sent, and say what is new."""
        for ruling in rulings:
            if ruling.value is not None:
                policy = proposal.policy if ruling.by == "policy" and proposal else ruling.by
                decision = proposal.decision if ruling.by == "policy" and proposal else None
                out = self.commands.write(
                    ruling.actuator, ruling.value, decision=decision, policy=policy, stamp_s=self.wall()
                )
                self.connection.post(out.topic, out.payload, qos=1, expiry_s=out.expiry_s)
                self._unanswered[ruling.actuator] = self.now()
                self.counts["commands"] += 1
            told = self.refusals.told(ruling, self.now())
            if told is not None:
                self.event("refused", told)

    def reported(self, name: str, message: Message) -> None:
        """A device says what it does."""
        try:
            report: Report = parse_state(self.config.actuators[name], message.payload)
        except WireError as error:
            raise Refused(str(error)) from None
        if report.boot is not None:
            self._speakers.add(name)
        if self.commands.is_older(name, report):
            return
        if report.boot == self.commands.boot:
            self._unanswered.pop(name, None)
        refusal = self.gate.reconciled(name, report.value, self.now())
        if refusal is not None:
            raise Refused(refusal.reason)
        self.settled()

    # --- time and the broker

    async def run(self) -> None:
        """Tell the gate the time until cancelled."""
        while True:
            await asyncio.sleep(min(TICK_S, max(0.001, self.gate.deadline_s - self.now())))
            self.tick()

    def tick(self) -> None:
        """What time brings; the dead-man among it."""
        if self.ending:
            return
        now_s = self.now()
        if now_s >= self.gate.deadline_s:
            self._lost("silent")
            return
        self.carry(self.gate.tick(now_s))
        if any(self._is_unsafe(name, now_s) for name in self._speakers):
            self.counts["safe again"] += 1
            self.carry(self.gate.rest(now_s, "a safe action was not acknowledged"))
        self.settled()

    def _is_unsafe(self, name: str, now_s: float) -> bool:
        sent_s = self._unanswered.get(name)
        by_gate = self.gate.told(name)[1] == "gate"
        return sent_s is not None and by_gate and now_s - sent_s > AGAIN_S and self.connection.connected

    def hello(self) -> None:
        """After every connect: status, info, every device at rest until it has reported."""
        self._told, self._told_info = (), ("", "")
        self.gate.connected(self.now())
        self.carry(self.gate.rest(self.now(), "connected to the broker"))
        self.settled()

    def changed(self, up: bool, reason: str) -> None:  # noqa: FBT001 - the connection's callback
        """The connection came or went."""
        if not up:
            self.carry(self.gate.disconnected(self.now()))
            self.event("broker_lost", {"reason": reason})
        elif self.connection.connects > 1:
            self.event("broker_recovered", {"connects": self.connection.connects})
        self.settled()

    # --- telling

    def settled(self) -> None:
        """After anything happened: tell what has changed."""
        if self.gate.armed != self._armed:
            self._armed = self.gate.armed
            self.event("armed" if self._armed else "disarmed", {})
        self._tell_status()
        self._tell_info()

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Publish an event; kept while there is no connection."""
        self.counts[f"event {kind}"] += 1
        log.info("event", type=kind, **data)
        body = {"type": kind, "stamp": self.wall(), "data": data}
        self.connection.post(self.topics("event"), encode(body), qos=1, keep="all")

    def status(self) -> tuple[str, tuple[str, ...]]:
        """State and reasons, as they are now."""
        if self.gate.stopped:
            return "stopped", ("the software stop is engaged",)
        reasons = [f"{name}: nothing fresh" for name in sorted(self.feeder.required.intersection(self.stale))]
        if not self.connection.connected:
            reasons.append("no connection to the broker")
        if not self.was_ready:
            return "starting", ("the agent is not ready yet", *reasons)
        if not self.ready:
            reasons.append("no sign of life from the agent" if self.heard_s is None else "the agent is not ready")
        if reasons:
            return "degraded", tuple(reasons)
        return "online", () if self.gate.armed else ("not armed",)

    def _tell_status(self) -> None:
        told = self.status()
        if told != self._told:
            self._told = told
            payload = encode({"state": told[0], "reasons": list(told[1])})
            self.connection.post(self.topics("status"), payload, qos=1, retain=True, keep="latest")
            self.feeder.notifier.status(f"{told[0]}: {', '.join(told[1]) or 'all well'}")

    def _tell_info(self) -> None:
        told = (self.policy, self.mode)
        if told != self._told_info:
            self._told_info = told
            payload = encode(self.describe(*told))
            self.connection.post(self.topics("info"), payload, qos=1, retain=True, keep="latest")

    @property
    def mode(self) -> str:
        """The most careful mode of any actuator."""
        return min(self.gate.modes.values(), key=("shadow", "assist", "autonomous").index)

    # --- latches and the end

    def latch(self) -> None:
        """Have the latches written soon; the disk is not waited for."""
        self._dirty.set()

    async def keep_latches(self) -> None:
        """Write the latches whenever they have changed."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._write()

    async def _write(self) -> None:
        try:
            await asyncio.to_thread(latches.save, self.latch_file, dict(self.gate.latches))
        except OSError as error:
            log.error("gate.latches_not_written", file=str(self.latch_file), reason=str(error))  # noqa: TRY400 - the reason is whole

    async def rest(self, reason: str) -> None:
        """The daemon ends: nothing moves any more; returns once the broker has the safe actions."""
        self.ending = True
        self.carry(self.gate.rest(self.now(), reason))
        self.event("daemon_ending", {"reason": reason})
        await self.connection.drained(1.0)
        if self._dirty.is_set():
            await self._write()

    async def farewell(self, reason: str) -> None:
        """The last words: said until the broker has them, or `FAREWELL_S` is over; then the will says that it vanished."""
        self.detach()
        payload = encode({"state": "offline", "reasons": [reason]})
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                while not await self._parted(payload):
                    await asyncio.sleep(TICK_S)
                    await self.connection.up()
                return
        log.warning("gate.no_farewell", waited_s=FAREWELL_S)

    async def _parted(self, status: bytes) -> bool:
        try:
            await self.connection.publish(self.topics("status"), status, retain=True)
        except MqttLost:
            return False
        return True
