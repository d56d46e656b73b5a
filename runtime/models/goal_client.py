"""Let the models process answer the deliberator's questions: the agent's part of it. It imports no torch.

`ask_goal` sends a question to the process that is connected. `ModelsClient` owns the connection. A question on its way to a process
that ends fails at once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict

from learners.goal_models.answers import BackendFailed, GoalAnswer, GoalQuestion, YesNoAnswer, YesNoQuestion, checked
from runtime.models.messages import BadMessage, Header, packed

MOST_REASON, MOST_NAME = 500, 200


class GoalClient:
    """Sends the deliberator's questions to the models process and passes on its answers.

    Args:
        goals: the description of each goal.
        answered: takes each answer.
        failed: takes the number of a question without an answer, and why.
    """

    title = "questions about the goal"
    answers = frozenset({"goal", "failed_question", "yes_no"})
    """Kinds of answers that belong here."""

    def __init__(
        self, goals: Mapping[str, str], answered: Callable[[GoalAnswer], None], failed: Callable[[int, str], None]
    ) -> None:
        self._goals, self._answered, self._failed = dict(goals), answered, failed
        self._writer: asyncio.StreamWriter | None = None
        self._away: dict[int, Callable[[int, str], None]] = {}
        """By number of a question on its way, what takes its failure."""
        self.answered_yes: Callable[[YesNoAnswer], None] = lambda _answer: None
        """Takes each answer to a question of yes or no."""
        self.failed_yes: Callable[[int, str], None] = lambda _number, _reason: None
        """Takes the number of such a question without an answer, and why."""

    def connect(self, writer: asyncio.StreamWriter) -> None:
        """Send questions to this process from now on."""
        self._writer = writer

    def disconnect(self) -> None:
        """Send no more questions; the one on its way fails."""
        self._writer = None
        away, self._away = self._away, {}
        for number, failed in away.items():
            failed(number, "the models process ended")

    @property
    def connected(self) -> bool:
        """Whether a process is connected."""
        return self._writer is not None

    def ask_goal(self, question: GoalQuestion) -> None:
        """Send a question; without a process it fails."""
        if self._writer is None:
            self._failed(question.number, "the models process is not connected")
            return
        self._away[question.number] = self._failed
        self._writer.write(packed({"do": "goal", "question": asdict(question)}))

    def ask_yes_no(self, question: YesNoQuestion) -> None:
        """Send a question of yes or no; without a process it fails."""
        if self._writer is None:
            self.failed_yes(question.number, "the models process is not connected")
            return
        self._away[question.number] = self.failed_yes
        self._writer.write(packed({"do": "yes_no", "question": asdict(question)}))

    def receive(self, header: Header) -> None:
        """Pass on one answer of the process.

        Raises:
            LookupError, TypeError, ValueError, AttributeError, OverflowError: it is not one of ours.
        """
        number = int(header["number"])
        failed = self._away.pop(number, self._failed)
        if header["is"] == "failed_question":
            failed(number, str(header["reason"])[:MOST_REASON])
            return
        model, took_s = str(header["model"])[:MOST_NAME], float(header["took_s"])
        if not 0 <= took_s < math.inf:
            raise BadMessage(f"took_s {took_s}")
        if header["is"] == "yes_no":
            yes = float(header["yes"])
            if not 0 <= yes <= 1:
                raise BadMessage(f"yes {yes}")
            self.answered_yes(YesNoAnswer(number, yes, model, took_s))
            return
        still = None if header["still"] is None else float(header["still"])
        if not (still is None or 0 <= still <= 1):
            raise BadMessage(f"still {still}")
        try:
            found = checked(dict(header["probabilities"]), self._goals) if header["probabilities"] else {}
        except BackendFailed as failure:
            raise BadMessage(str(failure)) from None
        self._answered(GoalAnswer(number, found, still, model, took_s))


def question_of(header: Header) -> GoalQuestion:
    """Return the question of a message.

    Raises:
        BadMessage: a field is missing or wrong.
    """
    try:
        given = header["question"]
        orders = tuple(str(order) for order in given["orders"])
        return GoalQuestion(int(given["number"]), str(given["state"]), orders, str(given["goal"]))
    except (LookupError, TypeError, ValueError) as error:
        raise BadMessage(f"a damaged question ({type(error).__name__}: {error})") from None


def yes_no_question_of(header: Header) -> YesNoQuestion:
    """Return the question of yes or no of a message.

    Raises:
        BadMessage: a field is missing or wrong.
    """
    try:
        given = header["question"]
        return YesNoQuestion(int(given["number"]), str(given["state"]), str(given["question"]))
    except (LookupError, TypeError, ValueError) as error:
        raise BadMessage(f"a damaged question ({type(error).__name__}: {error})") from None
