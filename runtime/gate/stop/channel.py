"""Pass a stop from the stop listener to the gate in memory, so that a disk that refuses delays nothing.

The supervisor makes one socket pair, which each listener that it starts inherits. One datagram is one statement. Every datagram
counts as a stop, with three exceptions. `WITHDRAWN`: the listener has received a release. That never releases a stop that the gate has
engaged. `DEAF` with a reason: the broker refuses the listener's subscription. `HEARD`: the broker grants it. A listener that
outlives its supervisor has no channel any more: its file `stop-latch` remains.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from runtime.gate.stop.latch import MAX_REASON

WITHDRAWN = b"withdrawn"
STOP = b"stop: "
"""Before the reason: a datagram is never empty, because an empty one reads as the end of file."""
DEAF = b"deaf: "
"""Before the reason."""
HEARD = b"heard"


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the gate's end and the listener's end, both non-blocking and closed on exec unless passed on."""
    gate, listener = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (gate, listener):
        end.setblocking(False)
    return gate, listener


class StopSender:
    """The listener's end; without a socket it sends nothing."""

    def __init__(self, end: socket.socket | None = None) -> None:
        self._end = end

    @classmethod
    def of(cls, descriptor: int | None) -> StopSender:
        """Return the sender on an inherited descriptor.

        Raises:
            OSError: it is no open socket.
        """
        if descriptor is None:
            return cls()
        end = socket.socket(fileno=descriptor)
        end.setblocking(False)
        end.set_inheritable(False)
        return cls(end)

    def send(self, reason: str | None) -> bool:
        """Send a stop with its reason, or None once it is released; False when the gate has read too little for another one."""
        return self._pass(WITHDRAWN if reason is None else STOP + _short(reason))

    def send_denial(self, denial: str | None) -> bool:
        """Send why the broker refuses the subscription, or None once it grants it; False when the gate has read too little."""
        return self._pass(HEARD if denial is None else DEAF + _short(denial))

    def _pass(self, data: bytes) -> bool:
        if self._end is None:
            return True
        with suppress(BrokenPipeError, ConnectionResetError):  # the supervisor is dead: the file remains
            try:
                self._end.send(data)
            except BlockingIOError:
                return False
        return True


LONGEST = max(len(STOP), len(DEAF)) + MAX_REASON
"""Bytes of the longest statement."""


def is_about_hearing(data: bytes) -> bool:
    """Return whether a statement says whether the listener hears a stop, and so is none."""
    return data == HEARD or data.startswith(DEAF)


def denial_of(data: bytes) -> str | None:
    """Return why the listener hears no stop, from a statement about that; None where it hears one."""
    return None if data == HEARD else data.removeprefix(DEAF).decode(errors="replace")


def reason_of(data: bytes) -> str | None:
    """Return the reason of a statement; None for a release that the listener received."""
    return None if data == WITHDRAWN else data.removeprefix(STOP).decode(errors="replace")


def _short(reason: str) -> bytes:
    return reason.encode(errors="replace")[:MAX_REASON]
