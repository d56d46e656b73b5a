"""Tell whether two ends of an episode are one: two sources may report the same end with neighbouring decisions.

A plant says `done` when it stops, and a detector of failures says so a tick later. Taken as two ends, the second one would be an episode of one
tick. Its first state would count as a last one, and its return would be near 0.

The later report belongs to the end that is known, if it comes from a source that has not reported this end yet and is at most `NEIGHBOURS`
decisions away. A source that reports again has seen another episode. Where episodes are short, a neighbour may be an end of its own, so
`SHORT` of the usual length is the limit. Knows no queue and no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NEIGHBOURS = 3
"""Decisions between two reports of one end."""
SHORT = 0.25
"""Share of the usual length of an episode that they may be apart."""
MEMORY = 50
"""Episodes over which the usual length adapts."""


@dataclass(slots=True)
class EpisodeEnds:
    """See the module."""

    _session: str = ""
    _tick: int = 0
    """Of the newest end."""
    _sources: set[str] = field(default_factory=set)
    """That have reported it."""
    _episodes: int = 0
    _length: float = 0.0
    """Mean decisions of an episode."""

    def decision(self, source: str, decision: str) -> str:
        """Return the decision of the end that a source reports: the reported one, or that of an end which is known already."""
        session, _, index = decision.rpartition("-")
        if not index.isdecimal():
            return decision
        tick, is_same_run = int(index), session == self._session
        apart = abs(tick - self._tick)
        is_near = apart <= (min(NEIGHBOURS, SHORT * self._length) if self._episodes else NEIGHBOURS)
        if is_same_run and (apart == 0 or (is_near and source not in self._sources)):
            self._sources.add(source)
            return f"{session}-{self._tick}"
        if is_same_run and tick < self._tick:
            return decision  # a late report of an earlier end
        if is_same_run:
            self._episodes += 1
            self._length += (tick - self._tick - self._length) / min(self._episodes, MEMORY)
        self._session, self._tick, self._sources = session, tick, {source}
        return decision
