"""Settings become the right sensor, plug-ins included; recordings replay; devices are listed."""

from __future__ import annotations

import asyncio
import importlib.metadata
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from recorded_sensor import RecordedSensor
from sensing import Running

from sensors import plugins
from sensors.base import Sensor, SensorLost, TopicSensor
from sensors.config import AnyStream
from sensors.drivers import device_list, portaudio
from sensors.readings import Text
from sensors.streams import registry
from sensors.streams.camera import CameraSensor, TopicCamera
from sensors.streams.microphone import MicrophoneSensor, TopicMicrophone
from sensors.streams.registry import build
from sensors.streams.telemetry import TopicTelemetry
from sensors.streams.text import FollowedText, StdinText, TopicText


def stream(**settings: object) -> AnyStream:
    return TypeAdapter(AnyStream).validate_python(settings)


@pytest.mark.parametrize(
    ("settings", "kind", "topic"),
    [
        ({"kind": "camera", "source": 0}, CameraSensor, None),
        ({"kind": "camera", "source": "rtsp://cam/1"}, CameraSensor, None),
        ({"kind": "camera", "source": "topic"}, TopicCamera, None),
        ({"kind": "camera", "source": "topic:yard/cam"}, TopicCamera, "yard/cam"),
        ({"kind": "microphone"}, MicrophoneSensor, None),
        ({"kind": "microphone", "source": "voice.wav"}, MicrophoneSensor, None),
        ({"kind": "microphone", "source": "topic:pcm"}, TopicMicrophone, "pcm"),
        ({"kind": "text"}, TopicText, None),
        ({"kind": "text", "source": "stdin"}, StdinText, None),
        ({"kind": "text", "source": "file:/var/log/orders"}, FollowedText, None),
        ({"kind": "telemetry", "fields": ["q1"]}, TopicTelemetry, None),
        ({"kind": "telemetry", "source": "topic:robot/joints", "fields": ["/q1"]}, TopicTelemetry, "robot/joints"),
    ],
)
def test_settings_become_sensors(settings: dict[str, object], kind: type, topic: str | None) -> None:
    sensor = build("front", stream(**settings))
    assert type(sensor) is kind
    assert sensor.name == "front"
    assert isinstance(sensor, Sensor) != isinstance(sensor, TopicSensor)
    assert getattr(sensor, "topic", None) == topic


@pytest.mark.parametrize(
    ("settings", "reported"),
    [
        ({"kind": "text", "source": "nowhere"}, "write topic, topic:NAME, stdin, file:PATH or speech:STREAM"),
        ({"kind": "text", "source": "file:"}, "names nothing; write file:PATH"),
        ({"kind": "telemetry", "source": "rtsp://x", "fields": ["a"]}, "write topic or topic:NAME"),
        ({"kind": "camera", "source": "topic:yard/#"}, "without"),
        ({"kind": "plugin", "plugin": "nosuch"}, "no entry point 'nosuch'"),
    ],
)
def test_wrong_settings_say_what_would_be_right(settings: dict[str, object], reported: str) -> None:
    with pytest.raises(ValueError, match=reported):
        build("front", stream(**settings))


class Thermometer:
    """A third party's sensor."""

    def __init__(self, name: str, options: Mapping[str, object], *, clock: object) -> None:
        self.name = name
        self.topic = str(options["room"])
        self.drops: Counter[str] = Counter()

    def decode(self, payload: bytes, stamp_s: float) -> None:
        return None


def no_sensor(name: str, options: Mapping[str, object], *, clock: object) -> str:
    return name


def test_plugins_come_through_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    points = importlib.metadata.EntryPoints(
        importlib.metadata.EntryPoint(name, f"{Thermometer.__module__}:{target}", registry.GROUP)
        for name, target in (("warmth", "Thermometer"), ("nothing", "no_sensor"))
    )
    import sys

    monkeypatch.setitem(sys.modules, Thermometer.__module__, sys.modules[__name__])
    monkeypatch.setattr(plugins, "entry_points", points.select)
    sensor = build("heat", stream(kind="plugin", plugin="warmth", options={"room": "hall"}))
    assert isinstance(sensor, TopicSensor)
    assert sensor.topic == "hall"
    assert sensor.decode(b"", 0.0) is None
    with pytest.raises(ValueError, match="a Sensor or TopicSensor is required"):
        build("heat", stream(kind="plugin", plugin="nothing"))


async def test_a_recording_is_replayed_at_its_distances(running: Running) -> None:
    texts = [Text("orders", 50.0, 1, "a"), Text("other", 50.1, 1, "x"), Text("orders", 52.0, 2, "b")]
    now_s = 1_000.0
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        slept.append(seconds)
        now_s += seconds
        await asyncio.sleep(0)

    moved = RecordedSensor("orders", texts, speed=2.0, clock=lambda: now_s, sleep=sleep)
    assert isinstance(moved, Sensor)
    async with running(moved) as witness:
        await witness.until(lambda: bool(witness.lost))
    assert witness.readings == [Text("orders", 1_000.0, 1, "a"), Text("orders", 1_001.0, 2, "b")]
    assert slept == [0.0, 1.0]
    assert moved.drops == {"other_stream": 1}
    assert "has ended" in witness.lost[0][1]
    async with running(RecordedSensor("orders", texts, keep_stamps=True, sleep=sleep)) as witness:
        await witness.until(lambda: bool(witness.lost))
    assert [reading.stamp_s for reading in witness.readings] == [50.0, 52.0]


def test_cameras_are_those_that_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of VIDIOC_QUERYCAP as videodev2.h lays them out: two of three nodes of one webcam give pictures."""
    nodes, names = tmp_path / "dev", tmp_path / "names"
    for folder in (nodes, *(names / f"video{number}" for number in (0, 1, 10))):
        folder.mkdir(parents=True)
    for name in ("video0", "video1", "video10", "video-loop", "audio0"):
        (nodes / name).touch()
    (names / "video0" / "name").write_text("HD Webcam\n")
    capabilities = {"video0": 0x1, "video1": 0x800000, "video10": 0x1000}

    def answer(descriptor: int, request: int, buffer: bytes) -> bytes:
        assert request == 0x80685600
        assert len(buffer) == 104
        node = Path(f"/proc/self/fd/{descriptor}").readlink().name
        return struct.pack("16s32s32sIII3I", b"uvc", b"cam", b"usb", 0, 0xFFFFFFFF, capabilities[node], 0, 0, 0)

    monkeypatch.setattr("sensors.drivers.device_list.fcntl.ioctl", answer)
    monkeypatch.setattr(portaudio, "inputs", lambda: [portaudio.InputDevice(3, "mic", 2, 48_000.0)])
    found = device_list.devices(nodes, names)
    assert [(camera.number, camera.name, camera.usable) for camera in found.cameras] == [
        (0, "HD Webcam", True),
        (10, "video10", True),
    ]
    assert found.microphones == (device_list.MicrophoneDevice(3, "mic", 2, 48_000.0),)
    assert found.problems == ()


def test_what_keeps_from_looking_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "video0").touch()  # a file is no V4L2 device
    (tmp_path / "video1").symlink_to(tmp_path / "nowhere")

    def missing() -> list[portaudio.InputDevice]:
        raise SensorLost("PortAudio cannot be loaded")

    monkeypatch.setattr(portaudio, "inputs", missing)
    found = device_list.devices(tmp_path, tmp_path)
    assert [(camera.number, camera.usable) for camera in found.cameras] == [(1, False)]
    assert found.problems == ("PortAudio cannot be loaded",)
