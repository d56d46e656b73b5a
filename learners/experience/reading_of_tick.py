"""Find the raw reading of a stream that a tick used, by the times of both; a wall clock that is corrected meanwhile does no harm."""

from __future__ import annotations

from typing import Protocol

from learners.experience.records import Raw
from learners.experience.transition import Transition

JITTER_S = 2e-3
"""Between the wall clock at two ticks, for the same moment."""

DRIFT = 1e-3
"""By which a wall clock that is being corrected may run off, per second of age."""


class RawSource(Protocol):
    """The interface of a reader, or of the writer, that finds a raw reading."""

    def raw(self, stream: str, start_s: float, stop_s: float) -> list[Raw]:
        """Return raw readings of a stream with `start_s <= stamp_s < stop_s` (Unix)."""

    def at(self, stamp_s: float) -> Transition | None:
        """Return the tick of exactly this stamp."""


def raw_reading(reader: RawSource, transition: Transition, stream: str) -> Raw | None:
    """Return the raw reading of a stream that this tick used; None if it was not stored or is deleted."""
    age_s = transition.ages_s.get(stream, 0.0)
    slack_s = JITTER_S + DRIFT * age_s
    captured_s = transition.stamp_s - age_s
    for raw in reversed(reader.raw(stream, captured_s - slack_s, transition.stamp_s + 1e-6)):
        first = transition if raw.stamp_s == transition.stamp_s else reader.at(raw.stamp_s)
        if first is not None and abs(first.stamp_s - first.ages_s.get(stream, 0.0) - captured_s) <= slack_s:
            return raw
    return None
