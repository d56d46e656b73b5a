"""The agent's side of remembering: `Store` takes ticks, rewards, marks and labels without ever making the tick wait.

Everything goes through one bounded queue to one writer thread; order is kept, so a reward that follows its tick finds it.
A full queue drops the newcomer and counts it. What `flush` returned for is committed and survives kill -9. Readers in
other processes use `reader.Reader`.

Events (`on_event(kind, fields)`, called in the writer thread): `unknown_decision` a reward or mark for nothing remembered;
`experience_set_aside` a broken file and what was salvaged; `experience_refused` a transition that is not whole;
`experience_lost` the disk refused.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.config import ExperienceSettings
from learners.experience.database import Database
from learners.experience.records import Credit, Label, Mark, Raw
from learners.experience.recovery import damaged, quarantine_and_recover
from learners.experience.transition import Malformed, Transition

__all__ = ["Credit", "Label", "Mark", "Raw", "Store", "Transition"]

OnEvent = Callable[[str, dict[str, Any]], None]
_BATCH = 256
_TRIM_EVERY_S = 5.0
_CLEAN = "closed-cleanly"


@dataclass(frozen=True, slots=True)
class _Quarantine:
    source: str
    on: bool


@dataclass(frozen=True, slots=True)
class _Flush:
    done: threading.Event
    lost: threading.Event


_Item = Transition | Credit | Mark | Label | Raw | _Quarantine | _Flush


class Store:
    """The writer of `folder` (there is one at a time: the agent).

    Opening happens in the writer thread, so a broken file never delays the start; meanwhile items queue.
    """

    def __init__(
        self,
        folder: Path,
        settings: ExperienceSettings | None = None,
        *,
        on_event: OnEvent = lambda _kind, _fields: None,
        clock: Callable[[], float] = time.time,
        limit: int = 4_096,
    ) -> None:
        self.folder = folder
        self.drops: Counter[str] = Counter()
        """Items not stored, by cause: `full` queue, `refused`, `disk`, `unknown`."""
        self.committed = 0
        """Transitions acknowledged since the start."""
        self._settings = settings or ExperienceSettings.model_validate({})
        self._on_event, self._clock = on_event, clock
        self._items: queue.Queue[_Item] = queue.Queue(limit)
        self._closing = threading.Event()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._thread = threading.Thread(target=self._run, name="experience", daemon=True)
        self._thread.start()

    def append(self, transition: Transition) -> bool:
        """Remember a tick; False when the queue is full and it was dropped."""
        return self._put(transition)

    def credit(
        self, value: float, *, decision: str | None = None, stamp_s: float | None = None, done: bool = False,
        source: str = "default",
    ) -> bool:  # fmt: skip
        """Reward the named decision, else the tick in force at `stamp_s` (Unix; default now)."""
        if decision is None and stamp_s is None:
            stamp_s = self._clock()
        return self._put(Credit(value, decision, stamp_s, done, source))

    def mark(self, mark: Mark) -> bool:
        """Set flags on a remembered decision."""
        return self._put(mark)

    def add_label(self, label: Label) -> bool:
        """Store one labelled example for fine-tuning."""
        return self._put(label)

    def add_raw(self, raw: Raw) -> bool:
        """Keep an encoded frame or sound for `raw_s`, for re-encoding after a fine-tune."""
        return self._put(raw)

    def quarantine(self, source: str, *, on: bool = True) -> bool:
        """Keep a source's rewards apart from learning, past and future ones; `on=False` releases it."""
        return self._put(_Quarantine(source, on))

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything queued before is committed; True is the acknowledgement."""
        mark = _Flush(threading.Event(), threading.Event())
        deadline = time.monotonic() + timeout_s
        try:
            self._items.put(mark, timeout=timeout_s)
        except queue.Full:
            return False
        return mark.done.wait(max(0.0, deadline - time.monotonic())) and not mark.lost.is_set()

    def close(self, timeout_s: float = 10.0) -> bool:
        """Commit what is queued and stop; False when that took longer than `timeout_s`."""
        self._closing.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _put(self, item: _Item) -> bool:
        if self._closing.is_set():
            self.drops["closed"] += 1
            return False
        try:
            self._items.put_nowait(item)
        except queue.Full:
            self.drops["full"] += 1
            return False
        return True

    def _run(self) -> None:
        try:
            database = self._open()
        except (OSError, sqlite3.Error, ValueError) as error:
            self._give_up(str(error))
            return
        (self.folder / _CLEAN).unlink(missing_ok=True)
        trimmed_s = -float("inf")
        while not (self._closing.is_set() and self._items.empty()):
            batch = self._take()
            trim = time.monotonic() - trimmed_s > _TRIM_EVERY_S
            if batch or trim:
                database = self._commit(database, batch, trim=trim)
            if trim:
                trimmed_s = time.monotonic()
        database.close()
        (self.folder / _CLEAN).touch()

    def _open(self) -> Database:
        for name in ("experience.db", "raw.db"):
            path = self.folder / name
            if (self.folder / _CLEAN).exists() and path.exists() and path.stat().st_size > 1 << 26:
                continue  # a large file that was closed in order is not walked again; reads are checked row by row
            reason = damaged(path)
            if reason:
                self._set_aside(path, reason)
        return self._database()

    def _database(self) -> Database:
        settings = self._settings
        return Database(
            self.folder,
            max_bytes=int(settings.max_gb * 1e9),
            reserve=settings.reserve,
            raw_s=settings.raw_s,
        )

    def _set_aside(self, path: Path, reason: str) -> None:
        result = quarantine_and_recover(path, reason, self._clock())
        fields = {"path": str(result.path), "reason": reason, "salvaged": result.salvaged, "lost": result.lost}
        self._on_event("experience_set_aside", fields)

    def _take(self) -> list[_Item]:
        batch: list[_Item] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._items.get(timeout=0.05))
            while len(batch) < _BATCH:
                batch.append(self._items.get_nowait())
        return batch

    def _commit(self, database: Database, batch: list[_Item], *, trim: bool) -> Database:
        try:
            with database:
                stored = sum(self._apply(database, item) for item in batch)
                gone = database.trim(self._clock()) if trim else 0
            if gone:
                database.compact()
            self.committed += stored
        except sqlite3.OperationalError as error:  # disk full, locked for too long: the batch is lost, the file is not
            self.drops["disk"] += len(batch)
            self._on_event("experience_lost", {"reason": str(error), "items": len(batch)})
            self._answer(batch, lost=True)
        except sqlite3.DatabaseError as error:  # a broken page
            database.close()
            self._set_aside(self.folder / "experience.db", str(error))
            return self._commit(self._database(), batch, trim=trim)
        self._answer(batch, lost=False)
        return database

    def _answer(self, batch: list[_Item], *, lost: bool) -> None:
        for item in batch:
            if isinstance(item, _Flush):
                if lost:
                    item.lost.set()
                item.done.set()

    def _apply(self, database: Database, item: _Item) -> int:
        """Write one item; returns 1 for a stored transition."""
        match item:
            case Transition():
                try:
                    database.add(item)
                except Malformed as error:
                    self.drops["refused"] += 1
                    self._on_event("experience_refused", {"decision": item.decision, "reason": str(error)})
                    return 0
                return 1
            case Credit():
                self._known(database.credit(item, self._clock()), item.decision, item.source)
            case Mark():
                self._known(database.mark(item), item.decision, "mark")
            case Label():
                database.add_label(item)
            case Raw():
                database.add_raw(item)
            case _Quarantine():
                database.quarantine(item.source, on=item.on)
            case _Flush():
                pass
        return 0

    def _known(self, known: bool, decision: str | None, source: str) -> None:  # noqa: FBT001 - the verdict itself
        if not known:
            self.drops["unknown"] += 1
            self._on_event("unknown_decision", {"decision": decision, "source": source})

    def _give_up(self, reason: str) -> None:
        """The folder cannot be opened at all: say so, and keep counting what is lost so that the tick goes on."""
        self._on_event("experience_lost", {"reason": reason, "items": 0})
        while not self._closing.is_set():
            batch = self._take()
            self.drops["disk"] += sum(not isinstance(item, _Flush) for item in batch)
            self._answer(batch, lost=True)
