"""Define what a discovery proposes: a stream or an actuator, with the topic it comes from, a sample, and how sure it is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

WORDS = {"on": "ON", "off": "OFF"}
DIAGNOSTIC = re.compile(
    r"(^|[_/ ])(linkquality|rssi|snr|battery|battery_low|voltage|last_seen|last_reset|uptime\w*|heap\w*|sleep\w*|load_?avg|"
    r"wifi\w*|signal\w*|mqttcount|vcc|boot\w*|restart\w*|update\w*|version|firmware|channel|bssid\w*|ssid\w*|ip|mac|"
    r"time|timestamp|stamp|epoch|id|seq|tempunit|pressureunit|latitude|longitude)($|[_/ ])",
    re.IGNORECASE,
)
"""Fields that describe the device itself, and not its surroundings."""
DANGEROUS = re.compile(r"lock|alarm|garage|gate|door|siren|boiler|oven|stove|gas|valve|cover|shutter", re.IGNORECASE)
"""Words of devices that no program may move without a person who decided it."""


@dataclass(frozen=True, slots=True)
class FoundStream:
    """Telemetry that a policy could read."""

    name: str
    topic: str
    fields: tuple[str, ...]
    paths: dict[str, str] = field(default_factory=dict)
    """Where a field lies, where that is not the key of its name."""
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Fields that are words, with all of their words."""
    sample: str = ""
    longest_s: float | None = None
    """Longest time between two messages; None where there was only one."""
    why: str = ""
    """Which convention it follows."""


@dataclass(frozen=True, slots=True)
class FoundActuator:
    """A device that a policy could move."""

    name: str
    topic: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    payload: str = "${value}"
    state_topic: str | None = None
    state_value: str = "value"
    sample: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A topic that is no proposal, with the reason."""

    topic: str
    why: str


@dataclass(slots=True)
class Proposals:
    """All that was found."""

    streams: list[FoundStream] = field(default_factory=list)
    actuators: list[FoundActuator] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """Topics that a convention has explained."""

    def unique(self, wanted: str) -> str:
        """Return a name of settings that no other proposal has."""
        name = re.sub(r"[^a-z0-9_-]+", "_", wanted.lower()).strip("_-")[:48] or "device"
        taken = {stream.name for stream in self.streams} | {actuator.name for actuator in self.actuators}
        number, free = 2, name
        while free in taken:
            free, number = f"{name}_{number}", number + 1
        return free


def is_diagnostic(field_name: str) -> bool:
    """Return whether a field describes the device itself."""
    return DIAGNOSTIC.search(field_name) is not None


def is_dangerous(*texts: str) -> bool:
    """Return whether a device should not be moved by a program without a decision of a person."""
    return any(DANGEROUS.search(text) for text in texts)
