"""Experience as the learner takes it in: everything up to one moment of the store, repeatably.

A moment is a pair of numbers: the last row and the last change (a late reward or mark). Asked again for the same moment,
even after further rewards arrived, the same values come back: later changes are undone from what was noted before each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from learners.experience.reader import Change, Reader, Row
from learners.experience.transition import Transition

CHUNK = 512


@dataclass(frozen=True, slots=True, order=True)
class SnapshotId:
    """The last row and change known."""

    row: int = 0
    change: int = 0


class ExperienceSnapshots:
    """Reads moments of a store."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def now(self) -> SnapshotId:
        """Return the newest position."""
        with self.reader.snapshot():
            return SnapshotId(self.reader.last_row(), self.reader.last_change())

    def rows(self, since: SnapshotId, until: SnapshotId) -> Iterator[Row]:
        """Return rows after `since` up to `until`, as they were at `until`."""
        undo = self._undo(until)
        for start in range(since.row + 1, until.row + 1, CHUNK):
            for row in self.reader.rows(start, min(start + CHUNK, until.row + 1)):
                yield Row(row.row, undo.get(row.row, _same)(row.transition))

    def changes(self, since: SnapshotId, until: SnapshotId) -> list[Change]:
        """Return changes after `since` up to `until`."""
        return self.reader.changes(since.change, until.change)

    def pick(self, numbers: list[int], until: SnapshotId) -> dict[int, Transition]:
        """Return the rows with the given numbers as they were at `until`."""
        undo = self._undo(until)
        found: dict[int, Transition] = {}
        for start in range(0, len(numbers), CHUNK):
            for row in self.reader.pick(numbers[start : start + CHUNK]):
                found[row.row] = undo.get(row.row, _same)(row.transition)
        return found

    def _undo(self, until: SnapshotId) -> dict[int, _Undo]:
        undo: dict[int, _Undo] = {}
        for change in self.reader.changes(until.change):
            undo.setdefault(change.row, _Undo(change))  # the earliest says what was there at `until`
        return undo


@dataclass(frozen=True, slots=True)
class _Undo:
    change: Change

    def __call__(self, transition: Transition) -> Transition:
        return transition.changed(self.change.before)


def _same(transition: Transition) -> Transition:
    return transition
