"""Sounds as the models take them: files to 16 kHz mono, and small changes of them for training.

Shapes: N samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learners.tasks.base import DataError
from sensors.base import PayloadRefused
from sensors.codecs.resampling import resampled
from sensors.codecs.sounds import decode_sound

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".opus"})
SPEED, GAIN_DB, NOISE_DB = 0.15, 6.0, (20.0, 50.0)


def read_sound(path: Path) -> NDArray[np.float32]:
    """Read a sound file as float32 mono at 16 kHz, by the decoder of everything that comes from outside.

    Raises:
        DataError: it cannot be read, is empty or too long, or holds samples that are not finite.
    """
    return resampled(*_decoded(path))


def _decoded(path: Path) -> tuple[NDArray[np.float32], int]:
    try:
        return decode_sound(path.read_bytes())
    except PayloadRefused as reason:
        raise DataError(f"{path}: {reason}; delete it or convert it again") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; name a readable sound file") from None


def duration_s(path: Path) -> float:
    """Return how long a sound file is, by its samples: a header may claim any length.

    Raises:
        DataError: as `read_sound`.
    """
    samples, rate_hz = _decoded(path)
    return len(samples) / rate_hz


def changed(samples_N: NDArray[np.float32], rng: np.random.Generator, window: int) -> NDArray[np.float32]:
    """Faster or slower (and so higher or deeper, as another speaker), louder or softer, noisy, placed in the window."""
    speed = 1 + rng.uniform(-SPEED, SPEED)
    at_N = np.arange(0, len(samples_N) - 1, speed)
    moved_N = np.interp(at_N, np.arange(len(samples_N)), samples_N).astype(np.float32)
    moved_N *= np.float32(10 ** (rng.uniform(-GAIN_DB, GAIN_DB) / 20))
    level = float(np.sqrt(np.mean(moved_N**2)) + 1e-6) * 10 ** (-rng.uniform(*NOISE_DB) / 20)
    room = max(0, window - len(moved_N))
    out_N = np.zeros(max(window, len(moved_N)), np.float32)
    start = int(rng.integers(0, room + 1)) if room else 0
    out_N[start : start + len(moved_N)] = moved_N
    noise_N = rng.standard_normal(len(out_N)).astype(np.float32)
    return out_N + noise_N * np.float32(level)
