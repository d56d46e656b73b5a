"""Which of the kept raw readings a tick saw.

A raw reading is kept under the stamp of the tick that saw it first; later ticks that use it again keep nothing. So it is the newest
one kept up to the tick, unless that one was left out because the keeper was busy: then the reading before it must not be taken
for it. What tells them apart is when they were captured: the tick that saw a reading first says its age, as does every later one.
"""

from __future__ import annotations

from learners.reader import Reader
from learners.records import Raw
from learners.transition import Transition

JITTER_S = 2e-3
"""Between the wall clock at two ticks, for the same moment."""
DRIFT = 1e-3
"""By which a wall clock that is being corrected may run off, per second of age."""


def raw_of(reader: Reader, transition: Transition, stream: str) -> Raw | None:
    """The raw reading of a stream that this tick used; None where it was not kept, or is gone."""
    age_s = transition.ages_s.get(stream, 0.0)
    slack_s = JITTER_S + DRIFT * age_s
    captured_s = transition.stamp_s - age_s
    found = reader.raw(stream, captured_s - slack_s, transition.stamp_s + 1e-6)
    if not found:
        return None
    raw = found[-1]
    first = transition if raw.stamp_s == transition.stamp_s else reader.at(raw.stamp_s)
    if first is None or abs(first.stamp_s - first.ages_s.get(stream, 0.0) - captured_s) > slack_s:
        return None
    return raw
