"""Carry on where the disk cannot be read for a moment: say so once, and let the caller try again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from runtime.process.emit import Emit


@dataclass(slots=True)
class ReadAgain:
    """What a component reads at intervals. An error of the disk must not end the process, and count as a fault of what acts.

    Args:
        what: is read, for the event `state_read_failed`.
        emit: publishes an event.
    """

    what: str
    emit: Emit
    _failing: bool = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Pass over an OSError; the event comes with the first one in succession."""
        try:
            yield
        except OSError as error:
            if not self._failing:
                self.emit("state_read_failed", {"what": self.what, "reason": str(error)})
            self._failing = True
        else:
            self._failing = False
