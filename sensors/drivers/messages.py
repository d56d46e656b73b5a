"""Define the messages that a driver process sends to the agent, and write and read them on the socket between the two.

A message is a header (kind, capture stamp in monotonic seconds, two numbers, length) and its bytes. The kinds are:

- F: a frame; the numbers are height and width.
- S: sound in float32 mono; the numbers are the sample rate and 0.
- O: the source is open; the bytes are JSON.
- D: a drop; the bytes are its cause.
- E: an error; the bytes are its text.
- X: the end of the recording.
"""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from sensors.base import SensorLost

HEADER = struct.Struct("<cdIII")
MAX_MESSAGE = 1 << 30


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


class MessageSender:
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
