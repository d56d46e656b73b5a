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


def moves_alone(result: TickResult) -> frozenset[str]:
    """Return the actuators that the policy moves without a person: those of the verdict in mode `autonomous`.

    In `assist` a person confirms each action, and in `shadow` the policy does not act: both are part of the world then.
    """
    verdict = result.verdict
    if verdict is None:
        return frozenset()
    return frozenset(name for name in verdict.outcomes if verdict.mode.get(name, "autonomous") == "autonomous")


def responsibility(result: TickResult) -> tuple[bool, bool]:
    """Return whether the outcome is the policy's doing, and whether the gate refused its action for what it was.

    It is not the policy's doing without a verdict, while disarmed or stopped, under an override of an actuator that it moves alone, or
    where it moves none alone.
    """
    verdict, alone = result.verdict, moves_alone(result)
    by = {result.by.get(name) for name in alone}
    if verdict is None or not verdict.armed or verdict.stopped or "override" in by:
        return False, False
    refused = any(verdict.outcomes[name].rule in POLICY_RULES for name in alone)
    return refused or "policy" in by, refused
