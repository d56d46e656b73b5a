"""Watch the live version for ever: take it back when it is proved worse than the anchor, by e-detectors.

An e-detector sums, over all possible moments of a change, the wealth of a bet that began there (Shiryaev-Roberts form). While nothing is
wrong, its mean time to an alarm is at least its threshold, whatever it has seen before: honest months earn no credit. The threshold
follows from `false_alarms_per_month`.

The bets use pairs of blocks of live version and anchor in an order that a coin decided (`confidence_sequence.py`). So a world that
becomes harder for both causes no alarm. The anchor has few blocks, and a pair adds at most a factor of 2. Therefore the guard
also watches the live version alone. If that looks worse than before, it raises the anchor's share (`anchor_share`), and the pairs
decide sooner. Suspicion alone takes nothing back.

Source: Shin, Ramdas & Rinaldo 2024 (E-detectors: a nonparametric framework for sequential change detection). Pure: knows no clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.experiment_statistics.confidence_sequence import GRID_G, RunningScale, log_bet, log_mixture
from learners.experiment_statistics.paired_outcomes import HARMS, PairDifference

MONTH_S = 30 * 24 * 3600.0
RAISED_SHARE = 0.5
"""Share of the anchor while the guard suspects something."""
SUSPICION_DEVIATIONS = 4.0
WINDOWS = (4, 16, 64, 256)
"""Blocks over which the live version is compared with its own past."""
PAST_BLOCKS = 1_000
LEAST_BLOCKS = 32
CALM_BLOCKS = 200
"""Blocks for which a suspicion lasts."""
FORMAT = 1

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


@dataclass(slots=True)
class LevelWatch:
    """Whether a figure of the live version alone is above its own past; a suspicion, no proof."""

    count: int = 0
    mean: float = 0.0
    square: float = 0.0
    fast: list[float] = field(default_factory=lambda: [0.0] * len(WINDOWS))

    def update(self, value: float) -> bool:
        """Take the mean of one block; return whether one of the windows is far above the past."""
        if not self.count:
            self.fast = [value] * len(WINDOWS)
        deviation = math.sqrt(max(self.square, 0.0))
        found = False
        for i, window in enumerate(WINDOWS):
            self.fast[i] += (value - self.fast[i]) / window
            limit = SUSPICION_DEVIATIONS * deviation / math.sqrt(2 * window - 1)
            found |= self.count >= LEAST_BLOCKS and self.fast[i] - self.mean > limit + 1e-12
        self.count += 1
        rate = max(1.0 / self.count, 1.0 / PAST_BLOCKS)
        away = value - self.mean
        self.mean += rate * away
        self.square += rate * (away * away * (1.0 - rate) - self.square)
        return found


@dataclass(frozen=True, slots=True)
class GuardAlarm:
    """The live version is to be taken back; `figure` is the outcome that showed it."""

    figure: str
    evidence: float
    threshold: float
    pairs: int

    @property
    def reason(self) -> str:
        """Say it in one sentence."""
        what = "earns less than the anchor" if self.figure == "reward" else f"has more {self.figure}s than the anchor"
        return f"the live version {what} ({self.pairs} pairs)"


@dataclass(slots=True)
class Guard:
    """See the module.

    Args:
        pair_s: seconds of one pair, wash-out included.
        false_alarms_per_month: accepted mean number of false alarms, of all figures together.
        base_share: share of the anchor while nothing is suspected.
    """

    pair_s: float
    false_alarms_per_month: float = 1.0
    base_share: float = 0.05
    pairs: int = 0
    units: int = 0
    """Ticks or episodes of the live version in blocks that the guard has seen."""
    harmed: dict[str, float] = field(default_factory=lambda: dict.fromkeys(HARMS, 0.0))
    alarm: GuardAlarm | None = None
    detectors: dict[str, PairedDetector] = field(init=False)
    watches: dict[str, LevelWatch] = field(init=False)
    _suspected: int = 0
    """Blocks for which the suspicion still lasts."""

    def __post_init__(self) -> None:
        if not (self.pair_s > 0 and self.false_alarms_per_month > 0):
            raise ValueError("guard: pair_s and false_alarms_per_month must be positive")
        self.detectors = {"reward": PairedDetector(-1)} | {harm: PairedDetector(1) for harm in HARMS}
        self.watches = {name: LevelWatch() for name in self.detectors}

    @property
    def threshold(self) -> float:
        """Return the sum at which a detector alarms: a month's pairs of all detectors, by the accepted alarms."""
        return max(2.0, MONTH_S / self.pair_s * len(self.detectors) / self.false_alarms_per_month)

    @property
    def suspicious(self) -> bool:
        """Whether something looks worse, without proof."""
        limit = math.sqrt(self.threshold)
        return self._suspected > 0 or any(detector.total >= limit for detector in self.detectors.values())

    @property
    def anchor_share(self) -> float:
        """Return the share of blocks that the anchor should have now; 0 stays 0."""
        return max(self.base_share, RAISED_SHARE) if self.suspicious and self.base_share > 0 else self.base_share

    def pair(self, difference: PairDifference) -> GuardAlarm | None:
        """Take one complete pair of live version and anchor; return the alarm if one figure reached the threshold."""
        if difference.kind != "guard":
            return None
        self.pairs += 1
        figures = {"reward": difference.reward, **difference.harms}
        for figure, value in figures.items():
            if value is None or figure not in self.detectors:
                continue
            total = self.detectors[figure].update(value)
            if total >= self.threshold and self.alarm is None:
                self.alarm = GuardAlarm(figure, total, self.threshold, self.pairs)
        return self.alarm

    def block(self, reward: float | None, harms: Mapping[str, float], units: int = 1) -> bool:
        """Take one block of the live version alone, as means per unit; return whether the guard suspects something.

        Args:
            reward: mean reward; None where it is unknown.
            harms: share of the units, by harm outcome.
            units: ticks, or episodes, in the block.
        """
        self.units += units
        self._suspected = max(0, self._suspected - 1)
        for harm, share in harms.items():
            self.harmed[harm] = self.harmed.get(harm, 0.0) + share * units
        figures = {"reward": None if reward is None else -reward, **harms}
        for figure, value in figures.items():
            if value is not None and figure in self.watches and self.watches[figure].update(value):
                self._suspected = CALM_BLOCKS
        return self.suspicious

    def excluded_rate(self, harm: str, confidence: float = 0.95) -> float | None:
        """Return the harm rate per unit that the evidence excludes, if the harm was never seen (3 / n); None otherwise."""
        if self.harmed.get(harm, 0.0) > 0 or not self.units:
            return None
        return rare_harm_bound(self.units, confidence)

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data for JSON."""
        return {
            "format": FORMAT,
            "pairs": self.pairs,
            "units": self.units,
            "harmed": dict(self.harmed),
            "suspected": self._suspected,
            "detectors": {name: detector.dump() for name, detector in self.detectors.items()},
            "watches": {
                name: [watch.count, watch.mean, watch.square, *watch.fast] for name, watch in self.watches.items()
            },
        }

    def restore(self, body: Mapping[str, Any]) -> None:
        """Restore what `dump` returned.

        Raises:
            KeyError, TypeError, ValueError: the body is malformed.
        """
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}; this program reads {FORMAT}")
        self.pairs, self.units = int(body["pairs"]), int(body["units"])
        self.harmed = {str(name): float(value) for name, value in body["harmed"].items()}
        self._suspected = int(body["suspected"])
        for name, detector in self.detectors.items():
            detector.restore(body["detectors"][name])
        for name in self.watches:
            count, mean, square, *fast = body["watches"][name]
            if len(fast) != len(WINDOWS):
                raise ValueError(f"{len(fast)} windows; {len(WINDOWS)} are needed")
            self.watches[name] = LevelWatch(int(count), float(mean), float(square), [float(x) for x in fast])


def rare_harm_bound(units: int, confidence: float = 0.95) -> float:
    """Return the largest rate that 0 harms in `units` units leave possible: about 3 / n at 95 % (the rule of three).

    Raises:
        ValueError: no unit was seen.
    """
    if units < 1:
        raise ValueError("no unit was seen")
    return min(1.0, -math.log(1.0 - confidence) / units)
