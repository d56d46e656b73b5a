"""Read the rows of a lane from the Parquet files of an agent, as far as its positions say that they are on disk.

Files that the server merged into larger ones are read by row groups. A list of files is taken under the lock of the agent; a file
that is gone when it is read was merged since, and the files are listed again.

Shapes and limits of each row are checked once more. Rows with another spec or other encoder versions are counted and left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from learners.experience.transition import Transition
from learners.files import locked
from learners.fleet_data.parquet_log import FleetReference
from learners.fleet_data.row_files import RowFile, agent_files, header_of, is_broken, last_row_of
from learners.fleet_data.segment import Lane, RowLimits, SegmentRefused, transition_of

RUN_ROWS = 1_024
"""Of one agent in one transaction."""
EVERY_ROW = 1 << 62
"""Above each row number: every row of a boot that the positions forgot is on disk."""
Files = Mapping[tuple[str, str], list[RowFile]]
"""By boot and lane, the files in the order of their rows."""


@dataclass(slots=True)
class UnreadLane:
    """What is to be read of a lane."""

    read: int
    """The last row that is merged or passed."""
    stored: int
    """The last row that is on disk."""
    files: list[RowFile] = field(default_factory=list)
    """Those with further rows."""


@dataclass(slots=True)
class LaneReader:
    """Reads the files of one group."""

    group: Path
    """Its folder, as `ParquetLog` writes it."""
    limits: RowLimits
    shapes: Mapping[str, tuple[int, int]]
    """By stream of the spec, the tokens and their width; rows with other ones are `other`."""
    counts: Counter[str]
    """Rows that do not train: `other`, `unreadable`; `unreadable_files`."""

    def files(self, agent: str) -> Files:
        """Return the files of an agent."""
        found: dict[tuple[str, str], list[RowFile]] = defaultdict(list)
        with locked(self.group / "agents" / agent):
            for each in agent_files(self.group, agent):
                found[each.boot, each.lane].append(each)
        return {name: sorted(each, key=lambda file: file.first) for name, each in found.items()}

    def rows(
        self, lanes: dict[Lane, UnreadLane], reference: FleetReference
    ) -> tuple[list[tuple[int, Lane, Transition | None]], bool]:
        """Return rows with their lanes, up to about `RUN_ROWS` of each lane, and whether these are all.

        None is a row that does not train.
        """
        found: list[tuple[int, Lane, Transition | None]] = []
        is_whole = True
        for lane, wanted in lanes.items():
            count = 0
            for rows in self.groups(wanted, reference):
                if count > RUN_ROWS:
                    is_whole = False
                    break
                for fields in rows:
                    row = fields["row"]
                    if wanted.read < row <= wanted.stored:
                        found.append((row, lane, self.transition(fields, reference)))
                        count += 1
        if not is_whole:  # rows of the lanes go in one order, so only up to where every lane was read
            limit = min(
                max(row for row, its_lane, _ in found if its_lane == lane) for lane in self._cut_lanes(lanes, found)
            )
            found = [each for each in found if each[0] <= limit]
        return found, is_whole

    @staticmethod
    def _cut_lanes(lanes: dict[Lane, UnreadLane], found: Iterable[tuple[int, Lane, Transition | None]]) -> list[Lane]:
        """Return the lanes of which not all rows were read."""
        counts = Counter(lane for _, lane, _ in found)
        return [lane for lane in lanes if counts[lane] > RUN_ROWS]

    def groups(self, wanted: UnreadLane, reference: FleetReference) -> Iterator[list[dict[str, Any]]]:
        """Return the rows of a lane's files by row group; nothing of one that is broken or of another spec.

        Raises:
            OSError, MemoryError: a file cannot be read now, or is gone and has to be listed again.
        """
        for each in wanted.files:
            try:
                with each.path.open("rb") as file:
                    yield from self._groups_of(pq.ParquetFile(file), wanted.read, reference)
            except (pa.ArrowException, OSError, ValueError) as error:
                self._require_broken(error)

    def _groups_of(self, parquet: Any, read: int, reference: FleetReference) -> Iterator[list[dict[str, Any]]]:
        """Return the rows of a file's row groups behind a row; a group that is broken is counted."""
        header = header_of(parquet.metadata.metadata)
        if header is not None and header.spec != reference.spec:
            self.counts["other"] += parquet.metadata.num_rows
            return
        for number in range(parquet.num_row_groups):
            with suppress(ValueError):  # no statistics, such as of a file that another program wrote
                if last_row_of(parquet.metadata, number) <= read:
                    continue
            try:
                rows: list[dict[str, Any]] = parquet.read_row_group(number).to_pylist()
            except (pa.ArrowException, OSError, ValueError) as error:
                self._require_broken(error)
                continue
            yield rows

    def _require_broken(self, error: Exception) -> None:
        """Count a broken file; raise an error that may pass.

        Raises:
            OSError, MemoryError: the file cannot be read now.
        """
        if isinstance(error, MemoryError) or not is_broken(error):
            raise error
        self.counts["unreadable_files"] += 1

    def transition(self, fields: dict[str, Any], reference: FleetReference) -> Transition | None:
        """Return a stored row; None, counted, where it is invalid or of another spec or other encoders."""
        try:
            transition = transition_of(fields, self.limits)
        except (SegmentRefused, KeyError):
            self.counts["unreadable"] += 1
            return None
        is_of_spec = all(
            tokens.shape == self.shapes.get(name, tokens.shape) for name, tokens in transition.tokens.items()
        )
        if not is_of_spec or dict(transition.encoder_versions) != reference.encoder_versions:
            self.counts["other"] += 1
            return None
        return transition


def unread_files(files: list[RowFile], wanted: UnreadLane) -> list[RowFile]:
    """Return the files of a lane that may have further rows."""
    later = [*[each.first for each in files[1:]], *([EVERY_ROW] if files else [])]
    return [
        each
        for each, following in zip(files, later, strict=True)
        if following > wanted.read + 1 and each.first <= wanted.stored
    ]
