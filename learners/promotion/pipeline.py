"""Run the promotion steps of one candidate in their order, a slice at a time, so that training goes on meanwhile.

The first step that fails ends the evaluation, because a later one may need what it checked. An inconclusive step does not: it is no
pass, and the candidate is held to the live experiment. `promotion.steps` names the steps; one
that is not in the registry (`steps.py`) is named as missing in the result, and the candidate is judged without it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learners.promotion.step_types import EvaluationContext, Step, StepResult


@dataclass(frozen=True, slots=True)
class PromotionResult:
    """The results of all steps that ran; `missing` are steps that were named and are not in the registry."""

    results: Mapping[str, StepResult]
    missing: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every step passed."""
        return all(result.passed for result in self.results.values())

    @property
    def rejected(self) -> bool:
        """Whether a step failed."""
        return any(not result.passed and not result.inconclusive for result in self.results.values())

    @property
    def held(self) -> tuple[str, ...]:
        """The inconclusive steps."""
        return tuple(name for name, result in self.results.items() if result.inconclusive)

    def fields(self) -> dict[str, Any]:
        """Return the fields of the event; `step` and `reason` are of the step that failed, else of the first inconclusive one."""
        open_steps = [name for name, result in self.results.items() if not result.passed]
        failed = next(
            (name for name in open_steps if not self.results[name].inconclusive), next(iter(open_steps), None)
        )
        return {
            "passed": self.passed,
            "step": failed,
            "reason": self.results[failed].reason if failed is not None else "",
            "held": list(self.held),
            "steps": {name: {**result.figures, "passed": result.passed} for name, result in self.results.items()},
            "missing": list(self.missing),
        }


class EvaluationRun:
    """One evaluation of a candidate.

    Args:
        context: the candidate and what the steps evaluate it on.
        steps: the registry.
        wanted: names of the steps in their order.
    """

    def __init__(self, context: EvaluationContext, steps: Mapping[str, Step], wanted: Sequence[str]) -> None:
        self.context = context
        self.step = ""
        """The one that runs."""
        self.results: dict[str, StepResult] = {}
        self.missing = tuple(name for name in wanted if name not in steps)
        self._run = self._steps({name: steps[name] for name in wanted if name in steps})

    def advance(self, until_s: float = math.inf) -> PromotionResult | None:
        """Continue until the result, which is returned, until a step waits for new ticks, or until a moment of the clock."""
        for more in self._run:
            if not more or self.context.clock() >= until_s:
                return None
        return self.result()

    def result(self) -> PromotionResult:
        """Return the results so far."""
        return PromotionResult(dict(self.results), self.missing)

    def cancel(self, reason: str) -> PromotionResult:
        """End the evaluation without a pass: the comparison no longer holds."""
        self._run.close()
        self.results[self.step] = StepResult(passed=False, reason=reason)
        return self.result()

    def _steps(self, steps: Mapping[str, Step]) -> Generator[bool, None, None]:
        for name, step in steps.items():
            self.step = name
            found = step(self.context)
            if not isinstance(found, StepResult):
                found = yield from found
            self.results[name] = found
            if not found.passed and not found.inconclusive:
                return
            yield True
