"""What a candidate must pass before it goes live: named steps in a fixed order, each with its figures.

A step is a function of a `EvaluationContext` that returns a `StepResult`, or a generator that returns one and yields meanwhile: True when it
has more to do at once, False when it waits for the world. An `EvaluationRun` runs the steps a while at a time, so that training
goes on beside a trial. The first step that fails ends the trial, since a later one may need what it checked. Which steps run is
`promotion.steps`; one that is wanted and not there is named in the verdict, never passed silently.

`steps.py` lists all steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from learners.checkpoints.manifest import Manifest
from learners.config import PromotionSettings
from learners.experience.reader import Row
from learners.experience.transition import Transition
from learners.model.features import Features
from learners.model.heads import Heads
from learners.model.spec import PolicySpec

CANARIES = 20
BUDGET = 0.5
"""Share of a tick's period that the fused policy may take; the rest is for encoders, gate and network."""


class PolicyLike(Protocol):
    """What is asked of a policy under trial."""

    heads: Heads

    def encode(self, features: Features) -> Tensor:
        """Contexts B,C of features [B, H]."""

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights."""


@dataclass(frozen=True, slots=True)
class EvaluationContext:
    """A candidate, what acts now, and what was seen lately."""

    manifest: Manifest
    spec: PolicySpec
    candidate: PolicyLike
    live: PolicyLike | None
    live_version: str | None
    recent: Callable[[int], list[Transition]]
    """The newest transitions, oldest first."""
    settings: PromotionSettings
    period_s: float
    """Of a tick."""
    settle: int = 0
    """Newest transitions whose rewards may still be on the way."""
    after: Callable[[int], list[Row]] = lambda _: []
    """Rows with a number above the given one, in order; some of them where there are many."""
    last_row: Callable[[], int] = lambda: 0
    versions: Mapping[str, str] = field(default_factory=dict)
    """The present version of each stream's encoder."""
    held_out: Callable[[], Mapping[str, HeldOut]] = dict
    """Of each task that feeds the policy."""
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A task's metric on labels that never trained: of the version that fed the live policy, and of the present one."""

    before: float
    after: float
    labels: int
    metric: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step's verdict and the numbers it rests on."""

    step: str
    passed: bool
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PromotionResult:
    """All findings; `missing` are steps that were wanted and are not there."""

    passed: bool
    findings: tuple[StepResult, ...]
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


Working = Generator[bool, None, StepResult]
"""A step that takes its time; see the module."""
Step = Callable[[EvaluationContext], StepResult | Working]


class EvaluationRun:
    """One trial, a while at a time.

    Args:
        trial: what is judged.
        steps: by name.
        wanted: names in their order.
    """

    def __init__(self, trial: EvaluationContext, steps: Mapping[str, Step], wanted: Sequence[str]) -> None:
        self.trial = trial
        self.step = ""
        """The one that runs."""
        self.findings: list[StepResult] = []
        self.missing = tuple(name for name in wanted if name not in steps)
        self._run = self._steps({name: steps[name] for name in wanted if name in steps})

    def advance(self, until_s: float = math.inf) -> PromotionResult | None:
        """Go on until the verdict (which is returned), until a step waits for the world, or until a moment of the clock."""
        for more in self._run:
            if not more or self.trial.clock() >= until_s:
                return None
        return self.verdict()

    def verdict(self) -> PromotionResult:
        """What has been found so far."""
        return PromotionResult(all(finding.passed for finding in self.findings), tuple(self.findings), self.missing)

    def void(self, reason: str) -> PromotionResult:
        """End the trial without a pass: what it was about is no longer so."""
        self._run.close()
        self.findings.append(StepResult(self.step, passed=False, reason=reason))
        return self.verdict()

    def _steps(self, steps: Mapping[str, Step]) -> Generator[bool, None, None]:
        for name, step in steps.items():
            self.step = name
            found = step(self.trial)
            if not isinstance(found, StepResult):
                found = yield from found
            self.findings.append(found)
            if not found.passed:
                return
            yield True


def evaluate(
    trial: EvaluationContext,
    steps: Mapping[str, Step],
    wanted: Sequence[str],
    *,
    pause: Callable[[], object] = lambda: None,
) -> PromotionResult:
    """Run the wanted steps in order until one fails; `pause` is called whenever one waits for the world."""
    examination = EvaluationRun(trial, steps, wanted)
    while True:
        verdict = examination.advance()
        if verdict is not None:
            return verdict
        pause()


Result = TypeVar("Result")


def working(parts: Generator[None, None, Result]) -> Generator[bool, None, Result]:
    """Yield True after every part of some work; returns what the work returns."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            result: Result = end.value
            return result
        yield True


def describe(finding: StepResult) -> dict[str, Any]:
    """A finding as plain data."""
    return asdict(finding)
