"""Ask the deliberator's backend in the background: one question at a time, the newest of its kind wins.

A local model works in a thread of its own; a server is asked on the event loop. Each question ends after `timeout_s`, with a failure;
a local model that is still busy then gets no other question until it is free. Knows neither MQTT nor the gate.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from learners.goal_models.answers import BackendFailed, GoalAnswer, GoalQuestion, YesNoAnswer, YesNoQuestion
from learners.goal_models.config import DecisionBackend, DeliberatorSettings, EmbeddingBackend, EndpointBackend
from learners.goal_models.remote_models import Endpoint

if TYPE_CHECKING:
    from learners.goal_models.local_models import LocalModel

NICE = 15
"""Of the local model's thread, above that of its process: everything else comes first."""
REMEMBER_S = 1.0
"""For orders with a person's goal to be read before a question is answered; the rest is read while no question waits."""
LOAD_S = 120.0
"""For a local model to load, before the question that waits for it fails."""

Answered = Callable[[GoalAnswer], None]
Failed = Callable[[int, str], None]
"""Takes the number of the question and the reason."""
AnsweredYes = Callable[[YesNoAnswer], None]
Labelled = Callable[[], Sequence[tuple[str, str]]]
AnyQuestion = GoalQuestion | YesNoQuestion


class DeliberationRunner:
    """Answers goal questions.

    Args:
        settings: the goals and the backend.
        answered: takes each answer, on the event loop.
        failed: takes each failure, on the event loop.
        answered_yes: takes each answer to a question of yes or no.
        labelled: returns orders with the goals that people set for them, oldest first; called in the thread of the model.
    """

    def __init__(
        self,
        settings: DeliberatorSettings,
        answered: Answered,
        failed: Failed,
        answered_yes: AnsweredYes = lambda _answer: None,
        labelled: Labelled = tuple,
    ) -> None:
        self._labelled = labelled
        self._settings, self._answered, self._failed, self._answered_yes = settings, answered, failed, answered_yes
        self.counts: Counter[str] = Counter()
        """`done`, `failed`, `dropped` (a newer question came first)."""
        self._waiting: dict[type[AnyQuestion], AnyQuestion] = {}
        """The newest of each kind; the goal comes first."""
        self._wake = asyncio.Event()
        self._model: LocalModel | None = None
        self._late: asyncio.Future[Any] | None = None
        """The work of the local model on a question that has failed already."""
        self._late_s = 0.0
        self._all_remembered = True
        """Whether the model has read all orders with a person's goal."""

    def busy_s(self) -> float:
        """Return for how long the local model has worked on a question that has failed already; 0 where it does not."""
        return 0.0 if self._late is None or self._late.done() else time.monotonic() - self._late_s

    def ask(self, question: AnyQuestion) -> None:
        """Ask a question in place of one of its kind that waits; called on the event loop."""
        self.counts["dropped"] += type(question) in self._waiting
        self._waiting[type(question)] = question
        self._wake.set()

    async def run(self) -> None:
        """Answer until cancelled."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="deliberator", initializer=_low_priority)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    first: type[AnyQuestion] = GoalQuestion if GoalQuestion in self._waiting else YesNoQuestion
                    await self._answer(pool, self._waiting.pop(first))
                    await self._read_on(pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _read_on(self, pool: ThreadPoolExecutor) -> None:
        """Read further orders with a person's goal until all are read, or a question waits."""
        while not self._all_remembered and not self._waiting and self._late is None:
            try:
                await asyncio.get_running_loop().run_in_executor(pool, self._remember)
            except Exception:  # noqa: BLE001 - as in `_work`; the next question meets it, and reports it
                return

    async def _answer(self, pool: ThreadPoolExecutor, question: AnyQuestion) -> None:
        try:
            backend = self._settings.backend
            if isinstance(backend, EndpointBackend):
                answer = await self._remote(backend, question)
            else:
                answer = await self._local(pool, question)
        except BackendFailed as failure:
            self.counts["failed"] += 1
            self._failed(question.number, str(failure)[:500])
            return
        self.counts["done"] += 1
        if isinstance(answer, GoalAnswer):
            self._answered(answer)
        else:
            self._answered_yes(answer)

    async def _remote(self, backend: EndpointBackend, question: AnyQuestion) -> GoalAnswer | YesNoAnswer:
        began_s = time.monotonic()
        endpoint = Endpoint(backend, self._settings.meanings, self._settings.timeout_s)
        if isinstance(question, YesNoQuestion):
            yes = await endpoint.yes(question)
            return YesNoAnswer(question.number, yes, endpoint.name, time.monotonic() - began_s)
        found, still = await endpoint.probabilities(question)
        return GoalAnswer(question.number, found, still, endpoint.name, time.monotonic() - began_s)

    async def _local(self, pool: ThreadPoolExecutor, question: AnyQuestion) -> GoalAnswer | YesNoAnswer:
        if self._late is not None:
            await asyncio.wait({self._late})
            self._late.exception()  # retrieved, so that asyncio does not complain
            self._late = None
        limit_s = self._settings.timeout_s if self._model is not None else LOAD_S
        work = asyncio.get_running_loop().run_in_executor(pool, self._work, question)
        done, _ = await asyncio.wait({work}, timeout=limit_s)
        if not done:
            self._late, self._late_s = work, time.monotonic()
            raise BackendFailed(f"the model gave no answer within {limit_s:g} s")
        return work.result()

    def _work(self, question: AnyQuestion) -> GoalAnswer | YesNoAnswer:
        """Load the model once and ask it, in its thread."""
        began_s = time.monotonic()
        try:
            if self._model is None:
                from learners.goal_models.local_models import open_model  # noqa: PLC0415 - imports torch

                backend = self._settings.backend
                assert isinstance(backend, EmbeddingBackend | DecisionBackend)
                self._model = open_model(backend, self._settings.meanings)
            name = self._model.name
            if isinstance(self._settings.backend, EmbeddingBackend):
                self._remember()
            if isinstance(question, YesNoQuestion):
                yes = self._model.yes(question)
                return YesNoAnswer(question.number, yes, name, time.monotonic() - began_s)
            found, still = self._model.probabilities(question)
            return GoalAnswer(question.number, found, still, name, time.monotonic() - began_s)
        except BackendFailed:
            raise
        except Exception as error:  # noqa: BLE001 - a model makes the libraries raise anything; the question fails, by name
            raise BackendFailed(f"{type(error).__name__}: {str(error)[:300]}") from None

    def _remember(self) -> None:
        """Let the model read orders with a person's goal for a while, in its thread."""
        self._all_remembered = self._model.remember(self._labelled(), REMEMBER_S)  # type: ignore[union-attr]


def _low_priority() -> None:
    with suppress(OSError):
        os.nice(NICE)  # of this thread alone: Linux has one for each
