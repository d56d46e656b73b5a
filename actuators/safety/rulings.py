"""What the gate is asked and what it answers: plain values between it and its host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from actuators.actions import Value

By = Literal["policy", "override", "gate", "nobody"]
Mode = Literal["shadow", "assist", "autonomous"]


class ActionRequest(Protocol):
    """One tick's decision, as `runtime.gate.ipc.Proposal` has it; stamps are monotonic seconds."""

    @property
    def stamp_s(self) -> float:
        """When the tick observed."""

    @property
    def actions(self) -> Mapping[str, Value]:
        """The wanted value of each actuator; empty when the policy has nothing to say."""

    @property
    def stale(self) -> Sequence[str]:
        """Streams missing at this tick."""

    @property
    def ready(self) -> bool:
        """False while starting or draining."""


@dataclass(frozen=True, slots=True)
class ActuatorDecision:
    """What becomes of one actuator. With a `value`, send it; with a `rule`, something was refused or replaced."""

    actuator: str
    value: Value | None
    rule: str | None
    by: By
    """Who `value` comes from; `nobody` when nothing is sent."""
    reason: str = ""
    news: bool = False
    """The rule was not in force for this actuator before: worth an event."""

    @property
    def sent(self) -> bool:
        """Whether there is something to send."""
        return self.value is not None
