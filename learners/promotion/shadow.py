"""The step `shadow`: for `promotion.shadow_s` the candidate decides on what is newly logged, beside the live policy, and acts on nothing.

It works on the transitions as they arrive in the store, one at a time as the tick would: are the candidate's numbers finite and
its actions within limits, is it fast enough, how often does it agree with the live policy. At the end the fresh decisions, which
the candidate cannot have learned from, are read again with the rewards that came late, and the difference is estimated from
them alone (`offpolicy.py`). So few ticks rarely show that a candidate is better; they refuse one that they show to be worse: the
step fails when even the upper confidence bound is below minus the margin. Without a new tick nothing is known, which is
not a pass.
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
from learners.promotion.ope.logged_data import ActingPolicy, Logged
from learners.promotion.pipeline import BUDGET, EvaluationContext, StepResult, Working, working


def shadow(trial: EvaluationContext) -> Working:
    """Sound beside the live policy on fresh observations."""
    settings = trial.settings
    if trial.live is None or settings.shadow_s == 0:
        note = "no live version to run beside" if trial.live is None else "shadow_s is 0"
        return StepResult("shadow", passed=True, figures={"applies": False, "note": note})
    watch = ShadowRun(trial, trial.live)
    began_s = trial.clock()
    while trial.clock() - began_s < settings.shadow_s:
        came = trial.after(watch.last)
        for row in came:
            watch.take(row)
            yield True
        if not came:
            yield False
    judged = yield from working(watch.judge())
    return watch.finding(judged)


@dataclass(slots=True)
class ShadowRun:
    """A candidate beside the live policy, tick by tick."""

    trial: EvaluationContext
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
        self.first = self.last = self.trial.last_row()
        history = self.trial.spec.history
        self.past = self.trial.recent(history - 1) if history > 1 else []

    def take(self, row: Row) -> None:
        """One fresh tick."""
        history = [*self.past, row.transition]
        logged = Logged(self.trial.spec, history, dict(self.trial.versions))
        features = logged.seen(logged.history(slice(len(history) - 1, len(history))))
        started = time.thread_time()
        out = _decide(self.trial.candidate, features)
        self.seconds.append(time.thread_time() - started)
        self.sound &= is_sound(out)
        self.candidate_values.append(_values(out))
        self.live_values.append(_values(_decide(self.live, features)))
        self.ticks, self.last = self.ticks + 1, row.row
        self.past = history[len(history) - self.trial.spec.history + 1 :]

    def judge(self) -> Generator[None, None, OffPolicyResult]:
        """The difference on the fresh decisions, their late rewards included; the newest may still lack theirs."""
        settings = self.trial.settings
        rows: list[Row] = []
        start = self.first
        while start < self.last and (more := [row for row in self.trial.after(start) if row.row <= self.last]):
            rows += more
            start = rows[-1].row
        kept = [row.transition for row in rows[: max(0, len(rows) - self.trial.settle)]]
        if not kept:
            return OffPolicyResult(unknown="no fresh decision whose reward is settled")
        logged = Logged(self.trial.spec, kept, dict(self.trial.versions))
        evidence = yield from gather(self.trial.candidate, self.live, logged)
        return judge(evidence, confidence=settings.confidence, min_effective_samples=settings.min_effective_samples)

    def finding(self, judged: OffPolicyResult) -> StepResult:
        """The verdict and its figures."""
        trial = self.trial
        if not self.ticks:
            reason = f"inconclusive: no new tick in {trial.settings.shadow_s:g} s"
            return StepResult("shadow", passed=False, figures={"ticks": 0}, reason=reason)
        candidate, live = _joined(self.candidate_values), _joined(self.live_values)
        median_s, limit_s = statistics.median(self.seconds), BUDGET * trial.period_s
        beyond = outside(trial.spec, candidate)
        told: dict[str, Any] = {
            "ticks": self.ticks,
            "finite": self.sound,
            "median_ms": round(median_s * 1e3, 3),
            "limit_ms": round(limit_s * 1e3, 3),
            "outside": beyond,
            "agreement": agreement(trial.spec, candidate, live),
            "candidate": shares(trial.spec, candidate),
            "live": shares(trial.spec, live),
            "difference": estimates(judged) | {"unknown": judged.unknown},
        }
        reason = ""
        if not self.sound:
            reason = "its actions or values are not finite"
        elif beyond:
            reason = f"{beyond} actions outside their limits"
        elif median_s > limit_s:
            reason = f"{median_s * 1e3:.1f} ms a decision; {limit_s * 1e3:.1f} ms are allowed"
        elif judged.decides is not None and judged.decides.upper < -trial.settings.margin:
            reason = f"earns at least {-judged.decides.upper:.3f} a tick less than the live one on fresh decisions"
        return StepResult("shadow", passed=not reason, figures=told, reason=reason)


@torch.no_grad()
def _decide(policy: ActingPolicy, features: Any) -> HeadOutput:
    context_BC = policy.encode(features)
    return policy.heads.act(context_BC, generator=torch.Generator().manual_seed(0), explore=False)


def _values(out: HeadOutput) -> Values:
    return {name: value.double().numpy() for name, value in out.values.items()}


def _joined(parts: list[Values]) -> Values:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
