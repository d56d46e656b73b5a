"""Decide whether the policy is responsible for the outcome of a tick."""

from __future__ import annotations

from runtime.control.tick import TickResult

POLICY_RULES = frozenset(
    {
        *("not_finite", "wrong_type", "unknown_choice", "unknown_actuator", "out_of_range", "too_fast", "too_soon"),
        *("min_hold", "forbidden", "too_long"),
    }
)
"""Refusals that are the policy's own doing."""


def responsibility(result: TickResult) -> tuple[bool, bool]:
    """Return whether the outcome is the policy's doing, and whether the gate refused its action for what it was.

    It is not the policy's doing without a verdict, while disarmed or stopped, under an override, or in a mode in which the
    policy does not act.
    """
    verdict = result.verdict
    if verdict is None or not verdict.armed or verdict.stopped or "override" in result.by.values():
        return False, False
    refused = any(outcome.rule in POLICY_RULES for outcome in verdict.outcomes.values())
    return refused or "policy" in result.by.values(), refused
