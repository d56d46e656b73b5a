"""The gate's input and output: the agent's socket, devices on the broker and the clock around `actuators/safety/gate.py`.

It alone publishes actuator topics. Everything here runs on the supervisor's loop, which does little else, so that a command
or a safe action leaves within a millisecond. What may move is decided by the gate, not here; what the operator's requests are
is in `gatedesk.py`, what the world is told in `gatenews.py`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from actuators.safety.decisions import ActuatorDecision, Proposal
from actuators.safety.gate import Gate
from actuators.wire import Commands, Report, WireError, parse_state, state_topic
from runtime.config.schema import Config
from runtime.gate import ipc
from runtime.gate.event_throttle import EventThrottle
from runtime.gate.holds import HoldPublisher
from runtime.gate.latches import LatchWriter
from runtime.gate.status import AgentLiveness, StatusPublisher
from runtime.mqtt import Connection, Message
from runtime.mqtt.topics import Refused, Topics, encode
from runtime.process.systemd import Feeder

log = structlog.get_logger(__name__)

TICK_S = 0.01
"""How often time is told to the gate: the dead-man is late by this at most."""
AGAIN_S = 0.25
"""A safe action that a device of ours has not acknowledged is sent again: it may have been away, or the command too old."""
PROPOSE_EVERY = 10
"""Ticks after which an unchanged proposal is offered again: whoever comes later sees it too."""
AT_ONCE = 16
"""Proposals taken in one turn of the loop."""


@dataclass(slots=True)
class GateHost:
    """Carries rulings to devices and verdicts to the agent. Create it inside the running loop."""

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
    throttle: EventThrottle = field(default_factory=EventThrottle)
    restarts: dict[str, int] = field(default_factory=dict)
    """How often each child was started again; the agent, which has the metrics, may be among them."""
    agent: AgentLiveness = field(default_factory=AgentLiveness)
    ending: bool = False
    _end: socket.socket | None = None
    _unanswered: dict[str, float] = field(default_factory=dict)
    """Actuators whose last command is not acknowledged, and when it was sent."""
    _speakers: set[str] = field(default_factory=set)
    """Devices that say which command they answer."""
    _proposals: dict[str, Any] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    topics: Topics = field(init=False)
    publisher: StatusPublisher = field(init=False)
    latches: LatchWriter = field(init=False)
    holds: HoldPublisher = field(init=False)

    def __post_init__(self) -> None:
        self.topics = Topics(self.config.agent)
        self.publisher = StatusPublisher(
            self.gate, self.connection, self.topics, self.feeder, self.agent, describe=self.describe, wall=self.wall
        )
        self.holds = HoldPublisher(self.gate, self.connection, self.topics, self.wall)
        self.latches = LatchWriter(self.latch_file, lambda: self.gate.latches)
        self.connection.on_connect = self.on_connect
        self.connection.on_connection_change = self.on_connection_change
        for name, each in self.config.actuators.items():
            topic = state_topic(self.topics.base, name, each)
            self.connection.subscribe(topic, partial(self.reported, name), retained="send")

    # --- the agent

    def attach(self, end: socket.socket) -> None:
        """Listen to a new agent."""
        self.detach()
        self._end = end
        self.agent.spoke_s = None
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
                data = self._end.recv(ipc.MAX_MESSAGE)
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
            message = ipc.unpack(data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.counts["malformed proposal"] += 1
            log.warning("gate.malformed", reason=str(error))
            return
        if not isinstance(message, Proposal) or self.ending:
            return
        now_s = self.now()
        self.agent.spoke(message, now_s)
        rulings = self.gate.judge(message, now_s)
        self.apply(rulings, message)
        self._propose(message, rulings)
        self._answer(message, rulings)
        self.publisher.publish_changes()

    def _propose(self, message: Proposal, rulings: list[ActuatorDecision]) -> None:
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
            self.connection.enqueue(self.topics("proposal", name), encode(body), expiry_s=max(1.0, ttl_ms / 1_000))

    def _answer(self, proposal: Proposal, rulings: list[ActuatorDecision]) -> None:
        by_name = {ruling.actuator: ruling for ruling in rulings}
        outcomes = {name: self._outcome(name, by_name.get(name)) for name in self.config.actuators}
        gate = self.gate
        refused, restarts = self.refused(), dict(self.restarts)
        verdict = ipc.Verdict(proposal.decision, gate.armed, gate.stopped, gate.modes, outcomes, refused, restarts)
        try:
            assert self._end is not None
            self._end.send(ipc.pack(verdict))
        except OSError:  # full: the agent is stuck; closed: end-of-file follows
            self.counts["unsent verdict"] += 1
            return
        self.feeder.ticked(
            ready=proposal.ready, stale=proposal.stale, now_s=self.now(), status=f"policy {self.agent.policy}: ticking"
        )

    def refused(self) -> dict[str, dict[str, int]]:
        """The gate's refusals by actuator and rule; under "" what concerns none that is configured."""
        out: dict[str, dict[str, int]] = {}
        for (name, rule), count in self.gate.refused.items():
            out.setdefault(name, {})[rule] = count
        nobody = {rule: count for rule in ("lost", "unknown_actuator") if (count := self.gate.counters[rule])}
        return out | ({"": nobody} if nobody else {})

    def _outcome(self, name: str, ruling: ActuatorDecision | None) -> ipc.Outcome:
        value, by = self.gate.last_command(name)
        sent = ruling is not None and ruling.sent
        return ipc.Outcome(sent, ruling.rule if ruling else None, value, by)

    def _lost(self, cause: str) -> None:
        self.agent.lost()
        if self.ending:
            return
        self.apply(self.gate.lost(self.now()))
        self.publisher.event("agent_lost", {"cause": cause})
        self.publisher.publish_changes()

    # --- devices

    def apply(self, rulings: Iterable[ActuatorDecision], proposal: Proposal | None = None) -> None:
        """Send what is to be sent, and say what is new."""
        for ruling in rulings:
            if ruling.value is not None:
                policy = proposal.policy if ruling.by == "policy" and proposal else ruling.by
                decision = proposal.decision if ruling.by == "policy" and proposal else None
                out = self.commands.write(
                    ruling.actuator, ruling.value, decision=decision, policy=policy, stamp_s=self.wall()
                )
                self.connection.enqueue(out.topic, out.payload, qos=1, expiry_s=out.expiry_s)
                self._unanswered[ruling.actuator] = self.now()
                self.counts["commands"] += 1
            told = self.throttle.event(ruling, self.now())
            if told is not None:
                self.publisher.event("refused", told)

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
        self.publisher.publish_changes()

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
        self.apply(self.gate.tick(now_s))
        if any(self._is_unsafe(name, now_s) for name in self._speakers):
            self.counts["safe again"] += 1
            self.apply(self.gate.go_safe(now_s, "a safe action was not acknowledged"))
        self.publisher.publish_changes()
        self.holds.publish_changes(now_s)

    def _is_unsafe(self, name: str, now_s: float) -> bool:
        sent_s = self._unanswered.get(name)
        by_gate = self.gate.last_command(name)[1] == "gate"
        return sent_s is not None and by_gate and now_s - sent_s > AGAIN_S and self.connection.connected

    def on_connect(self) -> None:
        """After every connect: status, info, every device at rest until it has reported."""
        self.publisher.invalidate()
        self.holds.invalidate()
        self.gate.connected(self.now())
        self.apply(self.gate.go_safe(self.now(), "connected to the broker"))
        self.publisher.publish_changes()

    def on_connection_change(self, up: bool, reason: str) -> None:  # noqa: FBT001 - the connection's callback
        """The connection came or went."""
        if not up:
            self.apply(self.gate.disconnected(self.now()))
            self.publisher.event("broker_lost", {"reason": reason})
        elif self.connection.connects > 1:
            self.publisher.event("broker_recovered", {"connects": self.connection.connects})
        self.publisher.publish_changes()

    # --- the end

    async def rest(self, reason: str) -> None:
        """The daemon ends: nothing moves any more; returns once the broker has the safe actions."""
        self.ending = True
        self.apply(self.gate.go_safe(self.now(), reason))
        self.publisher.event("daemon_ending", {"reason": reason})
        await self.connection.drained(1.0)
        await self.latches.finish()

    async def publish_offline(self, reason: str) -> None:
        """The last words."""
        self.detach()
        await self.publisher.publish_offline(reason)
