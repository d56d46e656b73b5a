"""Write to the tables of `schema.py`: every writing statement of the experience database. One thread uses one `Database`.

Rows are evicted in blocks of `BLOCK` neighbours, so that the history before and the steps after a failure or an
intervention stay with it. Knows no threads and no files beside its own; `salvage.py` deals with broken ones.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from pathlib import Path
from typing import Any, Self

import orjson

from learners.experience.label_table import LabelTable
from learners.experience.labelled_readings import LabelledReadings
from learners.experience.reading_of_tick import raw_reading
from learners.experience.records import Credit, Label, Mark, Raw
from learners.experience.schema import RAW, connect
from learners.experience.transition import Malformed, Transition, checksum, decode_head, encode
from learners.rewards.credit_assignment import MAX_DELAY_S, decision_in_force

BLOCK = 32
"""Rows that are stored or evicted together."""
MAX_CHANGES = 200_000
FOLLOWING = 4_096
"""Rows after a tick that are searched for a clock that was set back."""
LABELLED_SHARE = 0.25
"""Of `max_bytes`, what copies of labelled readings may take."""
MOST_UNCOPIED = 1_000
"""Labels that wait for the reading that they are about."""
_OUTCOMES = ("success", "failure")
_RESERVED = ("intervention", "demonstration", "failure", "success", "done")
"""Flags that keep a block in the reserve."""

BASE_FLAGS = {"done": 1, "truncated": 2, "success": 4, "failure": 8}
"""Bits of `base_flags`: what the tick itself or a mark says of the end of its episode, apart from any reward."""
MUTABLE = ("reward", "done", "intervention", "demonstration", "failure", "truncated", "success")
"""Columns that may change after the tick; a change is logged with what was there before."""


class Database:
    """The writer's side of one experience folder.

    Raises:
        sqlite3.DatabaseError: the file is broken (see `salvage.set_aside`).
        ValueError: written by a newer version of this program.
    """

    def __init__(self, folder: Path, *, max_bytes: int, reserve: float, raw_retention_s: float) -> None:
        self.max_bytes, self.reserve, self.raw_retention_s = max_bytes, reserve, raw_retention_s
        self._db = connect(folder / "experience.db")
        self._raw = connect(folder / "raw.db")
        self._raw.executescript(RAW)
        self._labelled = LabelledReadings(self._raw)
        self.labels = LabelTable(self._db, self._raw, self._labelled)
        """Labels that operators give, correct and remove."""
        self._uncopied: deque[tuple[int, Label]] = deque(maxlen=MOST_UNCOPIED)
        """Labels that came before their reading was stored, with their numbers."""
        self._blocks: dict[int, list[int]] = {}  # block -> [bytes, has reserved rows]
        self._raw_bytes = 0
        self.raw_committed = False
        """Whether the last transaction stored its raw readings, also where it failed afterwards."""
        self.broken = False
        """Whether a transaction could not be rolled back: close these connections and open others."""
        try:
            highest = self._db.execute("SELECT coalesce(max(id), 0) FROM labels").fetchone()[0]
            self._labelled.remove_after(highest)
            self._count()
        except sqlite3.Error:
            self.close()
            raise

    @property
    def bytes(self) -> int:
        """Payload bytes held, raw readings included."""
        return self._raw_bytes + self._labelled.bytes + sum(size for size, _ in self._blocks.values())

    def __enter__(self) -> Self:
        self.raw_committed = False
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._raw.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            self._roll_back()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._roll_back()
            return
        try:
            self._raw.execute("COMMIT")
            self.raw_committed = True
            self._db.execute("COMMIT")
        except sqlite3.Error:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        """Undo the transaction in both files; where that fails, the connections are `broken`."""
        try:
            for db in (self._db, self._raw):
                if db.in_transaction:
                    db.execute("ROLLBACK")
            self._count()
        except sqlite3.Error:
            self.broken = True

    def add(self, transition: Transition) -> int:
        """Store one tick; returns its row number.

        Raises:
            learners.transition.Malformed: not finite or not of a storable shape.
        """
        head, body = encode(transition)
        size = len(head) + len(body) + 200
        t = transition
        cursor = self._db.execute(
            "INSERT INTO transitions(session, tick, decision, stamp_s, policy, reward, base, done, intervention,"
            " demonstration, failure, truncated, success, value, bytes, base_flags, crc, head, body)"
            " VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                *(t.session, t.tick, t.decision, t.stamp_s, t.policy, t.reward, t.reward, t.done),
                *(t.intervention, t.demonstration, t.failure, t.truncated, t.success, t.value, size),
                sum(bit for name, bit in BASE_FLAGS.items() if getattr(t, name)),
                *(checksum(t.session + t.decision, head, body), head, body),
            ),
        )
        row = int(cursor.lastrowid or 0)
        block = self._blocks.setdefault(row // BLOCK, [0, 0])
        block[0] += size
        block[1] |= int(t.reserved)
        return row

    def credit(self, credit: Credit, now_s: float) -> bool:
        """Add a reward to the row it belongs to; False when no such row is remembered."""
        row = self._find(credit.decision, credit.stamp_s)
        if row is None:
            return False
        self._db.execute(
            "INSERT INTO rewards(row, value, done, source, stamp_s, truncated, outcome) VALUES(?,?,?,?,?,?,?)",
            (row, credit.value, credit.done, credit.source, now_s, credit.truncated, credit.outcome),
        )
        if self.quarantined(credit.source):
            return True
        ended = {name: 1 for name in ("done", "truncated") if getattr(credit, name)}
        outcome = {} if credit.outcome is None else {name: int(name == credit.outcome) for name in _OUTCOMES}
        self._change(row, lambda old: {"reward": old["reward"] + credit.value, **ended, **outcome})
        return True

    def mark(self, mark: Mark) -> bool:
        """Set flags on a decision; False when it is not remembered."""
        row = self._find(mark.decision, None)
        if row is None:
            return False
        flags = {name: int(value) for name in MUTABLE[1:] if (value := getattr(mark, name)) is not None}
        ones = sum(bit for name, bit in BASE_FLAGS.items() if flags.get(name) == 1)
        zeros = sum(bit for name, bit in BASE_FLAGS.items() if flags.get(name) == 0)
        if ones or zeros:
            self._db.execute(
                "UPDATE transitions SET base_flags = (base_flags | ?) & ~ ? WHERE row = ?", (ones, zeros, row)
            )
        self._change(row, lambda _: flags)
        return True

    def quarantined(self, source: str) -> bool:
        """Return whether the rewards of a source are quarantined."""
        found = self._db.execute("SELECT quarantined FROM sources WHERE source = ?", (source,)).fetchone()
        return bool(found and found[0])

    def quarantine(self, source: str, *, on: bool) -> int:
        """Take a source's rewards and ends of episodes out of every row, or put them back; return how many rows changed."""
        if self.quarantined(source) == on:
            return 0
        self._db.execute("INSERT OR REPLACE INTO sources VALUES(?, ?)", (source, on))
        rows = self._db.execute("SELECT DISTINCT row FROM rewards WHERE source = ?", (source,)).fetchall()
        for (row,) in rows:
            self._change(row, lambda _, row=row: self._earned(row))
        return len(rows)

    def _earned(self, row: int) -> dict[str, float]:
        """Return reward and ends of a row by the sources that are not quarantined."""
        base, bits = self._db.execute("SELECT base, base_flags FROM transitions WHERE row = ?", (row,)).fetchone()
        found = self._db.execute(
            "SELECT value, done, truncated, outcome FROM rewards WHERE row = ? AND source NOT IN"
            " (SELECT source FROM sources WHERE quarantined) ORDER BY id",
            (row,),
        ).fetchall()
        flags = {name: int(bool(bits & bit)) for name, bit in BASE_FLAGS.items()}
        flags["done"] |= int(any(done for _, done, _, _ in found))
        flags["truncated"] |= int(any(truncated for _, _, truncated, _ in found))
        for outcome in (outcome for *_, outcome in found if outcome is not None):
            flags |= {name: int(name == outcome) for name in _OUTCOMES}
        return {"reward": base + sum(value for value, *_ in found), **flags}

    def add_label(self, label: Label) -> None:
        """Store one labelled example, with a copy of the readings that it is about."""
        number = self.labels.insert(label)
        if label.text is None and label.streams and not self._copy(number, label):
            self._uncopied.append((number, label))

    def _copy(self, number: int, label: Label) -> bool:
        """Copy the readings that a label is about; False if one of them is not stored."""
        query = "SELECT head FROM transitions WHERE decision = ? ORDER BY row DESC LIMIT 1"
        transition = self._tick(query, label.decision)
        if transition is None:
            return False
        raws = [raw_reading(self, transition, stream) for stream in label.streams]
        there = [raw for raw in raws if raw is not None]
        if len(there) == len(raws):
            self._labelled.add(number, label.task, orjson.dumps(label.label).decode(), there)
        return len(there) == len(raws)

    def raw(self, stream: str, start_s: float, stop_s: float) -> list[Raw]:
        """Return raw readings of a stream with `start_s <= stamp_s < stop_s` (Unix)."""
        query = "SELECT stream, stamp_s, encoding, data FROM raw WHERE stream = ? AND stamp_s >= ? AND stamp_s < ? ORDER BY stamp_s"
        return [Raw(*found) for found in self._raw.execute(query, (stream, start_s, stop_s))]

    def at(self, stamp_s: float) -> Transition | None:
        """Return the tick of exactly this stamp, without its tokens."""
        return self._tick("SELECT head FROM transitions WHERE stamp_s = ? ORDER BY row DESC LIMIT 1", stamp_s)

    def _tick(self, query: str, key: str | float | None) -> Transition | None:
        """Return stamp and ages of a tick, as far as `raw_reading` needs them."""
        found = self._db.execute(
            query.replace("SELECT head", "SELECT session, tick, decision, stamp_s, policy, head"), (key,)
        ).fetchone()
        if found is None:
            return None
        session, tick, decision, stamp_s, policy, head = found
        try:
            return Transition(session, tick, decision, stamp_s, policy, ages_s=decode_head(head)["ages_s"])
        except Malformed:
            return None

    def add_raw(self, raw: Raw) -> None:
        """Store an encoded reading for `raw_retention_s`."""
        self._raw.execute(
            "INSERT INTO raw(stream, stamp_s, encoding, data) VALUES(?,?,?,?)",
            (raw.stream, raw.stamp_s, raw.encoding, raw.data),
        )
        self._raw_bytes += len(raw.data)

    def trim(self, now_s: float) -> int:
        """Forget old raw readings and, above `max_bytes`, the oldest blocks; returns how many rows went."""
        self._copy_late()
        self._trim_raw(now_s)
        self._labelled.trim(int(self.max_bytes * LABELLED_SHARE), self.labels.held_out)
        doomed = self._doomed()
        gone = 0
        for block in doomed:
            first, last = block * BLOCK, (block + 1) * BLOCK
            for table in ("transitions", "rewards", "changes"):
                cursor = self._db.execute(
                    f"DELETE FROM {table} WHERE row >= ? AND row < ?",  # noqa: S608 - our own table names
                    (first, last),
                )
                gone += cursor.rowcount if table == "transitions" else 0
            del self._blocks[block]
        if doomed:
            self._db.execute("DELETE FROM changes WHERE id <= (SELECT max(id) FROM changes) - ?", (MAX_CHANGES,))
        return gone

    def compact(self) -> None:
        """Give freed pages back to the file system; outside a transaction."""
        for db in (self._db, self._raw):
            db.execute("PRAGMA incremental_vacuum(2000)").fetchall()

    def close(self) -> None:
        """Write the log back and close."""
        for db in (self._db, self._raw):
            db.close()

    def _find(self, decision: str | None, stamp_s: float | None) -> int | None:
        """Find the row of a decision, else of the one in force at `stamp_s`."""
        if decision is not None:
            found = self._db.execute(
                "SELECT row FROM transitions WHERE decision = ? ORDER BY row DESC LIMIT 1", (decision,)
            ).fetchone()
            return int(found[0]) if found else None
        if stamp_s is None:
            return None
        there: list[tuple[float, int]] = self._db.execute(
            "SELECT stamp_s, row FROM transitions WHERE stamp_s BETWEEN ? AND ? ORDER BY row",
            (stamp_s - 2 * MAX_DELAY_S, stamp_s),  # more than can be meant: the rule decides, not the rounding here
        ).fetchall()
        last = there[-1][1] if there else 0
        later = "SELECT min(stamp_s) FROM transitions WHERE row > ? AND row <= ?"
        lowest = self._db.execute(later, (last, last + FOLLOWING)).fetchone()[0]
        timeline: list[tuple[float, int]] = []
        for stamp, row in reversed(there):  # without those of the same time before the clock was set back
            if lowest is None or stamp <= lowest:
                timeline.append((stamp, row))
                lowest = stamp
        return decision_in_force(timeline[::-1], stamp_s)

    def _change(self, row: int, update: Any) -> None:
        columns = ", ".join(MUTABLE)
        found = self._db.execute(f"SELECT {columns} FROM transitions WHERE row = ?", (row,)).fetchone()  # noqa: S608 - our own column names
        if found is None:
            return
        before = dict(zip(MUTABLE, found, strict=True))
        after = {**before, **update(before)}
        if after == before:
            return
        self._db.execute(
            f"UPDATE transitions SET {', '.join(f'{name} = ?' for name in MUTABLE)} WHERE row = ?",  # noqa: S608 - as above
            (*after.values(), row),
        )
        self._db.execute(
            "INSERT INTO changes(row, before, after) VALUES(?,?,?)", (row, orjson.dumps(before), orjson.dumps(after))
        )
        block = self._blocks.get(row // BLOCK)
        if block is not None:
            block[1] |= int(any(after[name] for name in _RESERVED))

    def _trim_raw(self, now_s: float) -> None:
        cutoff = now_s - self.raw_retention_s
        old = "SELECT coalesce(sum(length(data)), 0) FROM raw WHERE stamp_s < ?"
        freed = int(self._raw.execute(old, (cutoff,)).fetchone()[0])
        excess = self._raw_bytes - freed - self.max_bytes // 2
        if excess > 0:  # raw readings may take half the budget at most
            for stamp_s, size in self._raw.execute("SELECT stamp_s, length(data) FROM raw ORDER BY stamp_s"):
                if stamp_s < cutoff:
                    continue
                cutoff, freed, excess = stamp_s + 1e-6, freed + size, excess - size
                if excess <= 0:
                    break
        if freed:
            self._raw.execute("DELETE FROM raw WHERE stamp_s < ?", (cutoff,))
            self._raw_bytes = int(self._raw.execute("SELECT coalesce(sum(length(data)), 0) FROM raw").fetchone()[0])

    def _copy_late(self) -> None:
        """Try again to copy the readings of labels that came before them."""
        waiting = [self._uncopied.popleft() for _ in range(len(self._uncopied))]
        for number, label in waiting:
            there = self._db.execute("SELECT 1 FROM labels WHERE id = ?", (number,)).fetchone()
            if there and not self._copy(number, label):
                self._uncopied.append((number, label))

    def _doomed(self) -> list[int]:
        """Return the blocks to evict: ordinary ones oldest first; reserved ones only beyond the reserve."""
        excess = self.bytes - self.max_bytes
        reserved = sum(size for size, is_reserved in self._blocks.values() if is_reserved)
        doomed: list[int] = []
        newest = max(self._blocks, default=0)
        for block in sorted(self._blocks):
            size, is_reserved = self._blocks[block]
            if excess <= 0 or block == newest:
                break
            if is_reserved and reserved - size < self.reserve * self.max_bytes:
                continue
            doomed.append(block)
            excess -= size
            reserved -= size if is_reserved else 0
        return doomed

    def _count(self) -> None:
        """Sum up what both files hold."""
        self._raw_bytes = int(self._raw.execute("SELECT coalesce(sum(length(data)), 0) FROM raw").fetchone()[0])
        self._labelled.count()
        rows = self._db.execute(
            f"SELECT row / {BLOCK}, sum(bytes), max({' | '.join(_RESERVED)})"  # noqa: S608 - constants
            f" FROM transitions GROUP BY row / {BLOCK}"
        )
        self._blocks = {block: [size, is_reserved] for block, size, is_reserved in rows}
