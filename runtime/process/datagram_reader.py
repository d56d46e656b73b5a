"""Read the datagrams of one socket at a time in the event loop: those of the agent, and those of the stop listener.

A busy sender cannot hold the loop: one turn reads at most `AT_ONCE` datagrams.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

AT_ONCE = 16
"""Datagrams read in one turn of the loop."""


@dataclass(slots=True)
class DatagramReader:
    """Passes each datagram on, and says when the other end is gone."""

    receive: Callable[[bytes], None]
    """Called with each datagram, which is never empty."""
    closed: Callable[[], None]
    """Called when no process has the other end any more; by then this end is closed."""
    longest: int
    """Bytes of the longest datagram that is read whole; a longer one is cut."""
    end: socket.socket | None = None

    def attach(self, end: socket.socket) -> None:
        """Read this socket, which is non-blocking, instead of the one before, which is closed."""
        self.detach()
        self.end = end
        asyncio.get_running_loop().add_reader(end.fileno(), self.read)

    def detach(self) -> None:
        """Close the socket, if there is one; `closed` is not called."""
        if self.end is not None:
            asyncio.get_running_loop().remove_reader(self.end.fileno())
            self.end.close()
            self.end = None

    def read(self) -> None:
        """Pass on what is there now."""
        for _ in range(AT_ONCE):
            if self.end is None:
                return
            try:
                data = self.end.recv(self.longest)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.detach()
                self.closed()
                return
            self.receive(data)
