"""Models run in another process: its answers arrive, and its death, hang, slowness or garbage costs the agent two readings a task."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tinymodels

from fakes import eventually
from learners.config.tasks import TaskSettings
from learners.goal_models.answers import GoalAnswer, GoalQuestion
from learners.goal_models.config import DeliberatorSettings
from learners.speech.runner import SpeechRunner
from learners.speech.transcripts import SpeechCallbacks, TranscribedUtterance, Transcript
from learners.task_serving.results import Callbacks, Offered, Question, Result, Speech
from learners.task_serving.versions import TaskVersionStore
from learners.tasks.task_classes import open_task
from runtime.config.schema import Config
from runtime.models.__main__ import MOST_WORK_S, ModelsServer
from runtime.models.client import HUNG_S, SILENT_S, START_S, STUCK_S, ModelsClient
from runtime.models.goal_client import GoalClient
from runtime.models.messages import (
    LENGTHS,
    MOST_BODY,
    BadMessage,
    offered_message,
    offered_of,
    packed,
    receive,
    socket_path,
    sound_of,
)
from runtime.models.speech_client import SpeechClient
from runtime.supervisor.child_processes import has_models_process, table
from sensors.config import TextSettings
from sensors.readings import Frame, Sound, Telemetry, Text

SLOW = """
import os, socket, struct, sys, time
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
body = b'{"is": "beat"}'
while True:
    link.sendall(struct.pack(">II", len(body), 0) + body)
    time.sleep(0.02)
"""
"""A process that lives, and never answers a reading."""


@dataclass
class World:
    client: ModelsClient
    path: Path
    received: list[Any] = field(default_factory=list)
    degraded: dict[str, str] = field(default_factory=dict)
    clock: list[float] = field(default_factory=list)
    """Its last entry is now."""

    def later(self, seconds: float) -> None:
        self.clock.append(self.clock[-1] + seconds)

    def say(self, text: str) -> None:
        self.client.offer({"orders": Text("orders", 1.0, 1, text)}, frozenset({"orders"}), "s-1")


@contextlib.asynccontextmanager
async def world_of(
    folder: Path,
    *,
    speech: SpeechClient | None = None,
    goals: GoalClient | None = None,
    tasks: dict[str, TaskSettings] | None = None,
    **fields: Any,
) -> AsyncIterator[World]:
    """A client that runs."""
    given: dict[str, Any] = {"kind": "text-classification", "stream": "orders", "model": "m", "labels": ("a", "b")}
    received: list[Any] = []

    def take(*reported: Any) -> None:
        received.append(reported[0] if len(reported) == 1 else reported)

    path, degraded, clock = socket_path(folder), dict[str, str](), [100.0]
    callbacks = Callbacks(take, take, take, take, take)
    client = ModelsClient(
        {"intents": TaskSettings(**(given | fields))} if tasks is None else tasks,
        callbacks,
        path,
        degraded,
        speech=speech,
        goals=goals,
        clock=lambda: clock[-1],
    )
    world = World(client, path, received, degraded, clock)
    running = asyncio.create_task(client.run())
    await eventually(path.exists, "the socket")
    try:
        yield world
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert not path.exists()


def slow(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", SLOW, str(path)])


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


async def test_readings_go_to_the_process_and_results_and_questions_come_back(tmp_path: Path) -> None:
    model = str(tinymodels.bert(tmp_path / "model"))
    task = open_task("text-classification", Path(model), labels=("a", "b", "c"))
    version = TaskVersionStore(tmp_path / "tasks" / "intents").add(task, 1)
    wanted = task.predict([{"text": "go now"}])[0]
    async with world_of(tmp_path, model=model, query_confidence=1.0) as world:
        assert world.client.set_version("intents", version)
        assert not world.client.set_version("intents", version)
        server = asyncio.create_task(ModelsServer(world.client.tasks).serve(world.path))
        world.say("go now")
        await eventually(lambda: world.client.counts["done"] == 1, "the answer")
        result, question = world.received
        assert isinstance(result, Result)
        assert (result.version, result.decision, result.stream) == (version.name, "s-1", "orders")
        assert result.prediction.value == wanted.value
        assert dict(result.prediction.probabilities) == pytest.approx(dict(wanted.probabilities))
        assert isinstance(question, Question)
        assert (question.id, question.reading) == ("s-1", Text("orders", 1.0, 1, "go now"))
        world.client.offer({"orders": Telemetry("orders", 1.0, 1, ("x",), np.zeros(1))}, frozenset({"orders"}), "s-2")
        assert world.client._waiting == {}
        server.cancel()
        await asyncio.wait([server])
        await eventually(lambda: "models" in world.degraded, "a degraded daemon")
        assert world.degraded["models"] == "the models process is not connected; tasks have no results"


SPEECH = {"orders": TextSettings(kind="text", source="speech:room")}


@dataclass
class Ears:
    """Replaces the callbacks of the agent; holds what they receive."""

    received: list[TranscribedUtterance] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def client(self) -> SpeechClient:
        return SpeechClient(
            SPEECH,
            SpeechCallbacks(
                self.received.append, lambda *one: self.refused.append(one), lambda *one: self.failed.append(one)
            ),
        )


def spoken(seq: int) -> Sound:
    """A window of two seconds; its last tenth is new."""
    samples = np.full(32_000, seq / 10, np.float32)
    return Sound("room", 50 + seq / 10, seq, samples, new=1_600)


async def test_sound_goes_to_the_process_and_words_and_counts_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[Sound] = []
    monkeypatch.setattr(SpeechRunner, "_open", lambda *_: None)
    monkeypatch.setattr(SpeechRunner, "take", lambda _self, piece: pieces.append(piece))
    ears = Ears()
    async with world_of(tmp_path, speech=ears.client(), tasks={}) as world:
        speech = world.client.speech
        assert speech is not None
        speech.take(spoken(0))
        assert speech.counts == {"lost": 1}, "no process is connected"
        server = ModelsServer({}, streams=SPEECH)
        server.speech.failures["orders"] = "no such model"
        serving = asyncio.create_task(server.serve(world.path))
        await eventually(lambda: world.client.connected and bool(ears.failed), "the connection")
        assert ears.failed == [("orders", "no such model")], "an agent learns it when it connects"
        await asyncio.to_thread(speech.take, spoken(1))
        speech.take(spoken(2))
        speech.take(Text("orders", 1.0, 1, "no sound"))
        await eventually(lambda: len(pieces) == 2, "the sound")
        for number, piece in enumerate(pieces, 1):
            assert (piece.stream, piece.stamp_s, piece.new, len(piece.samples)) == (
                "room",
                50 + number / 10,
                1_600,
                1_600,
            )
            assert np.all(piece.samples == np.float32(number / 10))
        words = ({"word": "go", "confidence": 0.5},)
        received = TranscribedUtterance("orders", "room", "m", Transcript("go", 0.5, 0.1, words), 50.0, 50.5, 0.2)
        server.speech.callbacks.transcribed(received)
        server.speech.callbacks.refused("orders", "no_speech")
        server.speech.counts.update(done=1, invented=2)
        await eventually(lambda: speech.counts["done"] == 1, "the counts, which come with a beat")
        assert ears.received == [received]
        assert ears.refused == [("orders", "no_speech")]
        assert speech.counts["garbage"] == 2
        serving.cancel()
        await asyncio.wait([serving])
        await eventually(lambda: "models" in world.degraded, "a degraded daemon")
        assert world.degraded["models"] == "the models process is not connected; streams from speech have no results"


async def test_questions_about_the_goal_go_to_the_process_and_answers_and_failures_come_back(tmp_path: Path) -> None:
    answers: list[GoalAnswer] = []
    failures: list[tuple[int, str]] = []
    meanings = {"idle": "rest", "dog": "look at the dog"}
    goals = GoalClient(meanings, answers.append, lambda number, reason: failures.append((number, reason)))
    question = GoalQuestion(3, "Orders: \u2026", ("look at the dog",), "idle")
    goals.ask_goal(question)
    assert failures.pop() == (3, "the models process is not connected")
    settings = DeliberatorSettings.model_validate({"goals": meanings, "default": "idle"})
    async with world_of(tmp_path, goals=goals, tasks={}) as world:
        server = ModelsServer({}, deliberator=settings)
        asked: list[GoalQuestion] = []
        assert server.deliberation is not None
        server.deliberation.ask = asked.append  # type: ignore[method-assign]
        serving = asyncio.create_task(server.serve(world.path))
        await eventually(lambda: goals.connected, "the connection")
        goals.ask_goal(question)
        await eventually(lambda: bool(asked), "the question")
        assert asked == [question]
        answer = GoalAnswer(3, {"idle": 0.25, "dog": 0.75}, 0.1, "m@1", 0.5)
        server._goal(GoalAnswer(3, {"open the door": 1.0}))
        server._goal(answer)
        server._question_failed(4, "status 500")
        await eventually(lambda: bool(failures), "the answers")
        assert (answers, failures) == ([answer], [(4, "status 500")])
        assert world.client.counts["garbage"] == 1
        goals.ask_goal(question)
        serving.cancel()
        await asyncio.wait([serving])
        await eventually(lambda: len(failures) == 2, "the end of the process")
        assert failures[-1] == (3, "the models process ended")


async def test_sound_that_the_process_does_not_read_is_dropped_and_odd_transcripts_are_counted(tmp_path: Path) -> None:
    ears = Ears()
    async with world_of(tmp_path, speech=ears.client()) as world:
        speech = world.client.speech
        assert speech is not None
        reader, writer = await asyncio.open_unix_connection(world.path)
        await eventually(lambda: world.client.connected, "the connection")
        loud = np.zeros(300_000, np.float32)
        for number in range(20):
            speech.take(Sound("room", float(number), number, loud, new=len(loud)))
        await eventually(lambda: speech.counts["dropped"] > 0, "a full buffer")
        assert speech.counts["dropped"] < 20
        right = {
            "is": "transcript",
            "stream": "orders",
            "source": "room",
            "model": "m",
            "start_s": 1.0,
            "end_s": 2.0,
            "took_s": 0.1,
        }
        transcript = {"text": "go", "confidence": 0.5, "no_speech": 0.1, "words": [], "refused": None}
        odd = [
            {"is": "transcript", "stream": "other"},
            right | {"transcript": 3},
            right | {"transcript": transcript | {"confidence": None}},
            right | {"transcript": transcript | {"words": ["go"]}},
            {"is": "speech_counts", "counts": 3},
        ]
        for answer in [*odd, right | {"transcript": transcript}]:
            writer.write(packed(answer))
        await eventually(lambda: len(ears.received) == 1, "the transcript in order")
        assert world.client.counts["garbage"] == len(odd)
        assert world.client.connected
        writer.close()
        del reader


@pytest.mark.parametrize("body", [b"", b"1234567"])
def test_damaged_sound_is_refused(body: bytes) -> None:
    about = {"stream": "room", "stamp_s": 1.0, "seq": 1, "is": "sound", "rate_hz": 16_000, "count": 1}
    for reading in (about, about | {"is": "text", "bytes": len(body)}, about | {"count": -1}, None):
        with pytest.raises(BadMessage):
            sound_of({"reading": reading, "stamp_source": "device"}, body)
    for source in ({}, {"stamp_source": "clock"}):
        with pytest.raises(BadMessage):
            sound_of({"reading": about, **source}, bytes(4))
    assert sound_of({"reading": about, "stamp_source": "device"}, bytes(4)).stamp_source == "device"


async def test_the_newest_reading_waits_for_a_slow_process_and_one_that_hangs_is_killed(tmp_path: Path) -> None:
    async with world_of(tmp_path) as world:
        world.later(START_S - 1)
        await asyncio.sleep(0)
        assert world.degraded == {}, "it may still start"
        process = slow(world.path)
        try:
            await eventually(lambda: world.client.connected, "the connection")
            for text in ("one", "two", "three", "four"):
                world.say(text)
            assert world.client._away["intents"].reading == Text("orders", 1.0, 1, "one")
            assert world.client._waiting["intents"].reading == Text("orders", 1.0, 1, "four")
            assert world.client.counts["dropped"] == 2
            stop(process)
            world.later(SILENT_S + 5)
            await eventually(
                lambda: "silent for more than 15 s" in world.degraded.get("models", ""), "a degraded daemon"
            )
            world.later(HUNG_S)
            await eventually(lambda: process.poll() == -signal.SIGKILL, "the end of the process")
            assert world.client.counts["lost"] == 1
            assert "is not connected" in world.degraded["models"]
            process = slow(world.path)
            await eventually(lambda: world.client._away.get("intents") is not None, "the reading that waited")
            await eventually(lambda: "models" not in world.degraded, "a daemon in order")
            process.kill()
            await eventually(lambda: "models" in world.degraded, "a degraded daemon after a kill")
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        LENGTHS.pack(1, MOST_BODY + 1) + b"x",
        LENGTHS.pack(3, 0) + b"[1]",
        LENGTHS.pack(3, 0) + b"{x}",
    ],
)
async def test_garbage_ends_the_connection_and_nothing_else(tmp_path: Path, garbage: bytes) -> None:
    async with world_of(tmp_path) as world:
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(world.path))
        await eventually(lambda: world.client.connected, "the connection")
        link.sendall(garbage)
        await eventually(lambda: world.client.counts["garbage"] == 1 and not world.client.connected, "the end of it")
        link.close()
        assert world.received == []


def numbered(answer: dict[str, Any], header: Any) -> bytes:
    """An answer to the reading of an offer."""
    return packed({"task": "intents", "number": header["number"]} | answer)


async def offer_of(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next reading that the client sends."""
    while True:
        header, _ = await receive(reader)
        if header["do"] == "offer":
            return header


ODD = [
    {"is": "result", "task": "intents"}, {"is": "done", "task": "other", "counts": {}}, {}, {"is": "what", "task": "intents"},
    {
        "is": "result", "task": "intents", "stream": "orders", "stamp_s": 1.0, "version": "v", "took_s": 0.1, "decision": None,
        "prediction": {"value": "a", "confidence": 0.5, "probabilities": {"a": float("nan")}, "details": {}},
    },
]  # fmt: skip


async def test_an_odd_answer_is_counted_and_the_connection_stays(tmp_path: Path) -> None:
    async with world_of(tmp_path) as world:
        reader, writer = await asyncio.open_unix_connection(world.path)
        world.say("one")
        header = await offer_of(reader)
        world.say("two")
        for odd in ODD:
            writer.write(packed(odd))
        writer.write(numbered({"is": "done", "counts": 3}, header))
        assert (await offer_of(reader))["number"] != header["number"], "the next reading goes out"
        await eventually(lambda: world.client.counts["garbage"] == len(ODD) + 1, "all of them")
        assert world.client.connected
        assert world.received == []
        writer.close()


async def test_answers_to_a_reading_of_a_former_connection_are_ignored(tmp_path: Path) -> None:
    async with world_of(tmp_path) as world:
        reader, writer = await asyncio.open_unix_connection(world.path)
        world.say("one")
        first = await offer_of(reader)
        writer.close()
        await eventually(lambda: not world.client.connected, "the end of the connection")
        reader, writer = await asyncio.open_unix_connection(world.path)
        world.say("two")
        second = await offer_of(reader)
        requested = {"is": "question", "id": "s", "confidence": 0.3, "candidates": {}}
        done = {"is": "done", "counts": {"done": 1}}
        for header in (first, second):
            writer.write(numbered(requested, header) + numbered(done, header))
        writer.write(numbered(requested, second))
        await eventually(lambda: world.client.counts["stale"] == 3, "the answers")
        (question,) = world.received
        assert question.reading.text == "two"
        assert world.client.counts["done"] == 1
        assert world.client.connected
        writer.close()


async def test_a_server_forgets_what_waits_when_its_agent_goes_and_numbers_its_answers(tmp_path: Path) -> None:
    async with world_of(tmp_path) as world:
        server = ModelsServer(world.client.tasks)
        answering = asyncio.create_task(server._answer(world.path))
        world.say("one")
        await eventually(lambda: "intents" in server.runner._waiting, "the reading")
        number = world.client._away["intents"].number
        assert server.runner._waiting["intents"].number == number
        server.runner.current = server.runner._waiting["intents"]
        server._finished("intents")
        await eventually(lambda: not world.client._away, "the answer")
        assert world.client.counts["stale"] == 0
        answering.cancel()
        await asyncio.wait([answering])
        assert server.runner._waiting == {}


async def test_half_an_answer_ends_with_its_process(tmp_path: Path) -> None:
    async with world_of(tmp_path, kind="text-generation", labels=()) as world:
        reader, writer = await asyncio.open_unix_connection(world.path)
        world.say("where is the door?")
        header = await offer_of(reader)
        writer.write(numbered({"is": "speech", "piece": "The door is ", "final": False}, header))
        await eventually(lambda: len(world.received) == 1, "the first half")
        writer.close()
        await eventually(lambda: len(world.received) == 2, "the end")
        assert world.received[1] == Speech("intents", "", final=True, lost=True)


async def test_a_reading_of_numpy_numbers_crosses_and_an_odd_one_is_refused(tmp_path: Path) -> None:
    async with world_of(tmp_path) as world:
        reader, writer = await asyncio.open_unix_connection(world.path)
        await eventually(lambda: world.client.connected, "the connection")
        odd = Text("orders", 1.0, 1, "\ud800")
        world.client.offer({"orders": odd}, frozenset({"orders"}), "s-1")
        assert world.client.counts["unusable"] == 1
        assert world.client._away == {}
        numpy: Any = Text("orders", np.float64(1.5), np.int64(2), "go")  # type: ignore[arg-type]
        world.client.offer({"orders": numpy}, frozenset({"orders"}), "s-2")
        sent = (await offer_of(reader))["reading"]
        assert (sent["stamp_s"], sent["seq"]) == (1.5, 2)
        writer.close()


async def test_a_reading_that_waited_too_long_for_a_process_is_dropped(tmp_path: Path) -> None:
    async with world_of(tmp_path) as world:
        world.client._max_age_s = {"orders": 60.0}
        world.say("stop in 1999")
        reader, writer = await asyncio.open_unix_connection(world.path)
        await eventually(lambda: world.client.connected, "the connection")
        assert world.client.counts["expired"] == 1
        world.client.offer({"orders": Text("orders", 90.0, 2, "go")}, frozenset({"orders"}), "s-2")
        assert (await offer_of(reader))["reading"]["seq"] == 2
        writer.close()


async def test_a_model_that_does_not_answer_degrades_the_daemon_and_its_process_ends_itself(tmp_path: Path) -> None:
    async with world_of(tmp_path) as world:
        reader, writer = await asyncio.open_unix_connection(world.path)
        world.say("one")
        header = await offer_of(reader)
        world.later(STUCK_S + 1)
        world.client._last_message_s = world.clock[-1]  # it beats
        world.client._watch()
        assert "has not answered for more than 60 s (intents)" in world.degraded["models"]
        writer.write(numbered({"is": "done", "counts": {"done": 1}}, header))
        await eventually(lambda: world.client.counts["done"] == 1, "the answer")
        world.client._watch()
        assert world.degraded == {}
        writer.close()


async def test_a_server_lives_on_only_while_its_models_make_progress(tmp_path: Path) -> None:
    beats: list[float] = []
    given: dict[str, Any] = {"kind": "text-classification", "stream": "orders", "model": "m", "labels": ("a", "b")}
    server = ModelsServer({"intents": TaskSettings(**given)}, lambda: beats.append(0.0))
    now = [100.0]
    server.runner._clock = lambda: now[-1]
    server.runner.current, server.runner._progressed_s = Offered(Text("orders", 1.0, 1, "x"), None, None), 100.0
    for now_s, lives in ((100.0, 1), (100.0 + MOST_WORK_S, 1), (101.0, 2)):
        now.append(now_s)
        beating = asyncio.create_task(server._beat())
        await asyncio.sleep(0)
        beating.cancel()
        assert len(beats) == lives


async def test_speech_failures_and_refusals_are_passed_on(tmp_path: Path) -> None:
    async with world_of(tmp_path) as world:
        reader, writer = await asyncio.open_unix_connection(world.path)
        header, _ = await receive(reader)
        assert header == {"do": "version", "task": "intents", "version": None}
        world.say("one")
        common = {"task": "intents", "number": (await offer_of(reader))["number"]}
        for answer in (
            {"is": "speech", "piece": "Hel", "final": False},
            {"is": "failed", "reason": "no such model"},
            {"is": "refused", "reason": "no spans", "count": 3},
            {"is": "done", "counts": {"failed": 2, "invented": 1}},
        ):
            writer.write(packed(common | answer))
        await eventually(lambda: world.client.counts["failed"] == 2, "the answers")
        reported = [Speech("intents", "Hel", final=False), ("intents", "no such model"), ("intents", "no spans", 3)]
        assert world.received == reported
        writer.close()


def picture(stream: str) -> Frame:
    return Frame(stream, 1.5, 3, np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8))


def sound(stream: str) -> Sound:
    return Sound(stream, 1.5, 3, np.linspace(-1, 1, 90, dtype=np.float32), 8_000)


@pytest.mark.parametrize("make", [picture, sound, lambda stream: Text(stream, 1.5, 3, "läuft")])
def test_a_reading_crosses_without_loss_and_a_damaged_one_is_refused(make: Callable[[str], Any]) -> None:
    reading = make("front")
    message = offered_message("intents", Offered(reading, Text("orders", 2.0, 4, "go"), "s-7"))
    head, body = LENGTHS.unpack(message[: LENGTHS.size])
    assert len(message) == LENGTHS.size + head + body
    header, data = orjson.loads(message[LENGTHS.size : LENGTHS.size + head]), message[LENGTHS.size + head :]
    back = offered_of(header, data)
    assert (back.context, back.decision) == (Text("orders", 2.0, 4, "go"), "s-7")
    for name in ("image", "samples", "text"):
        assert np.array_equal(getattr(back.reading, name, 0), getattr(reading, name, 0))
    for broken, bytes_ in (
        (header, data[:-1]),
        (header, data + b"x"),
        (header | {"reading": {**header["reading"], "is": "other"}}, data),
        (header | {"reading": None}, data),
        (header | {"reading": {**header["reading"], "shape": [1 << 40, 1, 3], "count": -1, "bytes": "x"}}, data),
    ):
        with pytest.raises(BadMessage):
            offered_of(broken, bytes_)


def test_the_supervisor_starts_it_where_a_task_reads_a_stream(tmp_path: Path) -> None:
    body: dict[str, Any] = {
        "agent": "a", "state_dir": tmp_path, "streams": {"orders": {"kind": "text", "source": "topic", "encoder": "language"}},
        "encoders": {"language": {"model": "m"}}, "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
    }  # fmt: skip
    spoken_streams = {
        "room": {"kind": "microphone", "source": "topic", "encoder": "language"},
        "orders": {"kind": "text", "source": "speech:room", "encoder": "language"},
    }
    for tasks, expected in (
        ({}, False),
        ({"intents": {"kind": "text-classification", "stream": "orders", "model": "m"}}, True),
        ({"intents": {"kind": "text-classification", "model": "m"}}, False),
    ):
        specs = {spec.name: spec for spec in table(Config.model_validate(body | {"tasks": tasks}), tmp_path / "s.yaml")}
        assert ("models" in specs) == expected
        assert not expected or not specs["models"].essential
    assert has_models_process(Config.model_validate(body | {"streams": spoken_streams}))


def test_a_long_folder_has_its_socket_elsewhere(tmp_path: Path) -> None:
    assert socket_path(tmp_path) == tmp_path / "models.sock" or len(str(tmp_path)) > 80
    long = socket_path(tmp_path / ("x" * 120))
    assert long.name.startswith("reflexd-models-")
    assert long != socket_path(tmp_path / ("y" * 120))
