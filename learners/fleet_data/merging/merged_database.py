"""Store the rows of a whole group as one experience store, with the read position of each agent in the same transaction.

A row and the position behind it are on disk together or not at all. So a process that is killed between two rows neither loses a
row nor stores it twice. `experience_merger.py` uses it.

A full store bounds what one agent has of it: at most `FAIR` times an equal part of the bytes. The same part bounds what it has of the reserve
for demonstrations, corrections and outcomes. An agent above its part gives its own oldest rows first. So neither an agent that sends alone for
days nor one that calls all of its rows demonstrations displaces what the others showed.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection
from contextlib import closing
from itertools import groupby
from pathlib import Path

import orjson

from learners.experience.database import BASE_FLAGS, BLOCK, MUTABLE, Database
from learners.experience.transition import Transition
from learners.files import read_only
from learners.fleet_data.segment import LANES, Lane
from learners.fleet_data.trust.agent_shares import FAIR

MOST_AWAITING = 4_096
"""Amendments of an agent that wait for rows that are not merged yet, such as those that the uplink left out; the oldest go."""
MOST_AWAITING_OF_ALL = 262_144
_TABLES = """
CREATE TABLE IF NOT EXISTS merged_lanes(
  agent TEXT NOT NULL, boot TEXT NOT NULL, lane TEXT NOT NULL, row INTEGER NOT NULL, PRIMARY KEY(agent, boot, lane));
CREATE TABLE IF NOT EXISTS excluded_agents(agent TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS waiting_amendments(
  id INTEGER PRIMARY KEY AUTOINCREMENT, agent TEXT NOT NULL, session TEXT NOT NULL, tick INTEGER NOT NULL,
  decision TEXT NOT NULL, "values" BLOB NOT NULL, UNIQUE(decision, session, tick));
CREATE INDEX IF NOT EXISTS waiting_by_agent ON waiting_amendments(agent, id);
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

    _waiting: set[str]
    """Decisions of rows that amendments wait for."""
    protected: Collection[str] | None = None
    """Agents with a part of the store that others do not displace; None for all that have rows."""
    _owners: dict[int, str]
    """By block, the agent with most of its rows."""

    def add(self, transition: Transition) -> int:
        """Store one tick of an agent; return its row number.

        Raises:
            learners.transition.Malformed: not finite or not of a storable shape.
        """
        row = super().add(transition)
        self._owners.setdefault(row // BLOCK, agent_of(transition.session))
        if transition.decision in self._waiting:
            key = (transition.decision, transition.session, transition.tick)
            where = "FROM waiting_amendments WHERE decision = ? AND session = ? AND tick = ?"
            found = self._db.execute(f'SELECT "values" {where}', key).fetchone()
            if found is not None:
                self._set_amendable(row, orjson.loads(found[0]))
                self._db.execute(f"DELETE {where}", key)
        return row

    def amend(self, amended: Transition) -> bool | None:
        """Give a stored tick another reward and other flags; return whether it had others, None where it is not stored.

        Call it inside a transaction.
        """
        found = self._row_of(amended)
        return None if found is None else self._set_amendable(found, _amendable(amended))

    def await_row(self, agent: str, amended: Transition) -> int:
        """Store an amendment of a tick that is not stored yet; return how many were dropped: the oldest beyond the limits.

        Call it inside a transaction.
        """
        values = (agent, amended.session, amended.tick, amended.decision, orjson.dumps(_amendable(amended)))
        self._db.execute(
            'INSERT OR REPLACE INTO waiting_amendments(agent, session, tick, decision, "values") VALUES(?,?,?,?,?)',
            values,
        )
        self._waiting.add(amended.decision)
        dropped = 0
        for where, most in (("WHERE agent = ?", MOST_AWAITING), ("WHERE agent != '' || ?", MOST_AWAITING_OF_ALL)):
            count = f"SELECT count(*) FROM waiting_amendments {where}"  # noqa: S608 - a constant
            excess = self._db.execute(count, (agent,)).fetchone()[0] - most
            if excess > 0:
                oldest = f"SELECT id FROM waiting_amendments {where} ORDER BY id LIMIT ?"  # noqa: S608 - a constant
                self._db.execute(f"DELETE FROM waiting_amendments WHERE id IN ({oldest})", (agent, excess))  # noqa: S608 - as above
                dropped += excess
        return dropped

    def awaiting(self, agent: str) -> int:
        """Return how many amendments of an agent wait for their rows."""
        found = self._db.execute("SELECT count(*) FROM waiting_amendments WHERE agent = ?", (agent,)).fetchone()
        return int(found[0])

    def _set_amendable(self, row: int, values: dict[str, float]) -> bool:
        columns = ", ".join(MUTABLE)
        found = self._db.execute(f"SELECT {columns} FROM transitions WHERE row = ?", (row,)).fetchone()  # noqa: S608 - our own column names
        if dict(zip(MUTABLE, found, strict=True)) == values:
            return False
        bits = sum(bit for name, bit in BASE_FLAGS.items() if values[name])
        self._db.execute("UPDATE transitions SET base = ?, base_flags = ? WHERE row = ?", (values["reward"], bits, row))
        self._change(row, lambda _: values)
        return True

    def _row_of(self, transition: Transition) -> int | None:
        found = self._db.execute(
            "SELECT row FROM transitions WHERE decision = ? AND session = ? AND tick = ?",
            (transition.decision, transition.session, transition.tick),
        ).fetchone()
        return None if found is None else int(found[0])

    def shares(self) -> dict[str, float]:
        """Return which part of `max_bytes` each agent has."""
        held: Counter[str] = Counter()
        for block, (size, _) in self._blocks.items():
            held[self._owners.get(block, "")] += size
        return {name: size / self.max_bytes for name, size in held.items()}

    def _count(self) -> None:
        super()._count()
        there = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'waiting_amendments'").fetchone()
        waiting = self._db.execute("SELECT decision FROM waiting_amendments").fetchall() if there else []
        self._waiting = {decision for (decision,) in waiting}
        found = self._db.execute(
            f"SELECT row / {BLOCK}, substr(session, 1, instr(session, '/') - 1), count(*) FROM transitions GROUP BY 1, 2"  # noqa: S608 - a constant
            " ORDER BY 3"
        )
        self._owners = {block: agent for block, agent, _ in found}  # the last one has most

    def _doomed(self) -> list[int]:
        """Return the blocks to evict: those of agents above their part, their oldest first; then the oldest of all.

        Reserved blocks of an agent stay within its part of the reserve.
        """
        excess = self.bytes - self.max_bytes
        if excess <= 0:
            return []
        blocks: dict[str, list[int]] = defaultdict(list)
        held, reserved = Counter[str](), Counter[str]()
        for block in sorted(self._blocks):
            name, (size, is_reserved) = self._owners.get(block, ""), self._blocks[block]
            blocks[name].append(block)
            held[name] += size
            reserved[name] += size if is_reserved else 0
        count = sum(self.protected is None or name in self.protected for name in held)
        part, newest = min(1.0, FAIR / max(1, count)), max(self._blocks)
        doomed: dict[int, None] = {}

        def evict(name: str, block: int) -> int:
            size, is_reserved = self._blocks[block]
            least = self.reserve * self.max_bytes
            is_safe = reserved.total() - size < least and reserved[name] - size < part * least
            if block == newest or block in doomed or (is_reserved and is_safe):
                return 0
            doomed[block] = None
            held[name] -= size
            reserved[name] -= size if is_reserved else 0
            return size

        for name in sorted(held, key=lambda each: -held[each]):
            for block in blocks[name]:
                if excess <= 0 or held[name] <= part * self.max_bytes:
                    break
                excess -= evict(name, block)
        for block in sorted(self._blocks):
            if excess <= 0:
                break
            excess -= evict(self._owners.get(block, ""), block)
        return list(doomed)

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
        return self._row_of(transition) is not None

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
        self._db.execute("DELETE FROM waiting_amendments WHERE agent = ?", (agent,))
        gone = self._db.execute("DELETE FROM transitions WHERE session >= ? AND session < ?", _sessions_of(agent))
        self._count()  # else its bytes would displace rows of the others
        return gone.rowcount

    def readmit(self, agent: str) -> None:
        """Take the rows of an excluded agent again, from its first one on disk. Call it inside a transaction."""
        self._db.execute("DELETE FROM excluded_agents WHERE agent = ?", (agent,))
        self._db.execute("DELETE FROM merged_lanes WHERE agent = ?", (agent,))


def merged_positions(folder: Path) -> dict[tuple[str, str, str], int]:
    """Return what a merged store has of each agent, boot and lane, from another process; nothing where there is no store.

    Raises:
        sqlite3.Error: it cannot be read now, or is broken.
    """
    path = folder / "experience.db"
    if not path.exists():
        return {}
    with closing(sqlite3.connect(read_only(path), uri=True, timeout=5.0)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'merged_lanes'").fetchone():
            return {}
        found = db.execute("SELECT agent, boot, lane, row FROM merged_lanes").fetchall()
    return {(agent, boot, lane): row for agent, boot, lane, row in found}


def _amendable(transition: Transition) -> dict[str, float]:
    """Return what an amendment replaces, as the columns of a row."""
    flags = {name: int(getattr(transition, name)) for name in MUTABLE[1:]}
    return {"reward": transition.reward, **flags}


def agent_of(session: str) -> str:
    """Return the agent of a session of the merged store."""
    return session.partition("/")[0]


def session_name(agent: str, session: str) -> str:
    """Return the name of a session that no other agent has."""
    return f"{agent}/{session}"


def _sessions_of(agent: str) -> tuple[str, str]:
    """Return the range of names of an agent's sessions."""
    return f"{agent}/", f"{agent}0"  # 0 follows / in ASCII
