"""Define the tables of the experience database, migrate files of older versions, and open them for writing.

SQLite runs in WAL mode with synchronous=NORMAL. Commits survive the death of the process (kill -9) without an fsync for each
commit. A power cut may lose the last commits, but never the file. Measured in `tests/benchmarks/bench_experience.py`.
"""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack
from pathlib import Path

_STEPS = (
    """
CREATE TABLE transitions(
  row INTEGER PRIMARY KEY AUTOINCREMENT, session TEXT NOT NULL, tick INTEGER NOT NULL, decision TEXT NOT NULL,
  stamp_s REAL NOT NULL, policy TEXT NOT NULL, reward REAL NOT NULL, done INTEGER NOT NULL,
  intervention INTEGER NOT NULL, demonstration INTEGER NOT NULL, failure INTEGER NOT NULL, value REAL NOT NULL,
  bytes INTEGER NOT NULL, crc INTEGER NOT NULL, head BLOB NOT NULL, body BLOB NOT NULL);
CREATE INDEX by_decision ON transitions(decision);
CREATE INDEX by_stamp ON transitions(stamp_s);
CREATE TABLE rewards(
  id INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL, value REAL NOT NULL, done INTEGER NOT NULL,
  source TEXT NOT NULL, stamp_s REAL NOT NULL);
CREATE INDEX rewards_by_row ON rewards(row);
CREATE INDEX rewards_by_source ON rewards(source);
CREATE TABLE changes(
  id INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL, before BLOB NOT NULL, after BLOB NOT NULL);
CREATE TABLE labels(
  id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, label TEXT NOT NULL, text TEXT, decision TEXT,
  source TEXT NOT NULL, stamp_s REAL NOT NULL);
CREATE INDEX labels_by_task ON labels(task, id);
""",
    # Quarantine: the initial reward of a tick has its own column, so that a source's share can be subtracted.
    """
CREATE TABLE sources(source TEXT PRIMARY KEY, quarantined INTEGER NOT NULL);
ALTER TABLE transitions ADD COLUMN base REAL NOT NULL DEFAULT 0;
UPDATE transitions SET base = reward - coalesce((SELECT sum(value) FROM rewards r WHERE r.row = transitions.row), 0);
""",
    # Outcomes: before, `failure` stood for every end of an episode, good or bad.
    """
ALTER TABLE transitions ADD COLUMN truncated INTEGER NOT NULL DEFAULT 0;
ALTER TABLE transitions ADD COLUMN success INTEGER NOT NULL DEFAULT 0;
UPDATE transitions SET failure = 0 WHERE done = 1;
""",
    # Ends by source: what a quarantined source says of the end of an episode can be taken back, too.
    """
ALTER TABLE rewards ADD COLUMN truncated INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rewards ADD COLUMN outcome TEXT;
ALTER TABLE transitions ADD COLUMN base_flags INTEGER NOT NULL DEFAULT 0;
UPDATE transitions SET base_flags = 2 * truncated + 4 * success + 8 * failure
  + (done AND NOT EXISTS (SELECT 1 FROM rewards r WHERE r.row = transitions.row AND r.done))
  WHERE done OR truncated OR success OR failure;
""",
    # Labels that operators give on the page: some are put aside as the held-out file, and each can be corrected or removed.
    """
ALTER TABLE labels ADD COLUMN held_out INTEGER NOT NULL DEFAULT 0;
ALTER TABLE labels ADD COLUMN replaces INTEGER;
ALTER TABLE labels ADD COLUMN removed_s REAL;
ALTER TABLE labels ADD COLUMN removed_by TEXT;
ALTER TABLE labels ADD COLUMN by_operator INTEGER NOT NULL DEFAULT 0;
""",
)
"""What brings a database from version n to n + 1; a fresh one takes every step."""
SCHEMA = len(_STEPS)
BUSY_S = 5.0
"""How long a statement waits for another process that holds the file."""
RAW = """
CREATE TABLE IF NOT EXISTS raw(
  id INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT NOT NULL, stamp_s REAL NOT NULL, encoding TEXT NOT NULL,
  data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS raw_by_stamp ON raw(stream, stamp_s);
"""
"""The table of raw readings, in a file of its own."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a writing connection; create or migrate the tables.

    Raises:
        sqlite3.DatabaseError: not a database, or broken.
        ValueError: written by a newer version of this program.
    """
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S, check_same_thread=False)
    with ExitStack() as undo:
        undo.callback(db.close)
        if not path.stat().st_size:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "journal_size_limit = 16777216"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        if path.name == "experience.db":
            migrate(db, path)
        undo.pop_all()
    return db


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring the tables of an older version up to `SCHEMA`, each step in one transaction.

    Raises:
        ValueError: written by a newer version.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        raise ValueError(
            f"{path} is of schema {version}, newer than {SCHEMA}: run a newer reflexd or move the file away"
        )
    for number in range(version, SCHEMA):
        db.executescript(f"BEGIN IMMEDIATE; {_STEPS[number]} PRAGMA user_version = {number + 1}; COMMIT;")
