"""Write the state folder of a daemon, which may be running, into one file.

Hard links freeze the folder first, in milliseconds: the daemon replaces its files by renames, so that a link keeps what was there.
Where the disk refuses links (full, read-only, FAT), files are copied one by one beside the target. Databases are copied there by
SQLite, which gives the state of one moment, so that a backup needs no room on the disk of the state. Then the file is written beside
its final name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO

from pydantic import BaseModel

from learners.files import draft_folder, new_file, read_only
from runtime.backup.contents import (
    DATABASE,
    HEAD,
    LINKS,
    TAIL,
    BackupError,
    BackupHead,
    Checksum,
    Checksums,
    is_wanted,
    unfit_name,
)

BLOCK = 1 << 20
NO_LINKS = frozenset(
    {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK}
)
"""Errors of a disk on which no folder with hard links can be made."""
Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


@dataclass(slots=True)
class BackupSummary:
    """What a backup contains."""

    path: Path
    files: int = 0
    bytes: int = 0
    """Before compression."""
    left_out: list[str] = field(default_factory=list)
    """`PATH: REASON` of what could not be read."""
    has_key: bool = False
    """Whether the key that signs policies lies in the state folder, and so in the backup."""


def create(
    state_dir: Path, agent: str, target: Path, *, recordings: bool = False, progress: Progress = lambda *_: None
) -> BackupSummary:
    """Write a backup.

    Args:
        state_dir: the state folder; a daemon may be using it.
        agent: name of the agent, for who restores it.
        target: the new file; only its owner can read it, because it contains keys and tokens.
        recordings: whether recordings are contained.
        progress: see `Progress`.

    Raises:
        BackupError: there is no state folder, the target exists or lies in it, another backup is being written, or a database cannot
            be copied for lack of room.
        OSError: a file cannot be read or written; nothing is left.
    """
    if not state_dir.is_dir():
        raise BackupError(f"state_dir: {state_dir} does not exist: there is nothing to back up")
    if target.exists():
        raise BackupError(f"{target}: exists already; name a new file")
    if not target.parent.is_dir():
        raise BackupError(f"{target}: the folder {target.parent} does not exist")
    if target.resolve().is_relative_to(state_dir.resolve()):
        raise BackupError(f"{target}: lies in state_dir, which a broken disk takes with it; name a file elsewhere")
    summary = BackupSummary(target)
    with draft_folder(target.parent, target.name, mode=0o700) as copies, ExitStack() as stack:
        links = _links_or_none(state_dir, stack)
        _freeze(state_dir, links or copies, copies, summary, recordings=recordings)
        summary.has_key = ((links or copies) / "keys").is_dir()
        try:
            with new_file(target, mode=0o600, overwrite=False) as draft, draft.open("wb") as file:
                _write(file, (links, copies) if links else (copies,), agent, summary, progress)
        except FileExistsError:
            raise BackupError(f"{target}: exists already; name a new file") from None
    return summary


def _links_or_none(state_dir: Path, stack: ExitStack) -> Path | None:
    """Return the folder for the links; None where the disk of the state has no room, may not be written, or knows no links."""
    try:
        folder = stack.enter_context(_links(state_dir))
        probe, second = folder / "probe", folder / "second"
        probe.touch()
        os.link(probe, second)
        probe.unlink()
        second.unlink()
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return None
    return folder


@contextmanager
def _links(state_dir: Path) -> Iterator[Path]:
    """Yield the folder for the links, locked; what a killed backup left in it is removed."""
    folder = state_dir / LINKS
    folder.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"{folder}: another backup is being written; wait for its end") from None
        for left in folder.iterdir():
            shutil.rmtree(left)
        inside = folder / "state"
        inside.mkdir(mode=0o700)
        try:
            yield inside
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _freeze(state_dir: Path, folder: Path, copies: Path, summary: BackupSummary, *, recordings: bool) -> None:
    """Link every wanted file into `folder`, or copy it where both are one; copy the databases into `copies`."""

    def visit(source: Path, inside: PurePosixPath) -> None:
        (folder / inside).mkdir(mode=0o700, exist_ok=True)
        for path in _wanted(source, inside, summary, recordings=recordings):
            name, entry = path.name, source / path.name
            if entry.is_symlink():
                summary.left_out.append(f"{path}: a link; back up {entry.readlink()} too, or put a folder in its place")
            elif entry.is_dir():
                visit(entry, path)
                if not entry.is_dir():  # deleted meanwhile: only a part of it is linked
                    shutil.rmtree(folder / path)
            elif not entry.is_file():
                if entry.exists():
                    summary.left_out.append(f"{path}: neither a file nor a folder")
            elif name.endswith(DATABASE):
                _copy_database(entry, copies / path, path, summary)
            else:
                with suppress(FileNotFoundError):  # deleted or replaced at this moment
                    shutil.copy2(entry, folder / path) if folder == copies else os.link(entry, folder / path)

    visit(state_dir, PurePosixPath())


def _wanted(
    source: Path, inside: PurePosixPath, summary: BackupSummary, *, recordings: bool
) -> Iterator[PurePosixPath]:
    """Yield the entries of a folder that a backup contains; what it cannot contain for its name is left out with a word."""
    for name in sorted(_names(source)):
        path = inside / name
        if not is_wanted(path, recordings=recordings):
            continue
        if (problem := unfit_name(path)) is not None:
            summary.left_out.append(f"{str(path)!r}: {problem}")
            continue
        yield path


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _copy_database(source: Path, target: Path, path: PurePosixPath, summary: BackupSummary) -> None:
    """Copy a database as of one moment; one that is damaged is left out, as the daemon would set it aside.

    Raises:
        BackupError: there is no room for the copy, or the database may not be read.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        try:
            _copy_by_sqlite(source, target)
        except sqlite3.OperationalError:
            target.unlink(missing_ok=True)
            _copy_as_files(source, target)
    except sqlite3.OperationalError as error:
        where = target.parents[len(path.parts)]
        raise BackupError(f"{path} cannot be copied into {where}: {error}; nothing was written") from None
    except sqlite3.DatabaseError as error:
        target.unlink(missing_ok=True)
        summary.left_out.append(f"{path}: {error}")


def _copy_by_sqlite(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(read_only(source), uri=True)) as opened, closing(sqlite3.connect(target)) as copy:
        opened.backup(copy)


def _copy_as_files(source: Path, target: Path) -> None:
    """Copy a database where SQLite cannot make the file that its log needs: on a full or read-only disk, without a daemon.

    Raises:
        sqlite3.DatabaseError: the copy is damaged.
        OSError: there is no room for it.
    """
    raw = target.with_name(f"raw-{target.name}")
    log = Path(f"{source}-wal")
    try:
        shutil.copyfile(source, raw)
        if log.exists():
            shutil.copyfile(log, f"{raw}-wal")
        _copy_by_sqlite(raw, target)
        with closing(sqlite3.connect(target)) as copy:
            found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
    finally:
        for left in raw.parent.glob(f"{raw.name}*"):
            left.unlink()


def _write(file: IO[bytes], folders: tuple[Path, ...], agent: str, summary: BackupSummary, progress: Progress) -> None:
    """Write the members: head, files, checksums."""
    found = sorted(
        (path.relative_to(folder).as_posix(), path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    )
    total = sum(path.stat().st_size for _, path in found)
    sums: dict[str, Checksum] = {}
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as archive:
        _add_list(
            archive,
            HEAD,
            BackupHead(agent=agent, version=version("reflexd"), created=datetime.now(UTC).isoformat("T", "seconds")),
        )
        for name, path in found:
            with path.open("rb") as content:
                member = _member(name, os.fstat(content.fileno()).st_size)
                member.mtime = int(os.fstat(content.fileno()).st_mtime)
                reader = _Hashing(content, member.size)
                archive.addfile(member, reader)
            sums[name] = Checksum(bytes=member.size, sha256=reader.digest.hexdigest())
            summary.files += 1
            summary.bytes += member.size
            progress(summary.bytes, total)
        _add_list(archive, TAIL, Checksums(files=sums))


def _member(name: str, size: int) -> tarfile.TarInfo:
    """Return a member that names no user of this machine."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def _add_list(archive: tarfile.TarFile, name: str, content: BaseModel) -> None:
    body = content.model_dump_json().encode()
    archive.addfile(_member(name, len(body)), io.BytesIO(body))


class _Hashing(io.RawIOBase):
    """Reads the first `size` bytes of a file, which may still grow, and hashes them."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__()
        self.digest = hashlib.sha256()
        self._file, self._left = file, size

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes."""
        data = self._file.read(min(self._left, BLOCK if size < 0 else size))
        self._left -= len(data)
        self.digest.update(data)
        return data
