"""Run the tasks on new readings, outside the control loop: one worker thread, the newest reading of each task only.

The tick calls `offer`, which only stores the reading. Results, questions and pieces of speech go to callbacks on the event
loop. The agent publishes them on `task/<name>`, as `label_requested` events, and through the gate. `set_version` names the
version to use; the worker loads it before the next reading. A head that never trained produces no results, only questions.
Whatever fails on one reading is counted, reported by name, and ends with that reading. Knows neither MQTT nor the gate nor the
live pointers.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learners.config.tasks import TaskSettings
from learners.data_error import DataError
from learners.model.encoders.bundled_weights import resolve
from learners.task_kinds import KINDS
from learners.task_serving.options import options_of
from learners.task_serving.reading_inputs import inputs_of_reading
from learners.task_serving.results import Callbacks, Offered, Question, Result, Speech, likeliest
from learners.task_serving.versions import TaskVersion, use_version
from learners.tasks.base import Task, saved, saved_as
from learners.tasks.task_classes import open_task
from sensors.readings import Reading

TURNS = 16
"""Turns a chat remembers."""
MAX_REASON = 500
"""Characters of a reported reason."""
RETRY_S = 60.0
"""Between two tries to load a model that could not be loaded."""
REPORT_EVERY_S = 10.0
"""Between two reports that readings of one task failed."""


@dataclass(slots=True)
class ServedModel:
    """The model that serves a task now."""

    task: Task
    version: str
    trained: bool
    turns: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=TURNS))


class TaskRunner:
    """All tasks of an agent.

    Args:
        tasks: by name; those without a stream get no readings.
        callbacks: where results go.
        ask_every_s: between two questions of one task.
        clock: monotonic seconds.
    """

    def __init__(
        self, tasks: Mapping[str, TaskSettings], callbacks: Callbacks, *,
        ask_every_s: float = 10.0, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.tasks, self.callbacks = dict(tasks), callbacks
        self.counts: Counter[str] = Counter()
        """Readings: `done`, `dropped` (a newer one came first), `waiting` (no trained model yet), `unusable` (the task cannot take it),
        `failed` (the model failed on it). Questions: `unasked`. Attempts to load a version that failed: `unloadable`."""
        self._ask_every_s, self._clock = ask_every_s, clock
        self._waiting: dict[str, Offered] = {}
        self._unreported: Counter[str] = Counter()
        self._reported_s: dict[str, float] = {}
        self._versions: dict[str, TaskVersion] = {}
        """By task, the version to use; without one, the pretrained model of the settings."""
        self._loaded: dict[str, ServedModel] = {}
        self._broken: dict[str, tuple[str, float]] = {}
        """By task, the version that could not be loaded, and when."""
        self.current: Offered | None = None
        """The reading that the worker works on."""
        self._progressed_s = clock()
        """When that began, or when its last piece of speech was generated."""
        self._asked_s: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._stopping = False

    def set_version(self, task: str, version: TaskVersion | None) -> bool:
        """Use this version from the next reading on, None for the pretrained model; False if it was in use already."""
        return use_version(self._versions, task, version)

    def offer(self, readings: Mapping[str, Reading], fresh: frozenset[str], decision: str | None) -> None:
        """Store the fresh readings that tasks read; called on the loop at every tick."""
        for name, settings in self.tasks.items():
            if settings.stream in fresh and (reading := readings.get(settings.stream or "")) is not None:
                self.submit(name, Offered(reading, readings.get(settings.context or ""), decision))

    def submit(self, name: str, offered: Offered) -> None:
        """Store one reading for a task in place of one that waits."""
        self.counts["dropped"] += name in self._waiting
        self._waiting[name] = offered
        self._wake.set()

    def clear(self) -> None:
        """Forget the readings that wait."""
        self._waiting.clear()

    def busy_s(self) -> float:
        """Return for how long the worker has worked on its reading without a piece of speech; 0 where it has none."""
        return 0.0 if self.current is None else self._clock() - self._progressed_s

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="tasks") as pool:
            try:
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    while self._waiting:
                        name = next(iter(self._waiting))
                        self._progressed_s, self.current = self._clock(), self._waiting.pop(name)
                        await loop.run_in_executor(pool, self._work, loop, name, self.current)
                        self.callbacks.finished(name)
                        self.current = None
            finally:
                self._stopping = True

    def _work(self, loop: asyncio.AbstractEventLoop, name: str, offered: Offered) -> None:
        """Process one reading, in the worker thread; whatever fails ends with this reading."""
        try:
            loaded = self._ready(loop, name)
            if loaded is None:
                self.counts["waiting"] += 1
                return
            self._process(loop, name, loaded, offered)
        except DataError as error:  # such as a text without marked spans
            self._refuse(loop, name, "unusable", str(error))
        except Exception as error:  # noqa: BLE001 - models and tokenizers raise anything; one reading must not end the agent
            self._refuse(loop, name, "failed", f"{type(error).__name__}: {error}")
        else:
            self.counts["done"] += 1

    def _process(self, loop: asyncio.AbstractEventLoop, name: str, loaded: ServedModel, offered: Offered) -> None:
        kind, reading = self.tasks[name].kind, offered.reading
        example = inputs_of_reading(kind, reading, offered.context)
        if KINDS[kind].output == "turn":
            text = example["messages"][-1]["content"]
            self._answer(name, loaded, text, lambda speech: _on(loop, self.callbacks.speech, speech))
            return
        start_s = time.perf_counter()
        prediction = loaded.task.predict([example])[0]
        took_s = time.perf_counter() - start_s
        result = Result(name, reading.stream, reading.stamp_s, loaded.version, prediction, took_s, offered.decision)
        loop.call_soon_threadsafe(self._hand_out, result, reading, loaded.trained)

    def _refuse(self, loop: asyncio.AbstractEventLoop, name: str, cause: str, reason: str) -> None:
        """Count a reading that failed; report it, at most every `REPORT_EVERY_S` for one task."""
        self.counts[cause] += 1
        self._unreported[name] += 1
        now_s = self._clock()
        if now_s - self._reported_s.get(name, float("-inf")) >= REPORT_EVERY_S:
            self._reported_s[name] = now_s
            loop.call_soon_threadsafe(self.callbacks.refused, name, reason[:MAX_REASON], self._unreported.pop(name))

    def _hand_out(self, result: Result, reading: Reading, trained: bool) -> None:  # noqa: FBT001 - call_soon takes no keywords
        settings, prediction = self.tasks[result.task], result.prediction
        if trained:
            self.callbacks.result(result)
        unsure = settings.query_confidence is not None and (prediction.confidence or 0.0) < settings.query_confidence
        if unsure and result.decision is not None and self._may_ask(result.task):
            candidates = likeliest(prediction.probabilities)
            self.callbacks.question(
                Question(result.decision, result.task, reading, prediction.confidence or 0.0, candidates)
            )

    def _may_ask(self, name: str) -> bool:
        now_s = self._clock()
        if now_s - self._asked_s.get(name, float("-inf")) < self._ask_every_s:
            self.counts["unasked"] += 1
            return False
        self._asked_s[name] = now_s
        return True

    def _answer(self, name: str, loaded: ServedModel, text: str, speak: Callable[[Speech], None]) -> None:
        """Answer a text piece by piece; the turns of the conversation are stored if the answer is complete."""
        turn = {"role": "user", "content": text}
        made: list[str] = []
        try:
            for piece in loaded.task.stream([*loaded.turns, turn]):  # type: ignore[attr-defined]
                if self._stopping:
                    return
                self._progressed_s = self._clock()
                made.append(piece)
                speak(Speech(name, piece, final=False))
        finally:  # after an error too: the next text begins another answer
            speak(Speech(name, "", final=True))
        loaded.turns.extend([turn, {"role": "assistant", "content": "".join(made)}])

    def _ready(self, loop: asyncio.AbstractEventLoop, name: str) -> ServedModel | None:
        """Return the task's model in its version, loaded when that changes.

        None without a trained version and without `labels`. A version that cannot be loaded is reported once and tried again after
        `RETRY_S`; the version before it goes on.
        """
        live = self._versions.get(name)
        wanted = live.name if live is not None else "pretrained"
        loaded = self._loaded.get(name)
        if loaded is not None and loaded.version == wanted:
            return loaded
        broken, tried_s = self._broken.get(name, ("", float("-inf")))
        if broken == wanted and self._clock() - tried_s < RETRY_S:
            return loaded
        settings = self.tasks[name]
        try:
            source = live.path if live is not None else resolve(settings.model)
            document = _document(source, settings.kind, live)
            trained = bool(document) or KINDS[settings.kind].pretrained
            if not trained and not settings.labels:
                return None  # no label is known yet: the first fine-tune brings them
            labels = tuple(document.get("labels", ())) or settings.labels
            options = options_of(settings)
            if document:  # a softmax does not become several labels by a setting: the next fine-tune does that
                options.pop("multi_label", None)
            task = open_task(settings.kind, source, labels=labels, **options)
        except Exception as error:  # noqa: BLE001 - a damaged model makes the libraries raise anything
            self.counts["unloadable"] += 1
            self._broken[name] = (wanted, self._clock())
            if broken != wanted:
                named = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
                loop.call_soon_threadsafe(self.callbacks.failed, name, named)
            return loaded
        self._broken.pop(name, None)  # the same version, damaged later, is reported again
        self._loaded[name] = ServedModel(task, wanted, trained)
        return self._loaded[name]


def _document(source: Path | str, kind: str, live: TaskVersion | None) -> dict[str, Any]:
    """Return what a model's folder says of its task; empty if it is for no task, or the pretrained model is for another kind.

    Raises:
        ValueError: the live version is for another kind.
    """
    document = saved_as(source, kind)
    if live is not None and not document:
        made_for = saved(source).get("kind", "no task")
        raise ValueError(f"trained for {made_for}, not for {kind}; promote a version that fits, or roll back")
    return document


def _on(loop: asyncio.AbstractEventLoop, callback: Callable[[Speech], None], speech: Speech) -> None:
    loop.call_soon_threadsafe(callback, speech)
