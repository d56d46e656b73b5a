"""Describe one reading by a few numbers: some with words for people, and a random projection of its tokens.

Shapes: T tokens, W width of a token, D numbers in all.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.codecs.loudness import level_db
from sensors.readings import Frame, Reading, Sound, Telemetry, Text

PROJECTED = 16
"""Numbers that stand for the tokens (a random projection keeps distances; Johnson & Lindenstrauss 1984)."""
MOST_TOKENS = 8
"""Tokens of one reading that are averaged: evenly spaced ones."""
MOST_FIELDS = 32
"""Fields of one telemetry stream that are watched, the first ones."""
EVERY_PIXEL = 8
SILENCE_DB = -120.0

WORDS: Mapping[str, tuple[str, str]] = {
    "brightness": ("darker", "brighter"),
    "contrast": ("flatter", "richer in contrast"),
    "warmth": ("bluer", "redder"),
    "sharpness": ("blurred", "sharper"),
    "loudness": ("quieter", "louder"),
    "pitch": ("lower in pitch", "higher in pitch"),
    "words": ("shorter", "longer"),
}
"""What less and more of a number mean to a person; a telemetry field is `lower` or `higher`."""
DIFFERENT = "different"
"""The text if only the tokens differ."""


@dataclass(frozen=True, slots=True)
class Description:
    """Numbers of one reading: `names` of the first ones; the rest are of the tokens."""

    names: tuple[str, ...]
    values_D: NDArray[np.float64]


def describe(reading: Reading, tokens_TW: NDArray[Any] | None) -> Description:
    """Return the numbers of a reading.

    Args:
        reading: the reading.
        tokens_TW: its tokens; None for telemetry and for streams that are not encoded.
    """
    named = _named(reading)
    projected = [] if tokens_TW is None or isinstance(reading, Telemetry) else _projected(reading.stream, tokens_TW)
    return Description(tuple(named), np.array([*named.values(), *projected], np.float64))


def in_words(name: str, z: float) -> str:
    """Return what a number that differs by `z` standard deviations means to a person."""
    less, more = WORDS.get(name, (f"{name} lower", f"{name} higher"))
    return more if z > 0 else less


def _named(reading: Reading) -> dict[str, float]:
    match reading:
        case Frame():
            return _of_picture(reading.image)
        case Sound():
            return _of_sound(reading.samples, reading.rate_hz)
        case Telemetry():
            values = reading.values[:MOST_FIELDS]
            return {name: float(value) for name, value in zip(reading.fields, values, strict=False)}
        case Text():
            return {"words": float(len(reading.text.split()))}


def _of_picture(image: NDArray[np.uint8]) -> dict[str, float]:
    small = image[::EVERY_PIXEL, ::EVERY_PIXEL].astype(np.float32)
    grey = small.mean(axis=2)
    fine = image[: image.shape[0] // 2 * 2 : 4, : image.shape[1] // 2 * 2, 1].astype(np.int16)
    steps = np.abs(fine[:, 1::2] - fine[:, ::2])
    return {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "warmth": float((small[..., 0] - small[..., 2]).mean()),
        "sharpness": float(steps.mean()) if steps.size else 0.0,
    }


def _of_sound(samples: NDArray[np.float32], rate_hz: int) -> dict[str, float]:
    crossings = float(np.count_nonzero(np.diff(np.signbit(samples)))) if samples.size else 0.0
    seconds = max(samples.size / rate_hz, 1e-9)
    return {
        "loudness": level_db(samples, SILENCE_DB),
        "pitch": crossings / (2 * seconds),
    }


_PROJECTIONS: dict[tuple[str, int], NDArray[np.float32]] = {}


def _projected(stream: str, tokens_TW: NDArray[Any]) -> list[float]:
    """Return the mean token of a reading in `PROJECTED` random directions, always the same ones for a stream."""
    step = max(1, len(tokens_TW) // MOST_TOKENS)
    mean_W = tokens_TW[::step].astype(np.float32).mean(axis=0)
    key = (stream, len(mean_W))
    if key not in _PROJECTIONS:
        rng = np.random.default_rng(zlib.crc32(stream.encode()))
        _PROJECTIONS[key] = rng.choice(np.array([-1.0, 1.0], np.float32), (len(mean_W), PROJECTED))
    return [float(x) for x in mean_W @ _PROJECTIONS[key]]
