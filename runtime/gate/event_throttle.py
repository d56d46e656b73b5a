"""Limit the rate of `refused` events: the first of its kind at once, the same again at most every `EVERY_S`, with their number.

A hand that repeats an override would cause an event at each tick, and so would a policy that alternates between allowed and
refused values. The gate counts every refusal all the same.
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

    published_s: float
    since: int = 0
    """Refusals that no event has reported yet."""


@dataclass(slots=True)
class EventThrottle:
    """Store when each refusal was last published; bounded, because all unknown names count as one."""

    every_s: float = EVERY_S
    _kinds: dict[tuple[str, str], _Kind] = field(default_factory=dict)

    def event(self, ruling: ActuatorDecision, now_s: float) -> dict[str, Any] | None:
        """Return the data of an `action_refused` event, or None when none is due."""
        rule = ruling.rule
        if rule is None:
            return None
        key = ("" if rule == UNKNOWN else ruling.actuator, rule)
        kind = self._kinds.get(key)
        if not ruling.rule_changed or (kind is not None and now_s - kind.published_s < self.every_s):
            if kind is not None:
                kind.since += 1
            return None
        count = 1 + (kind.since if kind is not None else 0)
        self._kinds[key] = _Kind(now_s)
        return {"actuator": ruling.actuator, "rule": rule, "reason": ruling.reason, "count": count}
