"""One daemon at a time on a state folder: a lock that goes with the process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BusyError(Exception):
    """Another daemon uses the state folder."""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
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
