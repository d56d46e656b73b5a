"""Tasks on new readings: results, questions, speech, new versions, and never a queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinymodels

from learners.config import TaskSettings
from learners.continual.serving import Callbacks, Question, Result, Speech, TaskRunner, example_of
from learners.continual.versions import TaskVersion, TaskVersionStore
from learners.tasks.registry import open_task
from sensors.readings import Frame, Sound, Telemetry, Text


@dataclass
class Heard:
    """Everything a runner said."""

    results: list[Result] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    speech: list[Speech] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def callbacks(self) -> Callbacks:
        def into(target: list[Any]) -> Callable[..., None]:
            def take(*said: Any) -> None:
                target.append(said[0] if len(said) == 1 else said)
                self.changed.set()

            return take

        return Callbacks(into(self.results), into(self.questions), into(self.speech), into(self.failures))

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def running(runner: TaskRunner) -> AsyncIterator[None]:
    job = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        job.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await job


def say(runner: TaskRunner, text: str, decision: str | None = "d1", stream: str = "orders") -> None:
    runner.offer({stream: Text(stream, 1.0, 1, text)}, frozenset({stream}), decision)


def settings(tmp_path: Path, **fields: Any) -> TaskSettings:
    model = tmp_path / "model"
    if not model.exists():
        tinymodels.bert(model)
    return TaskSettings(
        **({"kind": "text-classification", "stream": "orders", "model": str(model), "labels": ("a", "b")} | fields)
    )


def add_version(tmp_path: Path, number: int, labels: tuple[str, ...]) -> TaskVersion:
    task = open_task("text-classification", tmp_path / "model", labels=labels)
    return TaskVersionStore(tmp_path / "tasks" / "intents").add(task, number)


async def test_an_untrained_head_only_asks_and_a_promoted_one_speaks(tmp_path: Path) -> None:
    heard, now = Heard(), 0.0
    tasks = {"intents": settings(tmp_path, query_confidence=1.0)}
    runner = TaskRunner(tasks, heard.callbacks(), clock=lambda: now)
    async with running(runner):
        say(runner, "go now")
        await heard.until(lambda: heard.questions)
        question = heard.questions[0]
        assert (question.id, question.task, set(question.candidates)) == ("d1", "intents", {"a", "b"})
        assert not heard.results
        version = add_version(tmp_path, 1, ("a", "b", "c"))
        runner.set_version("intents", version)
        say(runner, "go now")
        await heard.until(lambda: heard.results)
        result = heard.results[0]
        assert result.version == version.name
        assert set(result.payload["probabilities"]) == {"a", "b", "c"}
        assert result.payload["decision"] == "d1"
        assert sum(result.prediction.probabilities.values()) == pytest.approx(1.0)
        assert len(heard.questions) == 1, "one question in ten seconds"
        now = 11.0
        say(runner, "stop")
        await heard.until(lambda: len(heard.questions) == 2)
    assert runner.counts["done"] == 3


async def test_only_the_newest_reading_waits(tmp_path: Path) -> None:
    heard = Heard()
    settings(tmp_path)
    runner = TaskRunner({"intents": settings(tmp_path)}, heard.callbacks())
    runner.set_version("intents", add_version(tmp_path, 1, ("a", "b")))
    for number in range(5):
        say(runner, "go", f"d{number}")
    runner.offer({}, frozenset({"orders"}), None)
    runner.offer({"orders": Text("orders", 1.0, 9, "x")}, frozenset(), "stale")
    async with running(runner):
        await heard.until(lambda: heard.results)
    assert [result.decision for result in heard.results] == ["d4"]
    assert runner.counts["dropped"] == 4


async def test_a_model_that_cannot_load_is_said_once(tmp_path: Path) -> None:
    heard = Heard()
    tasks = {
        "bad": settings(tmp_path, model="bundled:nothing"),
        "intents": settings(tmp_path),
        "new": settings(tmp_path, labels=()),
    }
    runner = TaskRunner(tasks, heard.callbacks())
    runner.set_version("intents", add_version(tmp_path, 1, ("a", "b")))
    async with running(runner):
        say(runner, "go")
        await heard.until(lambda: heard.failures and heard.results)
        say(runner, "go")
        await heard.until(lambda: len(heard.results) == 2)
    assert len(heard.failures) == 1
    assert heard.failures[0][0] == "bad"
    assert "unknown" in heard.failures[0][1]


async def test_chat_speaks_in_pieces_and_remembers_its_turns(tmp_path: Path) -> None:
    heard = Heard()
    model = tinymodels.llama(tmp_path / "llama")
    task = TaskSettings(kind="text-generation", stream="orders", model=str(model), max_new_tokens=4)
    runner = TaskRunner({"assistant": task}, heard.callbacks())
    async with running(runner):
        say(runner, "what is red ?")
        await heard.until(lambda: heard.speech and heard.speech[-1].final)
        turns = runner._loaded["assistant"].turns
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert "".join(s.piece for s in heard.speech) == turns[1]["content"]
    assert len(heard.speech) <= 5


async def test_readings_a_task_cannot_take_are_counted(tmp_path: Path) -> None:
    heard = Heard()
    tasks = {"rel": settings(tmp_path, kind="relation-extraction", labels=("r",)), "intents": settings(tmp_path)}
    runner = TaskRunner(tasks, heard.callbacks())
    telemetry = Telemetry("orders", 1.0, 1, ("x",), np.zeros(1, np.float32))
    runner.set_version("intents", add_version(tmp_path, 1, ("a", "b")))
    async with running(runner):
        runner.offer({"orders": telemetry}, frozenset({"orders"}), "d")
        say(runner, "no marks")  # `rel` wants marked spans; `intents` comes after it and answers
        await heard.until(lambda: heard.results)
    assert runner.counts == {"unusable": 1, "done": 1, "dropped": 2}


def test_examples_of_readings() -> None:
    task = TaskSettings(kind="text-classification", model="m")
    image, samples = np.zeros((2, 2, 3), np.uint8), np.zeros(10, np.float32)
    assert example_of(Frame("s", 0.0, 0, image), task) == {"picture": image}
    assert example_of(Sound("s", 0.0, 0, samples, 8_000), task) == {"sound": samples, "rate_hz": 8_000}
    assert example_of(Text("s", 0.0, 0, "x"), TaskSettings(kind="summarization", model="m")) == {"source": "x"}
    assert example_of(Telemetry("s", 0.0, 0, ("x",), samples[:1]), task) is None
