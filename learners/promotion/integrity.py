"""Promotion step `integrity`: every weight of the candidate is finite.

Hashes, signature and shapes were checked when the checkpoint was loaded.
"""

from __future__ import annotations

from learners.checkpoints.safetensors_torch import WeightsRefused, check_finite
from learners.promotion.step_types import EvaluationContext, StepResult


def integrity(context: EvaluationContext) -> StepResult:
    """Check every weight of the candidate."""
    weights = context.candidate.state_dict()
    figures = {"tensors": len(weights), "numbers": sum(t.numel() for t in weights.values())}
    try:
        check_finite(weights)
    except WeightsRefused as refusal:
        return StepResult(passed=False, figures=figures, reason=str(refusal))
    return StepResult(passed=True, figures=figures)
