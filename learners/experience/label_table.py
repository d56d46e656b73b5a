"""Write labels: those that arrive over MQTT, those that operators give to stored readings, corrections and removals.

A label is never overwritten. A correction adds a new label that names the one it replaces, and a removal notes who removed it and
when. Some labels of each class are put aside: they are the held-out file of a task without `eval_file` and never train. A reading
of equal bytes, and the same picture of the same class, is put on the same side. Only operators' labels decide on the side, so that
a client of the topic `label` cannot. Used by `database.py` alone; the caller holds the transaction.
"""

from __future__ import annotations

import sqlite3

import orjson

from learners.experience.labelled_readings import LabelledReadings
from learners.experience.records import Label, LabelCorrection, Raw, ReadingLabels

HOLD_OUT_EVERY = 4
"""One label of each class is put aside among this many: the second, the sixth, the tenth."""


def reading_name(number: int, stamp_s: float) -> str:
    """Return the name of a stored reading: its number and its milliseconds. A number alone could name another one later."""
    return f"{number}-{round(stamp_s * 1e3)}"


class LabelTable:
    """Writes labels in the two files of one experience folder."""

    def __init__(self, db: sqlite3.Connection, raw: sqlite3.Connection, labelled: LabelledReadings) -> None:
        self._db, self._raw, self._labelled = db, raw, labelled

    def insert(
        self, label: Label, *, held_out: bool = False, by_operator: bool = False, replaces: int | None = None
    ) -> int:
        """Insert one label; return its number."""
        cursor = self._db.execute(
            "INSERT INTO labels(task, label, text, decision, source, stamp_s, held_out, by_operator, replaces)"
            " VALUES(?,?,?,?,?,?,?,?,?)",
            (
                *(
                    label.task,
                    orjson.dumps(label.label).decode(),
                    label.text,
                    label.decision,
                    label.source,
                    label.stamp_s,
                ),
                *(held_out, by_operator, replaces),
            ),
        )
        return int(cursor.lastrowid or 0)

    def label_readings(self, given: ReadingLabels) -> None:
        """Label stored readings; fill `outcome` for those that still exist."""
        given.outcome.clear()
        for name in dict.fromkeys(given.readings):
            raw = self._reading(given.stream, name)
            if raw is None:
                continue
            text = raw.data.decode(errors="replace") if raw.encoding == "utf-8" else None
            label = Label(given.task, given.label, text, None, given.source, given.stamp_s)
            held_out = given.hold_out and self._is_held_out(label, raw)
            number = self.insert(label, held_out=held_out, by_operator=True)
            if text is None:
                self._labelled.add(number, given.task, orjson.dumps(given.label).decode(), [raw])
            given.outcome[name] = "held_out" if held_out else "train"

    def correct(self, correction: LabelCorrection) -> None:
        """Replace or remove labels; fill `outcome` for those that existed."""
        correction.outcome.clear()
        for number in dict.fromkeys(correction.labels):
            found = self._db.execute(
                "SELECT text, decision, held_out, by_operator FROM labels WHERE id = ? AND task = ? AND removed_s IS NULL",
                (number, correction.task),
            ).fetchone()
            if found is None:
                continue
            text, decision, held_out, by_operator = found
            new = None
            if correction.label is not None:
                label = Label(correction.task, correction.label, text, decision, correction.source, correction.stamp_s)
                new = self.insert(label, held_out=bool(held_out), by_operator=bool(by_operator), replaces=number)
                self._labelled.add(
                    new, correction.task, orjson.dumps(correction.label).decode(), self._labelled.of(number)
                )
            self._labelled.remove(number)
            self._db.execute(
                "UPDATE labels SET removed_s = ?, removed_by = ? WHERE id = ?",
                (correction.stamp_s, correction.source, number),
            )
            correction.outcome[number] = new

    def held_out(self) -> list[int]:
        """Return the numbers of the labels that are put aside."""
        return [number for (number,) in self._db.execute("SELECT id FROM labels WHERE held_out AND removed_s IS NULL")]

    def _reading(self, stream: str, name: str) -> Raw | None:
        """Return a stored reading by its name; None if it is deleted."""
        number, _, _ = name.partition("-")
        if not number.isdecimal() or len(number) > 18:
            return None
        query = "SELECT stream, stamp_s, encoding, data FROM raw WHERE id = ? AND stream = ?"
        found = self._raw.execute(query, (int(number), stream)).fetchone()
        return Raw(*found) if found and reading_name(int(number), found[1]) == name else None

    def _is_held_out(self, label: Label, raw: Raw) -> bool:
        """Return whether a label is put aside: as the labels of readings like it were, else one of every `HOLD_OUT_EVERY`."""
        for number in self._like(label, raw):
            query = "SELECT held_out FROM labels WHERE id = ? AND by_operator AND removed_s IS NULL"
            known = self._db.execute(query, (number,)).fetchone()
            if known is not None:
                return bool(known[0])
        query = (
            "SELECT count(*), sum(held_out) FROM labels"
            " WHERE task = ? AND label = ? AND by_operator AND removed_s IS NULL"
        )
        before, aside = self._db.execute(query, (label.task, orjson.dumps(label.label).decode())).fetchone()
        return bool((aside or 0) * HOLD_OUT_EVERY < before)

    def _like(self, label: Label, raw: Raw) -> list[int]:
        if label.text is None:
            return self._labelled.labels_like(label.task, orjson.dumps(label.label).decode(), raw)
        query = "SELECT id FROM labels WHERE task = ? AND text = ? ORDER BY id"
        return [number for (number,) in self._db.execute(query, (label.task, label.text))]
