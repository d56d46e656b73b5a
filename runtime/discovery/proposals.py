"""Define what a discovery proposes: a stream or an actuator, with the topic it comes from, a sample, and how sure it is."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass, field

from runtime.config.mqtt_names import topic_problem
from runtime.discovery.dangerous_devices import does_harm, is_dangerous

DIAGNOSTIC = re.compile(
    r"(^|[_/ ])(linkquality|rssi|snr|batt|battery|battery_low|volt|voltage|last_seen|last_reset|uptime\w*|heap\w*|sleep\w*|load_?avg|"
    r"wifi\w*|signal\w*|mqttcount|vcc|boot\w*|restart\w*|update\w*|version|firmware|channel|bssid\w*|ssid\w*|ip|mac|"
    r"time|timestamp|stamp|epoch|ts|unixtime|id|seq|tempunit|pressureunit|latitude|longitude|device_temperature|"
    r"power_outage_count|node_?id|free_?mem\w*|mem_?free|min_?mem|rx_?level|tx_?power|protocol|interval|cpu\w*)($|[_/ ])",
    re.IGNORECASE,
)
"""Fields that describe the device itself, and not its surroundings."""
GROWING = re.compile(r"(.*[_/ ])?(a?energy|total|kwh|wh|bytes|packets)", re.IGNORECASE)
"""Counters that only grow: their numbers never come again, so a policy learns nothing from them."""


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
    state_words: dict[str, str] = field(default_factory=dict)
    """What the device reports for a choice, where that is another word."""
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
    actuator: FoundActuator | None = None
    """What `--allow` proposes all the same."""


@dataclass(slots=True)
class Proposals:
    """All that was found."""

    streams: list[FoundStream] = field(default_factory=list)
    actuators: list[FoundActuator] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """Topics that a convention has explained."""
    _names: dict[str, int] = field(default_factory=dict)
    """Every name that is taken, and how often it was wanted."""
    _commands: dict[tuple[str, str], str] = field(default_factory=dict)
    """Command topic and payload -> the actuator that sends it."""
    _read: set[str] = field(default_factory=set)
    """Topics of all streams."""

    def unique(self, wanted: str) -> str:
        """Return a name of settings that no other proposal has, and that conditions and rewards can use."""
        free = name = self.plain(wanted)
        while free in self._names:
            self._names[name] += 1
            free = f"{name}_{self._names[name]}"
        return free

    @staticmethod
    def plain(wanted: str) -> str:
        """Return a name of settings that conditions and rewards can use."""
        name = re.sub(r"[^a-z0-9_]+", "_", wanted.lower()).strip("_")[:48] or "device"
        return f"device_{name}" if name[0].isdigit() or keyword.iskeyword(name) or name in _YAML else name

    def read(self, stream: FoundStream) -> None:
        """Propose a stream."""
        self.streams.append(stream)
        self._names[stream.name] = 1
        self._read.add(stream.topic)

    def is_read(self, topic: str) -> bool:
        """Return whether a stream comes from a topic."""
        return topic in self._read

    def move(self, actuator: FoundActuator, *about: str) -> None:
        """Propose an actuator, unless it can cause harm, another one sends the same command, or its topics cannot be used.

        Args:
            actuator: with a name of `unique`.
            about: names and descriptions that say what the device is.
        """
        self._names[actuator.name] = 1
        sent = (actuator.topic, actuator.payload)
        problem = publish_problem(actuator.topic)
        if problem is None and actuator.state_topic is not None:
            problem = publish_problem(actuator.state_topic)
        if problem is not None:
            self.left_out.append(LeftOut(actuator.topic, f"{actuator.name}: {problem}"))
            return
        is_harmful = any(map(is_dangerous, (actuator.topic, *about))) or any(map(does_harm, actuator.choices))
        if is_harmful:
            self.withdraw(actuator.topic)
        if (first := self._commands.get(sent)) is not None:
            self.left_out.append(LeftOut(actuator.topic, f"{actuator.name}: {first} sends the same commands"))
            return
        self._commands[sent] = actuator.name
        if is_harmful:
            self._leave_out(actuator)
        else:
            self.actuators.append(actuator)

    def withdraw(self, topic: str) -> None:
        """Leave out what was proposed on a command topic, or below it: another description says that it can cause harm."""
        below = topic.rstrip("/") + "/"
        harmful = [each for each in self.actuators if f"{each.topic}/".startswith(below)]
        for each in harmful:
            self.actuators.remove(each)
            self._leave_out(each)

    def _leave_out(self, actuator: FoundActuator) -> None:
        why = f"{actuator.name}: such a device can cause harm; --allow {actuator.name} proposes it all the same"
        self.left_out.append(LeftOut(actuator.topic, why, actuator))


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
