"""Loudness of sound: root mean square and peak in dBFS."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FLOOR_DB = -90.0
"""dBFS; silence and everything quieter."""


def levels(samples: NDArray[np.float32]) -> dict[str, float]:
    """Measure samples in [-1, 1]; return `level_db` (root mean square) and `peak_db`, never below `FLOOR_DB`."""
    peak = float(np.max(np.abs(samples))) if samples.size else 0.0
    return {"level_db": round(level_db(samples), 1), "peak_db": round(_db(peak, FLOOR_DB), 1)}


def level_db(samples: NDArray[np.float32], floor_db: float = FLOOR_DB) -> float:
    """Return the root mean square of samples in [-1, 1] in dBFS, never below `floor_db`."""
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0
    return _db(rms, floor_db)


def _db(amplitude: float, floor_db: float) -> float:
    return 20 * math.log10(max(amplitude, 10 ** (floor_db / 20)))
