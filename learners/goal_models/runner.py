"""Ask the deliberator's backend in the background: one question at a time, the newest wins.

A local model works in a thread of its own; a server is asked on the event loop. Each question ends after `timeout_s`, with a failure;
a local model that is still busy then gets no other question until it is free. Knows neither MQTT nor the gate.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from learners.goal_models.answers import BackendFailed, GoalAnswer, GoalQuestion
from learners.goal_models.config import DecisionBackend, DeliberatorSettings, EmbeddingBackend, EndpointBackend
from learners.goal_models.remote_models import Endpoint

if TYPE_CHECKING:
    from learners.goal_models.local_models import LocalModel

NICE = 15
"""Of the local model's thread, above that of its process: everything else comes first."""
LOAD_S = 120.0
"""For a local model to load, before the question that waits for it fails."""

Answered = Callable[[GoalAnswer], None]
Failed = Callable[[int, str], None]
"""Takes the number of the question and the reason."""


class DeliberationRunner:
    """Answers goal questions.

    Args:
        settings: the goals and the backend.
        answered: takes each answer, on the event loop.
        failed: takes each failure, on the event loop.
    """

    def __init__(self, settings: DeliberatorSettings, answered: Answered, failed: Failed) -> None:
        self._settings, self._answered, self._failed = settings, answered, failed
        self.counts: Counter[str] = Counter()
        """`done`, `failed`, `dropped` (a newer question came first)."""
        self._waiting: GoalQuestion | None = None
        self._wake = asyncio.Event()
        self._model: LocalModel | None = None
        self._late: asyncio.Future[Any] | None = None
        """The work of the local model on a question that has failed already."""
        self._late_s = 0.0

    def busy_s(self) -> float:
        """Return for how long the local model has worked on a question that has failed already; 0 where it does not."""
        return 0.0 if self._late is None or self._late.done() else time.monotonic() - self._late_s

    def ask(self, question: GoalQuestion) -> None:
        """Ask a question in place of one that waits; called on the event loop."""
        self.counts["dropped"] += self._waiting is not None
        self._waiting = question
        self._wake.set()

    async def run(self) -> None:
        """Answer until cancelled."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="deliberator", initializer=_low_priority)
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if (question := self._waiting) is None:
                    continue
                self._waiting = None
                await self._answer(pool, question)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, pool: ThreadPoolExecutor, question: GoalQuestion) -> None:
        began_s = time.monotonic()
        try:
            backend = self._settings.backend
            if isinstance(backend, EndpointBackend):
                endpoint = Endpoint(backend, self._settings.meanings, self._settings.timeout_s)
                (found, still), name = await endpoint.probabilities(question), endpoint.name
            else:
                found, still, name = await self._local(pool, question)
        except BackendFailed as failure:
            self.counts["failed"] += 1
            self._failed(question.number, str(failure)[:500])
        else:
            self.counts["done"] += 1
            self._answered(GoalAnswer(question.number, found, still, name, time.monotonic() - began_s))

    async def _local(
        self, pool: ThreadPoolExecutor, question: GoalQuestion
    ) -> tuple[dict[str, float], float | None, str]:
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

    def _work(self, question: GoalQuestion) -> tuple[dict[str, float], float | None, str]:
        """Load the model once and ask it, in its thread."""
        try:
            if self._model is None:
                from learners.goal_models.local_models import open_model  # noqa: PLC0415 - imports torch

                backend = self._settings.backend
                assert isinstance(backend, EmbeddingBackend | DecisionBackend)
                self._model = open_model(backend, self._settings.meanings)
            return *self._model.probabilities(question), self._model.name
        except BackendFailed:
            raise
        except Exception as error:  # noqa: BLE001 - a model makes the libraries raise anything; the question fails, by name
            raise BackendFailed(f"{type(error).__name__}: {str(error)[:300]}") from None


def _low_priority() -> None:
    with suppress(OSError):
        os.nice(NICE)  # of this thread alone: Linux has one for each
