"""Promotion step `shadow`: for `promotion.shadow_s` the candidate decides on newly logged ticks, and its decisions are not executed.

It reads the transitions as they arrive in the store, one at a time as the control loop would. It checks that the candidate's numbers are
finite, its actions are within limits and its decisions are fast enough, and counts how often it agrees with the live policy. At the end
it reads the fresh decisions again with the rewards that arrived late, and estimates the difference from them alone (`ope/evaluator.py`):
the candidate cannot have trained on them. The step is a filter: it fails when even the upper confidence bound is below minus the margin,
and proves nothing otherwise; the live experiment does. Without a new tick the step is inconclusive and fails.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from learners.experience.reader import Row
from learners.experience.transition import Transition
from learners.model.heads import HeadOutput
from learners.promotion.ope.evaluator import OffPolicyResult, gather, judge
from learners.promotion.ope.evaluator import figures as estimates
from learners.promotion.ope.greedy_actions import Values, agreement, is_sound, outside, shares
from learners.promotion.ope.logged_data import ActingPolicy
from learners.promotion.step_types import MAX_TICK_SHARE, EvaluationContext, StepResult, Working, working


def shadow(context: EvaluationContext) -> Working:
    """Run the candidate on fresh observations, together with the live policy."""
    settings = context.settings
    if context.live is None or settings.shadow_s == 0:
        note = "no live version to compare with" if context.live is None else "shadow_s is 0"
        return StepResult(passed=True, figures={"applies": False, "note": note})
    run = ShadowRun(context, context.live)
    began_s = context.clock()
    while context.clock() - began_s < settings.shadow_s:
        came = context.experience.after(run.last)
        for row in came:
            run.take(row)
            yield True
        if not came:
            yield False
    judged = yield from working(run.judge())
    return run.result(judged)


@dataclass(slots=True)
class ShadowRun:
    """The candidate and the live policy, tick by tick."""

    context: EvaluationContext
    live: ActingPolicy
    last: int = field(init=False)
    """Number of the last row taken."""
    first: int = field(init=False)
    past: list[Transition] = field(init=False)
    """The ticks before the next one that its history needs."""
    ticks: int = 0
    sound: bool = True
    seconds: list[float] = field(default_factory=list)
    """CPU time of each of the candidate's decisions."""
    candidate_values: list[Values] = field(default_factory=list)
    live_values: list[Values] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = self.last = self.context.experience.last_row()
        history = self.context.spec.history
        self.past = self.context.experience.recent(history - 1) if history > 1 else []

    def take(self, row: Row) -> None:
        """Decide one fresh tick with both policies."""
        history = [*self.past, row.transition]
        logged = self.context.logged(history)
        newest = slice(len(history) - 1, len(history))
        at_BH, masks = logged.history(newest), logged.masks(newest)
        features = logged.seen(at_BH)
        started = time.thread_time()
        out = _decide(self.context.candidate, features, masks)
        self.seconds.append(time.thread_time() - started)
        self.sound &= is_sound(out)
        self.candidate_values.append(_values(out))
        self.live_values.append(_values(_decide(self.live, logged.of(self.live).seen(at_BH), masks)))
        self.ticks, self.last = self.ticks + 1, row.row
        self.past = history[len(history) - self.context.spec.history + 1 :]

    def judge(self) -> Generator[None, None, OffPolicyResult]:
        """Estimate the difference on the fresh decisions; the newest may still lack their rewards."""
        settings = self.context.settings
        rows: list[Row] = []
        start = self.first
        while start < self.last and (
            more := [row for row in self.context.experience.after(start) if row.row <= self.last]
        ):
            rows += more
            start = rows[-1].row
        settled = [row.transition for row in rows[: max(0, len(rows) - self.context.reward_delay_ticks)]]
        if not settled:
            return OffPolicyResult(unknown="no new decision with a settled reward")
        logged = self.context.logged(settled)
        evidence = yield from gather(self.context.candidate, self.live, logged)
        return judge(evidence, confidence=settings.confidence, min_effective_samples=settings.min_effective_samples)

    def result(self, judged: OffPolicyResult) -> StepResult:
        """Return the result and its figures."""
        context = self.context
        if not self.ticks:
            reason = f"inconclusive: no new tick in {context.settings.shadow_s:g} s"
            return StepResult(passed=False, figures={"ticks": 0}, reason=reason)
        candidate, live = _joined(self.candidate_values), _joined(self.live_values)
        median_s, limit_s = statistics.median(self.seconds), MAX_TICK_SHARE * context.period_s
        beyond = outside(context.spec, candidate)
        figures: dict[str, Any] = {
            "ticks": self.ticks,
            "finite": self.sound,
            "median_ms": round(median_s * 1e3, 3),
            "limit_ms": round(limit_s * 1e3, 3),
            "outside": beyond,
            "agreement": agreement(context.spec, candidate, live),
            "candidate": shares(context.spec, candidate),
            "live": shares(context.spec, live),
            "difference": estimates(judged) | {"unknown": judged.unknown},
        }
        reason = ""
        if not self.sound:
            reason = "its actions or values are not finite"
        elif beyond:
            reason = f"{beyond} actions outside their limits"
        elif median_s > limit_s:
            reason = f"{median_s * 1e3:.1f} ms a decision; {limit_s * 1e3:.1f} ms are allowed"
        elif (upper := judged.worst_case()) is not None and upper < -context.settings.margin:
            reason = f"earns at least {-upper:.3f} less reward per tick than the live version on new decisions"
        return StepResult(passed=not reason, figures=figures, reason=reason)


@torch.no_grad()
def _decide(policy: ActingPolicy, features: Any, masks: Any) -> HeadOutput:
    context_BC = policy.encode(features)
    return policy.heads.act(context_BC, generator=torch.Generator().manual_seed(0), explore=False, masks=masks)


def _values(out: HeadOutput) -> Values:
    return {name: value.double().numpy() for name, value in out.values.items()}


def _joined(parts: list[Values]) -> Values:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
