"""Readings to bytes and back, and short summaries of readings for people."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from sensors.codecs.images import decode_image
from sensors.codecs.loudness import levels
from sensors.codecs.sounds import decode_sound, encode_sound
from sensors.drivers import opencv
from sensors.readings import Frame, Reading, Sound, Text

MAX_PIXELS = 20_000_000
WIDTH = 320
"""Pixels; the width of a preview."""


def decode_media(encoding: str, data: bytes) -> dict[str, Any]:
    """Decode a stored image to `picture`, or a stored sound to `sound` and `rate_hz`.

    Args:
        encoding: `jpeg`, `png` or `flac`.
        data: what `encode_reading` returned for it.

    Raises:
        ValueError: another encoding.
        PayloadRefused: not an image of at most `MAX_PIXELS`, or not a sound (`sensors.codecs.sounds`).
    """
    if encoding in ("jpeg", "png"):
        return {"picture": decode_image(data, MAX_PIXELS)}
    if encoding == "flac":
        samples, rate_hz = decode_sound(data)
        return {"sound": samples, "rate_hz": rate_hz}
    raise ValueError(f"encoding {encoding!r} is neither an image nor a sound")


def decode_reading(stream: str, stamp_s: float, encoding: str, data: bytes) -> Reading | None:
    """Decode a stored reading; None where its bytes can no longer be read."""
    if encoding == "utf-8":
        return Text(stream, stamp_s, 0, data.decode(errors="replace"))
    try:
        fields = decode_media(encoding, data)
    except ValueError:
        return None
    if "picture" in fields:
        return Frame(stream, stamp_s, 0, fields["picture"], data)
    return Sound(stream, stamp_s, 0, fields["sound"], fields["rate_hz"])


def summarize_reading(reading: Reading) -> dict[str, Any]:
    """Summarize a reading for a person: `text`, `values`, `jpeg` (at most 320 pixels wide) or `flac`, both in base64."""
    if isinstance(reading, Frame):
        return {"jpeg": base64.b64encode(thumbnail(reading)).decode()}
    if isinstance(reading, Sound):
        encoded = encode_reading(reading)
        assert encoded is not None
        return {"flac": base64.b64encode(encoded[1]).decode()}
    return facts(reading)


def thumbnail(frame: Frame, width: int = WIDTH) -> bytes:
    """Encode a frame as a JPEG that is at most `width` pixels wide; takes a few milliseconds."""
    step = max(1, math.ceil(frame.image.shape[1] / width))
    return opencv.encode(np.ascontiguousarray(frame.image[::step, ::step]))


def facts(reading: Sound | Text | Any) -> dict[str, Any]:
    """Summarize a reading that is not a picture: levels in dBFS, the text, or the values by field."""
    if isinstance(reading, Sound):
        return levels(reading.samples[-reading.rate_hz // 4 :])
    if isinstance(reading, Text):
        return {"text": reading.text}
    return {"values": dict(zip(reading.fields, map(float, reading.values), strict=True))}


def encode_reading(reading: Reading) -> tuple[str, bytes] | None:
    """Encode a reading as (encoding, bytes); None for telemetry, which experience stores whole."""
    match reading:
        case Frame():
            data = reading.encoded or opencv.encode(reading.image)
            return ("jpeg" if data[:2] == b"\xff\xd8" else "png"), data
        case Sound():
            return "flac", encode_sound(reading.samples, reading.rate_hz)
        case Text():
            return "utf-8", reading.text.encode()
    return None
