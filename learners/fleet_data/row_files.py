"""Name and list the Parquet files of a group's rows, and read what their footers say.

- `<group>/<part>/day=<UTC day>/agent=<name>/<boot>-<lane>-<first row>.parquet` has one segment, as an ingest stores it.
- `.../<boot>-<lane>-<first row>-<last row>.parquet` has the segments of a closed range (`storage/compaction.py`). It is complete when it has
  its name. Files of the same folder with rows of that range are covered by it: they are left over, and no reader reads them.

Whoever lists files holds the lock of the agent: files are deleted under it, so the list is of one moment. A file that is gone when it
is read was merged or deleted since, and has to be listed again. Knows neither segments on their way nor the learner.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from pydantic import ValidationError

from learners.fleet_data.segment import Lane, SegmentHeader

PARTS: tuple[Part, ...] = ("rows", "apart")
Part = Literal["rows", "apart"]
"""`rows` train together; `apart` has those of another spec, of other encoder versions or of an old daemon."""
KEY = b"reflexd"
"""Of the metadata of a file: the header of its segment, or of its range."""
_NAME = re.compile(r"^([0-9a-f]{16})-(urgent|rest|amendments)-([0-9]{12,20})(?:-([0-9]{12,20}))?\.parquet$")


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file by its name."""

    path: Path
    boot: str
    lane: Lane
    first: int
    last: int | None = None
    """The last row of a merged file; None for one segment."""
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Footer:
    """What a file says of itself."""

    header: SegmentHeader | None
    """None for a file of before 0.1.0, which has none."""
    rows: int
    last_row: int
    """The largest number of a row that it has."""


def file_name(header: SegmentHeader) -> str:
    """Return the name of the file of one segment."""
    return f"{header.boot}-{header.lane}-{header.first:012d}.parquet"


def merged_name(header: SegmentHeader) -> str:
    """Return the name of a merged file."""
    return f"{header.boot}-{header.lane}-{header.first:012d}-{header.last:012d}.parquet"


def day_folders(group: Path, part: Part) -> list[Path]:
    """Return the folders of days, oldest first.

    Raises:
        OSError: they cannot be listed.
    """
    with suppress(FileNotFoundError):
        return sorted(Path(each) for each in os.scandir(group / part) if each.name.startswith("day="))
    return []


def day_of(folder: Path) -> str:
    """Return the UTC day of a folder, as `2026-11-29`."""
    return folder.name.removeprefix("day=")


def agent_folders(day: Path) -> list[Path]:
    """Return the folders of agents in the folder of a day.

    Raises:
        OSError: they cannot be listed.
    """
    with suppress(FileNotFoundError):
        return sorted(Path(each) for each in os.scandir(day) if each.name.startswith("agent="))
    return []


def agent_of_folder(folder: Path) -> str:
    """Return the agent of a folder."""
    return folder.name.removeprefix("agent=")


def folder_files(folder: Path) -> tuple[list[RowFile], list[RowFile]]:
    """Return the files of one day and agent in the order of their rows, and those that a merged file covers.

    Raises:
        OSError: they cannot be listed.
    """
    found = sorted(_listed(folder), key=lambda each: (each.boot, each.lane, each.first, -(each.last or 0)))
    counted: list[RowFile] = []
    covered: list[RowFile] = []
    for each in found:
        before = counted[-1] if counted else None
        is_covered = (
            before is not None
            and (before.boot, before.lane) == (each.boot, each.lane)
            and each.first <= (before.last or 0)
        )
        (covered if is_covered else counted).append(each)
    return counted, covered


def agent_files(group: Path, agent: str) -> list[RowFile]:
    """Return the files of an agent's rows that train, without covered ones.

    Raises:
        OSError: they cannot be listed.
    """
    return [each for day in day_folders(group, "rows") for each in folder_files(day / f"agent={agent}")[0]]


def read_footer(path: Path) -> Footer:
    """Read the footer of a file.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: it cannot be read; `is_broken` says whether it never can.
    """
    with path.open("rb") as file:
        found = pq.ParquetFile(file).metadata
        last_row = max((last_row_of(found, number) for number in range(found.num_row_groups)), default=0)
        return Footer(header_of(found.metadata), found.num_rows, last_row)


def is_broken(error: Exception) -> bool:
    """Return whether an error of reading is of the content: an error of the disk has a number, and may pass."""
    return not (isinstance(error, OSError) and error.errno is not None)


def header_of(metadata: Mapping[bytes, bytes] | None) -> SegmentHeader | None:
    """Return the header in the metadata of a file; None for a file of before 0.1.0, which has none."""
    try:
        return SegmentHeader.model_validate_json((metadata or {})[KEY])
    except (KeyError, ValidationError):
        return None


def last_row_of(metadata: Any, number: int) -> int:
    """Return the largest row number of a row group.

    Raises:
        ValueError: the file does not say it.
    """
    column = metadata.row_group(number).column(0)
    statistics = column.statistics
    if column.path_in_schema != "row" or statistics is None or not statistics.has_min_max:
        raise ValueError("the footer does not name the last row")
    return int(statistics.max)


def _listed(folder: Path) -> Iterator[RowFile]:
    try:
        entries: Iterable[os.DirEntry[str]] = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        match = _NAME.match(entry.name)
        if match is None:
            continue
        boot, first, last = match[1], match[3], match[4]
        lane: Any = match[2]  # one of `Lane`, by the pattern
        with suppress(FileNotFoundError):
            size = entry.stat().st_size
            yield RowFile(
                Path(entry.path),
                boot,
                lane,
                int(first),
                int(last) if last else None,
                size,
            )
