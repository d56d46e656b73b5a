"""Write files that are complete or absent, lock folders between processes, and find the cache folder.

Every process that stores state uses this module. A full disk leaves the old content and no draft. A killed process leaves the
old content and a draft, which the next process that writes there removes. Knows no format of any file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import sqlite3
import stat
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

DISK_REFUSALS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ENOTDIR}
)
"""Errors of a disk that is full, over its quota, read-only or broken, and of folders without the right to write."""

_ACCESS_REFUSALS = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT,
})  # fmt: skip
_DAMAGE = frozenset({sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS})
"""Errors of input and output that the file itself has; all others are of a disk that takes nothing, such as one that is full."""
DRAFT = ".draft-"
"""First part of the names of drafts. Their writer holds a lock on them until they have their name."""
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def source_and_split(path: Path | str) -> tuple[Path, str]:
    """Return the file or folder that a path names, and the split behind its `#`; a `#` may be part of a file's own name."""
    whole = Path(path)
    name, _, split = str(path).rpartition("#")
    return (whole, "") if not name or whole.exists() else (Path(name), split)


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


def access_refused(error: sqlite3.Error) -> bool:
    """Return whether SQLite could not use a file now: busy, no memory, disk full, too many open files. Its content may be intact.

    Even a reader writes the shared memory of a database after its writer was killed; a full disk refuses that.
    """
    code = getattr(error, "sqlite_errorcode", 0)
    return (code & 0xFF) in _ACCESS_REFUSALS or ((code & 0xFF) == sqlite3.SQLITE_IOERR and code not in _DAMAGE)


def read_only(path: Path) -> str:
    """Return the URI by which SQLite opens a file for reading; `#`, `?` and `%` of its path mean something else in a URI."""
    return f"file:{urllib.parse.quote(os.fsencode(path.absolute()))}?mode=ro"


def write_synced(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a new file and wait until it is on disk; `mode` is reduced by the umask.

    Raises:
        OSError: the file exists already or cannot be written.
    """
    handle = os.open(path, _CREATE, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on disk.

    Raises:
        OSError: the directory cannot be opened or synced.
    """
    _sync(path, os.O_DIRECTORY)


def sync_folder(path: Path) -> None:
    """Wait until a folder and everything in it are on disk.

    Raises:
        OSError: a file cannot be opened or synced.
    """
    for each in (*path.rglob("*"), path):
        _sync(each)


def _sync(path: Path, flags: int = 0) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_plain_file(path: Path, most_bytes: int) -> bytes:
    """Read a regular file that a person named; a pipe or a device would block or never end.

    Args:
        path: the file, or a link to it.
        most_bytes: one byte more is read at most, so that the caller sees a file that is too large.

    Raises:
        OSError: it cannot be read, or it is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if (problem := not_plain(path)) is not None:
            raise OSError(errno.EINVAL, problem, str(path))
        return file.read(most_bytes + 1)


def not_plain(path: Path) -> str | None:
    """Return what a path is that exists and is neither a regular file nor a folder; None for any other path."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    kinds = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}
    kind = next((name for is_one, name in kinds.items() if is_one(mode)), None)
    return None if kind is None else f"{kind}, not a file; name a regular file"


@contextmanager
def new_file(target: Path, *, durable: bool = True, mode: int = 0o666, overwrite: bool = True) -> Iterator[Path]:
    """Yield an empty draft that becomes `target` by one rename when the context ends without an exception.

    A reader sees the old or the new content; a crash leaves one of the two.

    Args:
        target: the file; its folder exists.
        durable: wait until the content is on disk. False protects against kill -9, not against a power cut.
        mode: permissions, reduced by the umask.
        overwrite: replace an existing file; otherwise it is an error.

    Raises:
        OSError: the file cannot be written, is a pipe or a device, or exists (`overwrite=False`); the old content is intact and no
            draft is left.
    """
    if (problem := not_plain(target)) is not None:
        raise OSError(errno.EINVAL, problem, str(target))
    with _draft(target, lambda draft: os.close(os.open(draft, _CREATE, mode))) as draft:
        yield draft
        if durable:
            _sync(draft)
        if overwrite:
            draft.replace(target)
        else:
            _name_new(draft, target)
    if durable:
        sync_directory(target.parent)


def _name_new(draft: Path, target: Path) -> None:
    """Give a draft its name if no file has it; where the disk knows no hard links (FAT), an empty file claims the name first.

    Raises:
        OSError: the name exists, or the disk refuses.
    """
    try:
        os.link(draft, target)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP}:
            raise
        os.close(os.open(target, _CREATE))
        draft.replace(target)


def write_atomically(
    path: Path, content: bytes, *, durable: bool = True, mode: int = 0o666, overwrite: bool = True
) -> None:
    """Write a file as `new_file` does.

    Raises:
        OSError: as in `new_file`.
    """
    with new_file(path, durable=durable, mode=mode, overwrite=overwrite) as draft:
        draft.write_bytes(content)


def private_folder(path: Path) -> None:
    """Create a folder and its missing parents, which the owner alone may read: state holds pictures, sound and keys.

    Raises:
        OSError: it cannot be created, or is no folder.
    """
    for missing in reversed([each for each in path.parents if not each.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def new_folder(target: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """Yield an empty draft that becomes `target` by one rename when the context ends without an exception.

    Args:
        target: the folder; its parents are created.
        mode: permissions, reduced by the umask.

    Raises:
        OSError: the folder cannot be written, or `target` exists and is not an empty folder; no draft is left.
    """
    with draft_folder(target.parent, target.name, mode=mode) as draft:
        yield draft
        publish_folder(draft, target)


@contextmanager
def draft_folder(parent: Path, name: str, *, mode: int = 0o777) -> Iterator[Path]:
    """Yield an empty draft in `parent` for `publish_folder`; what was not published is removed.

    For folders that get their names from their content; otherwise `new_folder` is simpler.

    Args:
        parent: created when it is absent.
        name: part of the draft's name.
        mode: permissions, reduced by the umask.

    Raises:
        OSError: the draft cannot be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with _draft(parent / name, lambda draft: draft.mkdir(mode)) as draft:
        yield draft


def publish_folder(draft: Path, target: Path, *, replace: bool = False) -> None:
    """Wait until the draft is on disk, then rename it to `target`, in the same parent.

    Args:
        draft: of `draft_folder`.
        target: its name.
        replace: remove an existing `target` first, by a rename too; otherwise it is an error.

    Raises:
        OSError: the disk is full, or `target` exists and is not an empty folder.
    """
    sync_folder(draft)
    if replace and target.exists():
        former = target.with_name(f"{DRAFT}{target.name}.{secrets.token_hex(6)}")
        target.rename(former)
        draft.rename(target)
        shutil.rmtree(former, ignore_errors=True)
    else:
        draft.rename(target)
    sync_directory(target.parent)


@contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """Yield an empty draft folder; at the end its files replace those of the same names in `folder`.

    Each file is complete or absent. `folder` exists and its other files stay.

    Raises:
        OSError: the files cannot be written; no draft is left.
    """
    with draft_folder(folder, folder.name) as draft:
        yield draft
        paths = sorted(path for path in draft.iterdir())
        for path in draft.rglob("*"):
            _sync(path)
        for path in paths:
            _move(path, folder / path.name)
    sync_directory(folder)


def _move(path: Path, target: Path) -> None:
    """Rename a file, or the files of a folder one by one, onto `target`."""
    if not path.is_dir():
        path.replace(target)
        return
    target.mkdir(exist_ok=True)
    for inner in path.iterdir():
        _move(inner, target / inner.name)


def remove_abandoned_drafts(folder: Path) -> None:
    """Remove the drafts in a folder that no process writes any more: the kernel released their locks.

    Raises:
        OSError: the folder cannot be read.
    """
    for path in folder.glob(f"{DRAFT}*"):
        with suppress(OSError):  # another process removed it
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _delete(path)
            finally:
                os.close(handle)


def is_in_use(path: Path) -> bool:
    """Return whether a process holds the lock of a draft, or of the folder of a backup that is being written.

    Raises:
        OSError: it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@lru_cache(maxsize=256)
def _remove_abandoned_drafts_once(folder: Path) -> None:
    """Clean a folder at the first write of this process: drafts of a killed process are from before."""
    remove_abandoned_drafts(folder)


@contextmanager
def _draft(target: Path, create: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a path beside `target` that this process holds the lock of; delete it at the end if it was not renamed."""
    _remove_abandoned_drafts_once(target.parent)
    draft = target.with_name(f"{DRAFT}{target.name}.{secrets.token_hex(6)}")
    create(draft)
    try:
        handle = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_nlink == 0:  # taken for an abandoned one before the lock was held
                create(draft)
            yield draft
        finally:
            os.close(handle)
    finally:
        _delete(draft)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock against other processes; the kernel releases it when the process dies.

    On a read-only disk no process changes the folder, and readers need no lock.

    Raises:
        OSError: the lock file cannot be opened.
    """
    try:
        handle = os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
    private_folder(folder)
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS or not (folder / "lock").exists():
            raise
        handle = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)  # a lock needs no right to write
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
