"""Commits batches of experience: rolls back what fails, tries again, reopens the file, and counts what is lost.

Belongs to the writer thread of `store.py`. A batch is on disk whole or not at all; an item that cannot be stored is refused
alone. A broken file is set aside and what reads is carried over. Knows no queue.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from learners.config.learner import ExperienceSettings
from learners.experience.database import Database
from learners.experience.records import Credit, Label, LabelCorrection, Mark, Raw, ReadingLabels, SourceExclusion
from learners.experience.recovery import damaged, quarantine_and_recover
from learners.experience.transition import Transition
from learners.write_failures import WriteFailures

Item = Transition | Credit | Mark | Label | ReadingLabels | LabelCorrection | Raw | SourceExclusion
OnEvent = Callable[[str, dict[str, Any]], None]
CLEAN = "closed-cleanly"
RETRIES_S = (0.1, 0.5)
"""Pauses before a failed batch is tried again."""
RETRY_WITHIN_S = 2.0
"""A batch that has waited longer than this, for a lock perhaps, is not tried again."""
FAILING_PAUSE_S = 1.0
"""Pause after a loss, while the disk refuses."""
_UNSTORABLE = (ValueError, TypeError, OverflowError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
               sqlite3.DataError, sqlite3.IntegrityError)  # fmt: skip
"""What is wrong with one item and not with the file."""


class Writer:
    """Writes to one experience folder.

    Args:
        folder: of the databases.
        settings: limits of what is stored.
        drops: counts items that were not stored, by cause.
        on_event: publishes an event.
        clock: Unix seconds.
        pause: waits for a number of seconds; it may return early.
    """

    def __init__(
        self,
        folder: Path,
        settings: ExperienceSettings,
        drops: Counter[str],
        on_event: OnEvent,
        clock: Callable[[], float],
        pause: Callable[[float], object],
    ) -> None:
        self.folder, self.drops = folder, drops
        self.committed = 0
        """Transitions on disk since the start."""
        self.losses = 0
        """Batches that were lost since the start."""
        self._settings, self._on_event, self._clock, self._pause = settings, on_event, clock, pause
        self.max_bytes = int(settings.max_gb * 1e9)
        """Size at which the oldest rows are deleted; another thread may change it."""
        self._failures = WriteFailures(on_event, "experience_write_failed", "experience_recovered")
        self._database: Database | None = None
        self._lost = False
        self._newer: str | None = None
        """Why the folder is never written by this program."""
        self._notes: list[tuple[str, str, dict[str, Any]]] = []
        """Cause, type and data of what to publish once the batch is on disk."""

    def open(self) -> bool:
        """Open the folder, and carry over what reads of a broken file; False when that fails (an event says why)."""
        try:
            self._check()
            self._opened()
        except ValueError as error:
            self._newer = str(error)
            self._failures.add(self._newer, 0)
        except (OSError, sqlite3.Error) as error:
            self._failures.add(str(error), 0)
        return self._database is not None

    def commit(self, batch: Sequence[Item], *, trim: bool) -> bool:
        """Store a batch, and trim the folder on request; False when the batch is lost."""
        began_s, items = time.monotonic(), list(batch)
        reason = self._newer or ""
        for pause_s in () if self._newer else (*RETRIES_S, 0.0):
            try:
                self._try(items, trim=trim)
            except (OSError, sqlite3.OperationalError) as error:  # disk full, or locked for too long: the file is whole
                reason = str(error)
                items = self._left(items)
            except sqlite3.DatabaseError as error:  # a broken page
                reason = self._set_aside_broken(str(error))
            else:
                self._lost = False
                self._failures.succeeded()
                return True
            if self._failures.failing or not pause_s or time.monotonic() - began_s > RETRY_WITHIN_S:
                break
            self._pause(pause_s)
        self._lost = True
        self.losses += bool(items)
        self.drops["disk"] += len(items)
        self._failures.add(reason, len(items))
        self._pause(FAILING_PAUSE_S)
        return False

    def close(self) -> None:
        """Close the files and note that nothing of them needs to be checked."""
        if not self._lost:
            self._failures.succeeded(last=True)
        if self._database is not None:
            self._database.close()
            with contextlib.suppress(OSError):  # the disk may be full: the next start checks the files
                (self.folder / CLEAN).touch()

    def _try(self, items: Sequence[Item], *, trim: bool) -> None:
        """Commit once.

        Raises:
            OSError, sqlite3.Error: nothing of it is stored, or the raw readings alone (`Database.raw_committed`).
        """
        self._notes.clear()
        database = self._opened()
        database.max_bytes = self.max_bytes
        with database:
            stored = sum(self._apply(database, item) for item in items)
            gone = database.trim(self._clock()) if trim else 0
        self.committed += stored
        for cause, kind, data in self._notes:
            self.drops[cause] += 1
            self._on_event(kind, data)
        if gone:
            database.compact()

    def _left(self, items: list[Item]) -> list[Item]:
        """Return the items of a failed batch that are not on disk; close a connection that cannot roll back."""
        database = self._database
        if database is None:
            return items
        left = [item for item in items if not (database.raw_committed and isinstance(item, Raw))]
        if database.broken:
            self._database = None
            database.close()
        return left

    def _opened(self) -> Database:
        if self._database is None:
            s = self._settings
            self._database = Database(
                self.folder,
                max_bytes=self.max_bytes,
                reserve=s.reserved_fraction,
                raw_retention_s=s.raw_retention_s,
            )
            (self.folder / CLEAN).unlink(missing_ok=True)
        return self._database

    def _check(self) -> None:
        """Set broken files aside before they are opened."""
        for name in ("experience.db", "raw.db"):
            path = self.folder / name
            if (self.folder / CLEAN).exists() and path.exists() and path.stat().st_size > 1 << 26:
                continue  # a large file that was closed in order is not walked again; reads are checked row by row
            reason = damaged(path)
            if reason:
                self._set_aside(path, reason)

    def _set_aside_broken(self, reason: str) -> str:
        """Set aside the files that are broken; return the reason, or why that cannot be done now."""
        if self._database is not None:
            self._database.close()
            self._database = None
        try:
            broken = [n for n in ("experience.db", "raw.db") if damaged(self.folder / n)]
            for name in broken or ["experience.db"]:
                self._set_aside(self.folder / name, reason)
        except (OSError, sqlite3.Error) as error:
            return f"{reason}; it cannot be set aside: {error}"
        return reason

    def _set_aside(self, path: Path, reason: str) -> None:
        result = quarantine_and_recover(path, reason, self._clock())
        fields = {"path": str(result.path), "reason": reason, "salvaged": result.salvaged, "lost": result.lost}
        self._on_event("experience_corrupt", fields)

    def _apply(self, database: Database, item: Item) -> int:
        """Write one item; returns 1 for a stored transition."""
        try:
            return self._write(database, item)
        except _UNSTORABLE as error:
            name = item.decision if isinstance(item, Transition | Credit | Mark | Label) else None
            self._notes.append(("refused", "transition_rejected", {"decision": name, "reason": str(error)}))
            return 0

    def _write(self, database: Database, item: Item) -> int:
        match item:
            case Transition():
                database.add(item)
                return 1
            case Credit():
                self._known(database.credit(item, self._clock()), item.decision, item.source)
            case Mark():
                self._known(database.mark(item), item.decision, "mark")
            case Label():
                database.add_label(item)
            case ReadingLabels():
                database.labels.label_readings(item)
            case LabelCorrection():
                database.labels.correct(item)
            case Raw():
                database.add_raw(item)
            case SourceExclusion():
                database.quarantine(item.source, on=item.on)
        return 0

    def _known(self, known: bool, decision: str | None, source: str) -> None:  # noqa: FBT001 - the verdict itself
        if not known:
            self._notes.append(("unknown", "unknown_decision", {"decision": decision, "source": source}))
