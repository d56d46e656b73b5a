"""The gate's end of the socket pair to the agent: read its proposals, have the gate judge them, answer each with a verdict.

The other end is `client.py`; `ipc.py` has the messages. A channel that closes, or that is silent past the dead-man's deadline,
is a lost agent.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from actuators.safety.decisions import ActuatorDecision, Proposal
from actuators.safety.gate import Gate
from runtime.config.schema import Config
from runtime.gate import ipc
from runtime.gate.devices import DeviceTraffic
from runtime.gate.status import AgentLiveness, StatusPublisher
from runtime.mqtt import Connection
from runtime.mqtt.topics import Topics, encode
from runtime.process.datagram_reader import DatagramReader
from runtime.process.systemd import Feeder

log = structlog.get_logger(__name__)

EARLIEST = 0.8
"""Periods from an answer to the next proposal, at least; what is not allowed by then is left out."""
PROPOSE_EVERY = 10
"""Ticks after which an unchanged proposal is published again: a late subscriber sees it too."""
OTHER_SETTINGS = (
    "it has read newer settings of actuators, limits or streams than the gate: reload them, or restart the daemon"
)
"""The agent was restarted after an edit of the file. Its names of what is stale may mean nothing to the gate."""
NO_SETTINGS = "its proposals do not name the settings that it has read, so nothing moves: restart the daemon"
"""An empty agreement agrees with nothing: the gate cannot know what the agent has read."""
COUNTED = ("agent_lost", "disarmed", "stopped", "broker_lost")
"""Events of the gate that the agent counts in its metrics."""


@dataclass(slots=True)
class AgentChannel:
    """Receives proposals and sends verdicts."""

    config: Config
    gate: Gate
    devices: DeviceTraffic
    connection: Connection
    """Carries what the policy proposes to operators."""
    topics: Topics
    publisher: StatusPublisher
    feeder: Feeder
    agent: AgentLiveness
    counts: Counter[str]
    woken: asyncio.Event
    """Set where the host's `tick` has something to do."""
    on_shadow: Callable[[], None]
    """Called when the agent requests mode shadow."""
    before_judging: Callable[[], None]
    """Called before each proposal is judged: has the machine been suspended since?"""
    now: Callable[[], float]
    wall: Callable[[], float]
    restarts: dict[str, int] = field(default_factory=dict)
    """How often each child was restarted; the agent, which has the metrics, may be among them."""
    agreement: str = field(init=False)
    """Of the settings that the gate has (`Config.agreement`)."""
    disagrees: bool = False
    """Whether the agent's newest proposal was made with other settings than those, or does not say with which."""
    ending: bool = False
    """Whether the daemon ends: then nothing is judged, and the end of the agent is no loss."""
    _proposals: dict[str, Any] = field(default_factory=dict)
    """By actuator: the proposal that was last published."""
    _shadow: bool = False
    """The newest proposal asked for mode shadow; each such request acts once, so that an operator can change the mode."""
    _reader: DatagramReader = field(init=False)

    def __post_init__(self) -> None:
        self.agreement = self.config.agreement
        self._reader = DatagramReader(self.receive, lambda: self.lost("closed"), ipc.MAX_MESSAGE + 1)

    def attach(self, end: socket.socket) -> None:
        """Listen to a new agent."""
        self._shadow = False
        self.agent.spoke_s = None
        self._reader.attach(end)

    def detach(self) -> None:
        """Stop reading from the agent, without reporting its loss to the gate."""
        self._reader.detach()

    def receive(self, data: bytes) -> None:
        """Judge one message of the agent, and answer it; a malformed one is counted."""
        try:
            message = ipc.unpack(data)
        except ValueError as error:
            self.counts["malformed proposal"] += 1
            log.warning("gate.malformed", reason=str(error))
            return
        if not isinstance(message, Proposal) or self.ending:
            return
        self.before_judging()
        now_s = self.now()
        self.disagrees = message.agreement != self.agreement
        if self.disagrees:
            why = OTHER_SETTINGS if message.agreement else NO_SETTINGS
            message = replace(message, actions={}, readings={}, ready=False, degraded=(*message.degraded, why))
        if message.shadow and not self._shadow:
            self.on_shadow()
        self._shadow = message.shadow
        if self.gate.is_sound(message):
            self.agent.spoke(message, now_s)
        elif now_s >= self.gate.deadline_s:
            self.lost("silent")
        rulings = self.gate.judge(message, now_s)
        self.devices.apply(rulings, message)
        self._propose(message, rulings)
        self._answer(message, rulings)
        self.woken.set()

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
        gate = self.gate
        verdict = ipc.GateVerdict(
            proposal.decision,
            gate.armed,
            gate.stopped,
            gate.modes,
            outcomes_of(gate, rulings),
            refusals_of(gate),
            dict(self.restarts),
            {kind: count for kind in COUNTED if (count := self.publisher.counts[kind])},
            gate.short_overrides,
            gate.allowed_choices(self.now() + EARLIEST * self.config.tick.period_s),
        )
        try:
            assert self._reader.end is not None
            self._reader.end.send(ipc.pack(verdict))
        except (OSError, ValueError) as error:  # full: the agent is stuck; closed: end-of-file follows; or too large
            self.counts["unsent verdict"] += 1
            if isinstance(error, ValueError) and self.counts["oversized verdict"] == 0:
                log.warning("gate.verdict_not_sent", reason=str(error))
            self.counts["oversized verdict"] += isinstance(error, ValueError)
            return
        self.feeder.ticked(
            ready=proposal.ready, stale=proposal.stale, now_s=self.now(), status=f"policy {self.agent.policy}: ticking"
        )

    def lost(self, cause: str) -> None:
        """Have the gate act for a lost agent; `cause` is `closed` or `silent`."""
        self.agent.lost()
        self.woken.set()
        if self.ending:
            return
        self.devices.apply(self.gate.lost(self.now()))
        self.publisher.event("agent_lost", {"cause": cause})


def refusals_of(gate: Gate) -> dict[str, dict[str, int]]:
    """Return the gate's refusals by actuator and rule; under "" those that concern no configured actuator."""
    out: dict[str, dict[str, int]] = {}
    for (name, rule), count in gate.refused.items():
        out.setdefault(name, {})[rule] = count
    others = {rule: count for rule in ("lost", "unknown_actuator") if (count := gate.counters[rule])}
    return out | ({"": others} if others else {})


def outcomes_of(gate: Gate, rulings: Iterable[ActuatorDecision]) -> dict[str, ipc.Outcome]:
    """Return the outcome of one proposal for every actuator, after the gate judged it."""
    by_name = {ruling.actuator: ruling for ruling in rulings}
    outcomes: dict[str, ipc.Outcome] = {}
    for name in gate.modes:
        ruling, (value, by) = by_name.get(name), gate.last_command(name)
        sent = ruling is not None and ruling.sent
        outcomes[name] = ipc.Outcome(sent, ruling.rule if ruling else None, value, by)
    return outcomes
