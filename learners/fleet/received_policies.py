"""Pass a policy of the fleet from the uplink to the learner: a verified checkpoint and a note that names it.

Needs neither pyarrow nor torch.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from learners.files import write_atomically

RECEIVED = "uplink/policies"
"""Folder of the received checkpoints below `state_dir`."""
_NOTE, _WITHDRAWN = "received.json", "withdrawn.json"


def note_received(state_dir: Path, directory: Path, version: str) -> None:
    """Name the checkpoint that the learner examines next.

    Raises:
        OSError: the note cannot be written.
    """
    body = {"directory": directory.name, "version": version}
    write_atomically(state_dir / RECEIVED / _NOTE, orjson.dumps(body), mode=0o600)


def take_received(state_dir: Path) -> Path | None:
    """Return the directory of the checkpoint that the uplink left, once; None if there is none.

    Raises:
        OSError: the note cannot be removed.
    """
    path = state_dir / RECEIVED / _NOTE
    try:
        name = str(orjson.loads(path.read_bytes())["directory"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        name = ""
    path.unlink(missing_ok=True)
    directory = state_dir / RECEIVED / name
    return directory if name and "/" not in name and directory.is_dir() else None


def note_withdrawn(state_dir: Path, versions: list[str]) -> None:
    """Name the versions of the fleet that the learner takes back.

    Raises:
        OSError: the note cannot be written.
    """
    write_atomically(state_dir / RECEIVED / _WITHDRAWN, orjson.dumps(versions), mode=0o600)


def take_withdrawn(state_dir: Path) -> frozenset[str]:
    """Return the versions that the fleet took back, once; empty if there are none.

    Raises:
        OSError: the note cannot be removed.
    """
    path = state_dir / RECEIVED / _WITHDRAWN
    try:
        found = frozenset(map(str, orjson.loads(path.read_bytes())))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except (orjson.JSONDecodeError, TypeError):
        found = frozenset()
    path.unlink(missing_ok=True)
    return found
