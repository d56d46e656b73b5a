"""Find devices that carry out no command: by the clocks in their reports, and by reports that do not follow the commands.

A device with another clock drops every command as expired. It may report its time (`stamp`). A late report looks like a clock that
is behind, so several in a row must agree. Nothing here knows the gate's rules or the broker.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from actuators.actions import Value

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


PATIENCE_S = 10.0
"""A device that has carried out no command for so long does not follow."""
DEPARTURES = 3
NEAR = 0.1
"""Part of the span of the commands by which a reported number may lie outside them."""


@dataclass(slots=True)
class _Following:
    """What is known of one device."""

    reported: Value | None = None
    """Its last report; None before the first, and then nothing is expected of it."""
    seq: int = 0
    """The newest command of this run of the gate that it named."""
    names_commands: bool = False
    """Its reports name the command that they answer."""
    since_s: float | None = None
    """When the broker took the first command that no report has followed; None if there is none."""
    commanded: list[Value] = field(default_factory=list)
    """These commands: every choice once, or the least and the greatest number of each component."""
    differs: bool = False
    """The newest command is another value than the last report."""
    departures: int = 0
    """How often the commands went from the reported value to another one since then."""
    is_named: bool = False


@dataclass(slots=True)
class FollowedCommands:
    """Compares the reports of devices with the commands that the broker took.

    A device that names commands in its reports must name a newer one within `PATIENCE_S` of a command. Any other must report one of
    the values that were commanded, where its last report is another one. One or two short departures from that value may pass
    unreported. A device that never reported is not judged.
    """

    clock: Callable[[], float] = time.monotonic
    _devices: dict[str, _Following] = field(default_factory=dict)

    def commanded(self, name: str, value: Value) -> None:
        """Note a command that the broker has acknowledged."""
        device = self._devices.setdefault(name, _Following())
        if device.reported is None:
            return
        differs = device.names_commands or not _is_near(device.reported, [value])
        device.departures += differs and not device.differs
        device.differs = differs
        if device.since_s is None and differs:
            device.since_s, device.commanded = self.clock(), []
        if device.since_s is not None and differs:
            device.commanded = _widened(device.commanded, value)

    def reported(self, name: str, value: Value, *, seq: int | None, names_command: bool) -> None:
        """Note a report that fits the actuator.

        Args:
            name: of the actuator.
            value: as reported.
            seq: the command of this run of the gate that it names; None if it names none.
            names_command: it names a command, of whatever run.
        """
        device = self._devices.setdefault(name, _Following())
        is_at_rest = value == device.reported and not device.differs and device.departures < DEPARTURES
        device.reported, device.names_commands = value, device.names_commands or names_command
        is_newer = seq is not None and seq > device.seq
        device.seq = max(device.seq, seq or 0)
        if is_newer or (not device.names_commands and (is_at_rest or _is_near(value, device.commanded))):
            self._follows(device)

    def _follows(self, device: _Following) -> None:
        device.since_s, device.commanded, device.differs, device.departures = None, [], False, 0

    def disconnected(self) -> None:
        """Expect no report of any device: commands may not have arrived."""
        for device in self._devices.values():
            self._follows(device)

    def changes(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the events that are due: devices that do not follow, and those that follow again."""
        found = []
        for name, device in self._devices.items():
            is_late = device.since_s is not None and self.clock() - device.since_s >= PATIENCE_S
            is_clear = device.differs or device.departures >= DEPARTURES
            if is_late and is_clear and not device.is_named:
                device.is_named = True
                found.append(("device_unresponsive", {"of": f"actuators.{name}", "reported": device.reported}))
            elif device.is_named and device.since_s is None:
                device.is_named = False
                found.append(("device_responsive", {"of": f"actuators.{name}"}))
        return found

    def problems(self) -> list[str]:
        """Return a reason for the status of each device that does not follow."""
        return [
            f"{name}: the device follows no command, its last report is {device.reported!r}; {UNRESPONSIVE}"
            for name, device in sorted(self._devices.items())
            if device.is_named
        ]


UNRESPONSIVE = "it may be off, out of reach, or drop commands as expired by its own clock"


def _widened(commanded: list[Value], value: Value) -> list[Value]:
    """Return the commands with one more, without what lies between others."""
    if isinstance(value, str):
        return commanded if value in commanded else [*commanded, value]
    both = [tuple(each) for each in (*commanded, value) if not isinstance(each, str)]
    return [tuple(map(min, zip(*both, strict=True))), tuple(map(max, zip(*both, strict=True)))]


def _is_near(reported: Value, commanded: list[Value]) -> bool:
    if isinstance(reported, str):
        return reported in commanded
    numbers = [each for each in commanded if not isinstance(each, str)]
    if not numbers:
        return False
    for place, number in enumerate(reported):
        low, high = (chosen(each[place] for each in numbers) for chosen in (min, max))
        slack = NEAR * max(abs(low), abs(high), high - low)
        if not low - slack <= number <= high + slack:
            return False
    return True
