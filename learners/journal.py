"""What the learner took in, and after how many updates: replayed after a crash, so that it learns the same again.

One JSON line an entry, written before the entry takes effect. A line torn by a crash is the last one and is dropped: what it
announced had not happened.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from learners.files import write_atomically
from learners.source import Moment


@dataclass(frozen=True, slots=True)
class Entry:
    """After `update` updates, everything up to a moment was taken in, or weights taken up, or tokens made anew."""

    number: int
    """Counts up; a saved state says which was the last it contains."""
    update: int
    row: int = 0
    change: int = 0
    version: str | None = None
    recoded: int | None = None
    """Tokens made anew were taken in up to this entry of `reencoded.db`."""

    @property
    def moment(self) -> Moment:
        """What was taken in."""
        return Moment(self.row, self.change)


class Journal:
    """The file of entries since the last saved state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def note(self, entry: Entry) -> None:
        """Write an entry; survives the death of this process as soon as it returns."""
        with self.path.open("ab", buffering=0) as file:
            file.write(orjson.dumps(asdict(entry)) + b"\n")

    def entries(self) -> list[Entry]:
        """Every whole entry, in order."""
        found: list[Entry] = []
        content = self.path.read_bytes() if self.path.exists() else b""
        for line in content.split(b"\n")[:-1]:
            try:
                found.append(Entry(**orjson.loads(line)))
            except (orjson.JSONDecodeError, TypeError):
                break
        return found

    def restart(self, entries: list[Entry]) -> None:
        """Replace everything: a state was saved that contains what is left out."""
        write_atomically(self.path, b"".join(orjson.dumps(asdict(entry)) + b"\n" for entry in entries))
