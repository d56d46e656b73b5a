"""Loopback ports for servers that a test starts, so that no other test and no outgoing connection takes them meanwhile.

The kernel gives outgoing connections the ports above `HIGHEST`, and a port that it gave to a probe may be taken again before a
daemon listens there, seconds later. A lock in the folder for temporary files keeps a port for the process that asked for it.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import tempfile
from pathlib import Path

LOWEST, HIGHEST = 20_000, 32_000
FOLDER = Path(tempfile.gettempdir()) / f"reflexd-test-ports-{os.getuid()}"
_held: list[int] = []
"""Descriptors of the locks; they end with the process."""
_next = itertools.count(os.getpid() * 37)


def free_port() -> int:
    """Return a port without a listener, which this process alone was given.

    Raises:
        OSError: all are taken.
    """
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    for number in itertools.islice(_next, HIGHEST - LOWEST):
        port = LOWEST + number % (HIGHEST - LOWEST)
        lock = os.open(FOLDER / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            continue
        _held.append(lock)
        return port
    raise OSError(f"no free port from {LOWEST} to {HIGHEST}")
