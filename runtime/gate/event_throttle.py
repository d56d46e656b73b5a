"""Which refusals are worth an event: the first of its kind at once, the same again at most every `EVERY_S`, with how many there were.

A hand that repeats an override, or a policy that proposes in turn what may and what may not be, would else bring an event a
tick. Every refusal is counted by the gate all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actuators.safety.decisions import ActuatorDecision

EVERY_S = 10.0
UNKNOWN = "unknown_actuator"


@dataclass(slots=True)
class _Kind:
    """One actuator refused by one rule."""

    told_s: float
    since: int = 0
    """EventThrottle that nobody was told of."""


@dataclass(slots=True)
class EventThrottle:
    """Remembers what was told; bounded, because all names that are not configured count as one."""

    every_s: float = EVERY_S
    _kinds: dict[tuple[str, str], _Kind] = field(default_factory=dict)

    def event(self, ruling: ActuatorDecision, now_s: float) -> dict[str, Any] | None:
        """The data of a `refused` event, or None when there is nothing to tell now."""
        rule = ruling.rule
        if rule is None:
            return None
        key = ("" if rule == UNKNOWN else ruling.actuator, rule)
        kind = self._kinds.get(key)
        if not ruling.rule_changed or (kind is not None and now_s - kind.told_s < self.every_s):
            if kind is not None:
                kind.since += 1
            return None
        count = 1 + (kind.since if kind is not None else 0)
        self._kinds[key] = _Kind(now_s)
        return {"actuator": ruling.actuator, "rule": rule, "reason": ruling.reason, "count": count}
