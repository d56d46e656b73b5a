"""The newest transitions of the store, on which the steps evaluate a candidate: with the tokens that training follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from learners.experience.reader import Reader, Row
from learners.experience.transition import Transition
from learners.reencoding.reencoder import Reencoder

ROWS_PER_READ = 256
"""Rows that the shadow step takes from the store at once."""


class RecentExperience:
    """The newest transitions of the store, as the learner sees them.

    Args:
        versions: returns the encoder version that training follows, by stream.
        reader: of the experience.
        reencoder: makes the tokens of these versions; None where no encoder follows a task.
    """

    def __init__(
        self, versions: Callable[[], Mapping[str, str]], reader: Reader, reencoder: Reencoder | None = None
    ) -> None:
        self._versions, self.reader, self.reencoder = versions, reader, reencoder
        self._logged: dict[str, Transition] = {}
        """By decision, the transitions of the last reads as they were logged."""

    def recent(self, count: int) -> list[Transition]:
        """Return the newest transitions, oldest first, with the tokens of the encoders that training follows.

        Rewards that models gave are taken out: they train, and judge no version.
        """
        self._logged.clear()
        return [row.transition for row in self._renewed(self.reader.without_models(self.reader.newest(count)))]

    def after(self, row: int) -> list[Row]:
        """Return rows with a number above the given one, at most `ROWS_PER_READ`, with the same tokens."""
        return self._renewed(self.reader.rows(row + 1, row + 1 + ROWS_PER_READ))

    def as_logged(self, transitions: Sequence[Transition]) -> list[Transition]:
        """Return transitions of `recent` and `after` with the tokens that the acting policy saw."""
        return [self._logged.get(one.decision, one) for one in transitions]

    def _renewed(self, rows: list[Row]) -> list[Row]:
        if self.reencoder is None:
            return rows
        self._logged |= {row.transition.decision: row.transition for row in rows}
        renewed = self.reencoder.renew(rows, self._versions())
        return [replace(row, transition=one) for row, one in zip(rows, renewed, strict=True)]

    def last_row(self) -> int:
        """Return the number of the newest row."""
        return self.reader.last_row()
