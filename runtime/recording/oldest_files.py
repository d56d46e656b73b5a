"""List recordings in the order in which they are deleted."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def oldest_first(folder: Path, now_s: float, without: Path | None = None) -> list[tuple[Path, os.stat_result]]:
    """Return the recordings of a folder with what the disk says of them, the oldest first.

    A file that was written after now is from before a wall clock was set back: it is older than those that were not.

    Args:
        folder: of the recordings; one that does not exist has none.
        now_s: Unix seconds.
        without: the recording that is under way.
    """
    found: list[tuple[Path, os.stat_result]] = []
    for path in folder.glob("*.mcap"):
        with suppress(OSError):  # deleted meanwhile
            found.append((path, path.stat()))
    found.sort(key=lambda one: (one[1].st_mtime <= now_s, one[1].st_mtime, one[0].name))
    return [one for one in found if one[0] != without]
