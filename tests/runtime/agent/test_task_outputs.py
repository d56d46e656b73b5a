"""Task results, questions and speech go where they belong; raw readings are stored only if they are needed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from learners.task_kinds import PredictionOfExample
from learners.task_serving.results import Question, Speech
from learners.task_serving.runner import TaskRunner
from runtime.agent.task_outputs import TaskOutputs
from runtime.config.loader import load
from runtime.control.tick import Utterances
from runtime.feedback.raw_capture import RawCapture, streams_to_keep
from runtime.mqtt.topics import Topics
from sensors.codecs.readings import encode_reading
from sensors.drivers import opencv
from sensors.readings import Frame, Observation, Sound, Telemetry, Text

SETTINGS = """\
agent: demo
state_dir: {folder}
streams:
  orders: {{kind: text, encoder: language}}
  front: {{kind: camera, source: topic, encoder: vision}}
encoders:
  language: {{model: "bundled:minilm-l6"}}
  vision: {{model: "bundled:efficientnet-lite0", follow_task: true}}
actuators:
  say: {{kind: text, task: assistant, max_chars: 8}}
  lamp: {{kind: choice, choices: ["OFF", "ON"], safe: "OFF"}}
tasks:
  assistant: {{kind: text-generation, stream: orders, model: "bundled:smollm2-135m"}}
"""


@dataclass
class FakeLink:
    posted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def enqueue(self, topic: str, payload: bytes, **_: Any) -> bool:
        self.posted.append((topic, json.loads(payload)))
        return True


@dataclass
class FakeResult:
    task: str = "assistant"
    payload: dict[str, Any] = field(default_factory=lambda: {"value": "stop"})
    prediction: PredictionOfExample = field(default_factory=lambda: PredictionOfExample("stop"))
    decision: str | None = None


@pytest.fixture
def parts(tmp_path: Path) -> tuple[TaskOutputs, FakeLink, list[tuple[str, dict[str, Any]]]]:
    path = tmp_path / "s.yaml"
    path.write_text(SETTINGS.format(folder=tmp_path))
    link, events = FakeLink(), []
    config = load(path).config
    language = TaskOutputs(config, link, Topics("demo"), lambda k, d: events.append((k, d)), Utterances(), TaskRunner)  # type: ignore[arg-type]
    return language, link, events


async def test_results_and_questions_are_published(parts: Any) -> None:
    language, link, events = parts
    language._result(FakeResult())
    reading = Text("orders", 0.0, 0, "halt")
    language._question(Question("s-1", "assistant", reading, 0.31, {"stop": 0.31, "go": 0.3}))
    language._failed("assistant", "no such model")
    assert link.posted == [("reflexd/demo/task/assistant", {"value": "stop"})]
    assert [kind for kind, _ in events] == ["label_requested", "task_failed"]
    assert events[0][1]["id"] == "s-1"
    assert events[0][1]["text"] == "halt"
    assert events[0][1]["candidates"][0] == {"label": "stop", "probability": 0.31}
    assert events[0][1]["reading"] == {"orders": {"text": "halt"}}


async def test_speech_waits_for_the_gate_as_a_whole_beginning(parts: Any) -> None:
    language, link, _ = parts
    language._speech(Speech("assistant", "Hello ", final=False))
    language._speech(Speech("assistant", "there", final=False))
    assert language.utterances.take() == {"say": "Hello th"}
    assert language.utterances.take() == {}
    language._speech(Speech("assistant", "", final=True))
    language._speech(Speech("assistant", "Bye", final=False))
    assert language.utterances.take()["say"] == "Bye"
    language._speech(Speech("assistant", "", final=True, lost=True))
    assert language.utterances.take() == {}, "half an answer is not proposed again"
    language._speech(Speech("assistant", "It is", final=False))
    assert language.utterances.take()["say"] == "It is"
    assert not link.posted


async def test_raw_readings_are_stored_where_they_are_needed(parts: Any) -> None:
    assert streams_to_keep(parts[0].config) == {"orders", "front"}


def test_every_kind_of_reading_has_its_encoding() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    assert encode_reading(Frame("front", 0.0, 0, image)) == ("jpeg", opencv.encode(image))
    assert encode_reading(Frame("front", 0.0, 0, image, b"\x89PNG")) == ("png", b"\x89PNG")
    assert encode_reading(Text("orders", 0.0, 0, "läft")) == ("utf-8", "läft".encode())
    assert encode_reading(Telemetry("joints", 0.0, 0, ("q",), np.zeros(1, np.float32))) is None
    stored = encode_reading(Sound("room", 0.0, 0, np.linspace(-1, 1, 800, dtype=np.float32)))
    assert stored is not None
    assert stored[0] == "flac"


def test_a_stored_sound_reads_back(tmp_path: Path) -> None:
    samples = np.sin(np.arange(1_600) / 10).astype(np.float32) * 0.5
    stored = encode_reading(Sound("room", 0.0, 0, samples))
    assert stored is not None
    (tmp_path / "s.flac").write_bytes(stored[1])
    back, rate = soundfile.read(tmp_path / "s.flac", dtype="float32")
    assert rate == 16_000
    assert np.abs(back - samples).max() < 1e-4


def test_the_keeper_stores_what_is_fresh_and_counts_what_does_not_fit() -> None:
    @dataclass
    class FakeStore:
        stored: list[Any] = field(default_factory=list)

        def add_raw(self, raw: Any) -> bool:
            self.stored.append(raw)
            return len(self.stored) < 2

    @dataclass
    class FakeTicked:
        observation: Observation
        stamp_unix_s: float = 5.0

    store = FakeStore()
    with ThreadPoolExecutor(1) as executor:
        keeper = RawCapture(store, frozenset({"orders"}), executor)  # type: ignore[arg-type]
        for seq in range(2):
            reading = Text("orders", 0.0, seq, "go")
            observation = Observation(
                seq, 0.0, {"orders": reading}, {"orders": 0.0}, fresh=frozenset({"orders", "front"})
            )
            keeper.ticked(FakeTicked(observation))  # type: ignore[arg-type]
            for future in keeper._waiting:
                future.result(5)
    assert [raw.encoding for raw in store.stored] == ["utf-8", "utf-8"]
    assert keeper.drops["orders"] == 1
