"""Decide which experience leaves the device next, and remember what its fleet has on disk.

The queue holds no rows: the experience store has them until its own limits delete them. `uplink/position.json` says up to which
row each lane was acknowledged; `uplink/segment` is the one segment on its way, so that the same bytes are sent again after a
restart. The uplink process uses it; it runs beside the writer of the store and only reads it. Knows no MQTT.

- Rows wait for a while until a segment is half full: each one is a file on the server.
- Rows are sent in blocks of `BLOCK`, as the store evicts them: a transition needs its neighbours.
- A block is closed when the next one has begun and its newest row is `settle_s` old: late rewards have found it.
- A block with a stamp in the future (the clock was wrong) is closed when `settle_s` have passed since it was seen.
- Each closed block is sorted into one lane, once: a later correction does not move it. `urgent` goes first, `rest` follows.
- A reward or correction that comes after its row has left is sent as an amendment (`uplink_amendments.py`), between both lanes.
- Where the budget of an hour is smaller than what waits, a block of the rest is chosen with `sampling_probability`.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from secrets import token_hex

from learners.experience.database import BLOCK
from learners.experience.reader import Reader, Row, RowBlock
from learners.files import private_folder, write_atomically
from learners.fleet_data.segment import (
    AMENDMENTS,
    LANES,
    MAX_BYTES,
    MAX_RAW_BYTES,
    Lane,
    SegmentHeader,
    SegmentRefused,
    SentRow,
    pack,
    read_header,
    segment_digest,
)
from learners.fleet_data.uplink_amendments import LateChanges
from learners.fleet_data.uplink_position import UplinkPosition

SETTLE_S = 10.0
HEADER_BYTES = 256
"""Of a segment's limit, for the names in its header."""
SCAN_BLOCKS = 2_048
"""Blocks that are looked at for one segment."""
GATHER_S: dict[Lane, float] = {"urgent": 2.0, "rest": 60.0}
"""How long closed rows wait at most until a segment is half full: each segment is a file on the server."""
MAX_URGENT_BLOCKS = 8_192
"""Blocks of the urgent lane that are remembered; further ones are sorted when some of these have passed."""
SMALLEST_SEGMENT = 16_384
LOWEST_PROBABILITY = 0.001
CUTS = 4
"""Attempts in each lane to cut a segment, where all rows that were looked at are left out."""
WEIGH_S = 60.0
"""Between two looks at how much waits."""


@dataclass(frozen=True, slots=True)
class PendingSegment:
    """The segment on its way."""

    header: SegmentHeader
    payload: bytes

    @property
    def digest(self) -> str:
        """By which an answer names it."""
        return segment_digest(self.payload)


@dataclass(frozen=True, slots=True)
class UplinkIdentity:
    """What each segment says of its sender."""

    group: str
    agent: str
    spec: str
    """Digest of the policy spec that the agent runs."""
    daemon: str
    spec_since_s: float = 0.0
    """Unix seconds from which the agent runs it: older rows have the spec before."""


class UplinkQueue:
    """The next segment, one at a time. Not for several threads at once.

    Args:
        state_dir: of the daemon.
        bytes_per_hour: the budget, by which the rest is thinned, and which limits a segment to what it carries in 30 s.
        max_age_s: older rows are not sent any more.
        settle_s: seconds until late rewards have found a row.
        clock: Unix seconds, as the stamps of the rows.
        monotonic: seconds.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        bytes_per_hour: float,
        max_age_s: float,
        settle_s: float = SETTLE_S,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = state_dir / "uplink"
        self.reader = Reader(state_dir / "experience")
        self.counts: Counter[str] = Counter()
        """Rows by what became of them: `thinned`, `expired`, `too_large`, `before_spec`; `refused` counts segments that were given up,
        `new_boot` changes of the boot."""
        self.max_bytes = int(min(MAX_BYTES, max(SMALLEST_SEGMENT, bytes_per_hour / 120)))
        """Of a segment: a correction waits for at most one that was cut before it."""
        self._bytes_per_hour, self._max_age_s, self._settle_s = bytes_per_hour, max_age_s, settle_s
        self._clock, self._monotonic = clock, monotonic
        self._ratio = 1.0
        """Bytes on the wire over bytes in the store, of the last segment."""
        self._weighed: tuple[float, float] = (-float("inf"), 1.0)
        self._ahead: tuple[int, float] = (0, 0.0)
        """The newest row at a moment of the monotonic clock, when a block with a stamp in the future was seen."""
        self._changes = LateChanges(self.reader, max_age_s, clock, monotonic)
        private_folder(self.folder)
        self.position = UplinkPosition.read(self.folder)
        self.pending = self._read_pending()

    def close(self) -> None:
        """Close the experience store."""
        self.reader.close()

    def next(self, identity: UplinkIdentity) -> PendingSegment | None:
        """Return the segment on its way, else cut the next one; None while nothing is closed.

        Raises:
            OSError, sqlite3.Error: the store cannot be read, or the segment cannot be written.
        """
        if self.pending is not None and self._is_of(identity, self.pending.header):
            return self.pending
        self.pending = None
        self._check_store()
        if self.position.follow_spec(identity.spec, identity.spec_since_s):
            self.position.write(self.folder)
        self._sort()
        for _ in range(CUTS):
            passed = dict(self.position.passed)
            for cut in (partial(self._cut, "urgent"), self._cut_amendments, partial(self._cut, "rest")):
                found = cut(identity)
                if found is not None:
                    self.position.write(self.folder)  # first: the sorting that the segment relies on
                    write_atomically(self.folder / "segment", found.payload, mode=0o600)
                    self.pending = found
                    return found
            if passed == self.position.passed:
                break
        return None

    def acknowledge(self, digest: str, last: int) -> bool:
        """Note what the fleet has on disk; False for an answer that is not about the segment on its way.

        Args:
            digest: of the segment that is answered.
            last: the highest row of the segment's lane up to which the fleet has everything on disk.

        Raises:
            OSError: the position cannot be written; the segment is sent again.
        """
        pending = self.pending
        if pending is None or digest != pending.digest:
            return False
        if last < pending.header.first - 1:
            self._begin_boot()  # the fleet lost what it had, or never had it
            return True
        if last != pending.header.last and last >= pending.header.first:
            self._begin_boot(is_behind=True)  # the fleet has other rows under these numbers: this state was restored
            return True
        if last != pending.header.last:
            return False
        self._pass(pending.header)
        return True

    def discard_pending(self) -> None:
        """Give up the segment on its way, which the fleet refuses for good, and go on behind it.

        Raises:
            OSError: the position cannot be written.
        """
        if self.pending is not None:
            self.counts["refused"] += 1
            self._pass(self.pending.header)

    def backlog_rows(self) -> int:
        """Return the distance from the last row that was passed, or deleted behind it, to the newest."""
        passed = max(min(self.position.passed.values()), self.reader.first_row() - 1)
        return max(0, self.reader.last_row() - passed)

    @property
    def sampling_probability(self) -> float:
        """The share of the rest that is chosen at present."""
        return self._weighed[1]

    # --- cutting

    def _sort(self) -> None:
        """Note which closed blocks belong to the urgent lane."""
        position = self.position
        newest = self.reader.last_row()
        for block in self._blocks_after(position.sorted_row):
            is_full = len(position.urgent_blocks) >= MAX_URGENT_BLOCKS
            if is_full or newest <= _end(block) or not self._is_settled(block, newest):
                break
            position.sorted_row = _end(block)
            if block.is_reserved:
                position.urgent_blocks.append(block.number)

    def _blocks_after(self, row: int) -> list[RowBlock]:
        """Return blocks from the first existing row behind one: any number of rows may be deleted between."""
        start = self.reader.next_row(row + 1)
        return [] if start is None else self.reader.blocks(start // BLOCK, SCAN_BLOCKS, BLOCK)

    def _is_settled(self, block: RowBlock, newest: int) -> bool:
        """Return whether late rewards have found a block; a stamp in the future says nothing about it."""
        now_s = self._clock()
        if block.stamp_s <= now_s:
            return block.stamp_s <= now_s - self._settle_s
        newest_rows = self.reader.rows(newest, newest + 1)
        if newest_rows and newest_rows[0].transition.stamp_s <= now_s - self._settle_s:
            return True
        seen, since_s = self._ahead
        if _end(block) > seen:
            self._ahead = (newest, self._monotonic())
            return False
        return self._monotonic() - since_s >= self._settle_s

    def _cut(self, lane: Lane, identity: UplinkIdentity) -> PendingSegment | None:
        position = self.position
        probability = self._probability() if lane == "rest" else 1.0
        chosen: list[RowBlock] = []
        left_out: Counter[str] = Counter()
        last, size = position.passed[lane], 0.0
        budget = min(0.8 * self.max_bytes / self._ratio, MAX_RAW_BYTES / 4)
        urgent, oldest_s = set(position.urgent_blocks), self._clock() - self._max_age_s
        for block in self._blocks_after(last):
            if _end(block) > position.sorted_row:
                break
            is_wanted = (block.number in urgent) == (lane == "urgent")
            if is_wanted and chosen and size + block.bytes > budget:
                break
            last = _end(block)
            if is_wanted and block.stamp_s < oldest_s:
                left_out["expired"] += block.rows
            elif is_wanted and self._draw(block) >= probability:
                left_out["thinned"] += block.rows
            elif is_wanted:
                chosen.append(block)
                size += block.bytes
        now_s = self._clock()
        if chosen and size < budget / 2 and now_s - self._settle_s - GATHER_S[lane] < chosen[0].stamp_s <= now_s:
            return None
        self.counts += left_out
        if chosen:
            return self._packed(lane, identity, chosen, last, probability)
        position.passed[lane] = last
        self.position.forget_urgent()
        return None

    def _cut_amendments(self, identity: UplinkIdentity) -> PendingSegment | None:
        """Return the next late rewards and corrections of rows that left."""
        newest = self.reader.last_change()
        if newest < self.position.amended:  # the log of changes began again: it was salvaged
            self._begin_boot(is_behind=True)
        position = self.position
        if position.changes_passed is None or newest < position.changes_passed:
            position.changes_passed = newest
        found, last = self._changes.after(position.changes_passed, max(position.passed.values()))
        rows = [row for row in found if position.spec_at(row.transition.stamp_s) is not None]
        same = self._alike(rows)
        while same:
            header = SegmentHeader(
                group=identity.group,
                agent=identity.agent,
                daemon=identity.daemon,
                spec=position.spec_at(same[0].transition.stamp_s) or identity.spec,
                boot=position.boot,
                lane=AMENDMENTS,
                first=position.amended + 1,
                last=last if len(same) == len(rows) else same[-1].row,
                encoder_versions=dict(same[0].transition.encoder_versions),
            )
            payload = pack(header, [SentRow(row) for row in same])
            if len(payload) <= self.max_bytes or len(same) == 1:  # a single one has no tokens
                return PendingSegment(header, payload)
            same = same[: len(same) // 2]
        position.changes_passed = last
        return None

    def _draw(self, block: RowBlock) -> float:
        """Return a number in [0, 1) that is the same for a block each time."""
        digest = hashlib.sha256(f"{self.position.boot}/{block.number}".encode()).digest()
        return int.from_bytes(digest[:7]) / (1 << 56)

    def _probability(self) -> float:
        """Return the share of the rest that the budget of an hour carries."""
        now_s, probability = self._monotonic(), self._weighed[1]
        if now_s - self._weighed[0] > WEIGH_S:
            waiting = self.reader.bytes_after(self.position.acknowledged["rest"]) * self._ratio
            probability = max(LOWEST_PROBABILITY, min(1.0, self._bytes_per_hour / max(1.0, waiting)))
            self._weighed = (now_s, probability)
        return probability

    def _packed(
        self, lane: Lane, identity: UplinkIdentity, blocks: list[RowBlock], last: int, probability: float
    ) -> PendingSegment | None:
        """Encode blocks; fewer rows where the result is too large, or where encoder versions change within."""
        passed = self.position.passed[lane]
        found = [
            row
            for block in blocks
            for row in self.reader.without_models(
                self.reader.rows(max(passed + 1, block.number * BLOCK), _end(block) + 1)
            )  # the learner of the fleet could not tell them from others, and would judge versions by them
        ]
        before_spec = [row.row for row in found if self.position.spec_at(row.transition.stamp_s) is None]
        too_large = [row.row for row in found if not self._fits(row)]
        left_out = {*before_spec, *too_large}
        rows = [row for row in found if row.row not in left_out]
        same = self._alike(rows)
        while same:
            header = SegmentHeader(
                group=identity.group,
                agent=identity.agent,
                daemon=identity.daemon,
                spec=self.position.spec_at(same[0].transition.stamp_s) or identity.spec,
                boot=self.position.boot,
                lane=lane,
                first=self.position.acknowledged[lane] + 1,
                last=last if len(same) == len(rows) else same[-1].row,
                encoder_versions=dict(same[0].transition.encoder_versions),
            )
            payload = pack(header, [SentRow(row, probability) for row in same])
            if len(payload) <= (self.max_bytes if len(same) > 1 else MAX_BYTES):
                size = sum(block.bytes for block in blocks) * len(same) / len(rows)
                self._ratio = max(0.02, min(1.0, len(payload) / max(1.0, size)))
                self._count_left_out(before_spec, too_large, header.last)
                return PendingSegment(header, payload)
            if len(same) == 1:
                self.counts["too_large"] += 1
                last = same[0].row
            same = same[: len(same) // 2]
        self._count_left_out(before_spec, too_large, last)
        self.position.passed[lane] = last
        return None

    def _count_left_out(self, before_spec: list[int], too_large: list[int], last: int) -> None:
        """Count rows up to the last one that is passed: later ones are looked at again."""
        for name, numbers in (("before_spec", before_spec), ("too_large", too_large)):
            self.counts[name] += sum(number <= last for number in numbers)

    def _fits(self, row: Row) -> bool:
        """Return whether a segment can carry a row; those that are small enough without compression are not encoded for it."""
        t = row.transition
        if sum(tokens.nbytes for tokens in t.tokens.values()) < MAX_BYTES / 2:
            return True
        header = SegmentHeader(
            group="a", agent="a", daemon="0", spec="0" * 64, boot="0" * 16, lane="rest", first=row.row, last=row.row,
            encoder_versions=dict(t.encoder_versions),
        )  # fmt: skip
        return len(pack(header, [SentRow(row)])) <= MAX_BYTES - HEADER_BYTES

    def _alike(self, rows: Sequence[Row]) -> list[Row]:
        """Return the first rows that have the encoder versions and the policy spec of the first."""
        alike: list[Row] = []
        for row in rows:
            t, first = row.transition, rows[0].transition
            is_alike = dict(t.encoder_versions) == dict(first.encoder_versions)
            if not is_alike or self.position.spec_at(t.stamp_s) != self.position.spec_at(first.stamp_s):
                break
            alike.append(row)
        return alike

    # --- positions

    def _pass(self, header: SegmentHeader) -> None:
        position = self.position
        if header.lane == AMENDMENTS:
            position.amended = position.changes_passed = header.last
            self._passed()
            return
        position.acknowledged[header.lane] = position.passed[header.lane] = header.last
        self.position.forget_urgent()
        newest = self.reader.rows(header.last, header.last + 1)
        if newest:
            position.anchor = (header.last, newest[0].transition.decision)
        self._passed()

    def _passed(self) -> None:
        """Store the position behind the segment on its way."""
        self.position.write(self.folder)
        self.pending = None
        (self.folder / "segment").unlink(missing_ok=True)

    def _check_store(self) -> None:
        """Begin again where the store is not the one that was acknowledged: it was deleted, or lost its newest rows."""
        anchor = self.position.anchor
        if anchor is None:
            return
        row, decision = anchor
        there = self.reader.rows(row, row + 1)
        last = self.reader.last_row()
        if (there and there[0].transition.decision != decision) or (last and last < row):
            self._begin_boot()

    def _begin_boot(self, *, is_behind: bool = False) -> None:
        """Begin another boot; with `is_behind` only with the rows that were not passed: the fleet has those before."""
        self.counts["new_boot"] += 1
        if is_behind:
            none = dict.fromkeys(LANES, 0)
            self.position = replace(self.position, boot=token_hex(8), acknowledged=none, amended=0, anchor=None)
        else:
            self.position = UplinkPosition(specs=self.position.specs)
        self.pending = None
        self.position.write(self.folder)
        (self.folder / "segment").unlink(missing_ok=True)

    def _read_pending(self) -> PendingSegment | None:
        try:
            payload = (self.folder / "segment").read_bytes()
            header = read_header(payload)
        except (FileNotFoundError, SegmentRefused):
            return None
        position = self.position
        acknowledged = position.amended if header.lane == AMENDMENTS else position.acknowledged[header.lane]
        is_next = header.boot == position.boot and header.first == acknowledged + 1
        return PendingSegment(header, payload) if is_next else None

    def _is_of(self, identity: UplinkIdentity, header: SegmentHeader) -> bool:
        return (identity.group, identity.agent) == (header.group, header.agent)


def _end(block: RowBlock) -> int:
    """Return the number of the last row of a block."""
    return (block.number + 1) * BLOCK - 1
