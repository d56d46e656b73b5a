"""Remember what the files of a converted model are, and notice at every start when one is damaged or was swapped.

The record lies beside the folder. A file of the recorded size and time stamp is unchanged; any other is hashed again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import orjson

from learners.files import write_atomically


@dataclass(frozen=True, slots=True)
class FileState:
    """One file as it was recorded."""

    sha256: str
    size: int
    mtime_ns: int


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(folder: Path) -> Path:
    """Return the path of a folder's record."""
    return folder.with_name(f"{folder.name}.files.json")


def write_record(folder: Path) -> None:
    """Record every file of a folder.

    Raises:
        OSError: a file cannot be read, or the record cannot be written.
    """
    states = {name: FileState(hash_of(folder / name), size, stamp) for name, (size, stamp) in _stats(folder).items()}
    write_atomically(record_of(folder), orjson.dumps(states))


def damage(folder: Path) -> str | None:
    """Return what differs from the record; None if nothing does. New time stamps of unchanged files are recorded.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        body = orjson.loads(record_of(folder).read_bytes())
        recorded = {name: FileState(**state) for name, state in body.items()}
    except (FileNotFoundError, orjson.JSONDecodeError, AttributeError, TypeError):
        return "its files were never recorded"
    found = _stats(folder)
    if found.keys() != recorded.keys():
        return f"files differ: {', '.join(sorted(found.keys() ^ recorded.keys()))}"
    touched = [name for name, was in recorded.items() if found[name] != (was.size, was.mtime_ns)]
    for name in touched:
        if found[name][0] != recorded[name].size or hash_of(folder / name) != recorded[name].sha256:
            return f"{name} is not the file that was converted"
    if touched:
        write_record(folder)
    return None


def _stats(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
