"""Restore a state folder from a backup: everything is unpacked and verified beside it before anything is replaced.

Untrusted: only plain files with relative names are unpacked, and each must have the bytes and the hash that the file's own list
states. The list protects against damage, not against a forger: a backup contains the key that signs policies, so restore only what
you made.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sqlite3
import tarfile
import time
import zlib
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError

from learners.files import draft_folder, exclusive_lock, not_plain, sync_directory, sync_folder
from runtime.backup.contents import (
    DATABASE,
    HEAD,
    MOST_FILES,
    MOST_LIST_BYTES,
    SET_ASIDE,
    TAIL,
    BackupError,
    BackupHead,
    Checksum,
    Checksums,
)
from runtime.backup.create import BLOCK, Progress

SPARE_BYTES = 64 << 20
"""What must stay free on the disk."""
LONG_HEADERS = frozenset({
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
})  # fmt: skip
MOST_HEADER_BYTES = 1 << 16
T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored."""

    head: BackupHead
    files: int
    bytes: int
    set_aside: Path | None
    """Where the state folder from before lies now."""


def restore(archive: Path, state_dir: Path, *, replace: bool = False, progress: Progress = lambda *_: None) -> Restored:
    """Restore a state folder.

    Args:
        archive: the backup.
        state_dir: the state folder; no daemon may be using it.
        replace: whether a folder that is not empty may be renamed to make room.
        progress: called with the compressed bytes read and in all.

    Raises:
        BackupError: the backup is damaged or holds what none contains, or the state folder is not empty; nothing changed.
        BusyError: a daemon uses the state folder.
        OSError: a file cannot be read or written; nothing changed.
    """
    if (problem := not_plain(archive)) is not None:
        raise BackupError(f"{archive}: {problem}")
    state_dir = state_dir.resolve()  # a link stays one, and its disk holds the state
    existed = state_dir.is_dir()
    with exclusive_lock(state_dir):
        fixed = os.path.ismount(state_dir) or not os.access(state_dir.parent, os.W_OK | os.X_OK)
        inside = sorted(path.name for path in state_dir.iterdir() if path.name not in {"lock", "lost+found"})
        if inside and not replace:
            raise BackupError(
                f"state_dir: {state_dir} is not empty ({', '.join(inside[:3])}); --replace renames it and restores"
            )
        parent = state_dir if fixed else state_dir.parent
        with draft_folder(parent, state_dir.name, mode=0o700) as draft, ExitStack() as undo:
            if not existed:
                undo.callback(shutil.rmtree, state_dir, ignore_errors=True)  # the lock made it
            head, sums = _unpack(archive, draft, progress)
            _verify_databases(draft)
            _give_to_owner(draft, state_dir)
            if fixed:
                aside = _replace_entries(draft, state_dir, inside)
            else:
                aside = state_dir.with_name(f"{state_dir.name}.{SET_ASIDE}{secrets.token_hex(4)}")
                sync_folder(draft)
                for source, target in ((state_dir, aside), (draft, state_dir)):
                    source.rename(target)
                    undo.callback(target.rename, source)
                sync_directory(state_dir.parent)
            undo.pop_all()  # from here on nothing is undone
        if not inside:
            shutil.rmtree(aside)
    return Restored(head, len(sums.files), sum(one.bytes for one in sums.files.values()), aside if inside else None)


def _replace_entries(draft: Path, state_dir: Path, former: list[str]) -> Path:
    """Replace what a state folder holds that cannot be renamed: a mount point, or one in a folder that this user may not write.

    Entry by entry, so that a kill at this moment leaves a part of both states; then the restoration has to be repeated.

    Args:
        draft: the new state, in `state_dir`.
        state_dir: the folder.
        former: names of the entries that are set aside.

    Returns:
        The folder in `state_dir` with the former entries.
    """
    sync_folder(draft)
    aside = state_dir / f"{SET_ASIDE}{secrets.token_hex(4)}"
    moves = [(state_dir / name, aside / name) for name in former]
    moves += [(path, state_dir / path.name) for path in sorted(draft.iterdir())]
    with ExitStack() as undo:
        aside.mkdir(mode=0o700)
        undo.callback(aside.rmdir)
        for source, target in moves:
            source.rename(target)
            undo.callback(target.rename, source)
        sync_directory(state_dir)
        undo.pop_all()
    return aside


class _Member(tarfile.TarInfo):
    """A member with a small long name or extended header; tarfile reads such a header into memory at any size."""

    def _proc_member(self, opened: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in LONG_HEADERS and self.size > MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(opened)  # type: ignore[misc] # not in the stubs
        return member


def _unpack(archive: Path, folder: Path, progress: Progress) -> tuple[BackupHead, Checksums]:
    """Unpack and verify."""
    total = archive.stat().st_size
    found: dict[str, Checksum] = {}
    head: BackupHead | None = None
    sums: Checksums | None = None
    name = HEAD
    with archive.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r|gz", tarinfo=_Member) as opened:
                for member in opened:
                    name = member.name
                    if sums is not None:
                        raise BackupError(f"{archive}: there is more after {TAIL}: {name!r}")
                    content = opened.extractfile(member) if member.isreg() else None
                    if content is None:
                        raise BackupError(f"{archive}: {name!r} is not a plain file; no backup contains that")
                    if head is None:
                        head = _list(BackupHead, archive, name, HEAD, member.size, content)
                    elif name == TAIL:
                        sums = _list(Checksums, archive, name, TAIL, member.size, content)
                    else:
                        found[name] = _extract(archive, member, content, folder, found)
                    progress(min(file.tell(), total), total)
        except (
            tarfile.TarError,
            EOFError,
            zlib.error,
            TypeError,
            ArithmeticError,
        ) as error:  # the last two of a cut or forged head
            raise BackupError(f"{archive}: damaged after {name!r} ({error}); nothing was restored") from None
    if head is None or sums is None:
        raise BackupError(f"{archive}: it ends after {name!r} without {TAIL}: the file was cut; nothing was restored")
    wrong = sorted(path for path in {*found, *sums.files} if found.get(path) != sums.files.get(path))
    if wrong:
        raise BackupError(
            f"{archive}: {wrong[0]!r} differs from its checksum ({len(wrong)} such files); nothing was restored"
        )
    _date_folders(folder)
    return head, sums


def _date_folders(folder: Path) -> None:
    """Give every folder below `folder` the date of its newest content: that of a version's folder is shown as its date."""
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        newest_s = max(entry.stat().st_mtime for entry in path.iterdir())
        os.utime(path, (newest_s, newest_s))


def _list(kind: type[T], archive: Path, name: str, wanted: str, size: int, content: IO[bytes]) -> T:
    """Read the first or the last member."""
    if name != wanted:
        raise BackupError(f"{archive}: not a backup of reflexd: it begins with {name!r}, not with {wanted!r}")
    if size > MOST_LIST_BYTES:
        raise BackupError(f"{archive}: {name} has {size} bytes; at most {MOST_LIST_BYTES} are read")
    try:
        return kind.model_validate_json(content.read())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or name
        raise BackupError(f"{archive}: {name}: {where}: {first['msg']}; this program reads format 1") from None


def _extract(
    archive: Path, member: tarfile.TarInfo, content: IO[bytes], folder: Path, found: dict[str, Checksum]
) -> Checksum:
    """Write one file, and return what it is."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or not path.parts or ".." in path.parts or str(path) != member.name or "\0" in member.name:
        raise BackupError(f"{archive}: {member.name!r} does not name a file in the state folder")
    if member.name in found or len(found) >= MOST_FILES:
        raise BackupError(f"{archive}: {member.name!r} is contained twice, or there are more than {MOST_FILES} files")
    free = shutil.disk_usage(folder).free
    if member.size > free - SPARE_BYTES:
        raise BackupError(
            f"{archive}: {member.name!r} has {member.size} bytes, but {folder.parent} has {free} free, of which "
            f"{SPARE_BYTES} must stay free"
        )
    target = folder / path
    try:
        for parent in reversed(path.parents[:-1]):
            (folder / parent).mkdir(exist_ok=True, mode=0o700)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except (FileExistsError, NotADirectoryError):
        raise BackupError(f"{archive}: {member.name!r} is a file and a folder at once") from None
    digest, size = hashlib.sha256(), 0
    with os.fdopen(handle, "wb") as file:
        while data := content.read(BLOCK):
            file.write(data)
            digest.update(data)
            size += len(data)
        file.flush()
        if 0 <= member.mtime <= time.time():  # what is old goes first, and lists show when a version was made
            os.utime(file.fileno(), (member.mtime, member.mtime))
        os.fsync(file.fileno())
    return Checksum(bytes=size, sha256=digest.hexdigest())


def _verify_databases(folder: Path) -> None:
    """Raise BackupError for a database that SQLite finds damaged."""
    for path in sorted(folder.rglob(f"*{DATABASE}")):
        try:
            with closing(sqlite3.connect(path)) as database:
                answer = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            answer = str(error)
        if answer != "ok":
            raise BackupError(f"{path.relative_to(folder)}: damaged ({answer}); nothing was restored")


def _give_to_owner(folder: Path, state_dir: Path) -> None:
    """Give the files to the owner of the state folder, where an administrator restores for a service."""
    owner = state_dir.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
