"""Read the experience folder, from any number of other processes. Writes nothing.

Rows are read by ranges of their number; each is checked against its checksum, and what does not read is counted and left
out. A file that was set aside and replaced by the writer is noticed by its inode and opened again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import orjson

from learners.config.rewards import BY_MODEL
from learners.experience.records import Label, Raw, StoredLabel
from learners.experience.schema import SCHEMA
from learners.experience.transition import Malformed, Transition, checksum, decode_body, decode_head
from learners.files import read_only

_COLUMNS = (
    "row, session, tick, decision, stamp_s, policy, reward, done, intervention, demonstration, failure, truncated, success, value,"
    " crc, head, body"
)
READABLE = {SCHEMA: _COLUMNS, 4: _COLUMNS, 3: _COLUMNS, 2: _COLUMNS.replace("failure, truncated, success", "0, 0, 0")}
"""The columns of a row by schema. A state directory that was not opened since an update is read as it is."""

_FORMER_LABELS = (
    "SELECT task, label, text, decision, source, stamp_s, id FROM labels WHERE task = ? AND id > ? AND 0 = ?"
    " AND 'label:' || source NOT IN (SELECT source FROM sources WHERE quarantined) ORDER BY id"
)
_LABELS = _FORMER_LABELS.replace("AND 0 = ?", "AND held_out = ? AND removed_s IS NULL")
_HISTORY = (
    "SELECT task, label, text, decision, source, stamp_s, id, held_out, replaces, removed_s, removed_by FROM labels"
)


@dataclass(frozen=True, slots=True)
class Row:
    """A stored transition and its number; numbers only grow."""

    row: int
    transition: Transition


@dataclass(frozen=True, slots=True)
class Change:
    """What a late reward or mark did to a row: reward, done, intervention, demonstration, failure, truncated and success."""

    id: int
    row: int
    before: dict[str, float]
    after: dict[str, float]


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Some neighbouring rows, as `Database` stores and evicts them."""

    number: int
    """Of the block: the row divided by `BLOCK`."""
    rows: int
    bytes: int
    is_reserved: bool
    """Whether a row has a correction, a demonstration, an outcome or an end of an episode."""
    stamp_s: float
    """Unix seconds of the newest row."""


@dataclass(frozen=True, slots=True)
class Rewarded:
    """One reward as it arrived."""

    id: int
    row: int
    value: float
    source: str
    stamp_s: float


class Reader:
    """Opened lazily: the writer may come later. Not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "experience.db"
        self.unreadable = 0
        """Rows left out because they did not read or their checksum was wrong."""
        self._db: sqlite3.Connection | None = None
        self._inode = 0
        self._schema = SCHEMA

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read a consistent snapshot inside the context."""
        db = self._connection()
        if db is None:
            yield
            return
        db.execute("BEGIN")
        try:
            yield
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def count(self) -> int:
        """Return the number of stored rows."""
        return self._one("SELECT count(*) FROM transitions")

    def last_row(self) -> int:
        """Return the newest row's number, 0 if there is none."""
        return self._one("SELECT coalesce(max(row), 0) FROM transitions")

    def first_row(self) -> int:
        """Return the oldest row's number, 0 if there is none."""
        return self._one("SELECT coalesce(min(row), 0) FROM transitions")

    def next_row(self, row: int) -> int | None:
        """Return the number of the oldest row that has this number or a larger one; None if there is none."""
        found = self._all("SELECT min(row) FROM transitions WHERE row >= ?", (row,))
        return None if not found or found[0][0] is None else int(found[0][0])

    def last_change(self) -> int:
        """Return the newest change's number, 0 if there is none."""
        return self._one("SELECT coalesce(max(id), 0) FROM changes")

    def rows(self, start: int, stop: int) -> list[Row]:
        """Return rows with `start <= row < stop`, in order."""
        return self._decoded(self._ranged(start, stop))

    def newest(self, count: int) -> list[Row]:
        """Return the last `count` rows, oldest first."""
        query = f"SELECT {self._columns()} FROM transitions ORDER BY row DESC LIMIT ?"  # noqa: S608 - our own columns
        return self._decoded(self._all(query, (count,))[::-1])

    def pick(self, numbers: Sequence[int]) -> list[Row]:
        """Return the rows with the given numbers, in that order; missing ones are skipped."""
        query = f"SELECT {self._columns()} FROM transitions WHERE row = ?"  # noqa: S608 - our own columns
        return self._decoded([found for number in numbers for found in self._all(query, (number,))])

    def blocks(self, first: int, count: int, size: int) -> list[RowBlock]:
        """Return the blocks that have rows, in order, among `count` blocks from number `first`; a block is `size` rows.

        The flags are those of schema 3 and later.
        """
        found = self._all(
            "SELECT row / ?, count(*), sum(bytes), max(done OR intervention OR demonstration OR failure OR success), max(stamp_s)"
            " FROM transitions WHERE row >= ? AND row < ? GROUP BY row / ? ORDER BY row",
            (size, first * size, (first + count) * size, size),
        )
        return [
            RowBlock(number, rows, bytes_, bool(reserved), stamp_s) for number, rows, bytes_, reserved, stamp_s in found
        ]

    def bytes_after(self, row: int) -> int:
        """Return how many bytes the rows with a larger number have."""
        found = self._all("SELECT coalesce(sum(bytes), 0) FROM transitions WHERE row > ?", (row,))
        return int(found[0][0]) if found else 0

    def decision(self, decision: str) -> Row | None:
        """Return the row of a decision."""
        query = f"SELECT {self._columns()} FROM transitions WHERE decision = ? ORDER BY row DESC LIMIT 1"  # noqa: S608 - ours
        found = self._decoded(self._all(query, (decision,)))
        return found[0] if found else None

    def at(self, stamp_s: float) -> Transition | None:
        """Return the tick of exactly this stamp."""
        query = f"SELECT {self._columns()} FROM transitions WHERE stamp_s = ? ORDER BY row DESC LIMIT 1"  # noqa: S608 - ours
        found = self._decoded(self._all(query, (stamp_s,)))
        return found[0].transition if found else None

    def changes(self, since: int, until: int | None = None) -> list[Change]:
        """Return changes with `since < id <= until`, in order."""
        stop = (1 << 62) if until is None else until
        found = self._all(
            "SELECT id, row, before, after FROM changes WHERE id > ? AND id <= ? ORDER BY id", (since, stop)
        )
        return [Change(id_, row, orjson.loads(before), orjson.loads(after)) for id_, row, before, after in found]

    def rewards(self, since: int = 0, limit: int = 10_000) -> list[Rewarded]:
        """Return rewards in order of arrival, with their source and `id > since`."""
        query = "SELECT id, row, value, source, stamp_s FROM rewards WHERE id > ? ORDER BY id LIMIT ?"
        return [Rewarded(*found) for found in self._all(query, (since, limit))]

    def without_models(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows without the rewards that models gave: these train the policy of this device, and judge nothing.

        Args:
            rows: with rising numbers.
        """
        if not rows:
            return []
        found = self._all(
            "SELECT row, sum(value) FROM rewards WHERE row BETWEEN ? AND ? AND substr(source, 1, ?) = ?"
            " AND source NOT IN (SELECT source FROM sources WHERE quarantined) GROUP BY row",
            (rows[0].row, rows[-1].row, len(BY_MODEL), BY_MODEL),
        )
        given = {int(row): float(value) for row, value in found}
        return [
            replace(row, transition=replace(row.transition, reward=row.transition.reward - given[row.row]))
            if row.row in given
            else row
            for row in rows
        ]

    def quarantined(self) -> list[str]:
        """Return the sources of quarantined rewards."""
        return [source for (source,) in self._all("SELECT source FROM sources WHERE quarantined ORDER BY source", ())]

    def labels(self, task: str, since: int = 0, *, held_out: bool = False, newest: int | None = None) -> list[Label]:
        """Return the labels of a task that count, oldest first: no removed ones, and none of quarantined sources (`label:SOURCE`).

        Args:
            task: name of the task.
            since: only labels with a larger number.
            held_out: those that were put aside as the held-out file, instead of those that may train.
            newest: how many at most, the newest of them; default: all.
        """
        query = _LABELS if self._has_label_history() else _FORMER_LABELS
        query = f"SELECT * FROM ({query} DESC LIMIT ?) ORDER BY id"  # noqa: S608 - two constants
        limit = -1 if newest is None else newest
        return [_read_label(row) for row in self._all(query, (task, since, int(held_out), limit))]

    def label_history(self, task: str, count: int, before: int | None = None) -> list[StoredLabel]:
        """Return the newest labels of a task with those that were corrected or removed, newest first.

        Args:
            task: name of the task.
            count: the most labels that are returned.
            before: only labels with a smaller number.
        """
        if not self._has_label_history():
            return []
        query = f"{_HISTORY} WHERE task = ? AND id < ? ORDER BY id DESC LIMIT ?"
        found = self._all(query, (task, (1 << 62) if before is None else before, count))
        return [_stored_label(row) for row in found]

    def labels_by_number(self, task: str, numbers: Sequence[int]) -> list[StoredLabel]:
        """Return labels of a task by their numbers, in that order; missing ones are left out."""
        if not self._has_label_history():
            return []
        query = f"{_HISTORY} WHERE task = ? AND id = ?"
        return [_stored_label(row) for number in numbers for row in self._all(query, (task, number))]

    def label_counts(self, task: str) -> dict[str, tuple[int, int]]:
        """Return for each class of a task how many labels may train and how many are put aside; for a set of labels its names joined."""
        if not self._has_label_history():
            return {}
        query = "SELECT label, sum(held_out = 0), sum(held_out) FROM labels WHERE task = ? AND removed_s IS NULL GROUP BY label"
        found = [(_label(orjson.loads(label)), train, aside) for label, train, aside in self._all(query, (task,))]
        return {name if isinstance(name, str) else ", ".join(name): (train, aside) for name, train, aside in found}

    def labelled_texts(self, task: str, texts: Sequence[str]) -> dict[str, tuple[int, str]]:
        """Return the newest label that counts, as number and class, of each text that has one."""
        if not self._has_label_history():
            return {}
        query = (
            "SELECT id, label FROM labels WHERE task = ? AND text = ? AND removed_s IS NULL ORDER BY id DESC LIMIT 1"
        )
        rows = ((text, row) for text in texts for row in self._all(query, (task, text)))
        return {text: (number, str(orjson.loads(label))) for text, (number, label) in rows}

    def labelled_hashes(self, task: str, stream: str, limit: int) -> list[tuple[int, str, bytes]]:
        """Return number, class and perceptual hash of the newest labels about readings of a stream, newest first."""
        query = (
            "SELECT l.label, r.class, r.hash FROM labelled l JOIN labelled_readings r ON r.id = l.reading"
            " WHERE r.task = ? AND r.stream = ? ORDER BY l.label DESC LIMIT ?"
        )
        try:
            found = self._rows(query, (task, stream, limit))
        except sqlite3.OperationalError:  # an older program wrote the file
            return []
        return [(number, str(orjson.loads(name)), digest) for number, name, digest in found]

    def raw_stamps(self, stream: str, limit: int) -> list[tuple[int, float]]:
        """Return number and stamp (Unix seconds) of the newest raw readings of a stream, newest first."""
        return self._rows("SELECT id, stamp_s FROM raw WHERE stream = ? ORDER BY stamp_s DESC LIMIT ?", (stream, limit))

    def raw_by_number(self, numbers: Sequence[int]) -> dict[int, Raw]:
        """Return raw readings by their numbers; deleted ones are left out."""
        marks = ",".join("?" * len(numbers))
        query = f"SELECT id, stream, stamp_s, encoding, data FROM raw WHERE id IN ({marks})"  # noqa: S608 - question marks
        return {number: Raw(*found) for number, *found in self._rows(query, tuple(numbers))}

    def raw(self, stream: str, start_s: float, stop_s: float) -> list[Raw]:
        """Raw readings of a stream with `start_s <= stamp_s < stop_s` (Unix)."""
        query = "SELECT stream, stamp_s, encoding, data FROM raw WHERE stream = ? AND stamp_s >= ? AND stamp_s < ?"
        return [Raw(*found) for found in self._rows(f"{query} ORDER BY stamp_s", (stream, start_s, stop_s))]

    def labelled(self, label: int) -> dict[str, Raw]:
        """Return the copies of the readings that a label is about, by stream; empty if none were made or they are deleted."""
        query = (
            "SELECT l.stream, r.stamp_s, r.encoding, r.data FROM labelled l JOIN labelled_readings r ON r.id = l.reading"
            " WHERE l.label = ?"
        )
        try:
            return {found[0]: Raw(*found) for found in self._rows(query, (label,))}
        except sqlite3.OperationalError:  # an older program wrote the file, and no newer one has opened it
            return {}

    def raw_streams(self) -> frozenset[str]:
        """Return the streams with stored raw readings."""
        return frozenset(stream for (stream,) in self._rows("SELECT DISTINCT stream FROM raw", ()))

    def _rows(self, query: str, arguments: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        path = self.path.with_name("raw.db")
        if not path.exists():
            return []
        db = sqlite3.connect(read_only(path), uri=True)
        try:
            return db.execute(query, arguments).fetchall()
        finally:
            db.close()

    def _ranged(self, start: int, stop: int) -> list[tuple[Any, ...]]:
        """Read a range; halve it if it is unreadable, until single rows are skipped."""
        query = f"SELECT {self._columns()} FROM transitions WHERE row >= ? AND row < ? ORDER BY row"  # noqa: S608 - ours
        try:
            return self._all(query, (start, stop))
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            if stop - start <= 1:
                self.unreadable += 1
                return []
            middle = (start + stop) // 2
            return self._ranged(start, middle) + self._ranged(middle, stop)

    def _decoded(self, found: list[tuple[Any, ...]]) -> list[Row]:
        rows: list[Row] = []
        for row, session, tick, decision, stamp_s, policy, reward, *flags, value, crc, head, body in found:
            if checksum(session + decision, head, body) != crc:
                self.unreadable += 1
                continue
            try:
                fields = decode_head(head)
                fields["tokens"] = decode_body(fields["tokens"], body)
            except Malformed:
                self.unreadable += 1
                continue
            done, intervention, demonstration, failure, truncated, success = map(bool, flags)
            rows.append(
                Row(
                    row,
                    Transition(
                        session=session, tick=tick, decision=decision, stamp_s=stamp_s, policy=policy, reward=reward,
                        done=done, intervention=intervention, demonstration=demonstration, failure=failure, truncated=truncated,
                        success=success, value=value,
                        **fields,
                    ),
                )
            )  # fmt: skip
        return rows

    def _one(self, query: str) -> int:
        found = self._all(query, ())
        return int(found[0][0]) if found else 0

    def _all(self, query: str, arguments: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        db = self._connection()
        return db.execute(query, arguments).fetchall() if db is not None else []

    def _connection(self) -> sqlite3.Connection | None:
        try:
            inode = self.path.stat().st_ino
        except FileNotFoundError:
            self.close()
            return None
        if self._db is not None and inode == self._inode:
            return self._db
        self.close()
        db = sqlite3.connect(read_only(self.path), uri=True, timeout=5.0, check_same_thread=False, isolation_level=None)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.DatabaseError:
            db.close()
            return None  # being made, or broken: the writer deals with it
        if version not in READABLE:
            db.close()
            return None  # not there yet, or to be migrated by the writer first
        self._db, self._inode, self._schema = db, inode, version
        return db

    def _columns(self) -> str:
        """Return the columns of a row in the file that is open."""
        return READABLE[self._current_schema()]

    def _has_label_history(self) -> bool:
        """Return whether the file that is open says which labels are put aside, corrected and removed."""
        return self._current_schema() > 4

    def _current_schema(self) -> int:
        db = self._connection()
        if db is not None and self._schema != SCHEMA:  # the writer may have migrated the file
            self._schema = db.execute("PRAGMA user_version").fetchone()[0]
        return self._schema


def _read_label(row: tuple[Any, ...]) -> Label:
    return Label(row[0], _label(orjson.loads(row[1])), *row[2:7])


def _stored_label(row: tuple[Any, ...]) -> StoredLabel:
    return StoredLabel(_read_label(row), bool(row[7]), *row[8:])


def _label(value: str | list[str]) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value)
