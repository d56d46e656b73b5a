"""An e-detector of one figure in pairs of live version and anchor: the sum over all moments of a change of a bet's wealth.

While nothing is wrong, the mean time to an alarm is at least the threshold, whatever came before (Shiryaev-Roberts form).

Source: Shin, Ramdas & Rinaldo 2024 (E-detectors: a nonparametric framework for sequential change detection).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.experiment_statistics.confidence_sequence import GRID_G, RunningScale, log_bet, log_mixture

Array = NDArray[np.float64]


@dataclass(slots=True)
class PairedDetector:
    """An e-detector of one figure: alarms when pair differences have become positive (`sign` 1) or negative (-1)."""

    sign: int
    logs: Array = field(default_factory=lambda: np.full(len(GRID_G), -np.inf, np.float64))
    """Logarithm of the sum, for each multiple that is bet."""
    scale: RunningScale = field(default_factory=RunningScale)

    def update(self, value: float) -> float:
        """Take one pair; return the sum."""
        scale = self.scale.scale
        bets = log_bet(self.sign * GRID_G * (value / scale)) if scale > 0.0 else np.zeros(len(GRID_G))
        self.logs = np.logaddexp(self.logs, 0.0) + bets
        self.scale.update(value)
        return self.total

    @property
    def total(self) -> float:
        """Return the sum; an alarm is due when it reaches the threshold."""
        if not np.isfinite(self.logs).any():
            return 0.0
        return math.exp(min(700.0, log_mixture(self.logs)))

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data."""
        logs = [None if log == -math.inf else float(log) for log in self.logs]
        return {"logs": logs, "square": self.scale.square, "count": self.scale.count}

    def restore(self, body: Mapping[str, Any]) -> None:
        """Restore what `dump` returned."""
        logs = np.array([-np.inf if log is None else float(log) for log in body["logs"]])
        if logs.shape != GRID_G.shape:
            raise ValueError(f"{len(logs)} sums; {len(GRID_G)} are needed")
        self.logs, self.scale = logs, RunningScale(float(body["square"]), int(body["count"]))
