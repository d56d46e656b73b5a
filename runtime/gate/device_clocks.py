"""Compare the clocks of devices with the gate's: one with another clock drops every command as expired.

A device reports its time in its reports (`stamp`). A late report looks like a clock that is behind, so several in a row must agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

REPORTS = 3
"""Reports in a row that must agree, at least."""
AGREE_S = 10.0
"""They must agree for this long: what a broker delivers late after a pause looks like a clock that is behind."""


@dataclass(slots=True)
class DeviceClocks:
    """The newest offsets of each device, in seconds: positive where the device is ahead."""

    clock: Callable[[], float] = time.monotonic
    _agreeing: dict[str, tuple[float, int, float]] = field(default_factory=dict)
    """By device: since when its reports agree that its clock is off, how many they are, and the least offset."""
    _off: dict[str, float] = field(default_factory=dict)
    """Offset of each device with a clock that is off."""

    def measured(self, name: str, offset_s: float, limit_s: float) -> tuple[str, dict[str, Any]] | None:
        """Note an offset, and return the event that it causes, if any.

        Args:
            name: of the actuator.
            offset_s: the device's clock minus the gate's, at the arrival of a report.
            limit_s: the offset beyond which the device drops commands.
        """
        now_s = self.clock()
        if abs(offset_s) <= limit_s:
            self._agreeing.pop(name, None)
            if abs(offset_s) <= limit_s / 2 and self._off.pop(name, None) is not None:
                return "clock_offset_ended", {"of": f"actuators.{name}"}
            return None
        since_s, count, least = self._agreeing.get(name, (now_s, 0, offset_s))
        if (least > 0) != (offset_s > 0):
            since_s, count, least = now_s, 0, offset_s
        least = min(least, offset_s, key=abs)
        self._agreeing[name] = (since_s, count + 1, least)
        if count + 1 < REPORTS or now_s - since_s < AGREE_S:
            return None
        was, self._off[name] = self._off.get(name), least
        if was is not None:
            return None
        return "clock_offset", {"of": f"actuators.{name}", "offset_s": round(least, 3), "reason": DROPS}

    def problems(self) -> list[str]:
        """Return a reason for the status of each device with a clock that is off."""
        return [
            f"{name}: the device's clock is {_words(offset)}; {DROPS}" for name, offset in sorted(self._off.items())
        ]


DROPS = "it drops commands as expired; synchronise it with NTP"


def _words(offset_s: float) -> str:
    return f"{abs(offset_s):.1f} s {'ahead' if offset_s > 0 else 'behind'}"
