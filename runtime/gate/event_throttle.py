"""Limit the rate of the events of refusals: the first of its kind at once, the same again at most every `EVERY_S`, with their number.

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


MAX_REASON = 200
"""Characters of a reason, which may quote the report."""


@dataclass(slots=True)
class RefusedReports:
    """Limit the rate of `report_refused`: one event of each device at once, and then at most every `every_s`, with their number."""

    every_s: float = EVERY_S
    _kinds: dict[str, _Kind] = field(default_factory=dict)
    """By actuator; bounded by their number."""

    def event(self, actuator: str, reason: str, now_s: float) -> dict[str, Any] | None:
        """Return the data of the event, or None when none is due."""
        kind = self._kinds.get(actuator)
        if kind is not None and now_s - kind.published_s < self.every_s:
            kind.since += 1
            return None
        self._kinds[actuator] = _Kind(now_s)
        count = 1 + (kind.since if kind is not None else 0)
        return {"of": f"actuators.{actuator}", "reason": reason[:MAX_REASON], "count": count}
