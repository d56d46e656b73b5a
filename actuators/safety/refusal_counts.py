"""Turn refusals into decisions, and count them by rule and by actuator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from actuators.safety.actuator_state import Actuator
from actuators.safety.decisions import ActuatorDecision
from actuators.safety.limits import Refusal


class RefusalCounts:
    """The refusals since the start.

    Args:
        configured: names of the actuators.
    """

    def __init__(self, configured: Collection[str]) -> None:
        self._configured = configured
        self.by_rule: Counter[str] = Counter()
        self.by_actuator: Counter[tuple[str, str]] = Counter()
        """By actuator and rule."""

    def refuse(self, each: Actuator, refusal: Refusal) -> ActuatorDecision:
        """Count a refusal and return its decision; it notes whether the rule is new for this actuator."""
        rule_changed = each.rule != refusal.rule
        each.rule = refusal.rule
        return self._count(
            ActuatorDecision(each.name, None, refusal.rule, "none", refusal.reason, rule_changed), refusal.rule
        )

    def unknown(self, name: str) -> ActuatorDecision:
        """Count a command for an actuator that is not configured, and return its decision."""
        reason = f"{name[:64]!r} is not configured; there are {sorted(self._configured)}"
        return self._count(
            ActuatorDecision(name, None, "unknown_actuator", "none", reason, rule_changed=True), "unknown_actuator"
        )

    def _count(self, decision: ActuatorDecision, rule: str) -> ActuatorDecision:
        self.by_rule[rule] += 1
        if decision.actuator in self._configured:  # unknown names come from outside and would grow without bound
            self.by_actuator[decision.actuator, rule] += 1
        return decision
