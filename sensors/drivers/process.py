"""Run one device driver in its own process, where it may block, leak or crash without harming the agent.

`python -m sensors.drivers.process NAME DESCRIPTOR` reads its job (JSON) from the socket DESCRIPTOR and writes messages to it. It
ends when the other end of the socket closes, when its parent thread dies, or when the source ends.

A message is a header (kind, capture stamp in monotonic seconds, two numbers, length) and its bytes. The kinds are:

- F: a frame; the numbers are height and width.
- S: sound in float32 mono; the numbers are the sample rate and 0.
- O: the source is open; the bytes are JSON.
- D: a drop; the bytes are its cause.
- E: an error; the bytes are its text.
- X: the end of the recording.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType

import numpy as np
import orjson
from numpy.typing import NDArray

from sensors.base import SensorLost
from sensors.drivers import opencv, portaudio
from sensors.drivers.parent_death import die_with

HEADER = struct.Struct("<cdIII")
MAX_MESSAGE = 1 << 30
_ADDRESS_SPACE = 3 << 30
"""Bytes of address space a driver may map: a decoder that trusts a false header fails here and not in the agent."""

Job = opencv.CaptureJob | portaudio.RecordJob | portaudio.PlayJob
JOBS: dict[str, type[Job]] = {job.__name__: job for job in (opencv.CaptureJob, portaudio.RecordJob, portaudio.PlayJob)}


@dataclass(frozen=True, slots=True)
class DriverMessage:
    """One message of a driver process."""

    kind: str
    stamp_s: float
    first: int
    second: int
    body: bytearray

    @property
    def text(self) -> str:
        """The body of an E or D message, as text."""
        return self.body.decode(errors="replace")


def pack_job(job: Job) -> bytes:
    """Encode a job as one line of JSON; it goes over the socket, because a URL may hold a password and arguments are public."""
    return orjson.dumps({"job": type(job).__name__, **asdict(job)}) + b"\n"


def unpack_job(line: bytes) -> Job:
    """Decode the line that `pack_job` wrote."""
    body = orjson.loads(line)
    return JOBS[body.pop("job")](**body)


class FrameSender:
    """Send what a driver captured, the newest frame only, from a thread, so that capture never waits."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._ready = threading.Condition()
        self._frame: tuple[float, NDArray[np.uint8]] | None = None
        self._notes: list[tuple[bytes, float, int, bytes]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._send_all, name="mailbox")
        self._thread.start()

    def frame(self, stamp_s: float, image: NDArray[np.uint8]) -> None:
        """Offer a picture; one that was not sent yet is dropped and counted as `superseded`."""
        with self._ready:
            if self._frame is not None:
                self._note(b"D", b"superseded")
            self._frame = (stamp_s, image)
            self._ready.notify()

    def opened(self, fps: float) -> None:
        """Report that the source is open, and the rate it claims."""
        with self._ready:
            self._note(b"O", orjson.dumps({"fps": fps}))

    def sound(self, stamp_s: float, rate_hz: int, samples: NDArray[np.float32]) -> None:
        """Send samples, float32 mono, the last of them captured at `stamp_s`."""
        with self._ready:
            self._note(b"S", samples.tobytes(), stamp_s, rate_hz)

    def drop(self, cause: str) -> None:
        """Report a datum that was not delivered, for the counter `cause`."""
        with self._ready:
            self._note(b"D", cause.encode())

    def close(self, error: str | None = None) -> None:
        """Send the last message, an error or the end, and wait until it is sent."""
        with self._ready:
            self._note(b"X" if error is None else b"E", (error or "").encode())
            self._closed = True
            self._ready.notify()
        self._thread.join()

    def _note(self, kind: bytes, body: bytes, stamp_s: float = 0.0, first: int = 0) -> None:
        if len(self._notes) < 1_000:  # bounded: a reader that is stopped for long loses notes, not memory
            self._notes.append((kind, stamp_s, first, body))
        self._ready.notify()

    def _send_all(self) -> None:
        try:
            while self._send_next():
                pass
        except OSError:  # the owner has closed the socket; `_watch` ends the process
            return

    def _send_next(self) -> bool:
        with self._ready:
            self._ready.wait_for(lambda: self._frame or self._notes or self._closed)
            notes, self._notes = self._notes, []
            frame, self._frame = self._frame, None
            last = self._closed
        if frame is not None:
            stamp_s, image = frame
            height, width = image.shape[:2]
            self._connection.sendall(HEADER.pack(b"F", stamp_s, height, width, image.nbytes))
            self._connection.sendall(image.data)
        for kind, stamp_s, first, body in notes:
            self._connection.sendall(HEADER.pack(kind, stamp_s, first, 0, len(body)) + body)
        return not last


def read_message(connection: socket.socket) -> DriverMessage | None:
    """Read the next message; None when the driver process has ended.

    Raises:
        SensorLost: the message is malformed.
    """
    header = _read(connection, HEADER.size)
    if header is None:
        return None
    kind, stamp_s, first, second, length = HEADER.unpack(header)
    if length > MAX_MESSAGE:
        raise SensorLost(f"the driver process announced {length} bytes")
    body = _read(connection, length)
    return None if body is None else DriverMessage(kind.decode("latin-1"), stamp_s, first, second, body)


def _read(connection: socket.socket, length: int) -> bytearray | None:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        try:
            count = connection.recv_into(view)
        except OSError:
            return None
        if count == 0:
            return None
        view = view[count:]
    return data


def serve(connection: socket.socket, line: bytes) -> None:
    """Run the job in `line`; its outcome is the last message."""
    stop = threading.Event()
    mailbox = FrameSender(connection)
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
    mailbox: FrameSender,
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
