"""Tasks on new readings: results, questions, speech, new versions, and never a queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tinymodels

from learners.config.tasks import TaskSettings
from learners.data_error import DataError
from learners.task_kinds import KINDS, TaskKind
from learners.task_serving import runner as runner_module
from learners.task_serving.reading_inputs import inputs_of_reading
from learners.task_serving.results import Callbacks, Question, Result, Speech
from learners.task_serving.runner import TaskRunner
from learners.task_serving.versions import TaskVersion, TaskVersionStore
from learners.tasks.task_classes import known, open_task
from sensors.readings import Frame, Reading, Sound, Telemetry, Text


@dataclass
class Heard:
    """Everything a runner reported."""

    results: list[Result] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    speech: list[Speech] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    refusals: list[tuple[str, str, int]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def callbacks(self) -> Callbacks:
        def into(target: list[Any]) -> Callable[..., None]:
            def take(*reported: Any) -> None:
                target.append(reported[0] if len(reported) == 1 else reported)
                self.changed.set()

            return take

        return Callbacks(
            into(self.results), into(self.questions), into(self.speech), into(self.failures), into(self.refusals)
        )

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
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
    received, now = Heard(), 0.0
    tasks = {"intents": settings(tmp_path, query_confidence=1.0)}
    runner = TaskRunner(tasks, received.callbacks(), clock=lambda: now)
    async with running(runner):
        say(runner, "go now")
        await received.until(lambda: received.questions)
        question = received.questions[0]
        assert (question.id, question.task, set(question.candidates)) == ("d1", "intents", {"a", "b"})
        assert not received.results
        version = add_version(tmp_path, 1, ("a", "b", "c"))
        runner.set_version("intents", version)
        say(runner, "go now")
        await received.until(lambda: received.results)
        result = received.results[0]
        assert result.version == version.name
        assert set(result.payload["probabilities"]) == {"a", "b", "c"}
        assert result.payload["decision"] == "d1"
        assert sum(result.prediction.probabilities.values()) == pytest.approx(1.0)
        assert len(received.questions) == 1, "one question in ten seconds"
        now = 11.0
        say(runner, "stop")
        await received.until(lambda: len(received.questions) == 2)
    assert runner.counts["done"] == 3


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a"), ("b", "c"), ("x", "y", "z"), ()])
async def test_a_version_keeps_its_labels_by_name_in_whatever_order_the_settings_list_them(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    tasks = {"intents": settings(tmp_path, labels=order)}
    version = add_version(tmp_path, 1, ("a", "b", "c"))
    wanted = open_task("text-classification", version.path).predict([{"text": "go now"}])[0].probabilities
    received = Heard()
    runner = TaskRunner(tasks, received.callbacks())
    runner.set_version("intents", version)
    async with running(runner):
        say(runner, "go now")
        await received.until(lambda: received.results)
    assert received.results[0].payload["probabilities"] == pytest.approx(wanted, abs=1e-4)


async def test_a_version_of_another_kind_of_task_answers_nothing(tmp_path: Path) -> None:
    """After `tasks.X.kind` changed: the old head under the new kind would publish its rows as answers."""
    received = Heard()
    tasks = {"intents": settings(tmp_path, kind="relation-extraction")}
    version = add_version(tmp_path, 1, ("a", "b"))
    runner = TaskRunner(tasks, received.callbacks())
    runner.set_version("intents", version)
    async with running(runner):
        say(runner, "<e1> go </e1> <e2> now </e2>")
        await received.until(lambda: received.failures)
    assert "trained for text-classification, not for relation-extraction" in received.failures[0][1]
    assert not received.results
    assert runner.counts["waiting"] == 1


async def test_a_folder_of_another_kind_of_task_is_a_pretrained_model(tmp_path: Path) -> None:
    received = Heard()
    tinymodels.bert(tmp_path / "model")
    version = add_version(tmp_path, 1, ("a", "b"))
    other = {"kind": "relation-extraction", "model": str(version.path), "query_confidence": 1.0}
    runner = TaskRunner({"intents": settings(tmp_path, **other)}, received.callbacks())
    async with running(runner):
        say(runner, "<e1> go </e1> <e2> now </e2>")
        await received.until(lambda: received.questions)
    assert not received.results, "its head never trained"


async def test_a_version_for_one_label_stays_one_when_the_settings_allow_several(tmp_path: Path) -> None:
    received = Heard()
    runner = TaskRunner({"intents": settings(tmp_path, multi_label=True)}, received.callbacks())
    version = add_version(tmp_path, 1, ("a", "b"))
    runner.set_version("intents", version)
    async with running(runner):
        say(runner, "go now")
        await received.until(lambda: received.results)
    assert received.results[0].payload["value"] in ("a", "b")


async def test_only_the_newest_reading_waits(tmp_path: Path) -> None:
    received = Heard()
    settings(tmp_path)
    runner = TaskRunner({"intents": settings(tmp_path)}, received.callbacks())
    runner.set_version("intents", add_version(tmp_path, 1, ("a", "b")))
    for number in range(5):
        say(runner, "go", f"d{number}")
    runner.offer({}, frozenset({"orders"}), None)
    runner.offer({"orders": Text("orders", 1.0, 9, "x")}, frozenset(), "stale")
    async with running(runner):
        await received.until(lambda: received.results)
    assert [result.decision for result in received.results] == ["d4"]
    assert runner.counts["dropped"] == 4


async def test_a_model_that_cannot_load_is_reported_once(tmp_path: Path) -> None:
    received = Heard()
    tasks = {
        "bad": settings(tmp_path, model="bundled:nothing"),
        "intents": settings(tmp_path),
        "new": settings(tmp_path, labels=()),
    }
    runner = TaskRunner(tasks, received.callbacks())
    runner.set_version("intents", add_version(tmp_path, 1, ("a", "b")))
    async with running(runner):
        say(runner, "go")
        await received.until(lambda: received.failures and received.results)
        say(runner, "go")
        await received.until(lambda: len(received.results) == 2)
    assert len(received.failures) == 1
    assert received.failures[0][0] == "bad"
    assert "unknown" in received.failures[0][1]


async def test_chat_speaks_in_pieces_and_remembers_its_turns(tmp_path: Path) -> None:
    received = Heard()
    model = tinymodels.llama(tmp_path / "llama")
    task = TaskSettings(kind="text-generation", stream="orders", model=str(model), max_new_tokens=4)
    runner = TaskRunner({"assistant": task}, received.callbacks())
    async with running(runner):
        say(runner, "what is red ?")
        await received.until(lambda: received.speech and received.speech[-1].final)
        turns = runner._loaded["assistant"].turns
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert "".join(s.piece for s in received.speech) == turns[1]["content"]
    assert len(received.speech) <= 5


async def test_readings_a_task_cannot_take_are_counted(tmp_path: Path) -> None:
    received = Heard()
    tasks = {"rel": settings(tmp_path, kind="relation-extraction", labels=("r",)), "intents": settings(tmp_path)}
    runner = TaskRunner(tasks, received.callbacks())
    telemetry = Telemetry("orders", 1.0, 1, ("x",), np.zeros(1, np.float32))
    runner.set_version("intents", add_version(tmp_path, 1, ("a", "b")))
    async with running(runner):
        runner.offer({"orders": telemetry}, frozenset({"orders"}), "d")
        say(runner, "no marks")  # `rel` wants marked spans; `intents` comes after it and answers
        await received.until(lambda: received.results)
    assert runner.counts == {"unusable": 1, "done": 1, "dropped": 2}
    assert [(task, count) for task, _, count in received.refusals] == [("rel", 1)]
    assert "<e1>" in received.refusals[0][1]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_untrained_task_of_every_kind_survives_readings_of_its_modality(
    tmp_path: Path, kind: TaskKind
) -> None:
    """A kind with a new head asks, a kind without one answers, and a reading that it cannot take is named."""
    received = Heard()
    task = settings(
        tmp_path,
        kind=kind,
        model=str(model_of(tmp_path, kind)),
        labels=LABELS.get(kind, ()),
        query_confidence=1.0,
        max_new_tokens=2,
    )
    runner = TaskRunner({"t": task}, received.callbacks(), ask_every_s=0.0)
    readings = reading_of(kind), Text("orders", 2.0, 2, "\0"), reading_of(kind)
    async with running(runner):
        for number, reading in enumerate(readings, 1):
            runner.offer({"orders": reading}, frozenset({"orders"}), f"d{number}")
            await counted(runner, number)
    assert not received.failures
    if kind == "question-answering":
        assert runner.counts == {"waiting": 3, "dropped": 0}
    else:
        assert runner.counts["done"] >= 2, received.refusals
    assert len(received.questions) >= 2 or kind not in LABELS


async def test_a_promoted_answering_task_takes_an_object_or_a_context_stream(tmp_path: Path) -> None:
    received, now = Heard(), 0.0
    model = tinymodels.bert(tmp_path / "model")
    task = settings(tmp_path, kind="question-answering", labels=())
    both = settings(tmp_path, kind="question-answering", labels=(), context="page")
    runner = TaskRunner({"object": task, "streams": both}, received.callbacks(), clock=lambda: now)
    for name in ("object", "streams"):
        versions = TaskVersionStore(tmp_path / "tasks" / name)
        runner.set_version(name, versions.add(open_task("question-answering", model), 1))
    page = Text("page", 1.0, 1, "go left now")
    async with running(runner):
        say(runner, '{"question": "what is", "context": "go left now"}')
        await counted(runner, 2)
        runner.offer({"orders": Text("orders", 1.0, 2, "what is"), "page": page}, frozenset({"orders"}), "d2")
        await counted(runner, 4)
        for text in ("what is", "[1]", '{"question": "what is"}', '{"question": "", "context": "go"}'):
            say(runner, text)
            await counted(runner, runner.counts.total() + 2)
    answers = [(r.task, r.prediction.value) for r in received.results]
    assert [task for task, _ in answers] == ["object", "streams", "streams"], "an object names its own context"
    assert all(value and value in page.text for _, value in answers)
    assert runner.counts["unusable"] == 9, "whatever does not hold question and context"
    assert {(task, count) for task, _, count in received.refusals} == {("object", 1), ("streams", 1)}, "rate-limited"
    assert all('"question"' in reason and '"context"' in reason for _, reason, _ in received.refusals)


async def test_whatever_a_model_raises_ends_with_its_reading(tmp_path: Path) -> None:
    """The task of a reading fails with an error of any kind; the reading is counted, the reason named, the next one answered."""
    received, now = Heard(), 0.0
    settings(tmp_path)
    runner = TaskRunner({"intents": settings(tmp_path)}, received.callbacks(), clock=lambda: now)
    runner.set_version("intents", add_version(tmp_path, 1, ("a", "b")))
    async with running(runner):
        say(runner, "go")
        await received.until(lambda: received.results)
        task = runner._loaded["intents"].task
        predict, task.predict = task.predict, failing(KeyError("context"))  # type: ignore[method-assign]
        for _ in range(3):
            say(runner, "go")
            await counted(runner, runner.counts.total() + 1)
        now = 20.0
        say(runner, "go")
        await counted(runner, 5)
        task.predict = predict  # type: ignore[method-assign]
        say(runner, "go")
        await received.until(lambda: len(received.results) == 2)
    assert received.refusals == [("intents", "KeyError: 'context'", 1), ("intents", "KeyError: 'context'", 3)]
    assert runner.counts == {"done": 2, "failed": 4, "dropped": 0}


async def test_a_damaged_version_is_reported_and_the_one_before_goes_on(tmp_path: Path) -> None:
    received = Heard()
    settings(tmp_path)
    runner = TaskRunner({"intents": settings(tmp_path)}, received.callbacks())
    runner.set_version("intents", add_version(tmp_path, 1, ("a", "b")))
    async with running(runner):
        say(runner, "go")
        await received.until(lambda: received.results)
        damaged = add_version(tmp_path, 2, ("a", "b", "c"))
        (damaged.path / "model.safetensors").write_bytes(b"no weights")
        runner.set_version("intents", damaged)
        say(runner, "go")
        await received.until(lambda: len(received.results) == 2)
    assert [task for task, _ in received.failures] == ["intents"]
    assert received.results[0].version == received.results[1].version
    assert runner.counts["unloadable"] == 1


async def test_a_model_that_could_not_be_loaded_is_tried_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received, now = Heard(), [100.0]
    runner = TaskRunner({"intents": settings(tmp_path)}, received.callbacks(), clock=lambda: now[-1])
    loop, opened = asyncio.get_running_loop(), list[str]()

    def cannot(kind: str, *_: Any, **__: Any) -> Any:
        opened.append(kind)
        raise OSError("no memory")

    monkeypatch.setattr(runner_module, "open_task", cannot)
    for later_s, tries in ((0.0, 1), (runner_module.RETRY_S - 1, 1), (1.0, 2)):
        now.append(now[-1] + later_s)
        assert runner._ready(loop, "intents") is None
        assert len(opened) == tries
    monkeypatch.undo()
    now.append(now[-1] + runner_module.RETRY_S)
    assert runner._ready(loop, "intents") is not None
    await asyncio.sleep(0)
    assert received.failures == [("intents", "no memory")], "reported once"


async def test_a_chat_that_fails_forgets_the_turn_and_ends_its_answer(tmp_path: Path) -> None:
    received = Heard()
    model = tinymodels.llama(tmp_path / "llama")
    task = TaskSettings(kind="text-generation", stream="orders", model=str(model), max_new_tokens=2)
    runner = TaskRunner({"assistant": task}, received.callbacks())
    async with running(runner):
        say(runner, "what is red ?")
        await counted(runner, 1)
        chat: Any = runner._loaded["assistant"].task
        stream, chat.stream = chat.stream, failing(RuntimeError("no memory"))
        say(runner, "what is blue ?")
        await counted(runner, 2)
        assert received.speech[-1].final
        chat.stream = stream
        say(runner, "what is green ?")
        await counted(runner, 3)
        turns = runner._loaded["assistant"].turns
    assert [turn["content"] for turn in turns if turn["role"] == "user"] == ["what is red ?", "what is green ?"]


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


async def counted(runner: TaskRunner, number: int) -> None:
    """Wait until a runner has worked on `number` readings, and the loop has run what it left there."""
    async with asyncio.timeout(60):
        # no event reports that a reading was counted
        while runner.counts.total() - runner.counts["dropped"] - runner.counts["unasked"] < number:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await asyncio.sleep(0)


LABELS: dict[TaskKind, tuple[str, ...]] = {
    "text-classification": ("a", "b"), "text-pair-classification": ("a", "b"), "image-classification": ("a", "b"), "audio-classification": ("a", "b"),
    "token-classification": ("O", "B-x", "I-x"), "relation-extraction": ("a", "b"),
}  # fmt: skip


def model_of(folder: Path, kind: TaskKind) -> Path:
    makers: dict[str, Callable[[Path], Path]] = {
        "image-classification": tinymodels.efficientnet, "audio-classification": tinymodels.wav2vec2,
        "translation": tinymodels.t5, "summarization": tinymodels.t5, "text-generation": tinymodels.llama,
        "automatic-speech-recognition": tinymodels.speech,
    }  # fmt: skip
    return makers.get(kind, tinymodels.bert)(folder / "of-kind")


def reading_of(kind: TaskKind) -> Reading:
    if KINDS[kind].modality == "picture":
        return Frame("orders", 1.0, 1, np.zeros((32, 32, 3), np.uint8))
    if KINDS[kind].modality == "sound":
        return Sound("orders", 1.0, 1, np.zeros(16_000, np.float32), 16_000)
    texts = {
        "relation-extraction": "<e1> anna </e1> works in <e2> Paris </e2>",
        "question-answering": '{"question": "what is", "context": "go left"}',
        "text-pair-classification": '{"text": "what is", "text_pair": "go left"}',
    }
    return Text("orders", 1.0, 1, texts.get(kind, "go left now"))


def test_inputs_of_readings() -> None:
    image, samples = np.zeros((2, 2, 3), np.uint8), np.zeros(10, np.float32)
    assert inputs_of_reading("image-classification", Frame("s", 0.0, 0, image)) == {"picture": image}
    sound = inputs_of_reading("audio-classification", Sound("s", 0.0, 0, samples, 8_000))
    assert sound == {"sound": samples, "rate_hz": 8_000}
    assert inputs_of_reading("summarization", Text("s", 0.0, 0, "x")) == {"source": "x"}
    assert inputs_of_reading("text-generation", Text("s", 0.0, 0, "x"))["messages"][0]["content"] == "x"
    with pytest.raises(DataError, match="reads a picture, not a reading of Text"):
        inputs_of_reading("image-classification", Text("s", 0.0, 0, "x"))


def test_every_kind_is_declared_once_and_implemented() -> None:
    assert set(known()) == set(KINDS) == set(get_args(TaskKind))
    for kind, cls in known().items():
        assert cls.declaration() is KINDS[kind]
        assert cls.declaration().target in cls.declaration().needs
