"""Start a driver process, read its messages, kill it.

Killing makes a blocked driver harmless: its descriptors, threads and memory end with the process. A thread inside the
agent could not be ended like that. A process blocked in the kernel (state D) dies when the kernel returns.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

from sensors.drivers.messages import DriverMessage, read_message
from sensors.drivers.process import Job, pack_job

_ROOT = str(Path(__file__).resolve().parents[2])
_BUFFER = 4 << 20
_REAP_S = 1.0


class DriverProcess:
    """One driver process on one source; call `messages` from one thread, `stop` from any."""

    def __init__(self, name: str, job: Job) -> None:
        self._name = name
        self._job = job
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def messages(self) -> Generator[DriverMessage]:
        """Start the process and yield its messages until it ends or is stopped."""
        mine, theirs = socket.socketpair()
        self._socket = mine
        try:
            with theirs:
                for end in (mine, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
                self._process = self._start(theirs.fileno())
            if _send(mine, pack_job(self._job)):
                while not self._stopped and (message := read_message(mine)) is not None:
                    yield message
        finally:
            self._reap()
            mine.close()

    def stop(self) -> None:
        """Kill the process, which ends `messages`."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already: the process has ended
                return

    @property
    def exit_status(self) -> int | None:
        """The exit code of the process, None while it runs; negative: the signal that ended it."""
        return None if self._process is None else self._process.returncode

    def _start(self, descriptor: int) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(  # noqa: S603 - this interpreter, this package's own module, no shell
            [sys.executable, "-m", "sensors.drivers.process", self._name, str(descriptor)],
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            pass_fds=(descriptor,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _reap(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(0.0 if self._stopped else 0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                self._process.wait(_REAP_S)
            except subprocess.TimeoutExpired:  # state D; Popen reaps it when it is collected or the next one starts
                return


def _send(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.sendall(data)
    except OSError:  # stopped, or dead before it listened
        return False
    return True
