"""Loudness of sound: root mean square and peak in dBFS."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FLOOR_DB = -90.0
"""dBFS; silence and everything quieter."""


def levels(samples: NDArray[np.float32]) -> dict[str, float]:
    """Measure samples in [-1, 1]; return `level_db` (root mean square) and `peak_db`, never below `FLOOR_DB`."""
    if not samples.size:
        return {"level_db": FLOOR_DB, "peak_db": FLOOR_DB}
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    peak = float(np.max(np.abs(samples)))
    return {"level_db": round(_db(rms), 1), "peak_db": round(_db(peak), 1)}


def _db(amplitude: float) -> float:
    return 20 * math.log10(max(amplitude, 10 ** (FLOOR_DB / 20)))
