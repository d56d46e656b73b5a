"""Run the supervised tasks on fresh readings; publish their results and queries, and queue generated text for actuators.

Runs outside the tick. Generated text waits in `Utterances` until the next tick proposes it to the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from learners.config.tasks import TaskSettings
from learners.task_serving.results import Callbacks, Question, Result, Speech
from runtime.config.schema import Config
from runtime.control.tick import TickResult, Utterances
from runtime.feedback.queries import candidates
from runtime.feedback.recent_results import RecentResults
from runtime.models.client import Runner
from runtime.mqtt import Connection
from runtime.mqtt.topics import Topics, encode
from runtime.process.emit import Emit
from sensors.codecs.readings import summarize_reading
from sensors.readings import Text
from sensors.streams.task_output import TaskOutputSensor


@dataclass(slots=True)
class TaskOutputs:
    """Connects the task runner with ticks, topics and text actuators. Create it inside the running loop."""

    config: Config
    link: Connection
    topics: Topics
    emit: Emit
    utterances: Utterances
    runner_of: Callable[[Mapping[str, TaskSettings], Callbacks], Runner]
    """Makes what runs the models."""
    fed: Mapping[str, TaskOutputSensor] = field(default_factory=dict)
    """By task, the stream it feeds: one token of the fusion, as the policy sees it at the next tick."""
    on_result: Callable[[Result], None] = lambda _result: None
    """Receives each result, after it was published."""
    results: RecentResults = field(default_factory=RecentResults)
    """Remembers results for people who label."""
    runner: Runner = field(init=False)
    _generated: dict[str, str] = field(default_factory=dict)
    """By task, the text generated so far."""

    def __post_init__(self) -> None:
        callbacks = Callbacks(self._result, self._question, self._speech, self._failed, self._refused)
        self.runner = self.runner_of(self.config.tasks, callbacks)

    def ticked(self, ticked: TickResult) -> None:
        """Offer the fresh readings of this tick to the tasks."""
        self.results.ticked(ticked.decision, ticked.stamp_unix_s)
        self.runner.offer(ticked.observation.readings, ticked.observation.fresh, ticked.decision)

    def _result(self, result: Result) -> None:
        prediction = result.prediction
        self.results.add(
            result.task, result.decision, prediction.value, prediction.confidence, dict(prediction.probabilities)
        )
        if result.task in self.fed:
            self.fed[result.task].take(result.prediction.probabilities, result.stamp_s)
        self.link.enqueue(self.topics("task", result.task), encode(result.payload), qos=1)
        self.on_result(result)

    def _question(self, question: Question) -> None:
        data: dict[str, Any] = {
            "id": question.id,
            "task": question.task,
            "stream": question.reading.stream,
            "confidence": round(question.confidence, 4),
            "candidates": candidates(dict(question.candidates)),
            "reading": {question.reading.stream: summarize_reading(question.reading)},
        }
        if isinstance(question.reading, Text):
            data["text"] = question.reading.text
        self.emit("label_requested", data)

    def _speech(self, speech: Speech) -> None:
        """Queue the text generated so far for the next tick: a device always gets it from its beginning."""
        if speech.lost:
            self._generated.pop(speech.task, None)
            return
        text = self._generated.get(speech.task, "") + speech.piece
        self._generated[speech.task] = "" if speech.final else text
        for name, actuator in self.config.actuators.items():
            if actuator.kind == "text" and actuator.task == speech.task and text:
                self.utterances.waiting[name] = text[: actuator.max_chars]

    def _failed(self, task: str, reason: str) -> None:
        self.emit("task_failed", {"task": task, "reason": reason})

    def _refused(self, task: str, reason: str, count: int) -> None:
        self.emit("task_reading_failed", {"task": task, "reason": reason, "count": count})
