"""Define the values that pass between the gate and its host: a proposal in, a decision for each actuator out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from actuators.actions import Value

By = Literal["policy", "override", "gate", "none"]
Mode = Literal["shadow", "assist", "autonomous"]
MODES: tuple[Mode, ...] = ("shadow", "assist", "autonomous")
"""From the most careful to the least."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The actions that the policy proposes at one tick. It is also the agent's heartbeat.

    Stamps are monotonic seconds. `actions` is empty when the policy proposes nothing.
    """

    tick: int
    decision: str
    policy: str
    stamp_s: float
    """When the tick observed."""
    actions: Mapping[str, Value] = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    """Streams that are missing at this tick."""
    ready: bool = True
    """False while the agent starts or drains: a heartbeat that proposes nothing."""
    degraded: tuple[str, ...] = ()
    """Why the agent is degraded although it acts; for the status alone."""
    readings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Fresh telemetry of the streams that a rule under `forbid` names: stream -> field -> number."""
    shadow: bool = False
    """The agent does not know which policy may act: every actuator goes to mode shadow until an operator changes it."""
    agreement: str = ""
    """Digest of the settings that gate and agent must both have, as the agent read them."""


@dataclass(frozen=True, slots=True)
class ActuatorDecision:
    """What becomes of one actuator. With a `value`, send it; with a `rule`, something was refused or replaced."""

    actuator: str
    value: Value | None
    rule: str | None
    by: By
    """Who `value` comes from; `none` when nothing is sent."""
    reason: str = ""
    rule_changed: bool = False
    """The rule was not in force for this actuator before: worth an event."""
    serial: int = field(default=0, compare=False)
    """Number of the command among those of this actuator; the host names it when it is acknowledged."""
    cancels: bool = field(default=False, compare=False)
    """A command that waits to be sent must not leave: the actuator holds what it has."""

    @property
    def sent(self) -> bool:
        """Whether there is something to send."""
        return self.value is not None
