"""Engage in the gate what the stop listener received: from its channel, and from its file `stop-latch`.

While the gate is connected to the broker, its own messages on `stop` have the order. A late statement of the listener must not
engage a stop that was just released. While the gate is not connected, a statement engages at once. None releases a stop.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from actuators.safety.gate import Gate
from runtime.gate.stop import channel
from runtime.gate.stop.latch import StopLatch
from runtime.mqtt import Connection
from runtime.process.datagram_reader import DatagramReader

LATCH_POLL_S = 0.25
"""How often the latch of the stop listener is read."""
OWN_STOP_S = 0.5
"""A connected gate waits so long for a stop that the stop listener has received: its own connection has the order of the messages."""
STOP_LISTENER = "the stop listener received it"


@dataclass(slots=True)
class StopListenerFollower:
    """Follows the stop listener."""

    gate: Gate
    connection: Connection
    """The gate's own, which carries the stop."""
    latch: StopLatch
    woken: asyncio.Event
    """Set where the host's `tick` has something to do."""
    engage: Callable[[str], None]
    """Engages the stop, with its reason."""
    hearing_changed: Callable[[], None]
    """Called after each statement about whether the listener hears a stop (`denial`)."""
    now: Callable[[], float]
    denial: str | None = None
    """Why the broker lets the listener hear no stop; None while nothing says so. It outlives the listener that stated it."""
    _stated: tuple[float, str] | None = None
    """When the listener's stop was read, and its reason, while the gate is not stopped."""
    _released_ns: int = 0
    """When the newest release was executed, Unix nanoseconds: a file of the listener from before it is late."""
    _reader: DatagramReader = field(init=False)

    def __post_init__(self) -> None:
        self._reader = DatagramReader(self.received, lambda: None, channel.LONGEST)

    def attach(self, end: socket.socket) -> None:
        """Read the listener's channel; its end stays open here, so that each new listener can inherit it."""
        self._reader.attach(end)

    def detach(self) -> None:
        """Stop reading from the listener."""
        self._reader.detach()

    def received(self, data: bytes) -> None:
        """Take one statement of the listener."""
        if not channel.is_about_hearing(data):
            self.stated(channel.reason_of(data))
            return
        self.denial = channel.denial_of(data)
        self.hearing_changed()

    def stated(self, reason: str | None) -> None:
        """Take a stop that the listener received, with its reason, or None once it received a release.

        While the gate is not connected, it engages the stop at once. While it is connected, it waits for its own message:
        a stop that was released meanwhile must not be engaged again. No statement releases an engaged stop.
        """
        if reason is None or self.gate.stopped:
            self._stated = None
        elif self._stated is None:
            self._stated = self.now(), reason
        self.tick()
        self.woken.set()

    def tick(self, *, at_once: bool = False) -> None:
        """Engage the stated stop when the gate's own message is overdue, or `at_once`."""
        if self._stated is None:
            return
        read_s, reason = self._stated
        if self.gate.stopped:
            self._stated = None
        elif at_once or not self.connection.connected or self.now() - read_s >= OWN_STOP_S:
            self.engage(f"{STOP_LISTENER}: {reason}")

    def due_s(self) -> float:
        """Return when the stated stop is due; infinity without one."""
        return math.inf if self._stated is None else self._stated[0] + OWN_STOP_S

    def catch_up(self) -> None:
        """Engage what the channel and the file contain; called at a connect, before anything arms."""
        self._reader.read()
        self.tick(at_once=True)
        if not self.gate.stopped:
            self.read_latch()

    def read_latch(self) -> None:
        """Engage the stop that the file contains, if any."""
        found = self.latch.read()
        if found is not None:
            self.engage(f"{STOP_LISTENER}: {found[1]}")

    def settled(self, *, engaged: bool) -> None:
        """Note that the gate engaged or released the stop: an older statement no longer counts."""
        self._stated = None
        self._released_ns = self._released_ns if engaged else time.time_ns()

    async def follow_latch(self) -> None:
        """Engage a stop that the listener has latched, until cancelled.

        While the gate is connected, it must find the file twice. Otherwise the late file of a stop that was just released
        would engage it again. A thread reads the file where there may be one; that there is none, a look from here shows.
        """
        before: int | None = None
        look_here = await asyncio.to_thread(self.latch.is_on_disk_of_this_machine)
        while True:
            await asyncio.sleep(LATCH_POLL_S)
            found = None if look_here and self.latch.is_absent() else await asyncio.to_thread(self.latch.read)
            written, reason = found or (None, "")
            is_newer = written is not None and written == before and written > self._released_ns
            if written is not None and not self.gate.stopped and (is_newer or not self.connection.connected):
                self.engage(f"{STOP_LISTENER}: {reason}")
            before = written
