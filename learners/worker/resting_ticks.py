"""Hold the newest ticks at rest, at which neither the policy nor an operator acted.

Nothing is learned from them. The next decision saw them in its history, so the learner stores them before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from learners.experience.reader import Row


class RestingTicks:
    """The last ticks at rest.

    Args:
        length: how many are held.
    """

    def __init__(self, length: int) -> None:
        self._rows: deque[Row] = deque(maxlen=length)

    def append(self, row: Row) -> None:
        """Add the newest tick; the oldest may go."""
        self._rows.append(row)

    def take(self) -> list[Row]:
        """Remove and return all ticks, oldest first."""
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def clear(self) -> None:
        """Forget all ticks."""
        self._rows.clear()

    def change(self, number: int, after: Mapping[str, float]) -> None:
        """Apply a late reward or mark to a tick that is held."""
        for place, row in enumerate(self._rows):
            if row.row == number:
                self._rows[place] = Row(number, row.transition.changed(after))
