"""Time series of bounded size over an unbounded time: means of equal spans, merged in pairs when there are too many.

A series shows the whole session at whatever resolution fits. It loses single values on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

MAX_POINTS = 240
Change = Literal["none", "appended", "merged"]


@dataclass(slots=True)
class TimeSeries:
    """Means over spans of `span_s`, which doubles whenever `MAX_POINTS` are reached."""

    span_s: float = 5.0
    points: list[tuple[float, float]] = field(default_factory=list)
    """Middle of the span (Unix s) and mean; oldest first."""
    _start_s: float = 0.0
    _sum: float = 0.0
    _count: int = 0

    def add(self, stamp_s: float, value: float) -> Change:
        """Add one value; return whether that appended a point, or merged all of them as well."""
        change: Change = "none"
        if self._count and not self._start_s <= stamp_s < self._start_s + self.span_s:
            change = self._finish()
        if not self._count:
            self._start_s = stamp_s
        self._sum += value
        self._count += 1
        return change

    def _finish(self) -> Change:
        self.points.append((round(self._start_s + self.span_s / 2, 2), float(f"{self._sum / self._count:.6g}")))
        self._sum, self._count = 0.0, 0
        if len(self.points) < MAX_POINTS:
            return "appended"
        pairs = zip(self.points[::2], self.points[1::2], strict=True)
        self.points = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in pairs]
        self.span_s *= 2
        return "merged"


@dataclass(slots=True)
class Returns:
    """Return from single rewards: the sum of an episode where rewards say `done`, else the sum of each minute."""

    _sum: float = 0.0
    _since_s: float | None = None
    episodic: bool = False

    def add(self, stamp_s: float, value: float, *, done: bool) -> float | None:
        """Add one reward; return the sum when an episode or a minute is over."""
        if self._since_s is None:
            self._since_s = stamp_s
        self._sum += value
        self.episodic |= done
        if done or (not self.episodic and stamp_s - self._since_s >= 60.0):
            finished, self._sum, self._since_s = self._sum, 0.0, None
            return finished
        return None
