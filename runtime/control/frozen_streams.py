"""Notice sources that deliver the same reading again and again, as a hung camera does: fresh by its time and still old.

Two pictures of a real camera are never equal, because of its noise. So a long run of equal pictures or sounds means that the source
is frozen. Telemetry may rest; there, a run counts only if most readings differed before. `frozen_after` sets the number instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from runtime.process.emit import Emit
from sensors.config import AnyStream
from sensors.readings import Frame, Reading, Sound, Telemetry

AFTER = 100
"""Equal readings in a row that a source needs to count as frozen."""
LONGER = 10
"""Times the longest run so far."""
KNOWN = 200
"""Readings after which it is known whether telemetry has noise."""
NOISY = 0.5
"""Share of readings that differ from the one before, above which telemetry has noise."""


@dataclass(slots=True)
class _Run:
    """The readings of one stream so far."""

    last: Reading | None = None
    equal: int = 1
    """The present run, in readings."""
    longest: int = 1
    """The longest run that ended."""
    count: int = 0
    changes: int = 0
    frozen: bool = False


class FrozenStreams:
    """Watches every stream; `put` may be called from the thread of each source.

    Args:
        streams: the settings.
    """

    def __init__(self, streams: Mapping[str, AnyStream]) -> None:
        self._settings = dict(streams)
        self._runs = {name: _Run() for name in streams}

    def put(self, reading: Reading) -> None:
        """Compare a reading with the one before it."""
        run = self._runs[reading.stream]
        run.count += 1
        if run.last is not None and equal(run.last, reading):
            run.equal += 1
            limit = self._limit(reading.stream, run)
            run.frozen = run.frozen or (limit > 0 and run.equal >= limit)
            return
        if run.last is not None:
            run.changes += 1
        if not run.frozen:  # what was found frozen is no measure of what the source does
            run.longest = max(run.longest, run.equal)
        run.last, run.equal, run.frozen = reading, 1, False

    def figures(self) -> dict[str, int]:
        """Return the frozen streams with the number of their equal readings."""
        return {name: run.equal for name, run in self._runs.items() if run.frozen}

    def is_missing(self, stream: str) -> bool:
        """Return whether a stream is frozen, and missing by its settings."""
        return self._runs[stream].frozen and self._settings[stream].when_frozen == "missing"

    def _limit(self, stream: str, run: _Run) -> int:
        """Return the equal readings that make a stream frozen; 0 if none do."""
        given = self._settings[stream].frozen_after
        if given is not None:
            return given
        if isinstance(run.last, Telemetry):
            known = run.count - run.equal
            if known < KNOWN or run.changes < NOISY * known:
                return 0
        elif not isinstance(run.last, Frame | Sound):
            return 0
        return max(AFTER, LONGER * run.longest)


def equal(one: Reading, two: Reading) -> bool:
    """Return whether two readings of a stream have the same content."""
    match one, two:
        case Frame(), Frame():
            is_copy = one.encoded is not None and one.encoded == two.encoded
            return is_copy or np.array_equal(one.image, two.image)  # a hung camera may write another time into its JPEG
        case Sound(), Sound():
            return np.array_equal(one.samples, two.samples)
        case Telemetry(), Telemetry():
            return np.array_equal(one.values, two.values)
    return one == two


@dataclass(slots=True)
class FrozenReporter:
    """Listens to ticks; publishes `stream_frozen` and `stream_unfrozen`."""

    streams: FrozenStreams
    emit: Emit
    _published: frozenset[str] = field(default=frozenset())

    def ticked(self, _result: object) -> None:
        """Publish what has changed since the tick before."""
        figures = self.streams.figures()
        for name in figures.keys() - self._published:
            fields = {"stream": name, "equal": figures[name], "missing": self.streams.is_missing(name)}
            self.emit("stream_frozen", fields)
        for name in self._published - figures.keys():
            self.emit("stream_unfrozen", {"stream": name})
        self._published = frozenset(figures)
