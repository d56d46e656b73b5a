"""Store every verdict on a policy version, so that the page can show it after a restart and long after the event.

One JSON object a line in `state_dir/promotions.jsonl`. The file is bounded: each start drops all but the newest entries. What a
full disk refuses is written with the next verdict; half a line is taken back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any, Self

import orjson
import structlog

from learners.files import write_atomically
from runtime.process.emit import Emit

log = structlog.get_logger(__name__)

FILE = "promotions.jsonl"
MAX_ENTRIES = 500
MAX_ENTRY = 8_192
"""Bytes of one entry; the figures of a larger one are left out."""
MAX_FILE = 2 * MAX_ENTRIES * MAX_ENTRY
VERDICTS = frozenset(
    {
        "policy_promoted",
        "policy_proposed",
        "policy_rejected",
        "policy_rolled_back",
        "policy_trusted",
        "experiment_ended",
    }
)
Entry = dict[str, Any]


@dataclass(slots=True)
class PromotionHistory:
    """The verdicts of one agent, oldest first.

    Args:
        path: the file.
        executor: writes it, off the event loop.
        wall: Unix seconds.
    """

    path: Path
    executor: Executor
    wall: Callable[[], float] = time.time
    lost: int = 0
    """Entries that could not be written, so far."""
    _entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=MAX_ENTRIES))
    _unwritten: deque[bytes] = field(default_factory=lambda: deque(maxlen=MAX_ENTRIES))
    """Lines that are not in the file yet, oldest first."""
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def opened(cls, path: Path, executor: Executor, wall: Callable[[], float]) -> Self:
        """Return the history with what the file has."""
        history = cls(path, executor, wall)
        history.start()
        return history

    def start(self) -> None:
        """Read the newest entries, and shorten a file with too many; lines that cannot be read are left out."""
        try:
            with self.path.open("rb") as file:
                lines = file.read(MAX_FILE).splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("promotions.unreadable", path=str(self.path), reason=str(error))
            return
        self._entries.extend(entry for entry in map(_entry, lines) if entry is not None)
        if len(lines) > MAX_ENTRIES:
            try:
                write_atomically(self.path, b"".join(orjson.dumps(entry) + b"\n" for entry in self._entries))
            except OSError as error:
                log.warning("promotions.not_shortened", path=str(self.path), reason=str(error))

    def emitting(self, emit: Emit) -> Emit:
        """Return `emit` that notes verdicts as well."""

        def both(kind: str, data: dict[str, Any]) -> None:
            emit(kind, data)
            self.note(kind, data)

        return both

    def note(self, kind: str, data: dict[str, Any]) -> None:
        """Note an event if it is a verdict; from any thread."""
        if kind not in VERDICTS:
            return
        entry = {"type": kind, "stamp": round(self.wall(), 3), "data": data}
        line = orjson.dumps(entry, default=str)
        if len(line) > MAX_ENTRY:
            short = {
                name: data[name] for name in ("version", "to", "before", "step", "reason", "by", "why") if name in data
            }
            entry["data"] = short
            line = orjson.dumps(entry, default=str)
        with self._lock:
            self._entries.append(entry)
            self._unwritten.append(line + b"\n")
        self.executor.submit(self._write)

    def newest(self, count: int) -> list[Entry]:
        """Return the newest entries, oldest first."""
        with self._lock:
            return list(self._entries)[-count:]

    def _write(self) -> None:
        """Append what is not in the file yet; take back what the disk took only in part."""
        with self._lock:
            try:
                with self.path.open("ab", buffering=0) as file:
                    while self._unwritten:
                        _append(file, self._unwritten[0])
                        self._unwritten.popleft()
            except OSError as error:
                if not self.lost:
                    log.warning("promotions.not_written", path=str(self.path), reason=str(error))
                self.lost = len(self._unwritten)
                return
            if self.lost:
                log.warning("promotions.written_later", path=str(self.path), lines=self.lost)
            self.lost = 0


def _append(file: FileIO, line: bytes) -> None:
    """Append one line.

    Raises:
        OSError: nothing of it is in the file.
    """
    end, failure = file.seek(0, os.SEEK_END), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        if file.write(line) == len(line):
            return
    except OSError as error:
        failure = error
    with contextlib.suppress(OSError):
        file.truncate(end)
    raise failure


def _entry(line: bytes) -> Entry | None:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    sound = isinstance(found, dict) and found.get("type") in VERDICTS and isinstance(found.get("data"), dict)
    return found if sound and isinstance(found.get("stamp"), int | float) else None
