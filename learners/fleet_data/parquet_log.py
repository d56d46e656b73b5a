"""Store the segments of a group as Parquet files, once each, and say up to which row an agent's are on disk.

Layout, readable as a hive-partitioned data set:

- `<group>/rows/day=<UTC day>/agent=<name>/<boot>-<lane>-<first row>.parquet`
- `<group>/apart/...` in the same form: rows of another spec, of other encoder versions or of an old daemon.
- `<group>/agents/<name>/position.json`: for each boot the last row of each lane that is on disk, here or apart.
- `<group>/reference.json`: spec and encoder versions of the rows that train, written with the first accepted segment.

Each file is on disk before the position is, and the position before the acknowledgement. A file that a killed process left
without a position has the name that the repeated segment gets, which replaces it. Several processes may write one group: a lock
for each agent orders them. The server merges small files into larger ones and deletes old ones (`storage/`). The ingest uses it.
Knows no MQTT.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from learners.files import locked, new_file, private_folder, sync_directory, write_atomically
from learners.fleet_data.policy_manifest import version_numbers
from learners.fleet_data.row_files import KEY, file_name
from learners.fleet_data.segment import Segment, SegmentHeader
from learners.fleet_data.stored_bytes import StoredBytes

MAX_BOOTS = 8
"""Boots of an agent that are remembered; the oldest one is forgotten."""
Outcome = Literal["stored", "apart", "duplicate", "gap", "overlap"]


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """What became of a segment."""

    outcome: Outcome
    last: int
    """The highest row up to which the lane is on disk."""
    rows: int = 0
    bytes: int = 0
    """Of the Parquet file."""
    reason: str = ""
    """Why the rows were set apart."""


class FleetReference(BaseModel):
    """What the rows of a group must agree in to train together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: str
    encoder_versions: dict[str, str]


class ParquetLog:
    """The log of one group.

    Args:
        folder: of all groups.
        group: its name.
        min_daemon: the oldest version of reflexd with rows that train, as `0.1.0`.
        min_free_bytes: of the disk; nothing more is stored below it, and devices repeat their rows.
        max_bytes: of all rows; nothing more is stored above it, and devices repeat their rows.
        agent_bytes: the same of one agent.

    Raises:
        OSError: the folder cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        group: str,
        *,
        min_daemon: str = "0",
        min_free_bytes: float = 0,
        max_bytes: float = float("inf"),
        agent_bytes: float = float("inf"),
    ) -> None:
        self.folder = folder / group
        self.stored = StoredBytes(self.folder, most=max_bytes, most_of_agent=agent_bytes)
        self.min_daemon, self.min_free_bytes = min_daemon, min_free_bytes
        _durable_folder(self.folder / "agents")

    def append(self, segment: Segment) -> StoredSegment:
        """Store a segment unless its rows are stored; return once all of it is on disk.

        Raises:
            OSError: the disk refuses; nothing of it is acknowledged.
        """
        header = segment.header
        agent = self.folder / "agents" / header.agent
        _durable_folder(agent)
        with locked(agent):
            positions = read_positions(agent / "position.json")
            if (known := _known(header, positions)) is not None:
                return known
            self._require_space()
            self.stored.require_room(header.agent)
            reason, table, size = self._difference(header), segment.table, 0
            if table.num_rows:
                parts, place = ("apart", "rows"), Path(f"day={segment.day}") / f"agent={header.agent}"
                part, other = parts if reason else parts[::-1]
                size = _write(self.folder / part / place, header, table)
                # of a process that was killed before the position, when the group had another reference
                (self.folder / other / place / file_name(header)).unlink(missing_ok=True)
            own = positions.pop(header.boot, {})
            positions[header.boot] = {**own, header.lane: header.last}
            newest = dict(list(positions.items())[-MAX_BOOTS:])
            write_atomically(agent / "position.json", orjson.dumps(newest), mode=0o600)
        self.stored.add(header.agent, size)
        return StoredSegment("apart" if reason else "stored", header.last, table.num_rows, size, reason)

    def known(self, header: SegmentHeader) -> StoredSegment | None:
        """Return what becomes of a segment that adds nothing: a duplicate, an overlap, or one after a gap; None for any other.

        Raises:
            OSError, ValueError: the positions of the agent cannot be read.
        """
        return _known(header, read_positions(self.folder / "agents" / header.agent / "position.json"))

    def reference(self) -> FleetReference | None:
        """Return what rows must agree in; None before the first segment.

        Raises:
            OSError, ValueError: the file cannot be read, or is not ours.
        """
        try:
            return FleetReference.model_validate_json((self.folder / "reference.json").read_bytes())
        except FileNotFoundError:
            return None

    def _require_space(self) -> None:
        """Refuse to fill the disk.

        Raises:
            OSError: there is too little free.
        """
        free = shutil.disk_usage(self.folder).free
        if free < self.min_free_bytes:
            need = f"{free / 1e9:.1f} GB are free, storage.min_free_gb is {self.min_free_bytes / 1e9:g}"
            raise OSError(errno.ENOSPC, f"{need}; delete old days of rows or enlarge the disk", str(self.folder))

    def _difference(self, header: SegmentHeader) -> str:
        """Return why the rows of a segment do not train with those of the group; empty if they do."""
        if version_numbers(header.daemon) < version_numbers(self.min_daemon):
            return f"daemon {header.daemon} is older than {self.min_daemon}; update reflexd on {header.agent}"
        own = FleetReference(spec=header.spec, encoder_versions=header.encoder_versions)
        if self.reference() is None:
            with contextlib.suppress(FileExistsError):  # another ingest was first
                write_atomically(self.folder / "reference.json", own.model_dump_json().encode(), overwrite=False)
        reference = self.reference()
        assert reference is not None
        if own.spec != reference.spec:
            return (
                f"spec {own.spec[:12]} differs from the fleet's {reference.spec[:12]}; give {header.agent} the streams, actuators "
                "and policy of the fleet"
            )
        for stream in sorted(own.encoder_versions.keys() | reference.encoder_versions.keys()):
            mine, theirs = own.encoder_versions.get(stream), reference.encoder_versions.get(stream)
            if mine != theirs:
                return f"encoder of stream {stream} has version {mine}, the fleet has {theirs}"
        return ""


def _last(header: SegmentHeader, positions: dict[str, dict[str, int]]) -> int:
    return positions.get(header.boot, {}).get(header.lane, 0)


def _known(header: SegmentHeader, positions: dict[str, dict[str, int]]) -> StoredSegment | None:
    last = _last(header, positions)
    if header.last <= last:
        return StoredSegment("duplicate", last)
    if header.first <= last:  # no device cuts so, but one of a copied state folder: these numbers are other rows here
        return StoredSegment("overlap", last)
    return StoredSegment("gap", last) if header.first > last + 1 else None


def _write(folder: Path, header: SegmentHeader, table: Any) -> int:
    _durable_folder(folder)
    path = folder / file_name(header)
    with new_file(path, mode=0o600) as draft:
        pq.write_table(table.replace_schema_metadata({KEY: header.model_dump_json()}), draft, compression="zstd")
    return path.stat().st_size


def _durable_folder(path: Path) -> None:
    """Create a folder and its missing parents, and wait until their names are on disk.

    Raises:
        OSError: the disk refuses.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    private_folder(path)
    for each in missing:
        sync_directory(each.parent)


def read_positions(path: Path) -> dict[str, dict[str, int]]:
    """Return the positions of an agent.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not ours. Nothing is stored then: it would be stored twice.
    """
    try:
        body = orjson.loads(path.read_bytes())
        return {str(boot): {str(lane): int(row) for lane, row in lanes.items()} for boot, lanes in body.items()}
    except FileNotFoundError:
        return {}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; restore it from a backup, or move the agent's rows away") from None
