"""Keeps one source alive: connects, judges it by the age of its data, reports, replaces it, backs off.

No driver time-out is trusted. A source is lost when its newest datum is older than its period plus `grace_s`, whatever
the driver says, and its driver is replaced after `replace_s` of silence. The period is learned from the last gaps, so that a camera slower than asked is not reported at every frame. Knows neither pictures nor sound.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from sensors.base import SensorLost, call_threadsafe
from sensors.drivers.process import Message


class Connection(Protocol):
    """One attempt to use a source."""

    def messages(self) -> Generator[Message]:
        """What it says until it ends; blocks."""

    def stop(self) -> None:
        """Make `messages` end; from any thread, more than once."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient a watcher is, in seconds."""

    period_s: float
    """Shortest time between data; the learned period is never below it."""
    grace_s: float = 0.2
    """Beyond the period; the remaining 50 ms of the promised 250 are for noticing."""
    start_s: float = 3.0
    """The first data may take this long before the source is reported."""
    open_s: float = 10.0
    """A connection that delivered nothing for this long is replaced."""
    replace_s: float = 2.0
    """A connection that fell silent for this long is replaced."""
    back_off_s: tuple[float, float] = (0.25, 4.0)
    """First and longest wait between two connections."""
    probe_wait_s: float = 0.5
    """Longest wait while the source is plainly absent, which costs nothing to find out."""
    enough: int = 2
    """Fresh data in a row that make a recovery: a dying decoder may still hand out a last picture."""


class Absent(SensorLost):
    """The source is not there at all: found out cheaply, before a driver was started."""


class Ended(SensorLost):
    """A recording came to its end; nothing more will come."""


class Period:
    """The time between data, learned from the gaps between their stamps."""

    def __init__(self, floor_s: float) -> None:
        self._floor_s = floor_s
        self._claimed_s = 0.0
        self._gaps: deque[float] = deque(maxlen=9)
        self._last_s: float | None = None

    def add(self, stamp_s: float) -> None:
        """Learn from a datum."""
        if self._last_s is not None:
            self._gaps.append(stamp_s - self._last_s)
        self._last_s = stamp_s

    def claim(self, period_s: float) -> None:
        """What the source says of itself: believed until it was seen."""
        self._claimed_s = period_s

    def restart(self) -> None:
        """A new connection: what lies between is no gap."""
        self._last_s = None

    @property
    def value_s(self) -> float:
        """The mean gap, an interruption counting as twice the median; not below the floor."""
        if not self._gaps:
            return max(self._floor_s, self._claimed_s)
        longest_s = 2 * statistics.median(self._gaps)
        return max(self._floor_s, statistics.fmean(min(gap, longest_s) for gap in self._gaps))


class SourceWatchdog:
    """Runs connections one after the other until cancelled or until the recording ends."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connection],
        take: Callable[[Message], bool],
        limits: Limits,
        *,
        probe: Callable[[], None] = lambda: None,
        begin: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`take` handles a message in the reader's thread and says whether it was data; `probe` raises Absent."""
        self.name = name
        self.counts: Counter[str] = Counter()
        """connections, replaced, failed."""
        self.fps = 0.0
        """Data a second as the source claims; 0 while unknown."""
        self._connect = connect
        self._take = take
        self._limits = limits
        self._probe = probe
        self._begin = begin
        self._clock = clock
        self._period = Period(limits.period_s)
        self._changed: asyncio.Future[None] | None = None
        self._newest_s: float | None = None
        self._reported = False
        self._fresh = 0
        """Fresh data in a row since the last loss or connection."""

    async def run(self, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Keep the source alive until cancelled; then at most one second passes."""
        first_s, longest_s = self._limits.back_off_s
        wait_s = first_s
        while True:
            reason = await self._attempt(lost, recovered)
            self._report(f"{self.name}: {reason}", lost)
            if isinstance(reason, Ended):
                await asyncio.Event().wait()
            self.counts["failed"] += 1
            if self._newest_s is not None:
                wait_s = first_s
            await asyncio.sleep(min(wait_s, self._limits.probe_wait_s) if isinstance(reason, Absent) else wait_s)
            wait_s = min(wait_s * 2, longest_s)

    async def _attempt(self, lost: Callable[[str], None], recovered: Callable[[], None]) -> SensorLost:
        """One connection from start to end; why it ended."""
        loop = asyncio.get_running_loop()
        self._newest_s = None
        self._fresh = 0
        self._period.restart()
        connection = self._connect()
        done: asyncio.Future[SensorLost] = loop.create_future()
        thread = threading.Thread(
            target=self._read, args=(connection, loop, done, recovered), name=f"sensor {self.name}", daemon=True
        )
        self.counts["connections"] += 1
        thread.start()
        try:
            return await self._judge(done, lost)
        finally:
            connection.stop()

    def _read(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        done: asyncio.Future[SensorLost],
        recovered: Callable[[], None],
    ) -> None:
        """The reader's thread: from the probe to the end of the messages; the end is told before the driver is reaped."""
        reason = SensorLost("the driver process ended without a word")
        with closing(connection.messages()) as messages:
            try:
                self._probe()
                self._begin()
                for message in messages:
                    _raise_if_last(message)
                    if message.kind == "O":
                        call_threadsafe(loop, self._opened, message)
                    elif self._take(message):
                        call_threadsafe(loop, self._note, done, message.stamp_s, recovered)
            except SensorLost as error:
                reason = error
            call_threadsafe(loop, _finish, done, reason)

    def _opened(self, message: Message) -> None:
        """The source says what it is (event loop)."""
        self.fps = float(orjson.loads(message.body)["fps"])
        self._period.claim(1.0 / self.fps if self.fps > 0 else 0.0)

    def _note(self, done: asyncio.Future[SensorLost], stamp_s: float, recovered: Callable[[], None]) -> None:
        """A datum arrived (event loop)."""
        if done.done():
            return
        first, self._newest_s = self._newest_s is None, stamp_s
        self._period.add(stamp_s)
        self._fresh = self._fresh + 1 if self._clock() - stamp_s <= self._report_after_s() else 0
        back = self._reported and self._fresh >= self._limits.enough
        if (first or back) and self._changed is not None and not self._changed.done():
            self._changed.set_result(None)  # other limits hold from now on
        if back:
            self._reported = False
            recovered()

    async def _judge(self, done: asyncio.Future[SensorLost], lost: Callable[[str], None]) -> SensorLost:
        """Wait for the end, or for silence that calls for a new connection."""
        start_s = self._clock()
        while not done.done():
            self._changed = asyncio.get_running_loop().create_future()
            events: list[asyncio.Future[Any]] = [done, self._changed]
            await asyncio.wait(events, timeout=self._patience_s(start_s), return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                break
            age_s = self._clock() - (start_s if self._newest_s is None else self._newest_s)
            what = "nothing came" if self._newest_s is None else "it fell silent"
            if age_s >= self._report_after_s():
                self._report(f"{self.name}: {what} for {age_s:.2f} s", lost)
            if age_s >= self._replace_after_s():
                self.counts["replaced"] += 1
                done.cancel()
                return SensorLost(f"{what} for {age_s:.2f} s; starting its driver anew")
        return done.result()

    def _report_after_s(self) -> float:
        if self._newest_s is None:
            return self._limits.start_s
        return self._period.value_s + self._limits.grace_s

    def _replace_after_s(self) -> float:
        if self._newest_s is None:
            return self._limits.open_s
        return max(self._limits.replace_s, 5 * self._period.value_s)

    def _patience_s(self, start_s: float) -> float:
        """Seconds until the next judgement can change anything."""
        base_s = start_s if self._newest_s is None else self._newest_s
        limit_s = self._replace_after_s() if self._reported else self._report_after_s()
        return max(0.001, base_s + limit_s - self._clock())

    def _report(self, reason: str, lost: Callable[[str], None]) -> None:
        self._fresh = 0
        if not self._reported:
            self._reported = True
            lost(reason)


def _raise_if_last(message: Message) -> None:
    if message.kind == "E":
        raise SensorLost(message.text)
    if message.kind == "X":
        raise Ended("the recording has ended; set loop: true to repeat it")


def _finish(done: asyncio.Future[SensorLost], reason: SensorLost) -> None:
    if not done.done():
        done.set_result(reason)
