"""Test one source's numbers, one vector a second, against its own past: an e-detector on conformal p-values.

Blocks of seconds are scored by their distance from a first part of the reference. A block's p-value is its rank among the scores
of earlier blocks (Vovk, Nouretdinov & Gammerman 2003): no distribution is assumed. A bet on small p-values multiplies evidence.
The Shiryaev-Roberts sum of all bets raises at most one false alarm, on average, in the time of the settings (Shin, Ramdas &
Rinaldo 2024). Neighbouring seconds are similar, so there are two scales. One whitens by the correlation from second to second and
takes blocks of five seconds. The other takes blocks as long as the correlation lasts. Each has half of the allowed alarms.
Blocks join the reference a minute late, and none does while drift is noticed.

Shapes: D numbers of a vector, N vectors.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEARN, LEARN_MOST = 300, 3_600
"""Vectors from which centre, scale and correlation are taken: as many as carry `LEARN_TIMES` independent ones."""
LEARN_TIMES = 20
BLOCK = 5
LONGEST_BLOCK = 600
LATE = 60
"""Vectors after which a block joins the reference: a drift must not become its own reference while it is tested."""
LEAST, MOST = 40, 1_000
"""Blocks of a reference before its first test, and at most."""
KAPPA = 0.1
"""Exponent of the bold half of a bet, `KAPPA * p ** (KAPPA - 1)`; the other half mixes all exponents."""
USUAL_P = 0.1
"""Median p-value of the last minute above which a drift has ended."""
EXPLAINED = 10
"""Newest vectors that are compared with the reference to name what differs."""
NOISE_CORRELATION = 0.05
"""Correlations below it are the noise of 300 vectors."""
TINY = 1e-6
"""Share of its size below which a number counts as constant: the rounding of its source."""
SURE_Z = 3.0
"""Standard deviations above which a single number explains a drift."""


def bet(p: float) -> float:
    """Return the factor of evidence of one p-value: at most 1 on average where p is uniform."""
    log = math.log(p)
    mixed: float = (1 - p + p * log) / (p * log * log) if log < -1e-3 else 0.5
    return 0.5 * mixed + 0.5 * KAPPA * math.exp((KAPPA - 1) * log)


def correlation_time(x_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by number how many vectors carry the information of one independent vector, at least 1; N for one that never changed."""
    count = len(x_ND)
    centred = x_ND - x_ND.mean(axis=0)
    spectrum = np.abs(np.fft.rfft(centred, 2 * count, axis=0)) ** 2
    sums = np.fft.irfft(spectrum, axis=0)[: count // 4]
    lags = (count - np.arange(len(sums)))[:, None]
    constant_D = centred.std(axis=0) <= TINY * (1 + np.abs(x_ND).max(axis=0))
    correlation = (sums / lags) / np.where(constant_D, 1.0, sums[0] / count)
    open_LD = np.logical_and.accumulate(correlation > NOISE_CORRELATION, axis=0)
    times: NDArray[np.float64] = 1 + 2 * (correlation[1:] * open_LD[1:]).sum(axis=0)
    return np.where(constant_D, float(count), times)


def known(x_ND: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which numbers went from one side of their mean to the other often enough to say how they change."""
    above = x_ND > x_ND.mean(axis=0)
    crossings = (above[1:] != above[:-1]).sum(axis=0)
    enough: NDArray[np.bool_] = (crossings >= LEARN_TIMES) & (correlation_time(x_ND) * LEARN_TIMES <= len(x_ND))
    return enough


@dataclass(slots=True)
class _Scale:
    """The test at one time scale."""

    phi_D: NDArray[np.float64]
    """Correlation from vector to vector that is taken out; 0 takes none."""
    block: int
    mean_D: NDArray[np.float64]
    std_D: NDArray[np.float64]
    known_D: NDArray[np.bool_]
    """Numbers that changed often enough in the reference to say how they change."""
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros((MOST, 2)))
    """Of the reference's blocks: the largest distance of a number, and the sum of squares."""
    count: int = 0
    """Blocks of the reference so far."""
    waiting: deque[tuple[float, float]] = field(default_factory=deque)
    evidence: float = 0.0
    recent: deque[float] = field(default_factory=deque)
    """p-values of the last minute."""
    _block: list[NDArray[np.float64]] = field(default_factory=list)
    _before: NDArray[np.float64] | None = None

    @classmethod
    def fitted(cls, x_ND: NDArray[np.float64], *, whiten: bool) -> _Scale:
        """Take centre, scale and correlation from the first vectors."""
        times_D = correlation_time(x_ND)
        known_D = known(x_ND)
        phi_D = np.zeros(x_ND.shape[1])
        if whiten:
            centred = x_ND - x_ND.mean(axis=0)
            products = (centred[1:] * centred[:-1]).sum(axis=0)
            phi_D = np.clip(products / ((centred[:-1] ** 2).sum(axis=0) + 1e-12), 0.0, 0.99)
            x_ND = x_ND[1:] - phi_D * x_ND[:-1]
            block = BLOCK
        else:
            longest = float(np.quantile(times_D[known_D], 0.75)) if known_D.any() else 1.0
            block = int(np.clip(math.ceil(2 * longest), BLOCK, LONGEST_BLOCK))
        count = len(x_ND) // block
        means = x_ND[: count * block].reshape(count, block, -1).mean(axis=1)
        std_D = np.maximum(means.std(axis=0), x_ND.std(axis=0) / math.sqrt(block))
        floor = TINY * (1 + np.abs(x_ND).max(axis=0))
        return cls(phi_D, block, means.mean(axis=0), np.maximum(std_D, floor), known_D)

    def add(self, x_D: NDArray[np.float64], rng: np.random.Generator, *, drifting: bool) -> bool:
        """Take one vector; True where it ended a block."""
        before, self._before = self._before, x_D
        if self.phi_D.any():
            if before is None:
                return False
            x_D = x_D - self.phi_D * before
        self._block.append(x_D)
        if len(self._block) < self.block:
            return False
        z_D = ((np.mean(self._block, axis=0) - self.mean_D) / self.std_D)[self.known_D]
        self._block.clear()
        if not len(z_D):
            return False
        score = (float(np.abs(z_D).max()), float((z_D**2).sum()))
        if self.count >= LEAST:
            self._test(score, rng)
        if not drifting:
            self._keep(score, rng)
        return True

    def _test(self, score: tuple[float, float], rng: np.random.Generator) -> None:
        known = self.scores[: self.count]
        factor, worst = 0.0, 1.0
        for column, value in enumerate(score):
            above, equal = int((known[:, column] > value).sum()), int((known[:, column] == value).sum())
            p = max((above + rng.random() * (equal + 1)) / (len(known) + 1), 1e-6)
            factor, worst = factor + bet(p) / len(score), min(worst, p)
        self.evidence = (1 + self.evidence) * factor
        self.recent.append(worst)
        while len(self.recent) > max(1, LATE // self.block):
            self.recent.popleft()

    def _keep(self, score: tuple[float, float], rng: np.random.Generator) -> None:
        self.waiting.append(score)
        if len(self.waiting) * self.block <= LATE:
            return
        late = self.waiting.popleft()
        place = self.count if self.count < MOST else int(rng.integers(MOST))
        self.scores[place] = late
        self.count = min(self.count + 1, MOST)

    def dump(self) -> dict[str, Any]:
        """Return what the reference consists of as plain data."""
        return {
            "phi": self.phi_D.tolist(),
            "block": self.block,
            "mean": self.mean_D.tolist(),
            "std": self.std_D.tolist(),
            "known": self.known_D.tolist(),
            "scores": self.scores[: self.count].tolist(),
        }

    @classmethod
    def restored(cls, data: dict[str, Any]) -> _Scale:
        """Take what `dump` returned.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        phi, mean, std = (np.array(data[name], np.float64) for name in ("phi", "mean", "std"))
        known = np.array(data["scores"], np.float64).reshape(-1, 2)[:MOST]
        block = int(data["block"])
        known_D = np.array(data["known"], bool)
        widths = {phi.shape, mean.shape, std.shape, known_D.shape}
        if len(widths) != 1 or phi.ndim != 1 or not 1 <= block <= LONGEST_BLOCK or not (std > 0).all():
            raise ValueError("the reference of a stream does not fit together")
        if not all(np.isfinite(x).all() for x in (phi, mean, std, known)):
            raise ValueError("the reference of a stream is not finite")
        scores = np.zeros((MOST, 2))
        scores[: len(known)] = known
        return cls(phi, block, mean, std, known_D, scores, len(known))


@dataclass(slots=True)
class DriftDetector:
    """The test of one source.

    Args:
        names: of the first numbers of a vector; the others have none.
        apart_s: seconds between two false alarms of this source, on average at least.
        rng: breaks ties, and chooses which block of a full reference is replaced.
    """

    names: tuple[str, ...]
    apart_s: float
    rng: np.random.Generator
    drifting: bool = False
    _level: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Mean and standard deviation of the reference's vectors."""
    _newest: deque[NDArray[np.float64]] = field(default_factory=lambda: deque(maxlen=EXPLAINED))
    _first: list[NDArray[np.float64]] = field(default_factory=list)
    _scales: tuple[_Scale, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether the reference is long enough for a test."""
        return bool(self._scales) and self._scales[0].count >= LEAST

    @property
    def evidence(self) -> float:
        """How far the evidence is, as a share of what raises the alarm."""
        return max((scale.evidence / self._limit(scale) for scale in self._scales), default=0.0)

    def add(self, values_D: NDArray[np.float64]) -> bool:
        """Take one vector a second; True where `drifting` changed.

        Raises:
            ValueError: it has another width than the reference.
        """
        if self._level is not None and values_D.shape != self._level[0].shape:
            raise ValueError("the vector has another width than the reference")
        self._newest.append(values_D)
        if not self._scales:
            self._first.append(values_D)
            if len(self._first) % LEARN == 0 and self._is_enough(first := np.array(self._first)):
                self._level = (first.mean(axis=0), first.std(axis=0) + 1e-6 * (1 + np.abs(first).max(axis=0)))
                self._scales = (_Scale.fitted(first, whiten=True), _Scale.fitted(first, whiten=False))
                self._first = []
            return False
        ended = [scale for scale in self._scales if scale.add(values_D, self.rng, drifting=self.drifting)]
        if self.drifting:
            if ended and self._is_usual():
                self._clear()
                return True
            return False
        if any(scale.evidence >= self._limit(scale) for scale in ended):
            self.drifting = True
            for scale in self._scales:
                scale.waiting.clear()  # the last minute is part of the drift
                scale.recent.clear()
            return True
        return False

    def _is_enough(self, first_ND: NDArray[np.float64]) -> bool:
        """Return whether a slow source has shown enough of itself."""
        return len(first_ND) >= LEARN_MOST or bool(known(first_ND).all())

    def explanation(self) -> dict[str, float]:
        """Return how many standard deviations the newest seconds lie from the reference, by named number, the farthest first."""
        if self._level is None or not self._newest:
            return {}
        mean_D, std_D = self._level
        z_D = (np.mean(self._newest, axis=0) - mean_D) / std_D
        found = {name: round(float(z), 1) for name, z in zip(self.names, z_D, strict=False) if abs(z) >= SURE_Z}
        return dict(sorted(found.items(), key=lambda item: -abs(item[1])))

    def _is_usual(self) -> bool:
        """Return whether the last minute is as before on both scales; a slow scale that ended no block since is not counted."""
        fast = self._scales[0]
        whole = len(fast.recent) * fast.block >= LATE
        return whole and all(float(np.median(s.recent)) > USUAL_P for s in self._scales if s.recent)

    def _limit(self, scale: _Scale) -> float:
        return len(self._scales) * self.apart_s / scale.block

    def _clear(self) -> None:
        self.drifting = False
        for scale in self._scales:
            scale.evidence = 0.0
            scale.recent.clear()

    def dump(self) -> dict[str, Any] | None:
        """Return the reference as plain data; None where there is none yet."""
        if self._level is None:
            return None
        level = [x.tolist() for x in self._level]
        return {"names": list(self.names), "level": level, "scales": [scale.dump() for scale in self._scales]}

    def restore(self, data: dict[str, Any], width: int) -> None:
        """Take what `dump` returned, if it is of the same numbers and of vectors of `width`.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        if tuple(data["names"]) != self.names:
            return
        scales = tuple(_Scale.restored(scale) for scale in data["scales"])
        if len(scales) != 2 or len({scale.mean_D.shape for scale in scales}) != 1:
            raise ValueError("a reference has two scales of one width")
        mean_D, std_D = (np.array(x, np.float64) for x in data["level"])
        if any(
            x.shape != (width,) or scales[0].mean_D.shape != (width,) or not np.isfinite(x).all()
            for x in (mean_D, std_D)
        ):
            raise ValueError("the level of a stream does not fit its reference")
        self._level, self._scales = (mean_D, np.maximum(std_D, 1e-12)), scales
