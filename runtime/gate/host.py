"""Connect the gate to the agent's socket, to the devices on the broker, and to the clock (`actuators/safety/gate.py` decides).

Only this module publishes actuator topics. Commands, the status and the stop have their own connection, so that no flood of
requests and reports can delay them; everything else uses a second connection. Both run on the supervisor's loop, which does
little else, so that a safe action leaves within a millisecond. `operator_commands.py` handles the requests of operators,
`status.py` publishes changes.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from actuators.safety.decisions import ActuatorDecision, Mode, Proposal
from actuators.safety.gate import Gate
from actuators.safety.limits import Refusal
from actuators.wire import SAFE_TTL_MS, CommandWriter, DeviceReport, WireError, parse_state, state_topic
from runtime.config.schema import Config
from runtime.gate import ipc, stop_channel
from runtime.gate.event_throttle import EventThrottle
from runtime.gate.hold_publisher import HoldPublisher
from runtime.gate.info import InfoBuilder
from runtime.gate.latches import LatchWriter, Saved
from runtime.gate.status import AgentLiveness, StatusPublisher
from runtime.gate.stop_latch import StopLatch
from runtime.mqtt import Connection, Delivery, Limit, Message
from runtime.mqtt.topics import Refused, Topics, encode
from runtime.process.systemd import Feeder

log = structlog.get_logger(__name__)

TICK_S = 0.01
"""The gate gets the time at most so often, apart from the dead-man, which is never late."""
LONGEST_S = 0.25
"""It gets the time at least so often: for what announces itself by no call, such as a process that fails or a set clock."""
EARLIEST = 0.8
"""Periods from an answer to the next proposal, at least; what is not allowed by then is left out."""
PROPOSE_EVERY = 10
"""Ticks after which an unchanged proposal is published again: a late subscriber sees it too."""
AT_ONCE = 16
"""Proposals handled in one turn of the loop."""
REPORTS = Limit(rate_hz=250.0, burst=250)
"""Reports of one device that are read; between two of them the newest wins."""
STOP_AGAIN_S = 0.1
"""Safe actions are sent again at most so often while stop messages go on."""
STALL_S = 1.0
"""After a pause of this process of so long, the messages that waited meanwhile are of unknown age."""
AFTER_STALL_S = 0.5
"""They are read within this time."""
LATCH_POLL_S = 0.25
"""How often the latch of the stop listener is read."""
OWN_STOP_S = 0.5
"""A connected gate waits so long for a stop that the stop listener has received: its own connection has the order of the messages."""
STOP_LISTENER = "the stop listener received it"
REST_S = 1.0
"""For the devices to acknowledge the last safe actions at the end of the daemon."""
COUNTED = ("agent_lost", "disarmed", "stopped", "broker_lost")
"""Events of the gate that the agent counts in its metrics."""
MAX_SERIALS = 64
"""Newest commands of one actuator for which an acknowledgement by the device is recognised."""


@dataclass(slots=True)
class GateHost:
    """Carries decisions to devices and verdicts to the agent."""

    config: Config
    gate: Gate
    commands: CommandWriter
    safety: Connection
    """Carries commands and status out, and the stop in."""
    connection: Connection
    """Carries reports, overrides and requests in, and events, info, holds and responses out."""
    latch_file: Path
    feeder: Feeder
    info: InfoBuilder
    latched: Mapping[str, object] | None = None
    """The latches as they were loaded."""
    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    counts: Counter[str] = field(default_factory=Counter)
    throttle: EventThrottle = field(default_factory=EventThrottle)
    restarts: dict[str, int] = field(default_factory=dict)
    """How often each child was restarted; the agent, which has the metrics, may be among them."""
    agent: AgentLiveness = field(default_factory=AgentLiveness)
    ending: bool = False
    _end: socket.socket | None = None
    _listener: socket.socket | None = None
    _listener_stop: tuple[float, str] | None = None
    """When the stop listener's stop was read, and its reason, while this gate is not stopped."""
    _serials: dict[str, dict[int, int]] = field(default_factory=dict)
    """By actuator: the gate's number of a command by its `seq`."""
    _proposals: dict[str, Any] = field(default_factory=dict)
    _stopped_s: float = float("-inf")
    _released_ns: int = 0
    """When the newest release was executed, Unix nanoseconds: a file of the stop listener from before it is late."""
    _ticked_s: float = math.inf
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    """Something happened that the next `tick` publishes, or that changes when it is due."""
    _stalled_s: float = float("-inf")
    _dropped: int = 0
    """Messages on the connection of the stop that nothing has read."""
    _shadow: bool = False
    """The newest proposal asked for mode shadow; each such request acts once, so that an operator can change the mode."""
    topics: Topics = field(init=False)
    publisher: StatusPublisher = field(init=False)
    latches: LatchWriter = field(init=False)
    stop_latch: StopLatch = field(init=False)
    holds: HoldPublisher = field(init=False)

    def __post_init__(self) -> None:
        self.topics = Topics(self.config.agent)
        self.stop_latch = StopLatch.of(self.latch_file.parent)
        self.latches = LatchWriter(self.latch_file, lambda: self.gate.latches, self.latched)
        self.publisher = StatusPublisher(
            self.gate,
            self.safety,
            self.connection,
            self.topics,
            self.feeder,
            self.agent,
            self.latches,
            self.info,
            now=self.now,
            wall=self.wall,
        )
        self.holds = HoldPublisher(self.gate, self.connection, self.topics, self.wall)
        self.safety.on_connect = self.on_connect
        self.safety.on_connection_change = self.on_connection_change
        self.safety.when_dropping(self.wake)
        self.connection.on_connect = self._on_other_connect
        self.connection.on_connection_change = lambda _up, _reason: self.wake()
        self.latches.on_written = self.wake
        sources: dict[str, list[str]] = {}
        for name, each in self.config.actuators.items():
            sources.setdefault(state_topic(self.topics.base, name, each), []).append(name)
        for topic, names in sources.items():
            handler = partial(self._reported_all, names)
            self.connection.subscribe(topic, handler, retained="send", limit=REPORTS, as_published=False)
        if self.gate.stopped and not self.latches.has("stopped", value=True):
            self.publisher.stop_reason = f"{self.latch_file} cannot be read"
            self.latches.changed()
        found = self.stop_latch.read()
        if found is not None:
            self.stop(engaged=True, reason=f"{STOP_LISTENER}: {found[1]}")
        if self.gate.restricted:
            self.publisher.event("mode_restricted", {"modes": self.gate.restricted, "configured": self.config.mode})

    # --- the agent

    def attach(self, end: socket.socket) -> None:
        """Listen to a new agent."""
        self.detach()
        self._end = end
        self._shadow = False
        self.agent.spoke_s = None
        asyncio.get_running_loop().add_reader(end.fileno(), self._readable)

    def detach(self) -> None:
        """Stop reading from the agent, without reporting its loss to the gate."""
        if self._end is not None:
            asyncio.get_running_loop().remove_reader(self._end.fileno())
            self._end.close()
            self._end = None

    def _readable(self) -> None:
        for _ in range(AT_ONCE):
            if self._end is None:
                return
            try:
                data = self._end.recv(ipc.MAX_MESSAGE + 1)  # a longer one is cut
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
        except ValueError as error:
            self.counts["malformed proposal"] += 1
            log.warning("gate.malformed", reason=str(error))
            return
        if not isinstance(message, Proposal) or self.ending:
            return
        now_s = self.now()
        if message.shadow and not self._shadow:
            self.set_mode("shadow")
        self._shadow = message.shadow
        if self.gate.is_sound(message):
            self.agent.spoke(message, now_s)
        elif now_s >= self.gate.deadline_s:
            self._lost("silent")
        rulings = self.gate.judge(message, now_s)
        self.apply(rulings, message)
        self._propose(message, rulings)
        self._answer(message, rulings)
        self.wake()

    def _propose(self, message: Proposal, rulings: list[ActuatorDecision]) -> None:
        """Publish what the policy proposes where an operator decides: again while it changes; it expires when it is too old."""
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
        outcomes = outcomes_of(self.gate, rulings)
        gate = self.gate
        refused, restarts = self.refused(), dict(self.restarts)
        events = {kind: count for kind in COUNTED if (count := self.publisher.counts[kind])}
        verdict = ipc.GateVerdict(
            proposal.decision,
            gate.armed,
            gate.stopped,
            gate.modes,
            outcomes,
            refused,
            restarts,
            events,
            gate.short_overrides,
            gate.allowed_choices(self.now() + EARLIEST * self.config.tick.period_s),
        )
        try:
            assert self._end is not None
            self._end.send(ipc.pack(verdict))
        except (OSError, ValueError) as error:  # full: the agent is stuck; closed: end-of-file follows; or too large
            self.counts["unsent verdict"] += 1
            if isinstance(error, ValueError) and self.counts["oversized verdict"] == 0:
                log.warning("gate.verdict_not_sent", reason=str(error))
            self.counts["oversized verdict"] += isinstance(error, ValueError)
            return
        self.feeder.ticked(
            ready=proposal.ready, stale=proposal.stale, now_s=self.now(), status=f"policy {self.agent.policy}: ticking"
        )

    def refused(self) -> dict[str, dict[str, int]]:
        """The gate's refusals by actuator and rule; under "" what concerns none that is configured."""
        out: dict[str, dict[str, int]] = {}
        for (name, rule), count in self.gate.refused.items():
            out.setdefault(name, {})[rule] = count
        others = {rule: count for rule in ("lost", "unknown_actuator") if (count := self.gate.counters[rule])}
        return out | ({"": others} if others else {})

    def _lost(self, cause: str) -> None:
        self.agent.lost()
        self.wake()
        if self.ending:
            return
        self.apply(self.gate.lost(self.now()))
        self.publisher.event("agent_lost", {"cause": cause})

    # --- the stop listener

    def attach_listener(self, end: socket.socket) -> None:
        """Read the stop listener's channel; its end stays open here, so that each new listener can inherit it."""
        self._listener = end
        asyncio.get_running_loop().add_reader(end.fileno(), self._listener_readable)

    def detach_listener(self) -> None:
        """Stop reading from the stop listener."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _listener_readable(self) -> None:
        for _ in range(AT_ONCE):
            if self._listener is None:
                return
            try:
                is_read, reason = stop_channel.receive(self._listener)
            except EOFError:
                self.detach_listener()
                return
            if not is_read:
                return
            self.listener_states(reason)

    def listener_states(self, reason: str | None) -> None:
        """Take a stop that the stop listener received, with its reason, or None once it received a release.

        While the gate is not connected, it engages the stop at once. While it is connected, it waits for its own message:
        a stop that was released meanwhile must not be engaged again. No statement releases an engaged stop.
        """
        if reason is None or self.gate.stopped:
            self._listener_stop = None
        elif self._listener_stop is None:
            self._listener_stop = self.now(), reason
        self._engage_listener_stop()
        self.wake()

    def _engage_listener_stop(self, *, at_once: bool = False) -> None:
        if self._listener_stop is None:
            return
        read_s, reason = self._listener_stop
        if self.gate.stopped:
            self._listener_stop = None
        elif at_once or not self.safety.connected or self.now() - read_s >= OWN_STOP_S:
            self.stop(engaged=True, reason=f"{STOP_LISTENER}: {reason}")

    # --- devices

    def apply(self, decisions: Iterable[ActuatorDecision], proposal: Proposal | None = None) -> None:
        """Send the commands among these decisions, and publish the refusals that are new."""
        for decision in decisions:
            if decision.cancels:
                self.safety.discard(f"act/{decision.actuator}")
            if decision.value is not None:
                self._send(decision, proposal if decision.by == "policy" else None)
            refused = self.throttle.event(decision, self.now())
            if refused is not None:
                self.publisher.event("action_refused", refused)

    def _send(self, decision: ActuatorDecision, proposal: Proposal | None) -> None:
        name, is_safe = decision.actuator, decision.by == "gate"
        assert decision.value is not None
        out = self.commands.write(
            name,
            decision.value,
            decision=proposal.decision if proposal else None,
            policy=proposal.policy if proposal else decision.by,
            stamp_s=self.wall(),
            ttl_ms=SAFE_TTL_MS if is_safe else None,
        )
        serials = self._serials.setdefault(name, {})
        serials[self.commands.last(name)] = decision.serial
        if len(serials) > MAX_SERIALS:
            del serials[next(iter(serials))]
        self.counts["commands"] += 1
        delivered = partial(self._delivered, name, decision.serial)
        self.safety.send_newest(f"act/{name}", out.topic, out.payload, delivered, urgent=is_safe, expiry_s=out.expiry_s)

    def _delivered(self, name: str, serial: int, delivery: Delivery) -> None:
        {"acknowledged": self.gate.acknowledged, "unsent": self.gate.unsent, "undelivered": self.gate.undelivered}[
            delivery
        ](name, serial)
        if delivery != "acknowledged":
            self.wake()

    def _reported_all(self, names: list[str], message: Message) -> None:
        """Take a report of every actuator that shares its topic; the last refusal is raised when all have had it."""
        refusal: Refused | None = None
        for name in names:
            try:
                self.reported(name, message)
            except Refused as refused:
                refusal = refused
        if refusal is not None:
            raise refusal

    def reported(self, name: str, message: Message) -> None:
        """Take a device's report of what it does.

        Raises:
            Refused: it is malformed, or does not fit the actuator.
        """
        try:
            report: DeviceReport = parse_state(self.config.actuators[name], message.payload)
        except WireError as error:
            raise Refused(str(error)) from None
        if report.boot is not None:
            self.gate.device_answers(name)
        if report.stamp_s is not None and not message.retain:
            self._measure_clock(name, report.stamp_s - (self.wall() - (self.now() - message.stamp_s)))
        if report.boot == self.commands.boot and report.seq is not None:
            if report.seq > self.commands.last(name):
                raise Refused(f"seq: command {report.seq} was never sent; the last one is {self.commands.last(name)}")
            serial = self._serials.get(name, {}).get(report.seq)
            if serial is not None:
                self.gate.acknowledged(name, serial, by_device=True)
        if self.commands.is_older(name, report):
            return
        refusal = self.gate.reconciled(name, report.value, self.now(), retained=message.retain)
        if not self.gate.armed:
            self.wake()
        if refusal is not None:
            raise Refused(refusal.reason)

    def _measure_clock(self, name: str, offset_s: float) -> None:
        """Publish that a device's clock is off, or agrees again; with another clock it drops every command."""
        event = self.publisher.clocks.measured(name, offset_s, self.config.actuators[name].ttl_ms / 1_000)
        if event is not None:
            self.publisher.event(*event)
            self.wake()

    # --- operators

    def stop(self, *, engaged: bool, reason: str = "", saved: Saved | None = None) -> None:
        """Engage or release the software stop: safe actions first, then the disk, then the announcement."""
        was, now_s = self.gate.stopped, self.now()
        if engaged and was and now_s - self._stopped_s < STOP_AGAIN_S:
            self.gate.end_request(now_s)
            decisions = []
        else:
            decisions = self.gate.stop(now_s, engaged=engaged)
        self.apply(decisions)
        if decisions:
            self._stopped_s = now_s
        self.latches.release = not engaged
        self._listener_stop = None
        self._released_ns = self._released_ns if engaged else time.time_ns()
        if engaged != was:
            self.publisher.stop_reason = reason if engaged else ""
        kind, data = ("stopped" if engaged else "stop_released"), ({"reason": reason} if reason else {})

        def announced() -> dict[str, Any] | None:
            return data if engaged != was and self.latches.has("stopped", value=engaged) else None

        self._after_saving(kind, announced, saved)

    def override(self, actuator: str, value: object, hold_s: float) -> ActuatorDecision:
        """Act for an operator."""
        decision = self.gate.override(actuator, value, hold_s, self.now())
        self.apply([decision])
        self.wake()
        return decision

    def end_override(self, actuator: str) -> None:
        """Let the policy act again at once."""
        self.apply(self.gate.end_hold(actuator, self.now()))
        self.holds.publish_changes(self.now())

    def arm(self, saved: Saved | None = None, asked_s: float = math.inf) -> Refusal | None:
        """Allow movement, as asked at a time of the monotonic clock; returns why it is refused, or None."""
        refusal = self.gate.arm(self.now(), asked_s)
        if refusal is None:
            self.latches.changed(saved)
            self.wake()
        return refusal

    def disarm(self, saved: Saved | None = None) -> None:
        """Allow no movement until an operator arms."""
        self.apply(self.gate.disarm(self.now()))
        self.latches.changed(saved)
        self.wake()

    def set_mode(self, mode: Mode, actuator: str | None = None, saved: Saved | None = None) -> None:
        """Change the mode of one actuator, or of all."""
        self.apply(self.gate.set_mode(mode, self.now(), actuator))
        self._after_saving("mode_changed", lambda: {"modes": self.latches.on_disk["modes"]}, saved)

    def reload(self, info: InfoBuilder, mode: Mode | None = None) -> None:
        """Take new settings: what `info` contains, and the configured mode where it has changed."""
        self.info = self.publisher.info = info
        self.wake()
        if mode is not None:
            self.apply(self.gate.configure(mode, self.now()))
            self.latches.changed()
            if self.gate.restricted:
                self.publisher.event("mode_restricted", {"modes": self.gate.restricted, "configured": mode})

    def _after_saving(self, kind: str, data: Callable[[], dict[str, Any] | None], saved: Saved | None) -> None:
        """Publish the event, unless its data is None, once the latches are on the disk, and before that why they are not."""
        failed = False

        def tell(error: str | None) -> None:
            nonlocal failed
            if error is not None and not failed:
                failed = True
                self.publisher.event("latches_not_saved", {"change": kind, "reason": error})
            body = data() if error is None else None
            if body is not None:
                self.publisher.event(kind, body)
            if saved is not None:
                saved(error)

        self.latches.changed(tell)
        self.wake()

    # --- time and the broker

    def wake(self) -> None:
        """Have `tick` called: something happened that it publishes, or that changes when it is due."""
        self._woken.set()

    @property
    def is_woken(self) -> bool:
        """Whether `tick` has to be called although nothing is due."""
        return self._woken.is_set()

    def due_s(self) -> float:
        """Return when `tick` is due unless something happens before."""
        due_s = min(min(self._ticked_s, self.now()) + LONGEST_S, self.gate.due_s())
        return due_s if self._listener_stop is None else min(due_s, self._listener_stop[0] + OWN_STOP_S)

    async def run(self) -> None:
        """Give the gate the time whenever something is due or has happened, until cancelled."""
        loop, ticked_s = asyncio.get_running_loop(), -math.inf
        while True:
            timer = loop.call_later(max(0.0, self.due_s() - self.now()), self.wake)
            try:
                await self._woken.wait()
            finally:
                timer.cancel()
            rest_s = min(ticked_s + TICK_S, self.gate.deadline_s) - self.now()
            if rest_s > 0:
                await asyncio.sleep(rest_s)
            ticked_s = self.now()
            self.tick()

    async def follow_stop_latch(self) -> None:
        """Engage a stop that the stop listener has latched, until cancelled.

        While the gate is connected, it must find the file twice. Otherwise the late file of a stop that was just released
        would engage it again.
        """
        before: int | None = None
        while True:
            await asyncio.sleep(LATCH_POLL_S)
            found = await asyncio.to_thread(self.stop_latch.read)
            written, reason = found or (None, "")
            is_newer = written is not None and written == before and written > self._released_ns
            if written is not None and not self.gate.stopped and (is_newer or not self.safety.connected):
                self.stop(engaged=True, reason=f"{STOP_LISTENER}: {reason}")
            before = written

    def tick(self) -> None:
        """Apply what time brings, the dead-man among it, and publish what has changed."""
        self._woken.clear()
        if self.ending:
            return
        now_s = self.now()
        self.has_stalled(now_s)
        self._ticked_s = now_s
        if now_s >= self.gate.deadline_s:
            self._lost("silent")
        if self.safety.dropped_incoming > self._dropped:
            self._dropped = self.safety.dropped_incoming
            self.stop(
                engaged=True, reason="too many messages on `stop` at once: one that was dropped may have been a stop"
            )
        self._engage_listener_stop()
        self.apply(self.gate.tick(now_s))
        self.publisher.publish_changes()
        self.holds.publish_changes(now_s)

    def has_stalled(self, now_s: float) -> bool:
        """Return whether this process has just not run for `STALL_S`, so that messages may have waited for it."""
        if now_s - self._ticked_s > STALL_S:
            self._stalled_s = now_s
        return now_s - self._stalled_s < AFTER_STALL_S

    def on_connect(self) -> None:
        """After every connect: safe actions first, then the status; the devices must report again."""
        self.publisher.invalidate()
        self.gate.connected(self.now())
        self.apply(self.gate.go_safe(self.now(), "connected to the broker"))
        self._listener_readable()  # this and the file before anything arms
        self._engage_listener_stop(at_once=True)
        found = None if self.gate.stopped else self.stop_latch.read()
        if found is not None:
            self.stop(engaged=True, reason=f"{STOP_LISTENER}: {found[1]}")
        self.publisher.publish_changes()
        self.wake()

    def _on_other_connect(self) -> None:
        self.publisher.invalidate()
        self.holds.invalidate()
        self.wake()

    def on_connection_change(self, up: bool, reason: str) -> None:  # noqa: FBT001 - the connection's callback
        """The connection of the commands came or went."""
        self.wake()
        if not up:
            self.apply(self.gate.disconnected(self.now()))
            self.publisher.event("broker_lost", {"reason": reason})
        elif self.safety.connects > 1:
            self.publisher.event("broker_recovered", {"connects": self.safety.connects})

    # --- the end

    async def go_safe(self, reason: str) -> None:
        """End all movement; returns once the devices have the safe actions, or `REST_S` is over."""
        self.ending = True
        self.apply(self.gate.end(self.now(), reason))
        self.publisher.event("daemon_stopping", {"reason": reason})
        until_s = self.now() + REST_S
        while self.gate.owed() and self.now() < until_s:
            await asyncio.sleep(TICK_S)
            self.apply(self.gate.repeat(self.now()))
        await self.connection.drained(1.0)
        await self.latches.finish()

    async def publish_offline(self, reason: str) -> None:
        """Publish the last status."""
        self.detach()
        await self.publisher.publish_offline(reason)


def outcomes_of(gate: Gate, rulings: Iterable[ActuatorDecision]) -> dict[str, ipc.Outcome]:
    """Return the outcome of one proposal for every actuator, after the gate judged it."""
    by_name = {ruling.actuator: ruling for ruling in rulings}
    outcomes: dict[str, ipc.Outcome] = {}
    for name in gate.modes:
        ruling, (value, by) = by_name.get(name), gate.last_command(name)
        sent = ruling is not None and ruling.sent
        outcomes[name] = ipc.Outcome(sent, ruling.rule if ruling else None, value, by)
    return outcomes
