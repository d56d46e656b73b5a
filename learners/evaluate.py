"""What a candidate must pass before it goes live: named steps in a fixed order, each with its figures.

A step is a function of a `Trial` that returns a `Finding`. The first one that fails ends the trial, since a later one may need
what it checked. Which steps run is `promotion.steps`; one that is wanted and not there is named in the verdict, never
passed silently. This module brings `whole` and `fast`; others add theirs to the mapping they hand to `evaluate`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from learners.checkpoints import Manifest
from learners.config import PromotionSettings
from learners.model.features import Features, blank
from learners.model.heads import Heads
from learners.model.spec import PolicySpec
from learners.transition import Transition
from learners.weights import WeightsRefused, check_finite

CANARIES = 20
BUDGET = 0.5
"""Share of a tick's period that the fused policy may take; the rest is for encoders, gate and network."""


class Judged(Protocol):
    """What is asked of a policy under trial."""

    heads: Heads

    def encode(self, features: Features) -> Tensor:
        """Contexts B,C of features [B, H]."""

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate, what acts now, and what was seen lately."""

    manifest: Manifest
    spec: PolicySpec
    candidate: Judged
    live: Judged | None
    live_version: str | None
    recent: Callable[[int], list[Transition]]
    """The newest transitions, oldest first."""
    settings: PromotionSettings
    period_s: float
    """Of a tick."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One step's verdict and the numbers it rests on."""

    step: str
    passed: bool
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings; `missing` are steps that were wanted and are not there."""

    passed: bool
    findings: tuple[Finding, ...]
    missing: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """For the event."""
        failed = next((f for f in self.findings if not f.passed), None)
        return {
            "passed": self.passed,
            "step": failed.step if failed else None,
            "reason": failed.reason if failed else "",
            "steps": {f.step: {**f.figures, "passed": f.passed} for f in self.findings},
            "missing": list(self.missing),
        }


Step = Callable[[Trial], Finding]


def evaluate(trial: Trial, steps: Mapping[str, Step], wanted: Sequence[str]) -> Verdict:
    """Run the wanted steps in order until one fails."""
    findings: list[Finding] = []
    for name in wanted:
        if name not in steps:
            continue
        findings.append(steps[name](trial))
        if not findings[-1].passed:
            break
    missing = tuple(name for name in wanted if name not in steps)
    return Verdict(all(finding.passed for finding in findings), tuple(findings), missing)


def whole(trial: Trial) -> Finding:
    """Every weight is finite; hashes, signature and shapes were checked when it was loaded."""
    weights = trial.candidate.state_dict()
    figures = {"tensors": len(weights), "numbers": sum(t.numel() for t in weights.values())}
    try:
        check_finite(weights)
    except WeightsRefused as refusal:
        return Finding("whole", passed=False, figures=figures, reason=str(refusal))
    return Finding("whole", passed=True, figures=figures)


@torch.no_grad()
def fast(trial: Trial) -> Finding:
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
        return Finding("fast", passed=False, figures=figures, reason="its actions or values are not finite")
    slow = f"{median_s * 1e3:.1f} ms a decision; {limit_s * 1e3:.1f} ms are allowed"
    return Finding("fast", passed=median_s <= limit_s, figures=figures, reason="" if median_s <= limit_s else slow)


def _canary(spec: PolicySpec) -> Features:
    """One decision's features with every stream present: the most work there is."""
    empty = blank(spec, 1, spec.history)
    return Features(empty.tokens, torch.ones_like(empty.present), torch.zeros_like(empty.ages))


STEPS: Mapping[str, Step] = {"whole": whole, "fast": fast}
"""The steps of this module."""


def describe(finding: Finding) -> dict[str, Any]:
    """A finding as plain data."""
    return asdict(finding)
