"""Sounds as the models take them: files to 16 kHz mono.

Shapes: N samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learners.data_error import DataError
from sensors.base import PayloadRefused
from sensors.codecs.resampling import resampled
from sensors.codecs.sounds import decode_sound
from sensors.drivers import sound_files

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".opus"})


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


def is_cut(path: Path) -> bool:
    """Return whether the end of a sound file is missing by what its container claims; False for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return sound_files.is_cut(file)
    except OSError:
        return False


def duration_s(path: Path) -> float:
    """Return how long a sound file is, by its samples: a header may claim any length.

    Raises:
        DataError: as `read_sound`.
    """
    samples, rate_hz = _decoded(path)
    return len(samples) / rate_hz
