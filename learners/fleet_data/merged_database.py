"""Store the rows of a whole group as one experience store, with the read position of each agent in the same transaction.

A row and the position behind it are on disk together or not at all. So a process that is killed between two rows neither loses a
row nor stores it twice. `experience_merger.py` uses it.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from pathlib import Path

from learners.experience.database import Database
from learners.experience.transition import Transition
from learners.fleet_data.segment import LANES, Lane

_TABLES = """
CREATE TABLE IF NOT EXISTS merged_lanes(
  agent TEXT NOT NULL, boot TEXT NOT NULL, lane TEXT NOT NULL, row INTEGER NOT NULL, PRIMARY KEY(agent, boot, lane));
CREATE TABLE IF NOT EXISTS excluded_agents(agent TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS transitions_by_session ON transitions(session);
"""


class MergedDatabase(Database):
    """An experience store with read positions.

    Args:
        folder: of the store; it exists.
        max_bytes: size at which the oldest rows are deleted.
        reserve: share of it for terminal transitions, interventions and demonstrations.

    Raises:
        sqlite3.DatabaseError: the file is broken.
        ValueError: a newer version of this program wrote it.
    """

    def __init__(self, folder: Path, *, max_bytes: int, reserve: float) -> None:
        super().__init__(folder, max_bytes=max_bytes, reserve=reserve, raw_retention_s=0.0)
        self._db.execute("PRAGMA synchronous = FULL").fetchall()  # a power cut must not lose rows that training counts
        self._db.executescript(_TABLES)

    def positions(self, agent: str, boot: str) -> dict[Lane, int]:
        """Return for each lane of a boot the last row that is stored here, or was passed."""
        found = self._db.execute("SELECT lane, row FROM merged_lanes WHERE agent = ? AND boot = ?", (agent, boot))
        return {**dict.fromkeys(LANES, 0), **dict(found.fetchall())}

    def set_position(self, agent: str, boot: str, lane: Lane, row: int) -> None:
        """Note the last row of a lane; call it inside the transaction that stores the rows."""
        self._db.execute("INSERT OR REPLACE INTO merged_lanes VALUES(?,?,?,?)", (agent, boot, lane, row))

    def forget_boots(self, agent: str, known: Collection[str]) -> None:
        """Delete the positions of boots that have no file any more. Call it inside a transaction."""
        found = self._db.execute("SELECT DISTINCT boot FROM merged_lanes WHERE agent = ?", (agent,)).fetchall()
        gone = [(agent, boot) for (boot,) in found if boot not in known]
        self._db.executemany("DELETE FROM merged_lanes WHERE agent = ? AND boot = ?", gone)

    def has(self, transition: Transition) -> bool:
        """Return whether a tick is stored: a device that was restored from a backup sends its rows again, as another boot."""
        found = self._db.execute(
            "SELECT 1 FROM transitions WHERE decision = ? AND session = ? AND tick = ?",
            (transition.decision, transition.session, transition.tick),
        )
        return found.fetchone() is not None

    def newest_runs(self, count: int) -> list[tuple[str, int]]:
        """Return the agents of the newest `count` rows, oldest first, each with how many neighbours it has."""
        found = self._db.execute(
            "SELECT substr(session, 1, instr(session, '/') - 1) FROM transitions ORDER BY row DESC LIMIT ?", (count,)
        )
        return [(agent, len(list(rows))) for agent, rows in groupby(agent for (agent,) in reversed(found.fetchall()))]

    def excluded(self) -> dict[str, str]:
        """Return the agents with rows that do not train, with the reason."""
        return dict(self._db.execute("SELECT agent, reason FROM excluded_agents ORDER BY agent").fetchall())

    def exclude(self, agent: str, reason: str) -> int:
        """Delete the rows of an agent and take no further ones; return how many went. Call it inside a transaction."""
        self._db.execute("INSERT OR REPLACE INTO excluded_agents VALUES(?,?)", (agent, reason))
        gone = self._db.execute("DELETE FROM transitions WHERE session >= ? AND session < ?", _sessions_of(agent))
        return gone.rowcount

    def readmit(self, agent: str) -> None:
        """Take the rows of an excluded agent again, from its first one on disk. Call it inside a transaction."""
        self._db.execute("DELETE FROM excluded_agents WHERE agent = ?", (agent,))
        self._db.execute("DELETE FROM merged_lanes WHERE agent = ?", (agent,))


def session_name(agent: str, session: str) -> str:
    """Return the name of a session that no other agent has."""
    return f"{agent}/{session}"


def _sessions_of(agent: str) -> tuple[str, str]:
    """Return the range of names of an agent's sessions."""
    return f"{agent}/", f"{agent}0"  # 0 follows / in ASCII
