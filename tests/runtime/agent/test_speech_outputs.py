"""What is heard on a microphone stream becomes a reading of a text stream and a message on its topic; wrong settings are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learners.speech.transcripts import TranscribedUtterance, Transcript
from runtime.agent.speech_outputs import SpeechOutputs
from runtime.config.loader import ConfigError, load
from runtime.control.inbox import Inbox
from runtime.mqtt.topics import Topics
from runtime.preflight.preflight import preflight
from sensors.readings import Reading, Sound, Text
from sensors.streams.registry import build
from sensors.streams.speech import SpeechText

SETTINGS = """\
agent: demo
state_dir: {folder}
streams:
  room: {{kind: microphone, source: topic, encoder: ears}}
  orders: {{kind: text, source: "speech:room", max_chars: 40, encoder: language}}
encoders:
  ears: {{model: "builtin:utterance"}}
  language: {{model: "bundled:minilm-l6"}}
actuators:
  lamp: {{kind: choice, choices: ["OFF", "ON"], safe: "OFF"}}
"""


class FakeLink:
    def __init__(self) -> None:
        self.posted: list[tuple[str, dict[str, Any]]] = []

    def enqueue(self, topic: str, payload: bytes, **_: Any) -> bool:
        self.posted.append((topic, json.loads(payload)))
        return True


def written(folder: Path, change: Callable[[str], str] = lambda text: text) -> Path:
    path = folder / "s.yaml"
    path.write_text(change(SETTINGS.format(folder=folder)))
    return path


def received(text: str) -> TranscribedUtterance:
    words = tuple({"word": word, "confidence": 0.91234} for word in text.split())
    return TranscribedUtterance(
        "orders", "room", "bundled:whisper-tiny.en", Transcript(text, 0.8, 0.05, words), 10.0, 11.5, 0.25
    )


async def test_an_utterance_is_a_reading_and_a_message(tmp_path: Path) -> None:
    config, link, events = load(written(tmp_path)).config, FakeLink(), list[Any]()
    sensor = build("orders", config.streams["orders"])
    assert isinstance(sensor, SpeechText)
    outputs = SpeechOutputs(
        config, link, Topics("demo"), lambda *event: events.append(event), {"orders": sensor},  # type: ignore[arg-type]
        wall=lambda: 1_000.0, clock=lambda: 20.0,
    )  # fmt: skip
    assert outputs.client.sources == ("room",)
    outputs._publish_transcript(received("too early"))
    assert sensor.drops == {"not_running": 1}
    readings: list[Reading] = []
    sensor._publish = readings.append
    outputs._publish_transcript(received("turn left"))
    outputs._publish_transcript(received("word " * 20))
    outputs._refused("orders", "no_speech")
    outputs._failed("orders", "no model")
    assert readings == [Text("orders", 11.5, 1, "turn left", start_s=10.0, confidence=0.8)]
    assert sensor.drops == {"not_running": 1, "too_long": 1, "no_speech": 1}
    assert events == [("task_failed", {"task": "orders", "reason": "no model"})]
    topic, body = link.posted[1]
    assert topic == "reflexd/demo/task/orders"
    assert (body["value"], body["start"], body["end"], body["took_ms"]) == ("turn left", 990.0, 991.5, 250.0)
    assert body["words"] == [{"word": "turn", "confidence": 0.9123}, {"word": "left", "confidence": 0.9123}]


def test_a_listener_gets_every_reading_of_its_stream(tmp_path: Path) -> None:
    inbox, got = Inbox(load(written(tmp_path)).config.streams), list[Reading]()
    inbox.listen("room", got.append)
    for number in range(3):
        inbox.put(Sound("room", float(number), number, np.zeros(4, np.float32)))
    inbox.put(Text("orders", 3.0, 0, "go"))
    assert [reading.seq for reading in got] == [0, 1, 2]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("speech:room", "speech:hall", "'hall' is not a microphone stream; there are \\['room'\\]"),
        ("speech:room", "speech:", "names nothing; write speech:NAME"),
        ('"speech:room"', "topic, model: x", "only a stream with the source `speech:STREAM` has it"),
        ("actuators:", "tasks: {orders: {kind: text-classification, model: x}}\nactuators:", "publishes on task/orders, too"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path, lambda text: text.replace(before, after)))


def test_check_refuses_a_model_that_does_not_transcribe(tmp_path: Path) -> None:
    path = written(tmp_path, lambda text: text.replace("max_chars: 40", "model: 'bundled:minilm-l6'"))
    problems = [str(problem) for problem in preflight(path, load(path)) if "orders" in str(problem)]
    assert len(problems) == 1
    assert "bundled:minilm-l6 cannot do automatic-speech-recognition" in problems[0]
