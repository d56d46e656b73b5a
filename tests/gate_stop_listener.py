"""The second stop listener in the world of `gate_model.py`: a process of its own, with its own connection, session and life.

The listener, its reading of messages and its retries are the real ones. It can be killed, frozen, cut off from the broker, and
it can outlive the daemon; the broker stores what its session missed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.gate.stop.channel import DEAF, HEARD, StopSender
from runtime.gate.stop.listener import StopListener, connection_of
from runtime.mqtt.connection_types import PublishMessage

if TYPE_CHECKING:
    from gate_model import Line, World


@dataclass
class Run:
    """One run of the process."""

    listener: StopListener
    line: Line
    job: asyncio.Task[None]
    parent: list[bool]
    """Whether the supervisor that started it lives."""


class Channel(StopSender):
    """The listener's end of the channel; the other end is in one supervisor, dead or alive."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.host = world, world.host

    def send(self, reason: str | None) -> bool:
        """What is sent waits in the socket until the gate's loop reads it."""
        self.world.loop.call_soon(self._read, reason)
        return True

    def send_denial(self, denial: str | None) -> bool:
        """As `send`."""
        self.world.loop.call_soon(self._read_denial, HEARD if denial is None else DEAF + denial.encode())
        return True

    def _read_denial(self, data: bytes) -> None:
        if self.host is self.world.host and not self.world.is_dead:
            self.world.listener_deaf = data != HEARD
            self.host.listener.received(data)

    def _read(self, reason: str | None) -> None:
        if self.host is self.world.host and not self.world.is_dead:
            self.host.listener.stated(reason)


class ListenerProcess:
    """The newest run, and what the broker stores for its session."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.run: Run | None = None
        self.frozen = False
        self.stored: list[PublishMessage] = []
        self.unread: list[PublishMessage] = []

    def start(self) -> None:
        """The supervisor starts a listener, which takes the session of an older one over."""
        world = self.world
        previous, self.run = self.run, None
        self.thaw()
        if previous is not None:
            self._drop(previous)
            previous.line.connection.on_connection_change(False, "taken over")
            self.world.loop.spin(16)
        parent = [True]
        listener = StopListener(
            connection_of(world.host.config),
            world.latch,  # type: ignore[arg-type]
            world.host.topics,
            lambda: parent[0],
            lambda: world.loop.now_s,
            Channel(world),
        )
        run = Run(listener, world.new_line(listener.connection), world.loop.create_task(listener.run()), parent)
        run.job.add_done_callback(lambda job: job.cancelled() or job.exception())
        self.run = run
        self.connect()

    def connect(self) -> None:
        """It finds the broker (again), which passes on what it has stored."""
        run = self.run
        if run is None or run.line.group is not None or run.job.done():
            return
        stored, self.stored = self.stored, []
        self.world.open_line(run.line, resumed=bool(stored))
        for out in stored:
            self._dispatch(run, out)

    def lose(self) -> None:
        """The broker drops its connection."""
        if self.run is not None and self.run.line.group is not None:
            self._drop(self.run)
            self.run.line.connection.on_connection_change(False, "lost")

    def kill(self) -> None:
        """kill -9: what it had not written is lost."""
        if self.run is not None:
            self._drop(self.run)
            self.run.job.cancel()
            self.world.loop.spin(8)
            self.run, self.frozen = None, False

    def subscribe_again(self) -> None:
        """It asks again for what the broker refused; its own pause between two attempts is left out."""
        if self.run is None or self.run.line.group is None or not self.run.listener.connection.denials:
            return
        connection = self.run.listener.connection
        known = list(connection._inbound.subscriptions.values())
        self.world.loop.run_until_complete(connection._join(self.run.line.client, known))  # type: ignore[arg-type]
        self.world.settle_loop()

    def orphan(self) -> None:
        """Its supervisor is dead."""
        if self.run is not None:
            self.run.parent[0] = False

    def thaw(self) -> None:
        """It runs again, and reads what has waited for it."""
        self.frozen = False
        unread, self.unread = self.unread, []
        for out in unread:
            if self.run is not None and self.run.line.group is not None:
                self._dispatch(self.run, out)

    def hear(self, out: PublishMessage) -> bool:
        """The broker has a message on `stop` for it; returns whether it has read it."""
        if self.run is None or self.run.line.group is None or self.run.job.done():
            if out.qos:
                self.stored.append(out)
            return False
        if self.frozen:
            self.unread.append(out)
            return False
        self._dispatch(self.run, out)
        return True

    def _drop(self, run: Run) -> None:
        self.world.drop(run.line)
        again, run.line.away = run.line.away, []
        self.stored[:0] = [*again, *(out for out in self.unread if out.qos)]
        self.unread = []
        run.line.connection._greeted = False

    def _dispatch(self, run: Run, out: PublishMessage) -> None:
        self.world.pass_on(run.line, out)
