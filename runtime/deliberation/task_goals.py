"""Let a classification task answer which goal fits: the deliberator's backend `task`, in the place of `GoalClient`.

The task reads the text stream and runs in the models process like any other; goals that people set train it. Its result counts for
the newest order only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from learners.goal_models.answers import BackendFailed, GoalAnswer, GoalQuestion, checked
from learners.task_serving.results import Result


class TaskGoals:
    """Answers with the newest result of a task.

    Args:
        task: its name; its labels are the goals.
        goals: the description of each goal.
        answered: takes each answer.
        failed: takes the number of a question without an answer, and why.
    """

    connected = True
    """The task needs no connection of its own."""

    def __init__(
        self,
        task: str,
        goals: Mapping[str, str],
        answered: Callable[[GoalAnswer], None],
        failed: Callable[[int, str], None],
    ) -> None:
        self._task, self._goals, self._answered, self._failed = task, dict(goals), answered, failed
        self._newest: Result | None = None

    def take(self, result: Result) -> None:
        """Note the newest result of the task."""
        if result.task == self._task:
            self._newest = result

    def ask_goal(self, question: GoalQuestion) -> None:
        """Answer at once: with the task's probabilities, or with none while the newest order has no result."""
        result = self._newest
        if result is None or not question.orders or result.stamp_s < question.order_stamp_s:
            self._answered(GoalAnswer(question.number))
            return
        try:
            found = checked(result.prediction.probabilities, self._goals)
        except BackendFailed as failure:
            self._failed(question.number, str(failure))
            return
        model = f"task:{self._task}@{result.version}"
        self._answered(GoalAnswer(question.number, found, None, model, result.took_s))
