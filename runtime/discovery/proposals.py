"""Define what a discovery proposes: a stream or an actuator, with the topic it comes from, a sample, and how sure it is."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass, field

from runtime.config.mqtt_names import topic_problem

DIAGNOSTIC = re.compile(
    r"(^|[_/ ])(linkquality|rssi|snr|battery|battery_low|voltage|last_seen|last_reset|uptime\w*|heap\w*|sleep\w*|load_?avg|"
    r"wifi\w*|signal\w*|mqttcount|vcc|boot\w*|restart\w*|update\w*|version|firmware|channel|bssid\w*|ssid\w*|ip|mac|"
    r"time|timestamp|stamp|epoch|ts|unixtime|id|seq|tempunit|pressureunit|latitude|longitude|device_temperature|"
    r"power_outage_count)($|[_/ ])",
    re.IGNORECASE,
)
"""Fields that describe the device itself, and not its surroundings."""
GROWING = re.compile(r"(.*[_/ ])?(a?energy|total|kwh|wh|bytes|packets)", re.IGNORECASE)
"""Counters that only grow: their numbers never come again, so a policy learns nothing from them."""
DANGEROUS = re.compile(
    r"(?<!c)lock|alarm|garage|gate|door|siren|boiler|oven|stove|gas|valve|cover|shutter|blind|curtain|awning|roller|window|"
    r"hatch|kettle|cooker|fireplace|furnace|fryer|sauna|radiator|thermostat|hvac|irrigation|sprinkler|fridge|freezer|"
    r"refrigerat|aquarium|medical",
    re.IGNORECASE,
)
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
    off: str | None = None
    """The choice that switches it off, where the convention names one."""

    @property
    def safe(self) -> str:
        """The safe action: what switches it off; `hold` where no choice does."""
        off = next((choice for choice in self.choices if choice.casefold() == "off"), None)
        return self.off or off or "hold"


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
        """Return a name of settings that no other proposal has, and that conditions and rewards can use."""
        name = re.sub(r"[^a-z0-9_]+", "_", wanted.lower()).strip("_")[:48] or "device"
        if name[0].isdigit() or keyword.iskeyword(name) or name in _YAML:
            name = f"device_{name}"
        taken = {stream.name for stream in self.streams} | {actuator.name for actuator in self.actuators}
        number, free = 2, name
        while free in taken:
            free, number = f"{name}_{number}", number + 1
        return free

    def move(self, actuator: FoundActuator) -> None:
        """Propose an actuator, unless another one sends the same command, or its topics cannot be used."""
        same = (each for each in self.actuators if (each.topic, each.payload) == (actuator.topic, actuator.payload))
        problem = publish_problem(actuator.topic)
        if problem is None and actuator.state_topic is not None:
            problem = publish_problem(actuator.state_topic)
        if problem is not None:
            self.left_out.append(LeftOut(actuator.topic, f"{actuator.name}: {problem}"))
        elif (first := next(same, None)) is not None:
            self.left_out.append(LeftOut(actuator.topic, f"{actuator.name}: {first.name} sends the same commands"))
        else:
            self.actuators.append(actuator)


_YAML = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
"""Words that are no text as a key in YAML."""


def publish_problem(topic: str) -> str | None:
    """Return why nothing can be published on a topic, or None."""
    if not topic or any(sign in topic for sign in "+#"):
        return f"{topic!r} is no topic to publish on"
    return topic_problem(topic)


def is_growing(field_name: str) -> bool:
    """Return whether a field is a counter that only grows."""
    return GROWING.fullmatch(field_name) is not None


def is_diagnostic(field_name: str) -> bool:
    """Return whether a field describes the device itself."""
    return DIAGNOSTIC.search(field_name) is not None


def is_dangerous(*texts: str) -> bool:
    """Return whether a device should not be moved by a program without a decision of a person."""
    return any(DANGEROUS.search(text) for text in texts)
