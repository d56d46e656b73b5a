"""Choose readings that were captured at about the same moment: `fusion.align: common`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from sensors.readings import Reading, Telemetry

HELD, HELD_NUMBERS = 16, 512
"""Pictures and sounds of each stream from which those of one moment are chosen; and readings of numbers, which are small and may come
fast."""
SAME_S = 1e-3
"""Readings captured within this time are of one moment."""


class HeldReadings:
    """The newest readings of one stream, oldest first."""

    def __init__(self) -> None:
        self._held: deque[Reading] = deque(maxlen=HELD_NUMBERS)

    def __len__(self) -> int:
        """Return how many are held."""
        return len(self._held)

    def add(self, reading: Reading) -> None:
        """Hold a reading to choose from."""
        self._held.append(reading)
        if not isinstance(reading, Telemetry) and len(self._held) > HELD:
            self._held.popleft()

    def clear(self) -> None:
        """Drop all of them."""
        self._held.clear()

    def captured_at(self, stamp_s: float, now_s: float, limit_s: float) -> Reading | None:
        """Return the newest reading that was captured at `stamp_s` or before; else the oldest that is held and not stale.

        Args:
            stamp_s: monotonic seconds.
            now_s: monotonic seconds.
            limit_s: age at which a reading is stale.
        """
        found = None
        for one in reversed(tuple(self._held)):
            if found is not None and now_s - one.stamp_s > limit_s:
                break
            found = one
            if one.stamp_s <= stamp_s + SAME_S:
                break
        return found


def common_moment_s(newest_s: Iterable[float]) -> float | None:
    """Return the newest moment of which every stream has a reading; None without a stream.

    Args:
        newest_s: the stamp of the newest reading of each stream that is not stale.
    """
    return min(newest_s, default=None)
