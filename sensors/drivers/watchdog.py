"""Keep one source alive: connect, judge it by the age of its data, report, replace its driver, back off.

It trusts no driver's time-out. A source is lost when its newest datum is older than its period plus `grace_s`, whatever
the driver says. Its driver is replaced after `replace_s` of silence. The period is learned from the last gaps, so a
camera slower than requested is not reported at every frame. Knows neither pictures nor sound.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson

from sensors.base import SensorLost, call_threadsafe
from sensors.drivers.driver_handle import DriverProcess
from sensors.drivers.messages import DriverMessage


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a watchdog, in seconds."""

    period_s: float
    """Shortest time between data; a lower bound of the learned period."""
    grace_s: float = 0.2
    """Allowed beyond the period; the other 50 ms of the promised 250 ms are for noticing."""
    start_s: float = 3.0
    """The first data may take this long before the source is reported."""
    open_s: float = 10.0
    """A connection that delivered nothing for this long is replaced."""
    replace_s: float = 2.0
    """A connection that fell silent for this long is replaced."""
    back_off_s: tuple[float, float] = (0.25, 4.0)
    """First and longest wait between two connections."""
    probe_wait_s: float = 0.5
    """Longest wait while the probe finds the source absent; a probe is cheap."""
    enough: int = 2
    """Fresh data in a row that make a recovery: a dying decoder may still deliver a last picture."""


class Absent(SensorLost):
    """The probe found no source, before a driver was started."""


class Ended(SensorLost):
    """A recording has reached its end; no more data will come."""


class Period:
    """Learn the time between data, in seconds, from the gaps between their stamps."""

    def __init__(self, floor_s: float) -> None:
        self._floor_s = floor_s
        self._claimed_s = 0.0
        self._gaps: deque[float] = deque(maxlen=9)
        self._last_s: float | None = None

    def add(self, stamp_s: float) -> None:
        """Learn from a datum captured at `stamp_s`."""
        if self._last_s is not None:
            self._gaps.append(stamp_s - self._last_s)
        self._last_s = stamp_s

    def claim(self, period_s: float) -> None:
        """Use the source's own claim until gaps have been measured."""
        self._claimed_s = period_s

    def restart(self) -> None:
        """Ignore the gap to the next datum: it comes from a new connection."""
        self._last_s = None

    @property
    def value_s(self) -> float:
        """The mean gap in seconds, at least the floor; an interruption counts as twice the median."""
        if not self._gaps:
            return max(self._floor_s, self._claimed_s)
        longest_s = 2 * statistics.median(self._gaps)
        return max(self._floor_s, statistics.fmean(min(gap, longest_s) for gap in self._gaps))


class SourceWatchdog:
    """Run connections one after the other until cancelled or until the recording ends.

    Args:
        name: the source as reports name it.
        connect: starts one connection.
        limits: when to report and when to replace.
        probe: sees cheaply whether the source exists; raises `Absent`.
        begin: called before each connection.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], DriverProcess],
        limits: Limits,
        *,
        probe: Callable[[], None] = lambda: None,
        begin: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        """By cause: connections, replaced, failed."""
        self.fps = 0.0
        """Data per second as the source claims; 0 while unknown."""
        self.refusal: str | None = None
        """Why the last datum could not be used; None after a usable one."""
        self._connect = connect
        self._deliver: Callable[[DriverMessage], bool] = lambda _message: False
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

    async def run(
        self, deliver: Callable[[DriverMessage], bool], lost: Callable[[str], None], recovered: Callable[[], None]
    ) -> None:
        """Keep the source alive until cancelled; returns within a second of that.

        Args:
            deliver: handles a message in the reader's thread and returns whether it was usable data.
            lost: called with the reason, once for each interruption.
            recovered: called once when data is fresh again.
        """
        self._deliver = deliver
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
        """Run one connection from start to end; return why it ended."""
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
        connection: DriverProcess,
        loop: asyncio.AbstractEventLoop,
        done: asyncio.Future[SensorLost],
        recovered: Callable[[], None],
    ) -> None:
        """Read in a thread from the probe to the last message; report the end before the driver is reaped."""
        reason = SensorLost("the driver process ended without a reason")
        with closing(connection.messages()) as messages:
            try:
                self._probe()
                self._begin()
                for message in messages:
                    _raise_if_last(message)
                    if message.kind == "O":
                        call_threadsafe(loop, self._opened, message)
                    elif self._deliver(message):
                        self.refusal = None
                        call_threadsafe(loop, self._note, done, message.stamp_s, recovered)
            except SensorLost as error:
                reason = error
            except OSError as error:
                reason = SensorLost(f"the driver process cannot be used: {error.strerror}")
            except Exception as error:  # noqa: BLE001 - the thread must report its end; the text may hold a password
                reason = SensorLost(f"the sensor failed with {type(error).__name__}; this is a bug")
            call_threadsafe(loop, _finish, done, reason)

    def _opened(self, message: DriverMessage) -> None:
        """Learn the rate that the source claims (event loop)."""
        self.fps = float(orjson.loads(message.body)["fps"])
        self._period.claim(1.0 / self.fps if self.fps > 0 else 0.0)

    def _note(self, done: asyncio.Future[SensorLost], stamp_s: float, recovered: Callable[[], None]) -> None:
        """Register a datum (event loop)."""
        if done.done():
            return
        first, self._newest_s = self._newest_s is None, stamp_s
        self._period.add(stamp_s)
        self._fresh = self._fresh + 1 if self._clock() - stamp_s <= self._report_after_s() else 0
        back = self._reported and self._fresh >= self._limits.enough
        if (first or back) and self._changed is not None and not self._changed.done():
            self._changed.set_result(None)  # other limits apply from now on
        if back:
            self._reported = False
            recovered()

    async def _judge(self, done: asyncio.Future[SensorLost], lost: Callable[[str], None]) -> SensorLost:
        """Wait for the end, or for so much silence that a new connection is needed; return the reason."""
        start_s = self._clock()
        while not done.done():
            self._changed = asyncio.get_running_loop().create_future()
            events: list[asyncio.Future[Any]] = [done, self._changed]
            await asyncio.wait(events, timeout=self._patience_s(start_s), return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                break
            age_s = self._clock() - (start_s if self._newest_s is None else self._newest_s)
            what = "no data" if self._newest_s is None else "no further data"
            if self.refusal is not None:
                what = f"no usable data ({self.refusal})"
            if age_s >= self._report_after_s():
                self._report(f"{self.name}: {what} for {age_s:.2f} s", lost)
            if age_s >= self._replace_after_s():
                self.counts["replaced"] += 1
                done.cancel()
                return SensorLost(f"{what} for {age_s:.2f} s; its driver is restarted")
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
        """Return the seconds until the next judgement can differ."""
        base_s = start_s if self._newest_s is None else self._newest_s
        limit_s = self._replace_after_s() if self._reported else self._report_after_s()
        return max(0.001, base_s + limit_s - self._clock())

    def _report(self, reason: str, lost: Callable[[str], None]) -> None:
        self._fresh = 0
        if not self._reported:
            self._reported = True
            lost(reason)


def _raise_if_last(message: DriverMessage) -> None:
    if message.kind == "E":
        raise SensorLost(message.text)
    if message.kind == "X":
        raise Ended("the recording has ended; set loop: true to repeat it")


def _finish(done: asyncio.Future[SensorLost], reason: SensorLost) -> None:
    if not done.done():
        done.set_result(reason)
