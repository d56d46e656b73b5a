"""Decide by measured time whether a policy may decide in the event loop.

The way to the inference thread and back takes up to .3 ms. A decision that takes 1 ms is quicker in the loop; one that takes 20 ms
would delay everything else of the loop. Only the time shows which it is: it depends on widths, streams, history and machine.
"""

from __future__ import annotations

from collections import deque
from statistics import median

SHORT_S = 0.002
"""A decision that takes no longer may delay everything else of the loop."""
STALL_S = 0.02
"""One decision that takes so long sends the next ones to the thread: the model may have been paged out."""
RECENT, ENOUGH = 16, 8
"""The number of newest decisions of a version that count, and of those that are measured in the thread first."""


class DecisionTimes:
    """How long the newest decisions of each version took."""

    def __init__(self) -> None:
        self._recent_s: dict[str, deque[float]] = {}

    def add(self, version: str, took_s: float) -> None:
        """Note the time of a decision, wherever it was made."""
        recent_s = self._recent_s.setdefault(version, deque(maxlen=RECENT))
        if took_s <= STALL_S:
            recent_s.append(took_s)
        else:  # also where it is no number
            recent_s.clear()

    def is_short(self, version: str) -> bool:
        """Return whether the next decision of this version may be made in the event loop."""
        recent_s = self._recent_s.get(version, ())
        return len(recent_s) >= ENOUGH and median(recent_s) <= SHORT_S

    def forget(self, version: str) -> None:
        """Forget a version that is not loaded any more."""
        self._recent_s.pop(version, None)
