"""Judge one actuator for one proposal: its hold, its mode, the freshness of its streams, its limits and its pace.

The gate asks for each actuator in turn, after what time brings. Pure and synchronous, as the gate is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from actuators.actions import Value
from actuators.safety import limits
from actuators.safety.actuator_state import MAX_PENDING, Actuator, Hold, freshness_refusal, no_op
from actuators.safety.arming import Arming
from actuators.safety.decisions import ActuatorDecision, By, Proposal
from actuators.safety.forbidden_combinations import ForbiddenCombinations
from actuators.safety.limits import Refusal
from actuators.safety.refusal_counts import RefusalCounts
from actuators.safety.safe_actions import SafeActions

INVALID_ACTION_RULES = frozenset({"wrong_type", "not_finite", "unknown_choice"})
"""Refusals that end the policy's last action too, and that do not count as a heartbeat."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Decides for one actuator at a time, with what the gate shares among all."""

    arming: Arming
    forbidden: ForbiddenCombinations
    safe_actions: SafeActions
    refusals: RefusalCounts
    period_s: float
    """Of the tick."""

    def judge(self, each: Actuator, proposal: Proposal, now_s: float) -> list[ActuatorDecision]:
        """Return the decisions for an actuator: one, or those of a safe action and of the actuators coupled with it."""
        offered = each.name in proposal.actions
        barred = self.arming.refusal()
        if barred is not None:
            return [self.refusals.refuse(each, barred)]
        if each.hold is not None:
            return [self._continue(each, each.hold, now_s, offered=offered)]
        if each.mode != "autonomous":
            return [self.refusals.refuse(each, Refusal("mode", f"the mode is {each.mode}")) if offered else no_op(each)]
        return self._from_policy(each, proposal, now_s)

    def _from_policy(self, each: Actuator, proposal: Proposal, now_s: float) -> list[ActuatorDecision]:
        doubted = freshness_refusal(each, proposal, now_s)
        if doubted is not None:
            return self._distrust(each, doubted, now_s)
        if each.name not in proposal.actions:
            return [no_op(each)]
        checked = limits.check(each.settings, proposal.actions[each.name])
        if not isinstance(checked, Refusal):
            return [self.command(each, checked, "policy", now_s)]
        if checked.rule in INVALID_ACTION_RULES:
            return self._distrust(each, checked, now_s)
        return [self.refusals.refuse(each, checked)]

    def _continue(self, each: Actuator, hold: Hold, now_s: float, *, offered: bool) -> ActuatorDecision:
        """Continue an operator's hold: approach what could not be reached at once."""
        decision = no_op(each) if each.value == hold.value else self.command(each, hold.value, "override", now_s)
        if not offered:
            return decision
        refused = self.refusals.refuse(each, Refusal("overridden", "held by an operator override"))
        return replace(refused, value=decision.value, by=decision.by, serial=decision.serial)

    def command(self, each: Actuator, value: Value, by: By, now_s: float) -> ActuatorDecision:
        """Command as much of the way to `value` as pace and rules allow."""
        paced = limits.pace(
            each.settings, value, each.last_command(now_s), 2 * self.period_s, approach=by == "override"
        )
        if not isinstance(paced, Refusal):
            paced = self.forbidden.refusal(each, paced) or paced
        if not isinstance(paced, Refusal) and by == "policy" and each.has_already(paced, now_s):
            each.rule = None
            return no_op(each)
        if not isinstance(paced, Refusal) and each.pending >= MAX_PENDING:
            paced = self._again(each) or Refusal(
                "unacknowledged", f"{each.pending} commands await the broker's acknowledgement"
            )
        if isinstance(paced, Refusal):
            return self.refusals.refuse(each, paced)
        each.rule = None
        return each.command(paced, by, now_s)

    def _again(self, each: Actuator) -> Value | None:
        """Return the newest value where its command is lost: sending it again adds none that the device may have."""
        if each.lost != each.serial or each.value is None or self.forbidden.refusal(each, each.value) is not None:
            return None
        return each.value

    def _distrust(self, each: Actuator, refusal: Refusal, now_s: float) -> list[ActuatorDecision]:
        """Refuse, and bring the actuator to its safe state if it is not there yet."""
        decision = self.refusals.refuse(each, refusal)
        if each.in_safe_state:
            return [decision]
        rested = self.safe_actions.send([each], refusal.rule, refusal.reason, now_s)
        return [replace(d, rule_changed=decision.rule_changed) if d.actuator == each.name else d for d in rested]
