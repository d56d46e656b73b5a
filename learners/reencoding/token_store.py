"""Store the re-encoded tokens of ticks: `state_dir/learner/reencoded.db`.

This is a separate database, because experience has one writer, the agent. The learner writes tokens here before it loads them
into its replay buffer. A resumed learner thus finds the same tokens, even if the raw readings have been deleted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learners.experience.reader import Row
from learners.experience.transition import Transition
from learners.files import access_refused, private_folder

FORMAT = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS tokens(
  id INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL, stream TEXT NOT NULL, version TEXT NOT NULL,
  high INTEGER NOT NULL, wide INTEGER NOT NULL, data BLOB NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class StoredTokens:
    """One row's tokens of one stream, float16 [T, W], by a version of its encoder."""

    row: int
    stream: str
    version: str
    tokens_TW: NDArray[np.float16]


def _opened(path: Path) -> sqlite3.Connection:
    """Open the file, with its table.

    Raises:
        sqlite3.DatabaseError: it is none, or of another format.
    """
    db = sqlite3.connect(path)
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        _check(version, path)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(_TABLE)
        db.execute(f"PRAGMA user_version = {FORMAT}")
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def _check(version: int, path: Path) -> None:
    if version not in (0, FORMAT):  # 0: new, or written before it was numbered
        raise sqlite3.DatabaseError(f"{path} is of format {version}; this program reads {FORMAT}")


class TokenStore:
    """The database of re-encoded tokens. Only the learner writes it; a corrupt or outdated file is replaced by an empty one.

    Raises:
        sqlite3.Error: the file cannot be used now, such as a busy one.
    """

    def __init__(self, path: Path) -> None:
        private_folder(path.parent)
        try:
            self._db = _opened(path)
        except sqlite3.DatabaseError as error:
            if access_refused(error):
                raise
            for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
                file.unlink(missing_ok=True)
            self._db = _opened(path)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def add(self, made: Sequence[StoredTokens]) -> bool:
        """Store tokens; on disk when this returns True, but for a power cut. False: the disk refused, nothing is stored."""
        rows = [(m.row, m.stream, m.version, *m.tokens_TW.shape, m.tokens_TW.tobytes()) for m in made]
        try:
            with self._db:  # rolls back where the commit fails, too
                self._db.executemany(
                    "INSERT INTO tokens(row, stream, version, high, wide, data) VALUES(?,?,?,?,?,?)", rows
                )
        except sqlite3.OperationalError:
            return False
        return True

    def last(self) -> int:
        """Return the newest entry's number; 0 if there was never one."""
        found = self._db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tokens'").fetchone()
        return int(found[0])

    def between(self, since: int, until: int) -> Iterator[StoredTokens]:
        """Return entries with `since < id <= until`, in order."""
        query = "SELECT row, stream, version, high, wide, data FROM tokens WHERE id > ? AND id <= ? ORDER BY id"
        for row, stream, version, high, wide, data in self._db.execute(query, (since, until)):
            yield StoredTokens(row, stream, version, np.frombuffer(data, np.float16).reshape(high, wide))

    def renew(self, rows: Sequence[Row], versions: Mapping[str, str]) -> list[Transition]:
        """Return the transitions of rows, oldest first, with tokens of the present versions where these exist."""
        made: dict[int, dict[str, StoredTokens]] = {}
        query = "SELECT row, stream, version, high, wide, data FROM tokens WHERE row >= ? ORDER BY id"
        for row, stream, version, high, wide, data in self._db.execute(query, (min((r.row for r in rows), default=0),)):
            if versions.get(stream) == version:
                tokens_TW = np.frombuffer(data, np.float16).reshape(high, wide)
                made.setdefault(row, {})[stream] = StoredTokens(row, stream, version, tokens_TW)
        return [_renewed(one.transition, made.get(one.row, {})) for one in rows]

    def tidy(self, first_row: int, versions: Mapping[str, str]) -> None:
        """Delete rows below `first_row` and other versions than the present ones; a disk that refuses leaves them."""
        with suppress(sqlite3.OperationalError), self._db:
            self._db.execute("DELETE FROM tokens WHERE row < ?", (first_row,))
            for stream, version in versions.items():
                self._db.execute("DELETE FROM tokens WHERE stream = ? AND version <> ?", (stream, version))

    def clear(self) -> None:
        """Forget everything: the rows' numbers mean other rows from now on."""
        with self._db:
            self._db.execute("DELETE FROM tokens")


def _renewed(transition: Transition, made: Mapping[str, StoredTokens]) -> Transition:
    if not made:
        return transition
    return replace(
        transition,
        tokens={**transition.tokens, **{name: one.tokens_TW for name, one in made.items()}},
        encoder_versions={**transition.encoder_versions, **{name: one.version for name, one in made.items()}},
    )
