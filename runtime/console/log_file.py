"""Store the daemon's log in a file that rotates, and read what it reports at once.

The daemon and its children append to the file themselves, so a terminal that does not scroll never blocks them. The console
rotates the file: it copies and then empties it, because the writers hold it open.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from learners.files import private_folder

MAX_BYTES = 10_000_000
OLD_FILES = 3
MAX_READ = 1_048_576
"""Bytes of new lines that one call reads; older ones are in the file only."""


@dataclass(slots=True)
class LogFile:
    """One log file with older ones beside it (`.1` is the newest of them).

    Args:
        path: the file.
        max_bytes: it rotates above this size.
    """

    path: Path
    max_bytes: int = MAX_BYTES
    _position: int = 0
    _rest: bytes = b""
    plain: list[str] = field(default_factory=list)
    """The newest lines that are no records, such as messages of other libraries."""

    def begin(self) -> None:
        """Create the folder, rotate a large file of the last run, and read from its end on.

        Raises:
            OSError: the folder or the file cannot be written.
        """
        private_folder(self.path.parent)
        self.path.touch()
        self.rotate()
        self._position = self.path.stat().st_size

    def rotate(self) -> None:
        """Move the content to `.1` if the file is too large."""
        if self.path.stat().st_size <= self.max_bytes:
            return
        for number in range(OLD_FILES, 1, -1):
            older = self._old(number - 1)
            if older.exists():
                older.replace(self._old(number))
        shutil.copyfile(self.path, self._old(1))
        with self.path.open("r+b") as file:
            file.truncate(0)
        self._position, self._rest = 0, b""

    def new_records(self) -> list[dict[str, Any]]:
        """Return the records since the last call; lines that are no records go to `plain`."""
        size = self.path.stat().st_size
        if size < self._position:
            self._position, self._rest = 0, b""
        if size - self._position > MAX_READ:
            self._position, self._rest = size - MAX_READ, b""
        with self.path.open("rb") as file:
            file.seek(self._position)
            content = self._rest + file.read(MAX_READ)
            self._position = file.tell()
        *lines, self._rest = content.split(b"\n")
        records = []
        for line in lines:
            record = _record(line)
            if record is not None:
                records.append(record)
            elif line.strip():
                self.plain = [*self.plain, line.decode(errors="replace")][-20:]
        return records

    def _old(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and "event" in found else None
