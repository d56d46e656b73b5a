"""Store the segments of a group as Parquet files, once each, and say up to which row an agent's are on disk.

Layout, readable as a hive-partitioned data set:

- `<group>/rows/day=<UTC day>/agent=<name>/<boot>-<lane>-<first row>.parquet`
- `<group>/apart/...` in the same form: rows of another spec, of other encoder versions or of an old daemon.
- `<group>/agents/<name>/position.json`: for each boot the last row of each lane that is on disk, here or apart.
- `<group>/reference.json`: spec and encoder versions of the rows that train, written with the first accepted segment.

Each file is on disk before the position is, and the position before the acknowledgement. A file that a killed process left
without a position has the name that the repeated segment gets, which replaces it. Several processes may write one group: a lock
for each agent orders them. The ingest uses it. Knows no MQTT.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from learners.files import locked, new_file, private_folder, write_atomically
from learners.fleet_data.policy_manifest import version_numbers
from learners.fleet_data.segment import Segment, SegmentHeader

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

    Raises:
        OSError: the folder cannot be created.
    """

    def __init__(self, folder: Path, group: str, *, min_daemon: str = "0") -> None:
        self.folder = folder / group
        self.min_daemon = min_daemon
        private_folder(self.folder / "agents")

    def append(self, segment: Segment) -> StoredSegment:
        """Store a segment unless its rows are stored; return once all of it is on disk.

        Raises:
            OSError: the disk refuses; nothing of it is acknowledged.
        """
        header = segment.header
        agent = self.folder / "agents" / header.agent
        private_folder(agent)
        with locked(agent):
            positions = _read_positions(agent / "position.json")
            if (known := _known(header, positions)) is not None:
                return known
            reason, table, size = self._difference(header), segment.table, 0
            if table.num_rows:
                part = self.folder / ("apart" if reason else "rows")
                size = _write(part / f"day={segment.day}" / f"agent={header.agent}", header, table)
            own = positions.pop(header.boot, {})
            positions[header.boot] = {**own, header.lane: header.last}
            newest = dict(list(positions.items())[-MAX_BOOTS:])
            write_atomically(agent / "position.json", orjson.dumps(newest), mode=0o600)
        return StoredSegment("apart" if reason else "stored", header.last, table.num_rows, size, reason)

    def known(self, header: SegmentHeader) -> StoredSegment | None:
        """Return what becomes of a segment that adds nothing: a duplicate, an overlap, or one after a gap; None for any other.

        Raises:
            OSError, ValueError: the positions of the agent cannot be read.
        """
        return _known(header, _read_positions(self.folder / "agents" / header.agent / "position.json"))

    def reference(self) -> FleetReference | None:
        """Return what rows must agree in; None before the first segment.

        Raises:
            OSError, ValueError: the file cannot be read, or is not ours.
        """
        try:
            return FleetReference.model_validate_json((self.folder / "reference.json").read_bytes())
        except FileNotFoundError:
            return None

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
    private_folder(folder)
    path = folder / f"{header.boot}-{header.lane}-{header.first:012d}.parquet"
    with new_file(path, mode=0o600) as draft:
        pq.write_table(table, draft, compression="zstd")
    return path.stat().st_size


def _read_positions(path: Path) -> dict[str, dict[str, int]]:
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
