"""A whole promotion evaluation at once, for tests and benchmarks; the learner advances one in slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from learners.experience.reader import Row
from learners.experience.transition import Transition
from learners.promotion.pipeline import EvaluationRun, PromotionResult
from learners.promotion.step_types import EvaluationContext, Step


def evaluate(
    context: EvaluationContext,
    steps: Mapping[str, Step],
    wanted: Sequence[str],
    *,
    pause: Callable[[], object] = lambda: None,
) -> PromotionResult:
    """Run the wanted steps in order until one fails; `pause` is called whenever one waits for new ticks."""
    run = EvaluationRun(context, steps, wanted)
    while True:
        result = run.advance()
        if result is not None:
            return result
        pause()


class Logged:
    """Experience that does not grow: transitions, oldest first."""

    def __init__(self, transitions: Sequence[Transition]) -> None:
        self.transitions = transitions

    def recent(self, count: int) -> list[Transition]:
        return list(self.transitions[-count:])

    def after(self, row: int) -> list[Row]:
        return []

    def last_row(self) -> int:
        return len(self.transitions)
