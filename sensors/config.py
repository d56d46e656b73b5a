"""Settings of the streams. Imports no hardware library and no torch, so `reflexd check` takes less than a second."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import parse_qsl, unquote

from pydantic import BaseModel, ConfigDict, Field, field_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$", description="lower-case letters, digits, _ and -")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of every settings model: unknown keys and non-finite numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def split_address(address: str) -> tuple[str, str, str] | None:
    """Split a URL as (scheme, user and password, rest); None for what is no URL.

    Everything up to the last `@` counts as user and password: people write `/`, `?`, `#` and `@` in passwords unescaped.
    """
    scheme, found, after = address.partition("://")
    if not found:
        return None
    login, _, rest = after.rpartition("@")
    return scheme, login, rest


def public_source(source: str | int) -> str | int:
    """Return a stream's source without what may be secret: a URL's user, password, query and fragment."""
    parts = None if isinstance(source, int) else split_address(source)
    return source if parts is None else f"{parts[0]}://{re.split('[?#]', parts[2], maxsplit=1)[0]}"


SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|pwd|secret|token|credential|(api|access|private|auth)[_-]?key", re.IGNORECASE
)
"""Names of settings that hold secrets."""


def secrets_in(source: str) -> set[str]:
    """Return the secrets of a URL that no log may show: the password, and values of a query that are named like secrets."""
    parts = split_address(source)
    if parts is None:
        return set()
    _, login, rest = parts
    password = login.partition(":")[2]
    values = {value for name, value in parse_qsl(rest.partition("?")[2]) if SECRET_NAME.search(name)}
    return {secret for secret in (password, unquote(password), *values) if secret}


class StreamSettings(Settings):
    """Settings that every stream has."""

    max_age_s: Positive = Field(1.0, description="older than this, a reading is missing for the policy")
    required: bool = Field(False, description="the gate acts safe while this stream is stale")
    encoder: str | None = Field(None, description="a name under `encoders`; telemetry needs none")


class CameraSettings(StreamSettings):
    """A camera: USB, file, RTSP, HTTP MJPEG or JPEG/PNG over MQTT."""

    kind: Literal["camera"]
    source: int | str = Field(description="a number, a file, rtsp://, http://, `topic` or `topic:NAME`")
    rate_hz: Positive = Field(10.0, description="frames a second that are delivered, at most")
    loop: bool = Field(False, description="start a file again at its end")
    width: int | None = Field(None, gt=0, le=16_384, description="asked of the device; it may give another")
    height: int | None = Field(None, gt=0, le=16_384)
    max_pixels: int = Field(16_777_216, gt=0, description="larger pictures are refused before they are decoded")


class MicrophoneSettings(StreamSettings):
    """A microphone: a PortAudio device, a sound file or 16-bit PCM over MQTT; always 16 kHz mono to the policy."""

    kind: Literal["microphone"]
    source: int | str = Field(
        "default", description="`default`, a device name or number, a file, `topic` or `topic:NAME`"
    )
    window_s: Positive = Field(2.0, le=30.0, description="how much of the past the encoder hears")
    hop_s: Positive = Field(0.1, le=5.0, description="how often a new window is offered")
    rate_hz: int = Field(16_000, ge=8_000, le=192_000, description="sample rate of the MQTT PCM or asked of the device")
    loop: bool = False


class TextSettings(StreamSettings):
    """Lines of text: an MQTT topic, standard input or a followed file."""

    kind: Literal["text"]
    source: str = Field("topic", description="`topic`, `topic:NAME`, `stdin` or `file:PATH`")
    ttl_s: Positive = Field(60.0, description="how long a text stays in force; it is then missing")
    max_chars: int = Field(2_000, gt=0, le=100_000)


PREFIX = "task:"
"""Prefix of the source of a stream that one of the agent's tasks feeds."""


class TelemetrySettings(StreamSettings):
    """Numbers picked out of a JSON object by name or JSON pointer (RFC 6901)."""

    kind: Literal["telemetry"]
    source: str = Field(
        "topic", description="`topic` or `topic:NAME`; `task:NAME` is the source that `tasks.NAME.feeds_policy` adds"
    )
    fields: tuple[str, ...] = Field(
        min_length=1, max_length=4_096, description="keys, or JSON pointers with a leading /"
    )

    @field_validator("fields")
    @classmethod
    def _distinct(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(fields)) != len(fields):
            raise ValueError("each field may be named once; remove the repeated one")
        return fields


class PluginStreamSettings(StreamSettings):
    """A sensor that comes through the entry point `reflexd.sensors`."""

    kind: Literal["plugin"]
    plugin: str = Field(description="the entry point's name")
    fields: tuple[str, ...] = Field(
        (),
        max_length=4_096,
        description="for telemetry: the names of its numbers, in order; the stream then needs no encoder",
    )
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="the plugin's own; what is named like a password, secret, token or api_key is hidden in logs and events, and so is what comes from ${env:} or ${file:}",
        repr=False,
    )


AnyStream = Annotated[
    CameraSettings | MicrophoneSettings | TextSettings | TelemetrySettings | PluginStreamSettings,
    Field(discriminator="kind"),
]


def fields_of(stream: AnyStream) -> tuple[str, ...]:
    """Return the names of the numbers of a telemetry stream; none for any other."""
    return stream.fields if isinstance(stream, TelemetrySettings | PluginStreamSettings) else ()


def stream_secrets(stream: AnyStream) -> set[str]:
    """Return the secrets in a stream's settings: of its address, and of a plug-in's options."""
    if stream.kind != "plugin":
        return secrets_in(str(stream.source))
    texts = {name: value for name, value in stream.options.items() if isinstance(value, str) and value}
    named = {value for name, value in texts.items() if SECRET_NAME.search(name)}
    return named.union(*map(secrets_in, texts.values()))


MODALITIES = {"camera": "image", "microphone": "audio", "text": "text", "telemetry": "telemetry"}
