"""Read a camera or microphone through a driver process.

The process does one job (`sensors.drivers.process`); the watchdog monitors the age of its data (`sensors.drivers.watchdog`).
The sensor counts every datum that it does not deliver, by cause. It knows neither images nor sound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from sensors.base import PayloadRefused, Publish
from sensors.drivers.driver_handle import DriverProcess
from sensors.drivers.messages import DriverMessage
from sensors.drivers.process import Job
from sensors.drivers.watchdog import Limits, SourceWatchdog
from sensors.readings import Reading

DATA = frozenset({"F", "S"})
"""Kinds of messages that carry a frame or samples."""


class DriverSensor:
    """Run one driver process after another and publish the readings that a subclass makes of its messages.

    Args:
        name: the stream's.
        shown: the source as reports name it, without secrets.
        job: what the driver process does.
        limits: the watchdog's limits in seconds.
        probe: sees cheaply whether the source exists; raises `Absent`.
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
        self.refused: Callable[[PayloadRefused], None] = lambda _refusal: None
        """Called, from the reader's thread, with the reason for which a datum was refused."""
        self._seq = 0
        self._watchdog = SourceWatchdog(
            f"{name} ({shown})", lambda: DriverProcess(name, job), limits, probe=probe, begin=begin, clock=clock
        )

    @property
    def counts(self) -> Counter[str]:
        """Connections made, replaced and failed."""
        return self._watchdog.counts

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Publish readings until cancelled."""
        await self._watchdog.run(partial(self._deliver, publish), lost, recovered)

    def reading_of(self, message: DriverMessage) -> Reading | None:
        """Make a reading of a frame or of samples; None when more samples are needed. Runs in the reader's thread.

        Raises:
            PayloadRefused: the datum cannot be used; the caller counts its cause.
        """
        raise NotImplementedError

    def _deliver(self, publish: Publish, message: DriverMessage) -> bool:
        """Publish the reading of a message; return whether it was usable data, which the watchdog asks."""
        if message.kind == "D":
            self.drops[message.text] += 1
        if message.kind not in DATA:
            return False
        try:
            reading = self.reading_of(message)
        except PayloadRefused as refusal:
            self.drops[refusal.cause] += 1
            self._watchdog.refusal = str(refusal)
            self.refused(refusal)
            return False
        if reading is not None:
            publish(reading)
        return True

    def _next(self) -> int:
        """Return the number of the next reading."""
        self._seq += 1
        return self._seq
