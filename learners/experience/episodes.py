"""Read experience as episodes: runs of ticks of one session, each with the executed actions and the stored raw readings.

An episode ends with `done`, with its session, where more than one tick is missing, and after `LONGEST` steps. It also ends at
a missing image of a required camera, and at ticks of other fields or actuators. An actuator without a command at a tick continues with its last one. Ticks before the first
command are skipped. Knows no file format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from actuators.actions import Value
from learners.experience.reader import Reader
from learners.experience.reading_of_tick import raw_reading
from learners.experience.records import Raw
from learners.experience.transition import Transition

CHUNK = 256
"""Rows read at once; with two cameras of 100 kB a picture that is 50 MB."""
GAP_TICKS = 2
"""Ticks from one step to the next at most: steps of an episode count as evenly spaced, at any tick rate."""
LONGEST = 1_000
"""Steps after which an episode is cut: it is held in memory with its pictures, and a daemon may act for days."""

Seen = Mapping[str, bytes | str]
"""Stream -> the stored reading of a tick: an encoded image or sound, or a text."""


class ReadingSource(Protocol):
    """Where raw readings of remembered ticks are found."""

    @property
    def streams(self) -> frozenset[str]:
        """Of which streams there are any."""

    def at(self, transitions: Sequence[Transition]) -> list[Seen]:
        """Return the readings that these ticks used; call it with ticks in the order of time."""


@dataclass(frozen=True, slots=True)
class CombinedReadings:
    """Several places at once; of two that have a reading, the later one counts."""

    places: tuple[ReadingSource, ...]

    @property
    def streams(self) -> frozenset[str]:
        """What any of them has."""
        return frozenset().union(*(place.streams for place in self.places))

    def at(self, transitions: Sequence[Transition]) -> list[Seen]:
        """Return the readings of all sources together."""
        found = zip(*(place.at(transitions) for place in self.places), strict=True)
        return [{stream: x for seen in each for stream, x in seen.items()} for each in found]


@dataclass(frozen=True, slots=True)
class Step:
    """One tick of an episode."""

    transition: Transition
    seen: Seen
    actions: Mapping[str, Value]
    """What every actuator did, by the newest command."""


@dataclass(slots=True)
class ExportStats:
    """What became of the rows; `str` for a person."""

    rows: int = 0
    used: int = 0
    no_action: int = 0
    no_picture: int = 0
    other_settings: int = 0

    def __str__(self) -> str:
        """Return the counts of used and skipped ticks as a text."""
        out = f"{self.used} of {self.rows} ticks"
        out += f"; {self.no_picture} without a stored image" if self.no_picture else ""
        out += f"; {self.other_settings} of other fields or actuators" if self.other_settings else ""
        return out + (f"; {self.no_action} before anything was done" if self.no_action else "")


@dataclass(slots=True)
class StoredReadings:
    """The raw readings that the agent keeps beside its experience."""

    reader: Reader
    wanted: frozenset[str]

    @property
    def streams(self) -> frozenset[str]:
        """Streams with any raw reading."""
        return self.wanted & self.reader.raw_streams()

    def at(self, transitions: Sequence[Transition]) -> list[Seen]:
        """Return the reading that each tick used, by stream, if it is still stored."""
        source = _Ticks(self.reader, {t.stamp_s: t for t in transitions})
        streams = sorted(self.streams)
        return [
            {
                stream: _plain(raw)
                for stream in streams
                if t.present.get(stream) and (raw := raw_reading(source, t, stream)) is not None
            }
            for t in transitions
        ]


@dataclass(frozen=True, slots=True)
class _Ticks:
    """Raw readings of a reader, and ticks of which most are at hand."""

    reader: Reader
    known: Mapping[float, Transition]

    def raw(self, stream: str, start_s: float, stop_s: float) -> list[Raw]:
        return self.reader.raw(stream, start_s, stop_s)

    def at(self, stamp_s: float) -> Transition | None:
        return self.known.get(stamp_s) or self.reader.at(stamp_s)


def _plain(raw: Raw) -> bytes | str:
    return raw.data.decode() if raw.encoding == "utf-8" else raw.data


@dataclass(slots=True)
class Episodes:
    """Iterate over episodes, oldest first.

    Args:
        reader: reads the experience.
        `readings`: reads the raw readings.
        cameras: streams of which every step must have an image.
        `on_progress`: called with the number of rows read and of all rows.
        fits: whether a tick has the fields and actuators that are wanted; others are left out, and end an episode.
        tally: counts what was used.
        longest: steps after which an episode is cut.
        window: Unix seconds, from and before.
    """

    reader: Reader
    readings: ReadingSource
    cameras: frozenset[str] = frozenset()
    on_progress: Callable[[int, int], None] = lambda _done, _total: None
    fits: Callable[[Transition], bool] = lambda _tick: True
    tally: ExportStats = field(default_factory=ExportStats)
    longest: int = LONGEST
    window: tuple[float, float] = (0.0, math.inf)
    _acting: dict[str, Value] = field(default_factory=dict)

    def __iter__(self) -> Iterator[list[Step]]:
        episode: list[Step] = []
        before: Transition | None = None
        for t, seen in self._ticks():
            self.tally.rows += 1
            if before is not None and (_apart(before, t) or len(episode) >= self.longest):
                yield from _whole(episode)
                episode = []
                if before.session != t.session:
                    self._acting.clear()
            before = t
            if not self._usable(t, seen):
                yield from _whole(episode)
                episode = []
                continue
            self.tally.used += 1
            episode.append(Step(t, seen, dict(self._acting)))
        yield from _whole(episode)

    def _usable(self, t: Transition, seen: Seen) -> bool:
        if not self.fits(t):
            self.tally.other_settings += 1
            return False
        self._acting.update(t.actions)
        if not self._acting:
            self.tally.no_action += 1
            return False
        if not self.cameras <= seen.keys():
            self.tally.no_picture += 1
            return False
        return True

    def _ticks(self) -> Iterator[tuple[Transition, Seen]]:
        first, last = self.reader.first_row(), self.reader.last_row()
        for start in range(first, last + 1, CHUNK):
            found = self.reader.rows(start, min(start + CHUNK, last + 1))
            rows = [row.transition for row in found if self.window[0] <= row.transition.stamp_s < self.window[1]]
            if rows:
                yield from zip(rows, self.readings.at(rows), strict=True)
            self.on_progress(min(start + CHUNK, last + 1) - first, last + 1 - first)


def _apart(one: Transition, two: Transition) -> bool:
    return one.session != two.session or one.done or one.truncated or not 0 < two.tick - one.tick <= GAP_TICKS


def _whole(episode: list[Step]) -> Iterator[list[Step]]:
    if episode:
        yield episode
