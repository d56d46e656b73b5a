"""Merge the small Parquet files of one day and agent into larger ones; a kill at any moment loses no row and shows none twice.

A merged file has the segments of a closed range without gaps. It is on disk under its name before the files that it replaces are
deleted. Until they are gone they are covered by it (`row_files.py`). What a killed process left is deleted by the next pass.

Files are merged when all together are at least twice as large as the largest. So each row is written again about as often as the bytes
of its agent double, until a file has about `MERGED_BYTES`. Only rows that were acknowledged are merged: a segment that a device
repeats replaces the file of its own name. One process at a time compacts a group.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from learners.files import locked, new_file, remove_abandoned_drafts, sync_directory
from learners.fleet_data.row_files import (
    KEY,
    PARTS,
    Footer,
    RowFile,
    agent_folders,
    agent_of_folder,
    day_folders,
    day_of,
    folder_files,
    is_broken,
    merged_name,
    read_footer,
)
from learners.fleet_data.segment import SCHEMA, SegmentHeader

_LOG = logging.getLogger(__name__)

MERGED_BYTES = 33_554_432
"""Largest size of a merged file, nearly."""
GROUP_ROWS = 1_024
"""Of a row group: what a reader decodes at once."""
OPEN_DAY_FILES = 64
"""Files of an agent in a day that is not over, below which none are merged."""
Positions = dict[str, dict[str, int]]


@dataclass(slots=True)
class CompactionCounts:
    """What a pass did."""

    read_files: int = 0
    """Small files that were merged."""
    written_files: int = 0
    written_bytes: int = 0
    left_over: int = 0
    """Covered files that an earlier pass left, and that were deleted."""
    unreadable: int = 0
    """Folders of agents with a position that is broken."""


def compact(
    group: Path,
    today: str,
    positions_of: Callable[[Path], Positions],
    is_stopping: Callable[[], bool] = lambda: False,
) -> CompactionCounts:
    """Merge the small files of a group.

    Args:
        group: its folder.
        today: the UTC day that is not over, as `2026-11-29`.
        positions_of: reads the `position.json` of an agent.
        is_stopping: ends the pass early, between two files.

    Raises:
        OSError: the disk refuses; what was stored before is complete.
    """
    counts = CompactionCounts()
    for part in PARTS:
        for day in day_folders(group, part):
            least = 2 if day_of(day) < today else OPEN_DAY_FILES
            for folder in agent_folders(day):
                if is_stopping():
                    return counts
                agent = group / "agents" / agent_of_folder(folder)
                try:
                    if agent.is_dir():
                        _compact_folder(folder, agent, least, positions_of, counts)
                except ValueError as error:  # one agent must not stop the others
                    _LOG.warning("fleet.not_compacted: %s", error)
                    counts.unreadable += 1
    return counts


def _compact_folder(
    folder: Path, agent: Path, least: int, positions_of: Callable[[Path], Positions], counts: CompactionCounts
) -> None:
    remove_abandoned_drafts(folder)  # each may be as large as a merged file
    with locked(agent):
        files, left_over = folder_files(folder)
        if left_over:
            _delete(folder, left_over)
            counts.left_over += len(left_over)
    if len(files) < least:
        return
    for _, of_lane in groupby(files, key=lambda each: (each.boot, each.lane)):
        worth = [run for run in _runs(list(of_lane)) if len(run) >= least]
        if not worth:
            continue
        positions = positions_of(agent / "position.json")
        for run in worth:
            for chunk in _alike(run, positions):
                merged = _merge(folder, chunk)
                if merged is None:
                    continue
                with locked(agent):
                    _delete(folder, [each for each, _ in chunk])
                counts.read_files += len(chunk)
                counts.written_files += 1
                counts.written_bytes += merged


def _runs(files: Sequence[RowFile]) -> Iterator[list[RowFile]]:
    """Return runs of neighbours that are worth to be written again, by their sizes."""
    if len(files) < 2:
        return
    largest = max(range(len(files)), key=lambda number: files[number].bytes)
    size = files[largest].bytes
    if size <= MERGED_BYTES / 2 and sum(each.bytes for each in files) >= 2 * size:
        yield list(files)
        return
    yield from _runs(files[:largest])
    yield from _runs(files[largest + 1 :])


def _alike(files: Sequence[RowFile], positions: Positions) -> Iterator[list[tuple[RowFile, SegmentHeader]]]:
    """Return chunks of at most about `MERGED_BYTES` that one file may have: acknowledged, without gaps, equal in all else."""
    chunk: list[tuple[RowFile, SegmentHeader]] = []
    size = 0
    for each in files:
        footer = _footer(each)
        header = None if footer is None else footer.header
        is_usable = header is not None and _is_whole(each, header, positions)
        if chunk and not (
            is_usable
            and header is not None
            and header.first == chunk[-1][1].last + 1
            and _kind(header) == _kind(chunk[-1][1])
            and size + each.bytes <= MERGED_BYTES
        ):
            if len(chunk) > 1:
                yield chunk
            chunk, size = [], 0
        if is_usable and header is not None:
            chunk.append((each, header))
            size += each.bytes
    if len(chunk) > 1:
        yield chunk


def _footer(file: RowFile) -> Footer | None:
    """Read a footer; None for a broken file, which stays as it is.

    Raises:
        OSError: it cannot be read now.
    """
    try:
        return read_footer(file.path)
    except (OSError, ValueError, pa.ArrowException) as error:
        if not is_broken(error):
            raise
        return None


def _is_whole(file: RowFile, header: SegmentHeader, positions: Positions) -> bool:
    """Return whether the name says what the header does, and the rows were acknowledged, or are of a boot that the positions forgot."""
    is_named = (header.boot, header.lane, header.first) == (file.boot, file.lane, file.first)
    is_stored = header.boot not in positions or header.last <= positions[header.boot].get(header.lane, 0)
    return is_named and is_stored and file.last in {None, header.last}


def _kind(header: SegmentHeader) -> str:
    """Return all that files have to agree in."""
    return header.model_copy(update={"first": 1, "last": 1}).model_dump_json()


def _merge(folder: Path, chunk: Sequence[tuple[RowFile, SegmentHeader]]) -> int | None:
    """Write the merged file; return its bytes, or None where a file has other columns or is broken.

    Raises:
        OSError: the disk refuses; no file with the new name is left.
    """
    header = chunk[0][1].model_copy(update={"last": chunk[-1][1].last})
    path = folder / merged_name(header)
    schema, rows = SCHEMA.with_metadata({KEY: header.model_dump_json()}), 0
    try:
        with new_file(path, mode=0o600) as draft:
            with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
                for table in _groups([each.path for each, _ in chunk]):
                    rows += table.num_rows
                    writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=GROUP_ROWS)
            _require_whole(draft, rows)
    except (pa.ArrowException, ValueError, OSError) as error:
        if not is_broken(error):
            raise
        return None
    return path.stat().st_size


def _groups(paths: Sequence[Path]) -> Iterator[pa.Table]:
    """Return the rows of files in tables of about `GROUP_ROWS`.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: a file cannot be read, or has other columns.
    """
    waiting: list[pa.Table] = []
    for path in paths:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            if not parquet.schema_arrow.equals(SCHEMA, check_metadata=False):
                raise ValueError(f"{path}: the columns are not those of a segment")
            for number in range(parquet.num_row_groups):
                waiting.append(parquet.read_row_group(number).replace_schema_metadata(None))
                if sum(each.num_rows for each in waiting) >= GROUP_ROWS:
                    yield pa.concat_tables(waiting)
                    waiting.clear()
    if waiting:
        yield pa.concat_tables(waiting)


def _require_whole(path: Path, rows: int) -> None:
    """Read the row numbers of a merged file back: all are there, and they rise.

    Raises:
        ValueError: they do not, so that the files stay as they are.
    """
    numbers = pq.ParquetFile(path).read(columns=["row"]).column("row").to_numpy()
    if len(numbers) != rows or not (numbers[1:] > numbers[:-1]).all():
        raise ValueError(f"{path}: the row numbers are not those of its files")


def _delete(folder: Path, files: Sequence[RowFile]) -> None:
    """Delete files that a merged one covers, once its name is on disk. Hold the lock of the agent.

    Raises:
        OSError: the disk refuses; the next pass deletes the rest.
    """
    sync_directory(folder)
    for each in files:
        each.path.unlink(missing_ok=True)
