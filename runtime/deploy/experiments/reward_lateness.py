"""Follow how late the rewards of each source arrive, and hold decisions until theirs are there.

A few rewards that are much later than usual, as after an outage, keep no pair open for hours.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from learners.safeguards.reward_ledger import MOST, LedgerEntry

MOST_LATE_S = 600.0
"""Longest wait for late rewards; what is later does not count."""
MARGIN = 1.5
"""Pairs stay open for this multiple of the lateness seen."""
RECENT, UNUSUAL = 100, 50
"""Rewards of a source that count, the newest, and of how many the latest one is left out."""
DECAY = 0.99
"""Of an earlier wait, with each reward."""
SOURCES = 64


@dataclass(slots=True)
class RewardLateness:
    """See the module."""

    _recent_s: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _usual_s: dict[str, float] = field(default_factory=dict)
    """By source, without the few latest."""

    def follow(self, source: str, late_s: float, before_s: float) -> float:
        """Take the lateness of a reward, in seconds; return how long pairs stay open, which was `before_s`."""
        if late_s > MOST_LATE_S:
            return before_s
        recent_s = self._recent_s.setdefault(source, deque(maxlen=RECENT))
        recent_s.append(late_s)
        self._recent_s.move_to_end(source)
        self._usual_s[source] = sorted(recent_s)[-1 - len(recent_s) // UNUSUAL]
        while len(self._recent_s) > SOURCES:
            del self._usual_s[self._recent_s.popitem(last=False)[0]]
        return max(before_s * DECAY, MARGIN * max(self._usual_s.values()))


@dataclass(slots=True)
class DecisionsInWait:
    """Settled decisions that may still receive rewards; the ledger adds these. Without this wait, slow rewards would count as 0."""

    _waiting: deque[LedgerEntry] = field(default_factory=deque)

    def take(self, entries: Iterable[LedgerEntry], ticks: int) -> list[LedgerEntry]:
        """Add decisions that were settled now; return those before the newest `ticks`, oldest first."""
        self._waiting.extend(entries)
        most = min(ticks, MOST)  # the ledger forgets older ones
        return [self._waiting.popleft() for _ in range(len(self._waiting) - most)]
