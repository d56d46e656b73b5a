"""Copy the readings that labels are about beside the labels, because raw readings are stored for minutes only.

The copies are in `raw.db`, in two tables of their own. Equal bytes of one task, stream and class are stored
once. Above the budget, the oldest reading of the class with the most bytes goes first, so that a frequent class does not displace
a rare one. Copies of labels that are put aside go last. Used by `database.py` alone; `reader.py` reads the tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

import orjson

from learners.experience.reading_similarity import DIGEST, content_digest, distances, signature
from learners.experience.records import Raw

TABLES = """
CREATE TABLE IF NOT EXISTS labelled_readings(
  id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, class TEXT NOT NULL, stream TEXT NOT NULL, stamp_s REAL NOT NULL,
  encoding TEXT NOT NULL, hash BLOB NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS labelled_by_class ON labelled_readings(task, class);
CREATE TABLE IF NOT EXISTS labelled(
  label INTEGER NOT NULL, stream TEXT NOT NULL, reading INTEGER NOT NULL, PRIMARY KEY(label, stream)) WITHOUT ROWID;
"""


class LabelledReadings:
    """The copies in one `raw.db`; the caller holds the transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.executescript(TABLES)
        self.bytes = 0
        """Of all copies."""
        self.count()

    def count(self) -> None:
        """Sum up what the file holds."""
        self.bytes = int(self._db.execute("SELECT coalesce(sum(length(data)), 0) FROM labelled_readings").fetchone()[0])

    def add(self, label: int, task: str, of: str, raws: Sequence[Raw]) -> None:
        """Copy the readings that a label is about; equal bytes of one class are stored once.

        Args:
            label: number of the label.
            task: its task.
            of: its class, as one text.
            raws: one reading of each stream.
        """
        for raw in raws:
            number = self._equal(task, of, raw)
            if number is None:
                cursor = self._db.execute(
                    "INSERT INTO labelled_readings(task, class, stream, stamp_s, encoding, hash, data) VALUES(?,?,?,?,?,?,?)",
                    (task, of, raw.stream, raw.stamp_s, raw.encoding, signature(raw), raw.data),
                )
                number = int(cursor.lastrowid or 0)
                self.bytes += len(raw.data)
            self._db.execute("INSERT OR REPLACE INTO labelled VALUES(?,?,?)", (label, raw.stream, number))

    def remove_after(self, label: int) -> None:
        """Delete links of labels above a number, which a kill between two commits left, and copies without a link."""
        self._db.execute("DELETE FROM labelled WHERE label > ?", (label,))
        self._db.execute("DELETE FROM labelled_readings WHERE id NOT IN (SELECT reading FROM labelled)")
        self.count()

    def of(self, label: int) -> list[Raw]:
        """Return the copies of a label's readings."""
        found = self._db.execute(
            "SELECT r.stream, r.stamp_s, r.encoding, r.data FROM labelled l JOIN labelled_readings r ON r.id = l.reading"
            " WHERE l.label = ?",
            (label,),
        )
        return [Raw(*row) for row in found]

    def remove(self, label: int) -> None:
        """Forget which readings a label is about; delete copies that no other label needs."""
        numbers = [number for (number,) in self._db.execute("SELECT reading FROM labelled WHERE label = ?", (label,))]
        self._db.execute("DELETE FROM labelled WHERE label = ?", (label,))
        for number in numbers:
            if self._db.execute("SELECT 1 FROM labelled WHERE reading = ? LIMIT 1", (number,)).fetchone() is None:
                (size,) = self._db.execute(
                    "SELECT length(data) FROM labelled_readings WHERE id = ?", (number,)
                ).fetchone()
                self._db.execute("DELETE FROM labelled_readings WHERE id = ?", (number,))
                self.bytes -= size

    def labels_like(self, task: str, of: str, raw: Raw) -> list[int]:
        """Return the labels of a task about readings of equal bytes, or of the same class and the same picture, oldest first."""
        found = self._db.execute(
            "SELECT l.label, r.class, r.hash FROM labelled l JOIN labelled_readings r ON r.id = l.reading"
            " WHERE r.task = ? AND r.stream = ? AND r.encoding = ? ORDER BY l.label",
            (task, raw.stream, raw.encoding),
        ).fetchall()
        if not found:
            return []
        apart = distances([known for _, _, known in found], signature(raw))
        near = ((label, apart[n] <= (1.0 if name == of else 0.0)) for n, (label, name, _) in enumerate(found))
        return [int(label) for label, same in near if same]

    def _equal(self, task: str, of: str, raw: Raw) -> int | None:
        """Return the number of a stored reading of the same class and of equal bytes."""
        found = self._db.execute(
            "SELECT id FROM labelled_readings WHERE task = ? AND class = ? AND stream = ? AND encoding = ?"
            " AND substr(hash, 1, ?) = ? AND length(data) = ?",
            (task, of, raw.stream, raw.encoding, DIGEST, content_digest(raw), len(raw.data)),
        ).fetchone()
        return int(found[0]) if found else None

    def trim(self, max_bytes: int, held_out: Callable[[], Sequence[int]]) -> int:
        """Delete copies until at most `max_bytes` are left; return how many went.

        Args:
            max_bytes: of all copies.
            held_out: returns the labels that are put aside; their copies are deleted last.
        """
        gone = 0
        last = orjson.dumps(held_out()).decode() if self.bytes > max_bytes else "[]"
        while self.bytes > max_bytes and (found := self._first_to_delete(last) or self._first_to_delete("[]")):
            number, size = found
            self._db.execute("DELETE FROM labelled_readings WHERE id = ?", (number,))
            self._db.execute("DELETE FROM labelled WHERE reading = ?", (number,))
            self.bytes -= size
            gone += 1
        return gone

    def _first_to_delete(self, held_out: str) -> tuple[int, int] | None:
        """Return number and bytes of the oldest copy of the largest class, without those of some labels (a JSON list)."""
        others = (
            "FROM labelled_readings WHERE id NOT IN"
            " (SELECT reading FROM labelled WHERE label IN (SELECT value FROM json_each(?)))"
        )
        largest = f"SELECT task, class {others} GROUP BY task, class ORDER BY sum(length(data)) DESC LIMIT 1"
        query = f"SELECT id, length(data) {others} AND (task, class) = ({largest}) ORDER BY id LIMIT 1"
        found: tuple[int, int] | None = self._db.execute(query, (held_out, held_out)).fetchone()
        return found
