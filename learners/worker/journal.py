"""Record what the learner loaded, and after how many updates: it is replayed after a crash for the same result.

One JSON line an entry, written before the entry takes effect. A line torn by a crash is the last one and is dropped: what it
announced had not happened.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from learners.experience.snapshots import SnapshotId
from learners.files import private_folder, write_atomically


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """What the learner loaded after `update` updates: experience, new weights, re-encoded tokens, or other encoder versions."""

    number: int
    """Counts up; a saved state says which was the last it contains."""
    update: int
    row: int = 0
    change: int = 0
    version: str | None = None
    exploration: Mapping[str, float] | None = None
    """How far the exploration of `version` had come; see `Algorithm.exploration`."""
    recoded: int | None = None
    """Re-encoded tokens were loaded up to this entry of `reencoded.db`."""
    encoders: dict[str, str] | None = None
    """By stream, the encoder version that training follows from here."""

    @property
    def moment(self) -> SnapshotId:
        """What was taken in."""
        return SnapshotId(self.row, self.change)


class Journal:
    """The file of entries since the last saved state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        private_folder(path.parent)

    def note(self, entry: JournalEntry) -> None:
        """Write an entry; survives the death of this process as soon as it returns.

        Raises:
            OSError: it could not be written whole; nothing of it is in the file.
        """
        line = orjson.dumps(asdict(entry)) + b"\n"
        with self.path.open("ab", buffering=0) as file:
            end, failure = file.seek(0, os.SEEK_END), errno.ENOSPC
            try:
                if file.write(line) == len(line):
                    return
            except OSError as error:
                failure = error.errno or failure
            file.truncate(end)  # half a line would hide every later entry
        raise OSError(failure, os.strerror(failure), str(self.path))

    def entries(self) -> list[JournalEntry]:
        """Return every complete entry, in order."""
        found: list[JournalEntry] = []
        content = self.path.read_bytes() if self.path.exists() else b""
        for line in content.split(b"\n")[:-1]:
            try:
                found.append(JournalEntry(**orjson.loads(line)))
            except (orjson.JSONDecodeError, TypeError):
                break
        return found

    def restart(self, entries: list[JournalEntry]) -> None:
        """Replace everything: a state was saved that contains what is left out."""
        write_atomically(self.path, b"".join(orjson.dumps(asdict(entry)) + b"\n" for entry in entries))


_FORMER = {"owed": "pending_updates"}
"""Names before 0.1.0 in saved states, and the names of now."""


@dataclass(slots=True)
class Position:
    """Where training is."""

    update: int = 0
    pending_updates: float = 0.0
    row: int = 0
    change: int = 0
    entry: int = 0
    """Of the journal."""
    recoded: int = 0
    """The last entry of re-encoded tokens that was loaded."""
    acting: int = 0
    """Ticks taken in at which somebody acted."""
    new_decisions: float = 0.0
    """How many of them came since the last update; exploration fades by these."""
    resting: int = 0
    """Other ticks that entered the statistics of the inputs."""
    unobserved: int = 0
    """Transitions in the replay that a part which sees each one once has not seen yet."""
    encoders: dict[str, str] = field(default_factory=dict)
    """By stream, the encoder version that training follows; the other streams follow what acts."""

    @property
    def moment(self) -> SnapshotId:
        """What was taken in."""
        return SnapshotId(self.row, self.change)


def document(position: Position, trail: int, versions: Mapping[str, str]) -> dict[str, Any]:
    """Return the position in its saved form, with the index of the stored rows and the encoders' versions."""
    return {**asdict(position), "trail": trail, "versions": versions}


def load_position(saved: Mapping[str, Any]) -> tuple[Position, int, dict[str, str]]:
    """Where training was, as saved: the position, the trail of what is held, the encoders' versions.

    Raises:
        KeyError, TypeError, ValueError: another version of this program wrote it, with other fields.
    """
    position = {_FORMER.get(name, name): value for name, value in saved.items()}
    trail, versions = int(position.pop("trail")), dict(position.pop("versions"))
    return Position(**position), trail, versions
