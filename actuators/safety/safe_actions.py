"""Send the safe actions: in a harmless order, and again until they arrive.

The gate says which actuators must go to their safe state and why. `safe: hold` sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from actuators.safety.actuator_state import REPEAT_S, Actuator
from actuators.safety.decisions import ActuatorDecision
from actuators.safety.forbid_rules import safe_is_hold
from actuators.safety.forbidden_combinations import ForbiddenCombinations


class SafeActions:
    """Brings actuators to their safe state.

    Args:
        forbidden: the rules, which may require that others go to rest too.
    """

    def __init__(self, forbidden: ForbiddenCombinations) -> None:
        self._forbidden = forbidden
        self.repeats = 0
        """Safe actions sent again because they were not acknowledged."""

    def send(self, chosen: list[Actuator], rule: str | None, reason: str, now_s: float) -> list[ActuatorDecision]:
        """Send safe actions, with those of other actuators where a rule forbids what would result, in a harmless order."""
        group = self._forbidden.with_coupled(chosen)
        decisions = []
        for each in self._forbidden.in_order(group):
            own = each in chosen
            if not own and each.in_safe_state:
                continue
            if not own:
                each.hold = None
            why = reason if own else f"{', '.join(e.name for e in chosen)} at rest: a rule forbids the combination"
            decisions.append(_rest(each, rule if own else None, why, now_s))
        return decisions

    def repeat(self, actuators: Iterable[Actuator], now_s: float) -> list[ActuatorDecision]:
        """Send again the safe actions that have not arrived."""
        decisions = []
        for each in actuators:
            if each.must_repeat(now_s):
                self.repeats += 1
                each.repeat_s = min(REPEAT_S[1], 2 * each.repeat_s)
                reason = "the safe action was not acknowledged; sending it again"
                decisions.append(replace(each.command(each.settings.safe, "gate", now_s), reason=reason))
        return decisions


def _rest(each: Actuator, rule: str | None, reason: str, now_s: float) -> ActuatorDecision:
    each.in_safe_state = True
    if safe_is_hold(each.settings):
        return ActuatorDecision(each.name, None, rule, "none", reason, cancels=True)
    return replace(each.command(each.settings.safe, "gate", now_s), rule=rule, reason=reason)
