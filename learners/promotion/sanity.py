"""Promotion step `sanity`: on the last recorded observations the candidate's numbers are finite and it has not collapsed.

A policy that does the same whatever it observes has usually been lost in training; where the live one does so as well it may be right.
Before any version is live, a collapse is reported and does not fail the step: no reward has shown yet whether one constant action is wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from learners.model.spec import PolicySpec
from learners.promotion.ope.greedy_actions import Values, act, agreement, deviation, shares
from learners.promotion.step_types import EvaluationContext, StepResult, Working, working

FEWEST = 20
"""Fewer observations than this do not show a collapse."""
ONE_MOTION = 1e-3
"""Deviation of a motion, as a share of its range, below which it counts as always the same."""


def sanity(context: EvaluationContext) -> Working:
    """Check finite numbers, and that no actuator is constant unless the live policy's is."""
    logged = context.logged(context.experience.recent(context.settings.sanity_observations))
    if not len(logged):
        return StepResult(passed=True, figures={"observations": 0, "applies": False})
    candidate = yield from working(act(context.candidate, logged, masked=False))
    figures: dict[str, Any] = {
        "observations": len(logged),
        "finite": candidate.sound,
        "outside": candidate.outside,
    }
    if not candidate.sound:
        return StepResult(passed=False, figures=figures, reason="its actions or values are not finite")
    figures["candidate"] = shares(context.spec, candidate.values)
    stuck = {name for name, is_stuck in collapsed(context.spec, candidate.values).items() if is_stuck}
    if context.live is None or len(logged) < FEWEST:
        return StepResult(passed=True, figures=figures | {"collapsed": sorted(stuck)})
    live = yield from working(act(context.live, logged, masked=False))
    figures["live"] = shares(context.spec, live.values)
    figures["agreement"] = agreement(context.spec, candidate.values, live.values)
    stuck -= {name for name, is_stuck in collapsed(context.spec, live.values).items() if is_stuck}
    figures["collapsed"] = sorted(stuck)
    reason = f"always takes the same action on {', '.join(sorted(stuck))}, unlike the live version" if stuck else ""
    return StepResult(passed=not stuck, figures=figures, reason=reason)


def collapsed(spec: PolicySpec, values: Values) -> dict[str, bool]:
    """Return, by actuator, whether it always takes the same action."""
    figures = {a.name: len(np.unique(values[a.name])) == 1 for a in spec.actions.choices}
    return figures | {a.name: deviation(spec, a.name, values) < ONE_MOTION for a in spec.actions.continuous}
