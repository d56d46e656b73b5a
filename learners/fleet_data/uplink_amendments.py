"""Find late rewards and corrections of rows that already left the device.

The experience store logs each change of a row. A change of a row that has not left goes with the row. For any other one the uplink sends
the newest reward and flags of the row, without its tokens: as an amendment, numbered by its newest change. Some changes that a
segment had already are sent again; an amendment replaces what was before, so it changes nothing twice. Used by `uplink_queue.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from learners.experience.reader import Reader, Row
from learners.fleet_data.segment import amendment

SCAN_CHANGES = 2_048
"""Changes that are looked at for one segment."""
SETTLE_S = 10.0
"""Changes wait so long for further ones: several rewards of a row are one amendment."""


class LateChanges:
    """The changes of one experience store. Not for several threads at once.

    Args:
        reader: of the store.
        max_age_s: changes of older rows are not sent.
        clock: Unix seconds, as the stamps of the rows.
        monotonic: seconds.
    """

    def __init__(
        self, reader: Reader, max_age_s: float, clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self.reader, self._max_age_s, self._clock, self._monotonic = reader, max_age_s, clock, monotonic
        self._seen_s: float | None = None
        """When a change was first seen since the last look."""

    def after(self, passed: int, sent_row: int) -> tuple[list[Row], int]:
        """Return amendments of changes behind one, in order, and the last change that was looked at.

        Args:
            passed: the last change that was looked at before.
            sent_row: the last row that may have left the device.

        Returns:
            Rows without tokens, with the numbers of their newest changes.

        Raises:
            sqlite3.Error: the store cannot be read.
        """
        newest = self.reader.last_change()
        if newest <= passed:
            self._seen_s = None
            return [], passed
        now_s = self._monotonic()
        if self._seen_s is None:
            self._seen_s = now_s
        if now_s - self._seen_s < SETTLE_S:
            return [], passed
        last = min(newest, passed + SCAN_CHANGES)
        if last == newest:
            self._seen_s = None
        changed = {each.row: each.id for each in self.reader.changes(passed, last) if each.row <= sent_row}
        rows = self.reader.without_models(self.reader.pick(sorted(changed)))
        oldest_s = self._clock() - self._max_age_s
        amended = [
            replace(row, row=changed[row.row], transition=amendment(row.transition))
            for row in rows
            if row.transition.stamp_s >= oldest_s
        ]
        return sorted(amended, key=lambda each: each.row), last
