"""What the sensor tests share: a witness of everything a sensor says, and counts of what this process holds."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sensors.base import PayloadRefused, Sensor
from sensors.readings import Reading


@dataclass
class Witness:
    """Records readings, losses and recoveries with their times, and waits for them."""

    readings: list[Reading] = field(default_factory=list)
    arrivals_s: list[float] = field(default_factory=list)
    lost: list[tuple[float, str]] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def publish(self, reading: Reading) -> None:
        self.readings.append(reading)
        self.arrivals_s.append(time.monotonic())
        self._wake()

    def on_lost(self, reason: str) -> None:
        self.lost.append((time.monotonic(), reason))
        self._wake()

    def on_recovered(self) -> None:
        self.recovered.append(time.monotonic())
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._changed.set)

    @property
    def well(self) -> bool:
        """Not lost at the moment: every loss was followed by a recovery."""
        return len(self.lost) == len(self.recovered)

    async def until(self, condition: Callable[[], bool], within_s: float = 60.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


Running = Callable[[Sensor], AbstractAsyncContextManager[Witness]]
Start = Callable[..., "subprocess.Popen[bytes]"]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> set[int]:
    """The processes this one started and that are not reaped."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread may end while it is looked at
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


async def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """For what nothing announces, such as the end of a process: looked at every 10 ms."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - a process's end sets no event
            await asyncio.sleep(0.01)


Decoded = TypeVar("Decoded")


def outcome(decode: Callable[[], Decoded]) -> tuple[Decoded | None, str | None]:
    """What `decode` gave, or the cause of its refusal; a refusal always explains itself."""
    try:
        return decode(), None
    except PayloadRefused as refusal:
        return None, refusal.cause if str(refusal) else ""
