"""Listen to the stop in a process of its own, and latch it on the disk: `python -m runtime.gate.stop.listener CONFIG`.

The supervisor starts it. It has a connection of its own and outlives the supervisor, so that a stop counts that is sent while
the gate restarts, hangs, or has lost its connection. It sends a stop to the gate through the channel that it inherited, and writes
it to the file `stop-latch`. The gate engages the stop when it reads either, and removes the file with the release. The listener
never releases a stop that it latched without the gate. The broker has the acknowledgement of a stop once the file has it. So a stop
of QoS 1 outlives a kill of listener and gate at any moment: the broker sends it again.

Without a supervisor it ends when the next listener takes its session over, or after `ORPHAN_S`, but never before its stop is on the
disk. It imports no torch.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import structlog

from runtime.config.loader import ConfigError, load
from runtime.config.schema import Config
from runtime.gate.stop.channel import StopSender
from runtime.gate.stop.latch import StopLatch
from runtime.gate.stop.messages import read_stop
from runtime.gate.stop.unacknowledged import Unacknowledged
from runtime.mqtt import Address, Connection, Message
from runtime.mqtt.topics import Topics
from runtime.process import child, log

TITLE = "stop listener"
SESSION_S = 86_400
"""How long the broker stores a stop while no listener runs."""
ORPHAN_S = 60.0
"""How long it listens without a supervisor; the service manager starts the daemon again within seconds."""
POLL_S = 0.5
RETRY_S = 0.5
"""Between two attempts at a write that the disk refused, or at a statement that the gate has no room for."""
AGAIN_S = 1.0
"""After a stop, when it looks whether the file is still there: the gate may have been removing it for an earlier release."""
LAST_TRIES = 3
"""Writes tried after SIGTERM."""
_LOG = structlog.get_logger(__name__)


def has_own_session(config: Config) -> bool:
    """Return whether a listener can run beside the gate; without a user of its own it might end the gate's session.

    The gate's second connection has a user of its own where the broker uses the user name as client id.
    """
    user = config.mqtt.credentials("gate")
    return user is None or user.stop is not None or user.requests is None


def connection_of(config: Config) -> Connection:
    """Return the listener's connection.

    Raises:
        ValueError, OSError: as `Address.of`.
    """
    address = Address.of(config.mqtt, "gate")
    user = address.credentials
    if user is None:
        return Connection(address, f"reflexd-{config.agent}-gate-stop", session_s=SESSION_S, handlers_acknowledge=True)
    own = user.for_stop()
    identifier = own.username if user.stop is not None else f"{own.username}-stop"
    return Connection(replace(address, credentials=own), identifier, session_s=SESSION_S, handlers_acknowledge=True)


@dataclass(slots=True)
class StopListener:
    """Latches stops. Create it inside the running loop."""

    connection: Connection
    latch: StopLatch
    topics: Topics
    has_parent: Callable[[], bool]
    clock: Callable[[], float] = time.monotonic
    gate: StopSender = field(default_factory=StopSender)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by SIGTERM: it ends at once, after `LAST_TRIES` at a stop that is not on the disk."""
    _unneeded: asyncio.Event = field(default_factory=asyncio.Event)
    """It need not listen any longer."""
    _reason: str | None = None
    """Of the stop in force; None without one."""
    _unsent: set[Literal["stop", "hearing"]] = field(default_factory=set)
    """What the gate has still to be sent."""
    _has_unsent: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    """The file may differ from the stop in force."""
    _saved: asyncio.Event = field(default_factory=asyncio.Event)
    _unacknowledged: Unacknowledged = field(default_factory=Unacknowledged)
    """Messages that the broker stores until the file says what they say."""
    _look_again: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self._saved.set()
        self.connection.subscribe(self.topics("stop"), self.on_stop, retained="send")
        self.connection.on_connect = self.connection.on_subscription_change = lambda: self._state("hearing")
        self.connection.on_connection_change = self._connection_changed

    def on_stop(self, message: Message) -> None:
        """Take a message on `stop`.

        A release counts only while the supervisor lives: without it, a stop must hold until the gate reads it.

        Raises:
            Refused: a release that the broker may have stored.
        """
        read = read_stop(message)
        if read is None or not (read[0] or self.has_parent()):
            message.acknowledge()
            return
        self._unacknowledged.add(message)
        engaged, reason = read
        self._reason = (self._reason or reason or "sent while the gate was not listening") if engaged else None
        self._saved.clear()
        self._state("stop")
        self._changed.set()
        if self._look_again is not None:
            self._look_again.cancel()
        self._look_again = asyncio.get_running_loop().call_later(AGAIN_S, self._changed.set)

    async def run(self) -> None:
        """Listen until it is no longer needed and has saved its stop, or until `ended`, or until cancelled.

        Raises:
            OSError: a stop could not be written at the end.
        """
        async with asyncio.TaskGroup() as group:
            connection = group.create_task(self.connection.run())
            others = [group.create_task(job) for job in (self._send(), self._write(), self._watch_parent())]
            waits = [group.create_task(each.wait()) for each in (self.ended, self._unneeded)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            connection.cancel()
            waits.append(group.create_task(self._saved.wait()))
            await asyncio.wait((waits[0], waits[-1]), return_when=asyncio.FIRST_COMPLETED)
            for task in (*others, *waits):
                task.cancel()
        for left in reversed(range(LAST_TRIES)):
            if self._saved.is_set() or self._reason is None:
                return
            try:
                await asyncio.to_thread(self._save, self._reason)
            except OSError:
                if left == 0:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _state(self, what: Literal["stop", "hearing"]) -> None:
        """Have the gate sent the newest state."""
        self._unsent.add(what)
        self._has_unsent.set()

    async def _send(self) -> None:
        """Send the newest state to the gate: the stop, and whether it is heard; retry while the gate reads nothing."""
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            if "stop" in self._unsent and self.gate.send(self._reason):
                self._unsent.discard("stop")
            if "hearing" in self._unsent and self.gate.send_denial(self.connection.denial(self.topics("stop"))):
                self._unsent.discard("hearing")
            if self._unsent:
                self._has_unsent.set()
                await asyncio.sleep(RETRY_S)

    async def _write(self) -> None:
        """Write the newest received state to the file; retry while the disk refuses."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            received = self._unacknowledged.newest
            try:
                await asyncio.to_thread(self._save, self._reason)
            except OSError as error:
                _LOG.error("stop_listener.not_saved", file=str(self.latch.path), reason=str(error))
                self._changed.set()
                await asyncio.sleep(RETRY_S)
            else:
                self._unacknowledged.acknowledge(received)
                if not self._changed.is_set():
                    self._saved.set()

    def _save(self, reason: str | None) -> None:
        """Make the file say what is in force; a removal that an orphan still owes could delete the next listener's stop."""
        if reason is not None:
            if not self.latch.exists():  # the gate removes it with a release
                self.latch.write(reason)
        elif self.has_parent():
            self.latch.remove()

    async def _watch_parent(self) -> None:
        """End `ORPHAN_S` after the supervisor."""
        orphaned_s: float | None = None
        while orphaned_s is None or self.clock() - orphaned_s < ORPHAN_S:
            await asyncio.sleep(POLL_S)
            if orphaned_s is None and not self.has_parent():
                orphaned_s = self.clock()
                _LOG.warning("stop_listener.gate_gone", listens_s=ORPHAN_S)
        self._unneeded.set()

    def _connection_changed(self, up: bool, reason: str) -> None:  # noqa: FBT001 - the connection's callback
        """Give way to the next supervisor's listener, which took the session over."""
        if not up and not self.has_parent():
            _LOG.info("stop_listener.replaced", reason=reason)
            self._unneeded.set()


async def listen(config: Config, has_parent: Callable[[], bool], gate: StopSender) -> None:
    """Listen until SIGTERM, or until it is no longer needed."""
    connection, latch = connection_of(config), StopLatch.of(config.state_dir)
    listener = StopListener(connection, latch, Topics(config.agent), has_parent, gate=gate)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, listener.ended.set)
    await listener.run()


def main(arguments: list[str]) -> int:
    """Run the process; return 0 after a regular end, 2 for settings that cannot be used, 1 for a file that cannot be read."""
    parser = argparse.ArgumentParser(prog="runtime.gate.stop.listener")
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("--gate-fd", type=int, help="the inherited channel to the gate")
    parser.add_argument("config", type=Path)
    given = parser.parse_args(arguments)
    try:
        loaded = load(given.config)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    child.set_process_title(TITLE)
    log.configure(secrets=loaded.secrets)
    try:
        with suppress(KeyboardInterrupt):
            sender = StopSender.of(given.gate_fd)
            asyncio.run(listen(loaded.config, lambda: os.getppid() == given.parent, sender))
    except (OSError, ValueError) as error:
        _LOG.error("stop_listener.failed", reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
