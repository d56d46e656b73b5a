"""Write files that are complete or absent, lock folders between processes, and find the cache folder.

Every process that stores state uses this module; a crash or a full disk leaves the old content and no draft. Knows no
format of any file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_REFUSALS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ENOTDIR}
)
"""Errors of a disk that is full, over its quota, read-only or broken, and of folders without the right to write."""


def storage_problem(error: BaseException, folder: Path) -> str | None:
    """Return `PATH: REASON` of an error of the disk; None for any other error.

    Args:
        error: an OSError or an error of SQLite.
        folder: to name where the error names no path.
    """
    if isinstance(error, sqlite3.OperationalError):
        return f"{folder}: {error}"
    if not isinstance(error, OSError) or error.errno not in DISK_REFUSALS:
        return None
    return f"{error.filename or folder}: {error.strerror}"


def write_synced(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a new file and wait until it is on disk; `mode` is reduced by the umask.

    Raises:
        OSError: the file exists already or cannot be written.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on disk.

    Raises:
        OSError: the directory cannot be opened or synced.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Replace a file by one rename: a reader sees the old or the new content, a crash leaves one of the two.

    `durable=False` leaves out the syncs, which protects against kill -9 and not against a power cut.

    Raises:
        OSError: the file cannot be written; the old content is intact and no draft is left.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        if durable:
            write_synced(draft, content, mode=mode)
        else:
            draft.touch(mode)
            draft.write_bytes(content)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the context ends without an exception.

    The draft lies in the same parent, which is created, and is removed when the context fails.

    Raises:
        OSError: the folder cannot be created, or `target` exists and is not an empty folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    draft.mkdir()
    try:
        yield draft
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    sync_directory(target.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock against other processes; the kernel releases it when the process dies.

    Raises:
        OSError: the lock file cannot be opened.
    """
    with (folder / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache_dir() -> Path:
    """Return the folder for converted models and measurements: $REFLEXD_CACHE, or `reflexd` in the user's cache."""
    if own := os.environ.get("REFLEXD_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "reflexd"


class BusyError(Exception):
    """Another daemon uses the state folder; `str` names the folder and the remedy."""


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a state folder, which is created when it is absent.

    Raises:
        BusyError: another daemon holds it.
        OSError: the folder or its lock file cannot be created.
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
