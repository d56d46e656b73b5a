"""Copy the readings that labels are about beside the labels, because raw readings are stored for minutes only.

The copies are in `raw.db`, in two tables of their own. A reading that looks like one of the same task, stream and class is not
stored twice (`perceptual_hash`). Above the budget, the oldest reading of the class with the most bytes goes first, so that
a frequent class does not displace a rare one. Used by `database.py` alone; `reader.py` reads the tables.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from learners.experience.records import Raw
from sensors.codecs.readings import decode_media

TABLES = """
CREATE TABLE IF NOT EXISTS labelled_readings(
  id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, class TEXT NOT NULL, stream TEXT NOT NULL, stamp_s REAL NOT NULL,
  encoding TEXT NOT NULL, hash BLOB NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS labelled_by_class ON labelled_readings(task, class);
CREATE TABLE IF NOT EXISTS labelled(
  label INTEGER NOT NULL, stream TEXT NOT NULL, reading INTEGER NOT NULL, PRIMARY KEY(label, stream)) WITHOUT ROWID;
"""
PICTURES = frozenset({"jpeg", "png"})
"""Encodings of pictures."""
EDGE = 16
"""Rows and columns of the picture that a perceptual hash compares."""
ALIKE = 10
"""Of 256 bits, those in which two pictures may differ and still count as one."""


def perceptual_hash(raw: Raw) -> bytes:
    """Return 256 bits that describe a reading: `picture_bits` of a picture, else a digest."""
    try:
        picture = decode_media(raw.encoding, raw.data)["picture"] if raw.encoding in PICTURES else None
    except ValueError:  # the label's reader counts it
        picture = None
    if picture is None:
        return hashlib.sha256(raw.encoding.encode() + b"\0" + raw.data).digest()
    return picture_bits(picture)


def picture_bits(picture_YXC: NDArray[np.uint8]) -> bytes:
    """Return 256 bits that describe a picture: whether brightness rises to the right.

    dHash (Krawetz 2013): a picture of 16 x 17 mean brightnesses; small changes of light, noise and compression change few bits.
    """
    means = brightness(picture_YXC)
    return np.packbits(means[:, 1:] > means[:, :-1]).tobytes()


def brightness(picture_YXC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the mean brightness of 16 x 17 parts of a picture, 0 to 255."""
    grey_YX = np.asarray(picture_YXC, np.float32).mean(-1)
    high, wide = grey_YX.shape
    grey_YX = np.kron(grey_YX, np.ones((-(-EDGE // high), -(-(EDGE + 1) // wide)), np.float32))
    rows = (np.array_split(row, EDGE + 1, axis=1) for row in np.array_split(grey_YX, EDGE, axis=0))
    return np.array([[block.mean() for block in row] for row in rows], np.float32)


def distances(hashes: Sequence[bytes], digest: bytes) -> NDArray[np.int64]:
    """Return by how many bits each hash differs from another one, shape (number of hashes,)."""
    bits = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), len(digest))
    return np.asarray(np.bitwise_count(bits ^ np.frombuffer(digest, np.uint8)).sum(1), np.int64)


def alike(encoding: str) -> int:
    """Return by how many bits two readings of an encoding may differ and still count as one."""
    return ALIKE if encoding in PICTURES else 0


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
        """Copy the readings that a label is about; a reading like one of the same class is stored once.

        Args:
            label: number of the label.
            task: its task.
            of: its class, as one text.
            raws: one reading of each stream.
        """
        for raw in raws:
            number = self._alike(task, of, raw, digest := perceptual_hash(raw))
            if number is None:
                cursor = self._db.execute(
                    "INSERT INTO labelled_readings(task, class, stream, stamp_s, encoding, hash, data) VALUES(?,?,?,?,?,?,?)",
                    (task, of, raw.stream, raw.stamp_s, raw.encoding, digest, raw.data),
                )
                number = int(cursor.lastrowid or 0)
                self.bytes += len(raw.data)
            self._db.execute("INSERT OR REPLACE INTO labelled VALUES(?,?,?)", (label, raw.stream, number))

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

    def labels_like(self, task: str, raw: Raw) -> list[int]:
        """Return the labels of a task, of any class, about readings that look like this one, oldest first."""
        found = self._db.execute(
            "SELECT l.label, r.hash FROM labelled l JOIN labelled_readings r ON r.id = l.reading"
            " WHERE r.task = ? AND r.stream = ? AND r.encoding = ? ORDER BY l.label",
            (task, raw.stream, raw.encoding),
        ).fetchall()
        if not found:
            return []
        near = distances([digest for _, digest in found], perceptual_hash(raw)) <= alike(raw.encoding)
        return [int(label) for (label, _), is_near in zip(found, near, strict=True) if is_near]

    def _alike(self, task: str, of: str, raw: Raw, digest: bytes) -> int | None:
        """Return the number of a stored reading of the same class that looks like this one."""
        found = self._db.execute(
            "SELECT id, hash FROM labelled_readings WHERE task = ? AND class = ? AND stream = ? AND encoding = ?",
            (task, of, raw.stream, raw.encoding),
        ).fetchall()
        if not found:
            return None
        apart = distances([other for _, other in found], digest)
        nearest = int(apart.argmin())
        return int(found[nearest][0]) if apart[nearest] <= alike(raw.encoding) else None

    def trim(self, max_bytes: int) -> int:
        """Delete copies until at most `max_bytes` are left; return how many went."""
        gone = 0
        while self.bytes > max_bytes:
            largest = (
                "SELECT task, class FROM labelled_readings GROUP BY task, class ORDER BY sum(length(data)) DESC LIMIT 1"
            )
            oldest = (
                f"SELECT id, length(data) FROM labelled_readings WHERE (task, class) = ({largest}) ORDER BY id LIMIT 1"  # noqa: S608 - constants
            )
            number, size = self._db.execute(oldest).fetchone()
            self._db.execute("DELETE FROM labelled_readings WHERE id = ?", (number,))
            self._db.execute("DELETE FROM labelled WHERE reading = ?", (number,))
            self.bytes -= size
            gone += 1
        return gone
