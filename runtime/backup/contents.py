"""Define what a backup of a state folder contains, and the lists at both ends of its file.

A backup is a tar file, compressed by gzip: first `reflexd-backup.json` (format, agent, version of the program, time), then the
files, last `checksums.json` (bytes and SHA-256 of each file). A file that was cut has no checksums and is refused.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

HEAD, TAIL = "reflexd-backup.json", "checksums.json"
LINKS = ".backup"
"""Folder in the state folder with hard links to what is being backed up."""

NOT_NEEDED = frozenset({"lock", "log", "logs", "broker", "openvino", "onnxruntime", "prepared", "engine.json"})
"""Entries of the state folder that a daemon makes again: locks, logs, retained messages of its own broker, compiled graphs."""
NOT_RESTORED = frozenset({"uplink/position.json", "uplink/segment"})
"""Files that would be wrong after a restoration: the fleet has rows of the life after the backup under the same numbers."""
SET_ASIDE = "before-"
"""First part of the name of the earlier state in a state folder that cannot be renamed."""
RECORDINGS = "recordings"
DATABASE = ".db"
MOST_FILES = 1_000_000
MOST_LIST_BYTES = 256 * 1024 * 1024


class BackupError(ValueError):
    """A backup cannot be written or restored; `str` says which file, why, and the remedy."""


class BackupHead(BaseModel):
    """The first member of the file."""

    model_config = ConfigDict(extra="ignore", strict=True)

    format: Literal[1] = 1
    agent: Annotated[str, Field(max_length=256)]
    version: Annotated[str, Field(max_length=64)]
    """Of the program that wrote it."""
    created: Annotated[str, Field(max_length=64)]
    """ISO 8601, UTC."""


class Checksum(BaseModel):
    """What one file must be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Checksums(BaseModel):
    """The last member of the file."""

    model_config = ConfigDict(extra="ignore", strict=True)

    files: dict[str, Checksum]


def unfit_name(path: PurePosixPath) -> str | None:
    """Return why no backup can contain a file of this name; None where it can.

    Args:
        path: relative to the state folder.
    """
    if str(path) in (HEAD, TAIL):
        return "a name of the backup's own lists; rename it"
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "a name that is not UTF-8; rename it"
    return None


def is_wanted(path: PurePosixPath, *, recordings: bool) -> bool:
    """Return whether a backup contains a file of the state folder.

    Args:
        path: relative to the state folder.
        recordings: whether recordings are wanted.
    """
    first, name = path.parts[0], path.name
    if first in NOT_NEEDED or path.as_posix() in NOT_RESTORED or (first == RECORDINGS and not recordings):
        return False
    if first.startswith(SET_ASIDE) or any(part.startswith(".") for part in path.parts) or ".broken-" in name:
        return False  # drafts and locks; files that were set aside as damaged
    return not name.endswith((DATABASE + "-wal", DATABASE + "-shm", DATABASE + "-journal")) and name != "closed-cleanly"
