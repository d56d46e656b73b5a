"""Keep the Parquet files of a group within their limits: one pass of compaction and retention at a time.

The server of the fleet calls it every few minutes, in a thread. A pass may be killed at any moment. Knows neither MQTT nor Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from learners.fleet_data.merging.merged_database import merged_positions
from learners.fleet_data.parquet_log import read_positions
from learners.fleet_data.storage.compaction import compact
from learners.fleet_data.storage.retention import Retention, StorageLimits

LEARNER_STORE = Path("learner") / "experience"
"""Of the group's folder: the merged store of its learner."""


class StorageKeeper:
    """Keeps one group; one process at a time.

    Args:
        group: its folder.
        limits: of its rows.
        is_stopping: ends a pass early.
        wall: Unix seconds.
    """

    def __init__(
        self,
        group: Path,
        limits: StorageLimits,
        is_stopping: Callable[[], bool] = lambda: False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.group, self.limits = group, limits
        self._is_stopping, self._wall = is_stopping, wall

    def run(self) -> dict[str, int]:
        """Delete what the limits name, merge small files, and return what was done; empty where nothing was.

        Raises:
            OSError, sqlite3.Error: the disk refuses, or a file cannot be read; what is stored is whole.
        """
        today = datetime.fromtimestamp(self._wall(), UTC).date()
        merged = merged_positions(self.group / LEARNER_STORE)
        gone = Retention(self.group, self.limits, merged, self._is_stopping).run(today)
        counts = compact(self.group, today.isoformat(), read_positions, self._is_stopping)
        done = {
            "deleted_files": gone.files,
            "deleted_bytes": gone.bytes,
            "unmerged_files": gone.unmerged_files,
            "compacted_files": counts.read_files,
            "written_files": counts.written_files,
            "written_bytes": counts.written_bytes,
            "left_over_files": counts.left_over,
            "unreadable_positions": counts.unreadable,
        }
        return {name: count for name, count in done.items() if count}
