"""Run one device driver in its own process, where it may block, leak or crash without harming the agent.

`python -m sensors.drivers.process NAME DESCRIPTOR` reads its job (JSON) from the socket DESCRIPTOR and writes messages to it. It
ends when the other end of the socket closes, when its parent thread dies, or when the source ends.
`messages.py` defines the messages.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType

import orjson

from sensors.base import SensorLost
from sensors.drivers import opencv, portaudio
from sensors.drivers.messages import MessageSender
from sensors.drivers.parent_death import die_with

_ADDRESS_SPACE = 3 << 30
"""Bytes of address space a driver may map: a decoder that trusts a false header fails here and not in the agent."""

Job = opencv.CaptureJob | portaudio.RecordJob | portaudio.PlayJob
JOBS: dict[str, type[Job]] = {job.__name__: job for job in (opencv.CaptureJob, portaudio.RecordJob, portaudio.PlayJob)}


def pack_job(job: Job) -> bytes:
    """Encode a job as one line of JSON; it goes over the socket, because a URL may hold a password and arguments are public."""
    return orjson.dumps({"job": type(job).__name__, **asdict(job)}) + b"\n"


def unpack_job(line: bytes) -> Job:
    """Decode the line that `pack_job` wrote."""
    body = orjson.loads(line)
    return JOBS[body.pop("job")](**body)


def serve(connection: socket.socket, line: bytes) -> None:
    """Run the job in `line`; its outcome is the last message."""
    stop = threading.Event()
    mailbox = MessageSender(connection)
    sys.excepthook = _last_words(mailbox)
    job = unpack_job(line)
    try:
        if isinstance(job, opencv.CaptureJob):
            opencv.capture(job, mailbox, stop)
        elif isinstance(job, portaudio.RecordJob):
            portaudio.record(job, mailbox, stop)
        else:
            portaudio.play(job, mailbox, stop)
    except SensorLost as reason:
        mailbox.close(str(reason))
    else:
        mailbox.close()


def _last_words(
    mailbox: MessageSender,
) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    def report(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        mailbox.close(f"{kind.__name__}: {error}")

    return report


def _watch(connection: socket.socket) -> None:
    """End the process at once when the owner closes the socket; the owner sends nothing after the job."""
    try:
        while connection.recv(4_096):
            pass
    finally:
        os._exit(0)


def _limit() -> None:
    import resource  # noqa: PLC0415 - only the driver process limits itself

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    die_with(os.getppid())


def main(arguments: list[str]) -> None:
    """Run the driver process; `arguments` are NAME (shown by ps) and the socket's descriptor."""
    _limit()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner stops this process
    with socket.socket(fileno=int(arguments[1])) as connection:
        line = bytearray()
        while not line.endswith(b"\n"):
            data = connection.recv(65_536)
            if not data:
                return
            line += data
        watch = threading.Thread(target=_watch, args=(connection,), name="watch", daemon=True)
        watch.start()
        serve(connection, bytes(line))
        os._exit(0)  # all is sent; a driver library could block in its own shutdown


if __name__ == "__main__":
    main(sys.argv[1:])
