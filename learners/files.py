"""Files that are whole or not there: synced writes, one rename, and a lock between processes."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a file by one rename: a reader sees the old or the new content, a crash leaves one of the two.

    `durable=False` leaves out the syncs: enough against kill -9, not against a power cut.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    if durable:
        write_synced(draft, content)
    else:
        draft.write_bytes(content)
    draft.replace(path)
    if durable:
        sync_directory(path.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock against other processes; a process that dies lets go of it."""
    with (folder / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache_dir() -> Path:
    """Where converted folders are kept."""
    if own := os.environ.get("REFLEXD_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "reflexd"


class BusyError(Exception):
    """Another daemon uses the state folder."""


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a state folder, which is made if it is not there.

    Raises:
        BusyError: another daemon holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BusyError(
            f"state_dir: another daemon uses {folder}; stop it, or give this one its own state_dir"
        ) from None
    try:
        yield
    finally:
        os.close(handle)
