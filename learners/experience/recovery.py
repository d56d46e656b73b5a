"""Broken experience: set the file aside under a name that says so, and carry over every row that still reads.

A torn write-ahead log needs none of this: SQLite drops its unfinished tail. What cannot be read at all is in the
set-aside file for whoever wants to try; nothing is deleted here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.experience.schema import connect
from learners.experience.transition import checksum
from learners.files import access_refused, read_only

_TABLES = ("transitions", "rewards", "changes", "sources", "labels")
_STEP = 256
_BLIND_ROWS = 1 << 22
"""Rows tried when the file cannot say how many it has."""
_PATIENCE = 8_192
"""Failing reads in a row before a table is given up."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """What was done about a broken file."""

    path: Path
    reason: str
    salvaged: int
    lost: int
    """Rows that were there and did not read; 0 when the file cannot say how many it had."""


def quarantine_and_recover(path: Path, reason: str, stamp_s: float) -> SetAside:
    """Move a corrupt database (and its log) away, start an empty one, and copy the readable rows.

    The copy is written under another name and then renamed. A crash before that leaves the moved file complete and no file
    under the old name; the next start then creates an empty database.
    """
    moved = _free_name(path, int(stamp_s))
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(moved.with_name(moved.name + suffix))
    fresh = path.with_name(path.name)
    with closing(connect(fresh)) as new:
        salvaged, lost = _copy(moved, new) if path.name == "experience.db" else (0, 0)
    return SetAside(moved, reason, salvaged, lost)


def damaged(path: Path) -> str | None:
    """Return what is wrong with a database file, by its header and a walk over its tables; None if it seems intact.

    Raises:
        sqlite3.Error: the file cannot be read now, which says nothing about its content.
    """
    if not path.exists() or not path.stat().st_size:
        return None
    try:
        with closing(sqlite3.connect(read_only(path), uri=True)) as db:
            for name in ("transitions", "raw"):
                known = db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone()
                if known:
                    db.execute(f"SELECT count(*), sum(stamp_s) FROM {name}").fetchone()  # noqa: S608 - our own table names
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if access_refused(error):
            raise
        return str(error)
    return None if verdict == "ok" else str(verdict)


def _free_name(path: Path, stamp: int) -> Path:
    for n in range(1_000):
        candidate = path.with_name(f"{path.stem}.broken-{stamp}-{n}{path.suffix}")
        if not candidate.exists():
            return candidate
    raise FileExistsError(f"{path.parent} holds 1000 files set aside in one second; move them away")


def _copy(moved: Path, new: sqlite3.Connection) -> tuple[int, int]:
    try:
        old = sqlite3.connect(read_only(moved), uri=True)
        old.execute("PRAGMA writable_schema = ON")  # else SQLite refuses a file shorter than its header says
        highest = _highest(old)
    except sqlite3.DatabaseError:
        return 0, 0
    salvaged = seen = 0
    with closing(old):
        new.execute("BEGIN")
        for table in _TABLES:
            try:
                columns = [row[1] for row in old.execute(f"PRAGMA table_info({table})")]
            except sqlite3.DatabaseError:
                columns = []
            if not columns:
                continue
            key = {"transitions": "row", "sources": "rowid"}.get(table, "id")
            rows = _readable(old, table, columns, key, highest)
            if table == "transitions":
                rows = (row for row in rows if _whole(dict(zip(columns, row, strict=True))))
            taken = _fill(new, table, columns, rows)
            if table == "transitions":
                salvaged, seen = taken, highest
        new.execute("COMMIT")
    return salvaged, max(0, min(seen, _BLIND_ROWS - 1) - salvaged) if seen < _BLIND_ROWS else 0


def _highest(old: sqlite3.Connection) -> int:
    try:
        found = old.execute("SELECT max(seq) FROM sqlite_sequence").fetchone()
    except sqlite3.DatabaseError:
        return _BLIND_ROWS
    return int(found[0] or 0)


def _readable(
    old: sqlite3.Connection, table: str, columns: list[str], key: str, highest: int
) -> Iterator[tuple[Any, ...]]:
    """Read rows by ranges of the key; halve an unreadable range, until single rows are skipped."""
    query = f"SELECT {','.join(columns)} FROM {table} WHERE {key} >= ? AND {key} < ?"  # noqa: S608 - our own names
    ranges = [(start, min(start + _STEP, highest + 1)) for start in range(0, highest + 1, _STEP)][::-1]
    patience = _PATIENCE
    while ranges and patience:
        start, stop = ranges.pop()
        try:
            rows = old.execute(query, (start, stop)).fetchall()
            patience = _PATIENCE
            yield from rows
        except sqlite3.DatabaseError:
            patience -= 1
            middle = (start + stop) // 2
            if middle > start:
                ranges += [(middle, stop), (start, middle)]


def _fill(db: sqlite3.Connection, table: str, columns: list[str], rows: Iterable[tuple[Any, ...]]) -> int:
    """Copy rows into a table, keeping their numbers; returns how many were taken."""
    marks = ",".join("?" * len(columns))
    cursor = db.executemany(f"INSERT OR IGNORE INTO {table}({','.join(columns)}) VALUES({marks})", rows)
    return cursor.rowcount


def _whole(row: dict[str, Any]) -> bool:
    try:
        return bool(checksum(row["session"] + row["decision"], row["head"], row["body"]) == row["crc"])
    except (TypeError, AttributeError):
        return False
