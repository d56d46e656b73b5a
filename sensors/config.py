"""Settings of the streams. Imports no hardware library and no torch, so `reflexd check` takes less than a second."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, unquote

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$", description="lower-case letters, digits, _ and -")]
Positive = Annotated[float, Field(gt=1e-6, allow_inf_nan=False)]
"""A number that can be divided by: of a smaller one not even the inverse is finite."""


class Settings(BaseModel):
    """Base of every settings model; it refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def split_address(address: str) -> tuple[str, str, str] | None:
    """Split a URL into (scheme, user and password, rest); return None if the text is no URL.

    Everything up to the last `@` counts as user and password: people write `/`, `?`, `#` and `@` in passwords unescaped.
    """
    scheme, found, after = address.partition("://")
    if not found:
        return None
    login, _, rest = after.rpartition("@")
    return scheme, login, rest


def public_source(source: str | int) -> str | int:
    """Return a stream's source without possible secrets: the URL's user, password, query, fragment, and a path that names one."""
    parts = None if isinstance(source, int) else split_address(source)
    if parts is None:
        return source
    host, slash, path = re.split("[?#]", parts[2], maxsplit=1)[0].partition("/")
    return f"{parts[0]}://{host}{slash}{'***' if _values_in_path(path) else path}"


SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|pwd|secret|token|credential|(api|access|private|auth)[_-]?key|^(login)?pass?$",
    re.IGNORECASE,
)
"""Names of settings that hold secrets."""
_PATH_VALUE = re.compile(r"([A-Za-z]+)=(.*?)(?=[&;/?#]|_[A-Za-z]+=|$)")
"""A value in a path, as cameras have it: `/user=admin&password=WORD&channel=1`, or with `_` in place of `&`."""


def _values_in_path(path: str) -> set[str]:
    """Return the values in a URL's path that have the name of a secret."""
    return {value for name, value in _PATH_VALUE.findall(path) if value and SECRET_NAME.search(name)}


def secrets_in(source: str) -> set[str]:
    """Return the secrets of a URL that no log may show: the password, and values with the name of a secret in path and query."""
    parts = split_address(source)
    if parts is None:
        return set()
    _, login, rest = parts
    password = login.partition(":")[2]
    named = _values_in_path(rest) | {
        value for name, value in parse_qsl(rest.partition("?")[2]) if SECRET_NAME.search(name)
    }
    return {spelling for secret in (password, *named) for spelling in (secret, unquote(secret)) if spelling}


PROPERTY = "property:"
"""Prefix of a stamp that is an MQTT user property."""


PREFIXES = ("topic:", "task:", "file:", "speech:")
"""Of sources, each with a name behind it."""


class StreamSettings(Settings):
    """Settings that every stream has."""

    max_age_s: Positive = Field(1.0, description="a reading older than this is stale, and missing for the policy")
    required: bool = Field(False, description="the gate sends safe actions while this stream is stale")
    stamp: str = Field(
        "arrival",
        min_length=1,
        description="when a reading over MQTT was captured: `arrival`; `property:NAME`, an MQTT user property; or, for telemetry, a key "
        "or JSON pointer of the payload. A stamp that is not plausible counts as its arrival",
    )
    stamp_clock: Literal["shared", "own"] = Field(
        "shared",
        description="`shared`: the sender's clock is synchronised with this machine's; `own`: it is not, so its offset and drift are "
        "estimated",
    )
    frozen_after: int | None = Field(
        None,
        ge=0,
        description="equal readings in a row after which the source counts as frozen; 0 is never. By default 100, and ten times "
        "the longest such run before; for telemetry only where most readings differ, and for text never",
    )
    when_frozen: Literal["event", "missing"] = Field(
        "event", description="a frozen source is reported by an event; with `missing` its stream is missing, too"
    )
    encoder: str | None = Field(None, description="a name under `encoders`; telemetry needs none")

    @field_validator("source", mode="after", check_fields=False)
    @classmethod
    def _names_something(cls, source: int | str) -> int | str:
        """Refuse a source that names nothing: a number below 0, no text, or a prefix alone."""
        if isinstance(source, int):
            if source < 0:
                raise ValueError("no device has a number below 0; write one from 0")
        elif not source.strip():
            raise ValueError("it is empty; write what the stream reads, such as `topic`")
        elif source.strip() in PREFIXES:
            what = "PATH" if source.strip() == "file:" else "NAME"
            raise ValueError(f"{source.strip()} names nothing; write {source.strip()}{what}")
        return source

    @model_validator(mode="after")
    def _stamp_can_be_read(self) -> Self:
        if self.stamp == "arrival":
            return self
        if not str(getattr(self, "source", "topic")).startswith("topic"):
            raise ValueError(
                f"stamp: {self.stamp!r} needs messages over MQTT, and this stream has another source; write `arrival`"
            )
        if not self.stamp.startswith(PROPERTY) and getattr(self, "kind", "") != "telemetry":
            raise ValueError(
                f"stamp: {self.stamp!r} is a field, which only telemetry has; write `property:NAME` or `arrival`"
            )
        return self


CAMERA_SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "tcp")
_LIKE_A_URL = re.compile(r"\s*(?:([A-Za-z][\w+.-]*)(://)|(rtsps?|https?|rtmp)(:/|//))", re.IGNORECASE)
"""An address with a scheme, and one of a camera with a part of `://` left out."""


class CameraSettings(StreamSettings):
    """A camera: USB, file, RTSP, HTTP MJPEG or JPEG/PNG over MQTT."""

    kind: Literal["camera"]
    source: int | str = Field(
        description="device number, file, rtsp:// or http:// URL, `topic` (`in/<stream>`) or `topic:NAME` (another topic)"
    )
    rate_hz: Positive = Field(10.0, description="largest number of frames per second that the stream delivers")
    loop: bool = Field(False, description="play a file again from its start when it ends")
    width: int | None = Field(
        None, gt=0, le=16_384, description="width in pixels requested from the device, which may deliver another"
    )
    height: int | None = Field(None, gt=0, le=16_384, description="height in pixels requested from the device")
    max_pixels: int = Field(16_777_216, gt=0, description="images with more pixels are refused before they are decoded")

    @field_validator("source")
    @classmethod
    def _can_be_opened(cls, source: int | str) -> int | str:
        """Refuse a URL that no driver opens; the text repeats nothing of it, which may hold a password."""
        if isinstance(source, int) or (match := _LIKE_A_URL.match(source)) is None:
            return source
        scheme = (match[1] or match[3]).lower()
        if match[2] and scheme in (*CAMERA_SCHEMES, "file"):
            return source
        if match[2]:
            known = ", ".join(f"{name}://" for name in CAMERA_SCHEMES)
            raise ValueError(f"{scheme}:// is not an address of a camera; these are: {known}")
        raise ValueError(f"{match[4]!r} follows {scheme}, where :// is needed; write {scheme}://HOST/PATH")


class MicrophoneSettings(StreamSettings):
    """A microphone: a PortAudio device, a sound file or 16-bit PCM over MQTT. The policy receives 16 kHz mono."""

    kind: Literal["microphone"]
    source: int | str = Field(
        "default",
        description="`default`, a device name or number, a file, `topic` (`in/<stream>`) or `topic:NAME` (another topic)",
    )
    window_s: Positive = Field(2.0, ge=0.01, le=30.0, description="length of the sound window that the encoder reads")
    hop_s: Positive = Field(0.1, ge=0.001, le=5.0, description="interval between two windows")
    rate_hz: int = Field(
        16_000, ge=8_000, le=192_000, description="sample rate of PCM over MQTT, or the rate requested from the device"
    )
    loop: bool = Field(False, description="play a file again from its start when it ends")


SPEECH = "speech:"
"""Prefix of the source of a text stream that transcribes a microphone stream."""


class TextSettings(StreamSettings):
    """Lines of text: an MQTT topic, standard input or a followed file; or utterances that a model hears on a microphone stream."""

    kind: Literal["text"]
    source: str = Field(
        "topic",
        description="`topic` (`in/<stream>`), `topic:NAME` (another topic), `stdin`, `file:PATH`, which is read as it grows, or "
        "`speech:STREAM`, the words that are spoken on a microphone stream",
    )
    ttl_s: Positive = Field(60.0, description="how long a text stays valid; it is missing afterwards")
    max_chars: int = Field(2_000, gt=0, le=100_000, description="largest length of a text, in characters")
    model: str = Field(
        "bundled:whisper-tiny.en",
        min_length=1,
        description="with `speech:STREAM`: the model that transcribes, `bundled:NAME`, a transformers id or a folder",
    )
    language: str | None = Field(
        None,
        pattern="^[a-z]{2,3}$",
        description="with `speech:STREAM`: the language that is spoken, as `en`. Default: the only one of the model, or the one that it "
        "detects",
    )
    no_speech_threshold: float = Field(
        0.6,
        ge=0,
        le=1,
        description="with `speech:STREAM`: probability of no speech above which an utterance is left out",
    )
    max_utterance_s: Positive = Field(
        15.0, ge=1.0, le=30.0, description="with `speech:STREAM`: a longer utterance is cut into pieces of this length"
    )

    @property
    def microphone(self) -> str:
        """The microphone stream that is transcribed; empty for any other source."""
        return self.source.removeprefix(SPEECH) if self.source.startswith(SPEECH) else ""

    @model_validator(mode="after")
    def _speech(self) -> Self:
        if self.source == SPEECH:
            raise ValueError(
                "source: speech: names no stream; write `speech:STREAM` with the name of a microphone stream"
            )
        if not self.microphone:
            for name in ("model", "language", "no_speech_threshold", "max_utterance_s"):
                if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: only a stream with the source `speech:STREAM` has it; leave it out")
        return self


def transcribed(streams: Mapping[str, StreamSettings]) -> dict[str, TextSettings]:
    """Return the text streams that have a microphone stream as their source, by name."""
    return {name: stream for name, stream in streams.items() if isinstance(stream, TextSettings) and stream.microphone}


PREFIX = "task:"
"""Prefix of the source of a stream that one of the agent's tasks feeds."""


class AngleField(Settings):
    """A direction: the policy reads its sine and cosine, so that 359 and 1 degrees are neighbours."""

    kind: Literal["angle"]
    unit: Literal["degrees", "radians", "turns"] = Field("degrees", description="unit of the numbers, which may wrap")


class EnumField(Settings):
    """One of some words: the policy reads a number for each word, 1 for the present one."""

    kind: Literal["enum"]
    words: tuple[str, ...] = Field(
        min_length=2,
        max_length=256,
        description="the words; any other is refused. Expressions see the place of the word, from 0",
    )

    @field_validator("words")
    @classmethod
    def _distinct(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(words)) != len(words):
            raise ValueError("a word is listed twice; list each word once")
        return words


class RangeField(Settings):
    """A number with limits of what can be true: beyond them a sensor reports its own failure, as with -127 or 65535."""

    kind: Literal["range"]
    min: float = Field(
        allow_inf_nan=False, description="smallest number that can be true; a reading below it is refused"
    )
    max: float = Field(
        allow_inf_nan=False, description="largest number that can be true; a reading above it is refused"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min {self.min:g} is not below max {self.max:g}; swap them")
        return self


FieldName = Annotated[str, Field(max_length=256)]
"""Of one number; a longer place in the object goes under `paths`."""
FieldKind = Annotated[AngleField | EnumField | RangeField, Field(discriminator="kind")]


class TelemetrySettings(StreamSettings):
    """Numbers of a JSON object, selected by key or JSON pointer (RFC 6901), or one bare number or word a message."""

    kind: Literal["telemetry"]
    source: str = Field(
        "topic",
        description="`topic` (`in/<stream>`) or `topic:NAME` (another topic); `tasks.NAME.feeds_policy` creates a stream with "
        "the source `task:NAME`",
    )
    fields: tuple[FieldName, ...] = Field(
        min_length=1,
        max_length=4_096,
        description="names of the numbers: keys of the object, or JSON pointers with a leading /. With one field, a message may be the "
        "bare value: `21.5`, `ON`",
    )
    paths: dict[str, str] = Field(
        default_factory=dict,
        description="where a field lies in the object, as `{power: /ENERGY/Power}`: a key or a JSON pointer; default: the key of its name",
    )
    field_kinds: dict[str, FieldKind] = Field(
        default_factory=dict,
        description="fields that are no plain numbers: `{kind: angle, unit: degrees}`, `{kind: enum, words: [idle, heat, cool]}`, or "
        "`{kind: range, min: -40, max: 85}` where a sensor reports a failure as a number",
    )

    @model_validator(mode="after")
    def _kinds_of_fields(self) -> Self:
        for setting, names in (("field_kinds", self.field_kinds), ("paths", self.paths)):
            if unknown := sorted(set(names) - set(self.fields)):
                raise ValueError(f"{setting}: {unknown} is not under fields: {list(self.fields)}")
        return self

    @field_validator("fields")
    @classmethod
    def _distinct(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(fields)) != len(fields):
            raise ValueError("a field is listed twice; list each field once")
        return fields


class PluginStreamSettings(StreamSettings):
    """A sensor of an installed package, from the entry point group `reflexd.sensors`."""

    kind: Literal["plugin"]
    plugin: str = Field(description="name of the entry point")
    fields: tuple[FieldName, ...] = Field(
        (),
        max_length=4_096,
        description="names of the numbers that a telemetry plug-in delivers, in order; it then needs no encoder",
    )
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="options of the plug-in. Logs and events hide options that are named like a password, secret, token or "
        "api_key, and values from `${env:NAME}` or `${file:PATH}`",
        repr=False,
    )


AnyStream = Annotated[
    CameraSettings | MicrophoneSettings | TextSettings | TelemetrySettings | PluginStreamSettings,
    Field(discriminator="kind"),
]


def fields_of(stream: AnyStream) -> tuple[str, ...]:
    """Return the names of the numbers of a telemetry stream; none for any other."""
    return stream.fields if isinstance(stream, TelemetrySettings | PluginStreamSettings) else ()


def field_kinds_of(stream: AnyStream) -> dict[str, FieldKind]:
    """Return what the fields of a telemetry stream are that are no plain numbers."""
    return stream.field_kinds if isinstance(stream, TelemetrySettings) else {}


def policy_fields_of(stream: AnyStream) -> tuple[str, ...]:
    """Return the names of the numbers that the policy reads of a telemetry stream: an angle is two of them, an enum one a word."""
    kinds, names = field_kinds_of(stream), []
    for field in fields_of(stream):
        match kinds.get(field):
            case AngleField():
                names += [f"{field}.sin", f"{field}.cos"]
            case EnumField(words=words):
                names += [f"{field}.{word}" for word in words]
            case _:
                names.append(field)
    return tuple(names)


def stream_secrets(stream: AnyStream) -> set[str]:
    """Return the secrets in a stream's settings: of its address, and of a plug-in's options."""
    if stream.kind != "plugin":
        return secrets_in(str(stream.source))
    texts = {name: value for name, value in stream.options.items() if isinstance(value, str) and value}
    named = {value for name, value in texts.items() if SECRET_NAME.search(name)}
    return named.union(*map(secrets_in, texts.values()))


MODALITIES = {"camera": "image", "microphone": "audio", "text": "text", "telemetry": "telemetry"}
