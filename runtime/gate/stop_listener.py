"""Listen to the stop in a process of its own, and latch it on the disk: `python -m runtime.gate.stop_listener CONFIG`.

The supervisor starts it. It has a connection of its own and outlives the supervisor, so that a stop counts that is sent while
the gate restarts, hangs, or has lost its connection. A stop is written to the file `stop-latch`; the gate engages the stop
when it finds the file, and removes it with the release. The listener never releases a stop that it latched without the gate.

Without a supervisor it ends when the next listener takes its session over, or after `ORPHAN_S`. It imports no torch.
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

import structlog

from runtime.config.loader import ConfigError, load
from runtime.config.schema import Config
from runtime.gate.operator_commands import read_stop
from runtime.gate.stop_latch import StopLatch
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
"""Between two attempts at a write that the disk refused."""
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
        return Connection(address, f"reflexd-{config.agent}-gate-stop", session_s=SESSION_S)
    own = user.for_stop()
    identifier = own.username if user.stop is not None else f"{own.username}-stop"
    return Connection(replace(address, credentials=own), identifier, session_s=SESSION_S)


@dataclass(slots=True)
class StopListener:
    """Latches stops. Create it inside the running loop."""

    connection: Connection
    latch: StopLatch
    topics: Topics
    has_parent: Callable[[], bool]
    clock: Callable[[], float] = time.monotonic
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _reason: str | None = None
    """Of the stop in force; None without one."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.connection.subscribe(self.topics("stop"), self.on_stop, retained="send")
        self.connection.on_connection_change = self._connection_changed

    def on_stop(self, message: Message) -> None:
        """Take a message on `stop`.

        A release counts only while the supervisor lives: without it, a stop must hold until the gate reads it.

        Raises:
            Refused: a release that the broker may have stored.
        """
        read = read_stop(message)
        if read is None:
            return
        engaged, reason = read
        if engaged:
            self._reason = self._reason or reason or "sent while the gate did not listen"
            self._changed.set()
        elif not engaged and self.has_parent():
            self._reason = None
            self._changed.set()

    async def run(self) -> None:
        """Listen until it is no longer needed, or cancelled.

        Raises:
            OSError: a stop could not be written at the end.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in (self.connection.run(), self._write(), self._watch_parent())]
            await self.ended.wait()
            for task in tasks:
                task.cancel()
        if self._changed.is_set() and self._reason is not None:
            await asyncio.to_thread(self.latch.write, self._reason)

    async def _write(self) -> None:
        """Write the newest received state to the file; retry while the disk refuses."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            reason = self._reason
            try:
                if reason is None:
                    await asyncio.to_thread(self.latch.remove)
                elif not await asyncio.to_thread(self.latch.exists):  # the gate removes it with a release
                    await asyncio.to_thread(self.latch.write, reason)
            except OSError as error:
                _LOG.error("stop_listener.not_saved", file=str(self.latch.path), reason=str(error))
                self._changed.set()
                await asyncio.sleep(RETRY_S)

    async def _watch_parent(self) -> None:
        """End `ORPHAN_S` after the supervisor."""
        orphaned_s: float | None = None
        while orphaned_s is None or self.clock() - orphaned_s < ORPHAN_S:
            await asyncio.sleep(POLL_S)
            if orphaned_s is None and not self.has_parent():
                orphaned_s = self.clock()
                _LOG.warning("stop_listener.gate_gone", listens_s=ORPHAN_S)
        self.ended.set()

    def _connection_changed(self, up: bool, reason: str) -> None:  # noqa: FBT001 - the connection's callback
        """Give way to the next supervisor's listener, which took the session over."""
        if not up and not self.has_parent():
            _LOG.info("stop_listener.replaced", reason=reason)
            self.ended.set()


async def listen(config: Config, has_parent: Callable[[], bool]) -> None:
    """Listen until SIGTERM, or until it is no longer needed."""
    listener = StopListener(connection_of(config), StopLatch.of(config.state_dir), Topics(config.agent), has_parent)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, listener.ended.set)
    await listener.run()


def main(arguments: list[str]) -> int:
    """Run the process; return 0 after a regular end, 2 for settings that cannot be used, 1 for a file that cannot be read."""
    parser = argparse.ArgumentParser(prog="runtime.gate.stop_listener")
    parser.add_argument("--parent", type=int, default=os.getppid())
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
            asyncio.run(listen(loaded.config, lambda: os.getppid() == given.parent))
    except (OSError, ValueError) as error:
        _LOG.error("stop_listener.start_failed", reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
