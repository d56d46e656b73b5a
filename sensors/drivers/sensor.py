"""Sensors whose source is read by a driver process: what cameras and microphones share.

The process does one job (`sensors.drivers.process`) and is watched by the age of its data (`sensors.drivers.watchdog`); what it dropped is counted
by cause. Knows neither pictures nor sound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sensors.base import Publish
from sensors.drivers.handle import DriverProcess
from sensors.drivers.process import Job, Message
from sensors.drivers.watchdog import Limits, SourceWatchdog


class DriverSensor:
    """A source that runs by itself; a subclass makes readings of what the driver says.

    Args:
        name: the stream's.
        shown: the source as reports name it.
        job: what the driver process is to do.
        limits: how patient the watcher is.
        probe: sees cheaply whether the source is there at all; raises `Absent`.
        clock: monotonic seconds.
        begin: called before each connection.
    """

    def __init__(
        self,
        name: str,
        shown: int | str,
        job: Job,
        limits: Limits,
        *,
        probe: Callable[[], None],
        clock: Callable[[], float],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.drops: Counter[str] = Counter()
        self._seq = 0
        self._publish: Publish = lambda _reading: None
        self._watcher = SourceWatchdog(
            f"{name} ({shown})",
            lambda: DriverProcess(name, job),
            self._hear,
            limits,
            probe=probe,
            begin=begin,
            clock=clock,
        )

    @property
    def counts(self) -> Counter[str]:
        """Connections made, replaced and failed."""
        return self._watcher.counts

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Deliver readings until cancelled."""
        self._publish = publish
        await self._watcher.run(lost, recovered)

    def _hear(self, message: Message) -> bool:
        """In the reader's thread; whether it was data."""
        if message.kind == "D":
            self.drops[message.text] += 1
            return False
        return self._take(message)

    def _take(self, message: Message) -> bool:
        """Publish what a message gives; whether it was data at all."""
        raise NotImplementedError

    def _next(self) -> int:
        """The number of the next reading."""
        self._seq += 1
        return self._seq
