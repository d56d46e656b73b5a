"""A sensor without a topic: the machine's load averages as telemetry.

It shows the whole contract: readings with a capture stamp, `lost` once when the source is gone, `recovered` once when it is
back, drops counted by cause, and an end within a second of being cancelled.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sensors.api import Publish, Telemetry

FIELDS = ("one_minute", "five_minutes", "fifteen_minutes")


class LoadSensor:
    """Reads /proc/loadavg, or a file like it, `rate_hz` times a second."""

    def __init__(self, name: str, path: Path, rate_hz: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.drops: Counter[str] = Counter()
        self._path, self._period_s, self._clock = path, 1 / rate_hz, clock

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Deliver readings until cancelled."""
        seq, gone = 0, False
        while True:
            stamp_s = self._clock()
            try:
                values = await asyncio.to_thread(self._read)  # a file may be slow: never on the loop
            except (OSError, ValueError) as error:
                self.drops["unreadable"] += 1
                if not gone:
                    gone = True
                    lost(f"{self._path}: {error}; tried again every {self._period_s:g} s")
            else:
                if gone:
                    gone = False
                    recovered()
                seq += 1
                publish(Telemetry(self.name, stamp_s, seq, FIELDS, values))
            await asyncio.sleep(self._period_s)

    def _read(self) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.array([float(word) for word in self._path.read_text().split()[:3]], np.float32)


def make(name: str, options: Mapping[str, str | float | bool], *, clock: Callable[[], float]) -> LoadSensor:
    """The entry point. `options` come from the settings as they stand there; refuse what you do not know."""
    unknown = set(options) - {"path", "rate_hz"}
    if unknown:
        raise ValueError(f"streams.{name}.options: unknown {sorted(unknown)}; there are path and rate_hz")
    return LoadSensor(name, Path(str(options.get("path", "/proc/loadavg"))), float(options.get("rate_hz", 2.0)), clock)
