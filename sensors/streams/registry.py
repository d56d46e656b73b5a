"""Build the sensor of a stream from its settings. Opens nothing: a sensor's `run` does.

A plug-in is an entry point of the group `reflexd.sensors`: a callable `factory(name, options, *, clock)` that returns a
`Sensor` or a `TopicSensor`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sensors.base import Sensor, TopicSensor
from sensors.config import (
    PREFIX,
    AnyStream,
    CameraSettings,
    MicrophoneSettings,
    PluginStreamSettings,
    TelemetrySettings,
    TextSettings,
    public_source,
)
from sensors.plugins import PluginError, load_plugin
from sensors.streams.camera import CameraSensor, TopicCamera
from sensors.streams.microphone import MicrophoneSensor, TopicMicrophone
from sensors.streams.plugin import CheckedSensor, CheckedTopicSensor
from sensors.streams.speech import SpeechText
from sensors.streams.task_output import TaskOutputSensor
from sensors.streams.telemetry import TopicTelemetry
from sensors.streams.text import FollowedText, StdinText, TopicText

GROUP = "reflexd.sensors"
MAX_TOPIC_BYTES = 65_535
"""Of MQTT; a client that subscribes to a longer one is disconnected."""


def build(name: str, settings: AnyStream, *, clock: Callable[[], float] = time.monotonic) -> Sensor | TopicSensor:
    """Build the sensor of stream `name`.

    Raises:
        ValueError: the settings name something that does not exist; the message says what would be right.
    """
    match settings:
        case CameraSettings():
            return _camera(name, settings, clock)
        case MicrophoneSettings():
            return _microphone(name, settings, clock)
        case TextSettings():
            return _text(name, settings, clock)
        case TelemetrySettings():
            return _telemetry(name, settings)
    return _plugin(name, settings, clock)


def is_topic(source: int | str) -> bool:
    """Return whether the source is `topic` or `topic:NAME`."""
    return isinstance(source, str) and (source == "topic" or source.startswith("topic:"))


def topic_of(source: int | str) -> str | None:
    """Return NAME of `topic:NAME`; None for `topic`, which means the agent's own topic.

    Raises:
        ValueError: NAME has a wildcard, or no broker takes it.
    """
    name = str(source).partition(":")[2]
    if "+" in name or "#" in name:
        raise ValueError(f"{source!r}: a stream has one topic, without + or #")
    if "\0" in name or len(name.encode("utf-8", "surrogatepass")) > MAX_TOPIC_BYTES:
        raise ValueError(
            f"{str(source)[:80]!r}: a topic has no zero byte and at most {MAX_TOPIC_BYTES} bytes; correct it"
        )
    return name or None


def _camera(name: str, settings: CameraSettings, clock: Callable[[], float]) -> Sensor | TopicSensor:
    if is_topic(settings.source):
        return TopicCamera(name, topic_of(settings.source), settings.max_pixels)
    return CameraSensor(name, settings, clock=clock)


def _microphone(name: str, settings: MicrophoneSettings, clock: Callable[[], float]) -> Sensor | TopicSensor:
    if is_topic(settings.source):
        return TopicMicrophone(name, topic_of(settings.source), settings)
    return MicrophoneSensor(name, settings, clock=clock)


def _text(name: str, settings: TextSettings, clock: Callable[[], float]) -> Sensor | TopicSensor:
    source = settings.source
    if is_topic(source):
        return TopicText(name, topic_of(source), settings.max_chars)
    if settings.microphone:
        return SpeechText(name, settings.max_chars)
    if source == "stdin":
        return StdinText(name, settings.max_chars, clock=clock)
    if source.startswith("file:") and len(source) > len("file:"):
        return FollowedText(name, Path(source.removeprefix("file:")), settings.max_chars, clock=clock)
    raise ValueError(
        f"streams.{name}.source: {public_source(source)!r}; write topic, topic:NAME, stdin, file:PATH or speech:STREAM"
    )


def _telemetry(name: str, settings: TelemetrySettings) -> Sensor | TopicSensor:
    if settings.source.startswith(PREFIX):
        return TaskOutputSensor(name, settings.fields)
    if not is_topic(settings.source):
        raise ValueError(f"streams.{name}.source: {public_source(settings.source)!r}; write topic or topic:NAME")
    return TopicTelemetry(
        name,
        topic_of(settings.source),
        settings.fields,
        settings.field_kinds,
        paths=settings.paths,
        max_age_s=settings.max_age_s,
    )


def _plugin(name: str, settings: PluginStreamSettings, clock: Callable[[], float]) -> Sensor | TopicSensor:
    try:
        factory = load_plugin(GROUP, settings.plugin)
    except PluginError as error:
        raise ValueError(f"streams.{name}.plugin: {error}") from error
    sensor = factory(name, settings.options, clock=clock)
    if not isinstance(sensor, Sensor | TopicSensor):
        raise ValueError(  # noqa: TRY004 - a wrong plugin is a wrong setting to the user
            f"streams.{name}.plugin: {settings.plugin!r} returned a {type(sensor).__name__}; a Sensor or TopicSensor is required"
        )
    if isinstance(sensor, Sensor):
        return CheckedSensor(sensor, settings.fields, clock)
    return CheckedTopicSensor(sensor, settings.fields, clock)
