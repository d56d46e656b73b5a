"""Curves of bounded size over an unbounded time: means of equal spans, merged in pairs when there are too many.

A curve shows the whole session at whatever resolution fits; it forgets single values on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_POINTS = 240


@dataclass(slots=True)
class TimeSeries:
    """Means over spans of `span_s`, which doubles whenever `MAX_POINTS` are reached."""

    span_s: float = 5.0
    points: list[tuple[float, float]] = field(default_factory=list)
    """Middle of the span (Unix s) and mean; oldest first."""
    _start_s: float = 0.0
    _sum: float = 0.0
    _count: int = 0

    def add(self, stamp_s: float, value: float) -> bool:
        """Take one value; True when that finished a point."""
        finished = False
        if self._count and stamp_s >= self._start_s + self.span_s:
            self._finish()
            finished = True
        if not self._count:
            self._start_s = stamp_s
        self._sum += value
        self._count += 1
        return finished

    def _finish(self) -> None:
        self.points.append((round(self._start_s + self.span_s / 2, 2), float(f"{self._sum / self._count:.6g}")))
        self._sum, self._count = 0.0, 0
        if len(self.points) >= MAX_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in pairs]
            self.span_s *= 2


@dataclass(slots=True)
class Returns:
    """Return from single rewards: the sum of an episode where rewards say `done`, else the sum of each minute."""

    _sum: float = 0.0
    _since_s: float | None = None
    episodic: bool = False

    def add(self, stamp_s: float, value: float, *, done: bool) -> float | None:
        """Take one reward; the return when an episode or a minute is over."""
        if self._since_s is None:
            self._since_s = stamp_s
        self._sum += value
        self.episodic |= done
        if done or (not self.episodic and stamp_s - self._since_s >= 60.0):
            finished, self._sum, self._since_s = self._sum, 0.0, None
            return finished
        return None
