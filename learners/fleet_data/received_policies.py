"""Pass a policy of the fleet from the uplink to the learner: a verified checkpoint and a note that names it.

A note stays until the learner has the checkpoint on disk, so that a killed learner finds it again. The lists of withdrawn and of
examined versions stay for good: a withdrawn version is never offered, and an examined one not again.

Needs neither pyarrow nor torch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson

from learners.files import locked, write_atomically

RECEIVED = "uplink/policies"
"""Folder of the received checkpoints below `state_dir`."""
MAX_NAMES = 1_024
"""Versions that each list remembers; the oldest one is forgotten."""
_NOTE, _WITHDRAWN, _EXAMINED = "received.json", "withdrawn.json", "examined.json"


def note_received(state_dir: Path, directory: Path, version: str) -> None:
    """Name the checkpoint that the learner examines next, and delete every other one that was received.

    Raises:
        OSError: the note cannot be written.
    """
    folder = state_dir / RECEIVED
    body = {"directory": directory.name, "version": version}
    with locked(folder):
        write_atomically(folder / _NOTE, orjson.dumps(body), mode=0o600)
    for other in folder.iterdir():
        if other.is_dir() and other.name != directory.name:
            shutil.rmtree(other, ignore_errors=True)


def received(state_dir: Path) -> Path | None:
    """Return the directory of the checkpoint that the learner examines next; None if there is none, or it is withdrawn.

    Raises:
        OSError: the note cannot be read.
    """
    name = _noted(state_dir)
    if not name or "/" in name or name.startswith(".") or name in withdrawn(state_dir) or name in examined(state_dir):
        return None
    directory = state_dir / RECEIVED / name
    return directory if directory.is_dir() else None


def newest_received(state_dir: Path) -> str | None:
    """Return the version of the fleet that the learner examines or examined last; None if there is none.

    Raises:
        OSError: the note or the list cannot be read.
    """
    names = _names(state_dir / RECEIVED / _EXAMINED)
    return _noted(state_dir) or (names[-1] if names else None)


def forget_received(state_dir: Path, directory: Path, *, is_examined: bool) -> None:
    """Delete a received checkpoint, and the note if it still names it.

    Args:
        state_dir: of the daemon.
        directory: as `received` returned it.
        is_examined: whether the learner has it on disk as a candidate: it is not offered again.

    Raises:
        OSError: the note or the list cannot be changed.
    """
    folder = state_dir / RECEIVED
    if is_examined:
        _add(folder, _EXAMINED, [directory.name])
    with locked(folder):
        if _noted(state_dir) == directory.name:
            (folder / _NOTE).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def note_withdrawn(state_dir: Path, versions: list[str]) -> None:
    """Add versions of the fleet to those that the learner takes back.

    Raises:
        OSError: the list cannot be written.
    """
    _add(state_dir / RECEIVED, _WITHDRAWN, versions)


def withdrawn(state_dir: Path) -> frozenset[str]:
    """Return the versions that the fleet took back; empty if there are none.

    Raises:
        OSError: the list cannot be read.
    """
    return frozenset(_names(state_dir / RECEIVED / _WITHDRAWN))


def examined(state_dir: Path) -> frozenset[str]:
    """Return the versions of the fleet that the learner examined; empty if there are none.

    Raises:
        OSError: the list cannot be read.
    """
    return frozenset(_names(state_dir / RECEIVED / _EXAMINED))


def _noted(state_dir: Path) -> str:
    try:
        return str(orjson.loads((state_dir / RECEIVED / _NOTE).read_bytes())["directory"])
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def _add(folder: Path, file: str, names: list[str]) -> None:
    with locked(folder):
        before = _names(folder / file)
        after = [name for name in before if name not in names] + names
        if set(before) != set(after):
            write_atomically(folder / file, orjson.dumps(after[-MAX_NAMES:]), mode=0o600)


def _names(path: Path) -> list[str]:
    try:
        return [str(name) for name in orjson.loads(path.read_bytes())]
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError, TypeError):
        return []
