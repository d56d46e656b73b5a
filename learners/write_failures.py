"""Failed writes of one writer as few events: the first loss at once, then a total a minute, and the recovery.

A disk that is nearly full takes some writes and refuses others; the recovery is published once all succeeded for a while.

Used by the writers of experience and of recordings. Knows no file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

EVERY_S = 60.0
CALM_S = 5.0
"""Seconds without a failure after which a writer has recovered."""


@dataclass(slots=True)
class WriteFailures:
    """Counts what a writer lost and publishes it.

    Args:
        emit: publishes an event, from the writer's thread.
        lost: type of the event about lost items; its data are `reason`, `items` since the last event, and `total`.
        recovered: type of the event after the first write that succeeded again; its data is `total`.
        clock: monotonic seconds.
    """

    emit: Callable[[str, dict[str, Any]], None]
    lost: str
    recovered: str
    clock: Callable[[], float] = time.monotonic
    failing: bool = False
    """Whether a write failed and the recovery is not published yet."""
    total: int = 0
    """Items lost since the first failure of this series."""
    _unpublished: int = 0
    _next_s: float = 0.0
    _failed_s: float = 0.0

    def add(self, reason: str, items: int) -> None:
        """Count items that are lost; publish at most one event a minute."""
        if not self.failing:
            self.failing, self.total, self._unpublished, self._next_s = True, 0, 0, self.clock()
        self._failed_s = self.clock()
        self.total += items
        self._unpublished += items
        if self.clock() >= self._next_s:
            self._next_s = self.clock() + EVERY_S
            self.emit(self.lost, {"reason": reason, "items": self._unpublished, "total": self.total})
            self._unpublished = 0

    def succeeded(self, *, last: bool = False) -> None:
        """Note a write that succeeded; publish the recovery after `CALM_S` without a failure, or at the `last` write."""
        if self.failing and (last or self.clock() - self._failed_s >= CALM_S):
            self.failing = False
            self.emit(self.recovered, {"total": self.total})
