"""Write the state folder of a daemon, which may be running, into one file.

Hard links freeze the folder first, in milliseconds: the daemon replaces its files by renames, so that a link keeps what was there.
Databases are copied by SQLite, which gives the state of one moment. Then the file is written beside its final name.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO

from pydantic import BaseModel

from learners.files import new_file
from runtime.backup.contents import DATABASE, HEAD, LINKS, TAIL, BackupError, BackupHead, Checksum, Checksums, is_wanted

BLOCK = 1 << 20
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
        BackupError: there is no state folder, the target exists, or another backup is being written.
        OSError: a file cannot be linked or written; nothing is left.
    """
    if not state_dir.is_dir():
        raise BackupError(f"state_dir: {state_dir} does not exist: there is nothing to back up")
    if target.exists():
        raise BackupError(f"{target}: exists already; name a new file")
    if not target.parent.is_dir():
        raise BackupError(f"{target}: the folder {target.parent} does not exist")
    summary = BackupSummary(target)
    with _links(state_dir) as folder:
        _freeze(state_dir, folder, summary, recordings=recordings)
        summary.has_key = (folder / "keys").is_dir()
        try:
            with new_file(target, mode=0o600, overwrite=False) as draft, draft.open("wb") as file:
                _write(file, folder, agent, summary, progress)
        except FileExistsError:
            raise BackupError(f"{target}: exists already; name a new file") from None
    return summary


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


def _freeze(state_dir: Path, folder: Path, summary: BackupSummary, *, recordings: bool) -> None:
    """Link every wanted file, and copy the databases."""

    def visit(source: Path, target: Path, inside: PurePosixPath) -> None:
        for name in sorted(_names(source)):
            path = inside / name
            if not is_wanted(path, recordings=recordings):
                continue
            entry = source / name
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                summary.left_out.append(f"{path}: neither a file nor a folder")
            elif entry.is_dir():
                (target / name).mkdir(mode=0o700)
                visit(entry, target / name, path)
                if not entry.is_dir():  # deleted meanwhile: only a part of it is linked
                    shutil.rmtree(target / name)
            elif name.endswith(DATABASE):
                _copy_database(entry, target / name, path, summary)
            else:
                with suppress(FileNotFoundError):  # deleted or replaced at this moment
                    os.link(entry, target / name)

    visit(state_dir, folder, PurePosixPath())


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _copy_database(source: Path, target: Path, path: PurePosixPath, summary: BackupSummary) -> None:
    """Copy a database as of one moment; one that cannot be read is left out, as the daemon would set it aside."""
    address = f"file:{urllib.parse.quote(str(source.resolve()))}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as opened, closing(sqlite3.connect(target)) as copy:
            opened.backup(copy)
    except sqlite3.DatabaseError as error:
        target.unlink(missing_ok=True)
        summary.left_out.append(f"{path}: {error}")


def _write(file: IO[bytes], folder: Path, agent: str, summary: BackupSummary, progress: Progress) -> None:
    """Write the members: head, files, checksums."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    total = sum(path.stat().st_size for path in found)
    sums: dict[str, Checksum] = {}
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as archive:
        _add_list(
            archive,
            HEAD,
            BackupHead(agent=agent, version=version("reflexd"), created=datetime.now(UTC).isoformat("T", "seconds")),
        )
        for path in found:
            name = path.relative_to(folder).as_posix()
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
