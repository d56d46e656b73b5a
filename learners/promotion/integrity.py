"""Promotion steps `integrity` and `latency`: the checkpoint loads, decides with finite numbers, and is fast enough."""

from __future__ import annotations

import statistics
import time

import torch

from learners.checkpoints.tensors import WeightsRefused, check_finite
from learners.model.features import Features, blank
from learners.model.spec import PolicySpec
from learners.promotion.pipeline import BUDGET, CANARIES, EvaluationContext, StepResult


def integrity(trial: EvaluationContext) -> StepResult:
    """Every weight is finite; hashes, signature and shapes were checked when it was loaded."""
    weights = trial.candidate.state_dict()
    figures = {"tensors": len(weights), "numbers": sum(t.numel() for t in weights.values())}
    try:
        check_finite(weights)
    except WeightsRefused as refusal:
        return StepResult("integrity", passed=False, figures=figures, reason=str(refusal))
    return StepResult("integrity", passed=True, figures=figures)


@torch.no_grad()
def latency(trial: EvaluationContext) -> StepResult:
    """A decision's forward pass takes at most half a tick of CPU time.

    CPU time of this thread, because the learner runs at the lowest priority and its wall time says how busy others are.
    """
    features = _canary(trial.spec)
    generator = torch.Generator(features.present.device).manual_seed(0)
    times_s = []
    for _ in range(CANARIES):
        started = time.thread_time()
        context_BC = trial.candidate.encode(features)
        output = trial.candidate.heads.act(context_BC, generator=generator, explore=False)
        times_s.append(time.thread_time() - started)
    median_s = statistics.median(times_s)
    limit_s = BUDGET * trial.period_s
    finite = all(bool(v.isfinite().all()) for v in (*output.values.values(), output.value) if v.is_floating_point())
    figures = {"median_ms": round(median_s * 1e3, 3), "limit_ms": round(limit_s * 1e3, 3), "finite": finite}
    if not finite:
        return StepResult("latency", passed=False, figures=figures, reason="its actions or values are not finite")
    slow = f"{median_s * 1e3:.1f} ms a decision; {limit_s * 1e3:.1f} ms are allowed"
    return StepResult(
        "latency", passed=median_s <= limit_s, figures=figures, reason="" if median_s <= limit_s else slow
    )


def _canary(spec: PolicySpec) -> Features:
    """One decision's features with every stream present: the most work there is."""
    empty = blank(spec, 1, spec.history)
    return Features(empty.tokens, torch.ones_like(empty.present), torch.zeros_like(empty.ages))
