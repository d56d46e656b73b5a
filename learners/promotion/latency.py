"""Promotion step `latency`: a decision's forward pass takes at most half a tick of CPU time and gives finite numbers.

The step counts CPU time of its thread: the learner runs at the lowest priority, and its wall time would measure other processes.
"""

from __future__ import annotations

import statistics
import time

import torch

from learners.model.features import Features, blank
from learners.model.spec import PolicySpec
from learners.promotion.step_types import MAX_TICK_SHARE, EvaluationContext, StepResult

PASSES = 20
"""Forward passes that the median is taken over."""


@torch.no_grad()
def latency(context: EvaluationContext) -> StepResult:
    """Time the candidate's decision with every stream present."""
    features = _all_present(context.spec)
    generator = torch.Generator(features.present.device).manual_seed(0)
    times_s = []
    for _ in range(PASSES):
        started = time.thread_time()
        context_BC = context.candidate.encode(features)
        output = context.candidate.heads.act(context_BC, generator=generator, explore=False)
        times_s.append(time.thread_time() - started)
    median_s = statistics.median(times_s)
    limit_s = MAX_TICK_SHARE * context.period_s
    finite = all(bool(v.isfinite().all()) for v in (*output.values.values(), output.value) if v.is_floating_point())
    figures = {"median_ms": round(median_s * 1e3, 3), "limit_ms": round(limit_s * 1e3, 3), "finite": finite}
    if not finite:
        return StepResult(passed=False, figures=figures, reason="its actions or values are not finite")
    if median_s > limit_s:
        reason = f"{median_s * 1e3:.1f} ms a decision; {limit_s * 1e3:.1f} ms are allowed"
        return StepResult(passed=False, figures=figures, reason=reason)
    return StepResult(passed=True, figures=figures)


def _all_present(spec: PolicySpec) -> Features:
    """Return one decision's features with every stream present, the largest amount of work."""
    empty = blank(spec, 1, spec.history)
    return Features(empty.tokens, torch.ones_like(empty.present), torch.zeros_like(empty.ages))
