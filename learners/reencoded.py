"""Tokens of remembered ticks, made anew by a later version of their encoder: `state_dir/learner/reencoded.db`.

Beside the store and not in it: experience has one writer, the agent. The learner writes here what it then takes into its replay,
so that a resumed learner finds the very tokens it has learned from, though the raw readings may be gone by then.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_TABLE = """
CREATE TABLE IF NOT EXISTS tokens(
  id INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL, stream TEXT NOT NULL, version TEXT NOT NULL,
  high INTEGER NOT NULL, wide INTEGER NOT NULL, data BLOB NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Recoded:
    """One row's tokens of one stream, float16 [T, W], by a version of its encoder."""

    row: int
    stream: str
    version: str
    tokens_TW: NDArray[np.float16]


class Reencoded:
    """The file. Written by the learner alone."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._db = sqlite3.connect(path)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(_TABLE)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def add(self, made: Sequence[Recoded]) -> None:
        """Keep tokens; on disk when this returns, but for a power cut."""
        with self._db:
            self._db.executemany(
                "INSERT INTO tokens(row, stream, version, high, wide, data) VALUES(?,?,?,?,?,?)",
                [(m.row, m.stream, m.version, *m.tokens_TW.shape, m.tokens_TW.tobytes()) for m in made],
            )

    def last(self) -> int:
        """The newest entry's number; 0 when there was never one."""
        found = self._db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tokens'").fetchone()
        return int(found[0])

    def between(self, since: int, until: int) -> Iterator[Recoded]:
        """Entries with `since < id <= until`, in order."""
        query = "SELECT row, stream, version, high, wide, data FROM tokens WHERE id > ? AND id <= ? ORDER BY id"
        for row, stream, version, high, wide, data in self._db.execute(query, (since, until)):
            yield Recoded(row, stream, version, np.frombuffer(data, np.float16).reshape(high, wide))

    def tidy(self, first_row: int, versions: Mapping[str, str]) -> None:
        """Forget rows that nobody holds any more, and versions that are not the present ones."""
        with self._db:
            self._db.execute("DELETE FROM tokens WHERE row < ?", (first_row,))
            for stream, version in versions.items():
                self._db.execute("DELETE FROM tokens WHERE stream = ? AND version <> ?", (stream, version))

    def clear(self) -> None:
        """Forget everything: the rows' numbers mean other rows from now on."""
        with self._db:
            self._db.execute("DELETE FROM tokens")
