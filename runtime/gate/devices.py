"""Carry the gate's decisions to the devices, and their acknowledgements and reports to the gate.

Only this module publishes actuator topics. Each actuator has one place in the queue of its connection, so that a newer command
replaces an older one that has not left. Reports are untrusted: the gate decides whether one fits its actuator.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from actuators.actions import Value
from actuators.safety.actuator_state import report_of
from actuators.safety.decisions import ActuatorDecision, Proposal
from actuators.safety.gate import Gate
from actuators.safety.limits import Refusal
from actuators.wire import SAFE_TTL_MS, CommandWriter, DeviceReport, WireError, parse_state, state_topic
from runtime.config.schema import Config
from runtime.gate.event_throttle import EventThrottle, RefusedReports
from runtime.gate.status import StatusPublisher
from runtime.mqtt import Connection, Delivery, Limit, Message
from runtime.mqtt.topics import Refused, Topics

REPORTS = Limit(rate_hz=250.0, burst=250)
"""Reports of one device that are read; between two of them the newest wins."""
MAX_SERIALS = 64
"""Newest commands of one actuator for which an acknowledgement by the device is recognised."""


@dataclass(slots=True)
class DeviceTraffic:
    """Sends commands and takes reports."""

    config: Config
    gate: Gate
    commands: CommandWriter
    safety: Connection
    """Carries commands out."""
    connection: Connection
    """Carries reports in."""
    topics: Topics
    publisher: StatusPublisher
    counts: Counter[str]
    """`commands` counts those that were handed to the connection."""
    woken: asyncio.Event
    """Set where the host's `tick` has something to do."""
    now: Callable[[], float]
    wall: Callable[[], float]
    throttle: EventThrottle = field(default_factory=EventThrottle)
    refused_reports: RefusedReports = field(default_factory=RefusedReports)
    _serials: dict[str, dict[int, int]] = field(default_factory=dict)
    """By actuator: the gate's number of a command by its `seq`."""
    _moving: set[str] = field(default_factory=set)
    """Actuators with a newest command that is no safe action."""

    def __post_init__(self) -> None:
        sources: dict[str, list[str]] = {}
        for name, each in self.config.actuators.items():
            sources.setdefault(state_topic(self.topics.base, name, each), []).append(name)
        for topic, names in sources.items():
            handler = partial(self._reported_all, names)
            self.connection.subscribe(topic, handler, retained="send", limit=REPORTS, as_published=False)

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
        if not is_safe and name not in self._moving:
            self.woken.set()  # the host saves that it moves
        (self._moving.discard if is_safe else self._moving.add)(name)
        delivered = partial(self._delivered, name, decision.serial, decision.value)
        self.safety.send_newest(f"act/{name}", out.topic, out.payload, delivered, urgent=is_safe, expiry_s=out.expiry_s)

    def _delivered(self, name: str, serial: int, value: Value, delivery: Delivery) -> None:
        if delivery == "acknowledged" and self.config.actuators[name].kind != "text":  # what speaks reports no text
            self.publisher.following.commanded(name, value)
        if delivery == "acknowledged":
            self.gate.acknowledged(name, serial, self.now())
        elif delivery == "unsent":
            self.gate.unsent(name, serial)
        else:
            self.gate.undelivered(name, serial)
        if delivery != "acknowledged":
            self.woken.set()

    def _reported_all(self, names: list[str], message: Message) -> None:
        """Take a report of every actuator that shares its topic; the last refusal is raised when all have had it."""
        refusal: Refused | None = None
        for name in names:
            try:
                self.reported(name, message, names)
            except Refused as refused:
                refusal = refused
                event = self.refused_reports.event(name, str(refused), self.now())
                if event is not None:
                    self.publisher.event("report_refused", event)
        if refusal is not None:
            raise refusal

    def reported(self, name: str, message: Message, sharing: Sequence[str] = ()) -> None:
        """Take a device's report of what it does.

        Args:
            name: of the actuator.
            message: the report.
            sharing: all actuators of which this message reports; the newest command that it names may be one of any of these.

        Raises:
            Refused: it is malformed, or does not fit the actuator.
        """
        try:
            report: DeviceReport = parse_state(self.config.actuators[name], message.payload)
        except WireError as error:
            raise Refused(str(error)) from None
        if report.boot is not None and self.gate.device_answers(name):
            self.woken.set()  # an old safe action may be owed again
        if report.stamp_s is not None and not message.retain:
            self._measure_clock(name, report.stamp_s - (self.wall() - (self.now() - message.stamp_s)))
        if report.boot == self.commands.boot and report.seq is not None:
            last = max(map(self.commands.last, {name, *sharing}))
            if report.seq > last:
                raise Refused(f"seq: command {report.seq} was never sent; the last one is {last}")
            serial = self._answered(name, report.seq, is_shared=len(sharing) > 1)
            if serial is not None:
                self.gate.acknowledged(name, serial, self.now(), by_device=True)
        self._compare(name, report)
        if self.commands.is_older(name, report):
            return
        refusal = self.gate.reconciled(name, report.value, self.now(), retained=message.retain)
        if not self.gate.armed:
            self.woken.set()
        if refusal is not None:
            raise Refused(refusal.reason)

    def _answered(self, name: str, seq: int, *, is_shared: bool) -> int | None:
        """Return the gate's number of the command that a report with this `seq` answers, or None.

        Of actuators that share a report, the newest command up to this `seq`: the device has handled it before.
        """
        serials = self._serials.get(name, {})
        if not is_shared:
            return serials.get(seq)
        return next((serial for sent, serial in reversed(serials.items()) if sent <= seq), None)

    def _compare(self, name: str, report: DeviceReport) -> None:
        """Note whether a report follows the commands."""
        value = report_of(self.config.actuators[name], report.value)
        if not isinstance(value, Refusal):
            own = report.seq if report.boot == self.commands.boot else None
            self.publisher.following.reported(name, value, seq=own, names_command=report.seq is not None)

    def _measure_clock(self, name: str, offset_s: float) -> None:
        """Publish that a device's clock is off, or agrees again; with another clock it drops every command."""
        event = self.publisher.clocks.measured(name, offset_s, self.config.actuators[name].ttl_ms / 1_000)
        if event is not None:
            self.publisher.event(*event)
            self.woken.set()
