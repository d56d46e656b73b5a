"""Describe experiments for events, `health` and the page."""

from __future__ import annotations

import math
from typing import Any

from learners.experiment_statistics.live_version_guard import Guard
from learners.experiment_statistics.paired_outcomes import HARMS
from runtime.deploy.experiments.running_plan import ExperimentPhase


def running_figures(phase: ExperimentPhase | None) -> dict[str, Any] | None:
    """Return the figures of the experiment that runs; None where no challenger is on trial."""
    if phase is None or phase.plan.challenger is None:
        return None
    return {
        "number": phase.number,
        "challenger": phase.plan.challenger,
        "champion": phase.plan.champion,
        "share": phase.share,
        "units_alone": phase.budget.units_alone,
        "result": phase.test.sentence(),
        **look_figures(phase),
    }


def guard_figures(guard: Guard) -> dict[str, Any]:
    """Return the figures of the guard; `excluded_rates` by harm: at most this rate a decision, None where the harm was seen."""
    return {
        "pairs": guard.pairs,
        "suspicious": guard.suspicious,
        "suspect": guard.suspect,
        "decisions": guard.units,
        "excluded_rates": {harm: guard.excluded_rate(harm) for harm in HARMS},
    }


def look_figures(phase: ExperimentPhase) -> dict[str, Any]:
    """Return the numbers of the last look."""
    test = phase.test
    look = test.looks[-1] if test.looks else None
    found: dict[str, Any] = {"pairs": test.pairs, "alpha": round(phase.plan.alpha, 5), "delta": phase.plan.delta}
    if look is not None:
        numbers = {"mean": look.mean, "lower": look.lower, "upper": look.upper}
        found |= {name: _finite(value) for name, value in numbers.items()}
    return found | {"weaker": phase.plan.weaker}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 5)
