"""Delete the oldest rows of a group beyond an age or a budget, and rows of an agent beyond its quota; measure what is left.

Days go from the oldest on, and within a day the rows apart go first. Rows that the learner of the group has not merged stay, unless the
settings say otherwise: its store names what it merged (`merged_database.py`). So a budget may not be reached. Then ingests store
nothing more (`stored_bytes.py`), and devices keep their rows.

An age is counted from the newest day of the group, at most from the server's clock. So a clock that is years ahead deletes nothing early.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa

from learners.files import locked
from learners.fleet_data.row_files import (
    PARTS,
    Part,
    RowFile,
    agent_folders,
    agent_of_folder,
    day_folders,
    day_of,
    folder_files,
    is_broken,
    read_footer,
)
from learners.fleet_data.stored_bytes import write_usage

ROOM = 0.95
"""Of a limit, what is left after rows were deleted: ingests store on until the next pass."""
Merged = Mapping[tuple[str, str, str], int]
"""By agent, boot and lane, the last row that the learner has merged or passed."""


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """Limits of a group's rows on disk; infinity is none."""

    max_bytes: float = float("inf")
    agent_bytes: float = float("inf")
    max_age_days: float = float("inf")
    delete_unmerged: bool = False
    """Delete also rows that no learner has merged."""


@dataclass(slots=True)
class RetentionCounts:
    """What a pass did."""

    files: int = 0
    bytes: int = 0
    """Of deleted files."""
    unmerged_files: int = 0
    """Files that the limits name and the learner has not merged."""
    used: Counter[str] = field(default_factory=Counter)
    """Bytes that are left, by agent."""


class Retention:
    """One pass over a group; one process at a time.

    Args:
        group: its folder.
        limits: of its rows.
        merged: what the learner has merged; read before.
        is_stopping: ends the pass early.
    """

    def __init__(
        self, group: Path, limits: StorageLimits, merged: Merged, is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.group, self.limits, self.merged = group, limits, merged
        self.counts = RetentionCounts()
        self._is_stopping = is_stopping
        self._by_day: Counter[str] = Counter()

    def run(self, today: date) -> RetentionCounts:
        """Measure the group, delete what the limits name, and write the measurement.

        Args:
            today: the server's UTC day.

        Raises:
            OSError: the disk refuses; each file is whole or deleted.
        """
        self._measure()
        self._delete_old(today)
        used, of_agent, of_group = self.counts.used, ROOM * self.limits.agent_bytes, ROOM * self.limits.max_bytes
        for agent in sorted(name for name, size in used.items() if size > of_agent):
            self._delete(lambda name=agent: bool(used[name] <= of_agent), agent=agent)  # type: ignore[misc]
        if used.total() > of_group:
            self._delete(lambda: used.total() <= of_group)
        if not self._is_stopping():
            write_usage(self.group, self.counts.used)
        return self.counts

    def _measure(self) -> None:
        for part in PARTS:
            for day in day_folders(self.group, part):
                for folder in agent_folders(day):
                    counted, covered = folder_files(folder)
                    size = sum(each.bytes for each in (*counted, *covered))
                    self.counts.used[agent_of_folder(folder)] += size
                    self._by_day[day_of(day)] += size

    def _delete_old(self, today: date) -> None:
        """Delete days beyond the age."""
        days = [found for day in self._by_day if (found := _date(day)) is not None]
        if self.limits.max_age_days == float("inf") or not days:
            return
        newest = min(today, max(days))  # an agent's clock may be ahead, and so may the server's
        oldest = newest - timedelta(days=self.limits.max_age_days)
        old = {day for day in self._by_day if (found := _date(day)) is not None and found < oldest}
        self._delete(lambda: False, days=old)

    def _delete(self, is_enough: Callable[[], bool], *, days: set[str] | None = None, agent: str | None = None) -> None:
        """Delete files from the oldest day on until it is enough."""
        for day in sorted(self._by_day if days is None else days):
            for part in reversed(PARTS):
                folder = self.group / part / f"day={day}"
                for each in agent_folders(folder):
                    if is_enough() or self._is_stopping():
                        return
                    if agent in {None, agent_of_folder(each)}:
                        self._delete_folder(each, part, is_enough)
                with suppress(OSError):  # not empty, or it never was
                    folder.rmdir()

    def _delete_folder(self, folder: Path, part: Part, is_enough: Callable[[], bool]) -> None:
        """Delete files of one day and agent in the order of their rows."""
        agent = agent_of_folder(folder)
        lock = self.group / "agents" / agent
        if not lock.is_dir():
            return
        with locked(lock):
            files, _ = folder_files(folder)
            for each, following in zip(files, [*files[1:], None], strict=True):
                if is_enough():
                    return
                if part == "rows" and not self._is_merged(agent, each, following):
                    self.counts.unmerged_files += 1
                    continue
                each.path.unlink(missing_ok=True)
                self.counts.files += 1
                self.counts.bytes += each.bytes
                self.counts.used[agent] -= each.bytes
            with suppress(OSError):  # not empty
                folder.rmdir()

    def _is_merged(self, agent: str, file: RowFile, following: RowFile | None) -> bool:
        """Return whether the learner has merged or passed every row of a file."""
        if self.limits.delete_unmerged:
            return True
        read = self.merged.get((agent, file.boot, file.lane), 0)
        if read < file.first:
            return False
        last = file.last
        if last is None and following is not None and (following.boot, following.lane) == (file.boot, file.lane):
            last = following.first - 1
        return (last is not None and last <= read) or _last_row(file.path) <= read


def _last_row(path: Path) -> int:
    """Return the last row of a file; 0 for a broken one, of which the learner passes all.

    Raises:
        OSError: it cannot be read now.
    """
    try:
        return read_footer(path).last_row
    except (OSError, ValueError, pa.ArrowException) as error:
        if not is_broken(error):
            raise
        return 0


def _date(day: str) -> date | None:
    try:
        return date.fromisoformat(day)
    except ValueError:
        return None
