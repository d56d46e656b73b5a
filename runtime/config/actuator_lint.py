"""Find settings of actuators that are valid but doubtful: safe actions that heat or move, missing limits, choices that look alike."""

from __future__ import annotations

import re
from collections.abc import Iterator

from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings
from actuators.wire import command_topic, state_topic
from runtime.config.schema import Config

HEATS_OR_DRIVES = frozenset(
    [
        "heat",
        "heater",
        "heating",
        "heatpump",
        "boiler",
        "oven",
        "kettle",
        "stove",
        "furnace",
        "burner",
        "thermostat",
        "radiator",
        "iron",
        "cooker",
        "grill",
        "fryer",
        "toaster",
        "sauna",
        "dryer",
        "immersion",
        "kiln",
        "hotplate",
        "motor",
        "drive",
        "wheel",
        "throttle",
        "speed",
        "velocity",
        "vel",
        "twist",
        "cmdvel",
        "torque",
        "thrust",
        "thruster",
        "propeller",
        "rotor",
        "pump",
        "winch",
        "laser",
        "saw",
        "spindle",
        "drill",
        "blade",
        "conveyor",
        "belt",
        "mower",
        "sprinkler",
        "irrigation",
        "heizung",
        "heizer",
        "ofen",
        "herd",
        "pumpe",
        "antrieb",
        "chauffage",
        "chaudiere",
        "radiateur",
        "moteur",
        "pompe",
        "calefaccion",
        "caldera",
        "bomba",
        "riscaldamento",
        "caldaia",
        "pompa",
        "verwarming",
        "pomp",
    ]
)
"""Words for what heats, or moves for as long as its value is not zero."""
HEATS_OR_MOVES = HEATS_OR_DRIVES | frozenset(
    [
        "steering",
        "steer",
        "rudder",
        "valve",
        "lift",
        "crane",
        "arm",
        "gripper",
        "servo",
        "joint",
        "leg",
        "press",
        "door",
        "gate",
        "shutter",
        "blind",
        "awning",
        "curtain",
        "ventil",
        "vanne",
        "valvula",
        "valvola",
        "klep",
    ]
)
"""Words of an actuator for which `safe: hold` is doubted; those that are not in `HEATS_OR_DRIVES` have a position."""
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


NAMED = "name, topic, payload or choices"
Doubt = tuple[tuple[str, ...], str, str]
"""Setting of an actuator, what is doubtful, and the remedy."""


def doubts_of_safe_action(config: Config, name: str, actuator: AnyActuator) -> Iterator[Doubt]:
    """Yield what is doubtful in the safe action of an actuator, and in the streams without which it rests."""
    words = sorted(_words(name, actuator) & HEATS_OR_MOVES)
    if words and actuator.safe == "hold" and actuator.kind != "text":
        yield (
            ("safe",),
            (
                f"`hold` sends nothing when in doubt, so the device continues with its last value, and {', '.join(words)} in its "
                f"{NAMED} says that it heats or moves something"
            ),
            "name a value that is safe, such as off or zero",
        )
    if words and (moves := _moving_safe(actuator, drives=bool(HEATS_OR_DRIVES.intersection(words)))):
        yield (
            ("safe",),
            f"the safe action is {moves}, and {', '.join(words)} in its {NAMED} says that it heats or moves something",
            "make sure that it is safe, as an opened valve of a cooler may be, or name another value",
        )
    if actuator.requires == () and config.required_streams:
        yield (
            ("requires",),
            "an empty list: the actuator may move although every required stream is stale",
            "name the streams it needs, or leave `requires` out",
        )


def doubts_of_commands(config: Config, name: str, actuator: AnyActuator) -> Iterator[Doubt]:
    """Yield what is doubtful in the limits, topics and choices with which an actuator is commanded."""
    if actuator.kind == "continuous" and actuator.max_rate is None:
        yield (
            (),
            "no max_rate: the value may jump from one limit to the other within a tick",
            "set max_rate, the largest change per second of each component",
        )
    elif actuator.kind == "continuous" and actuator.max_rate is not None:
        spans = [high - low for low, high in zip(actuator.low, actuator.high, strict=True)]
        if any(rate * config.tick.period_s >= span for rate, span in zip(actuator.max_rate, spans, strict=True)):
            yield (
                ("max_rate",),
                "no limit in effect: the value may jump from one limit to the other within a tick",
                "lower it to the largest change per second that is safe",
            )
    base = f"reflexd/{config.agent}"
    reports = state_topic(base, name, actuator)
    if other := next((n for n, each in config.actuators.items() if command_topic(base, n, each) == reports), None):
        which = "the commands" if other == name else f"the commands of actuators.{other}"
        yield (
            ("state_topic",),
            f"the same topic as {which}: the gate counts each command as a report of the device, even while the device is off",
            "name the topic on which the device reports, or leave it out",
        )
    if actuator.kind == "choice" and (alike := _alike(actuator.choices)):
        yield (
            ("choices",),
            f"{' and '.join(map(repr, alike))} differ only in case, white space or the way to write a number, and a device may not tell them apart",
            "give each choice a distinct word",
        )


LIGHTS = frozenset({"light", "lights", "lamp", "lamps", "led", "leds", "bulb"})
"""Words of a name or topic that neither heats nor moves, whatever else is in it."""


def _words(name: str, actuator: AnyActuator) -> set[str]:
    texts = [name, actuator.topic or "", actuator.state_topic or "", actuator.payload or ""]
    texts += actuator.choices if actuator.kind == "choice" else ()
    found = [{word.lower() for word in _WORDS.findall(text)} for text in texts]
    words = set[str]().union(*(words for words in found if not words & LIGHTS))
    return words | {word.removesuffix("s") for word in words}


_ACTIVE = frozenset(
    [
        "on",
        "true",
        "yes",
        "enable",
        "enabled",
        "heat",
        "heating",
        "open",
        "start",
        "run",
        "go",
        "forward",
        "backward",
        "up",
        "full",
        "high",
        "max",
        "an",
        "ein",
        "ja",
        "marche",
        "oui",
        "encendido",
        "si",
        "aan",
    ]
)
"""Words of a safe action with which a device heats or moves."""


def _moving_safe(actuator: AnyActuator, *, drives: bool) -> str:
    """Return a safe action that seems to heat or move; empty for any other.

    Args:
        actuator: the settings.
        drives: whether it moves for as long as its value is not zero; else it has a position, and a limit of two is doubted.
    """
    if isinstance(actuator, ChoiceSettings):
        return actuator.safe if actuator.safe.casefold() in _ACTIVE or _is_most(actuator) else ""
    if not isinstance(actuator, ContinuousSettings) or actuator.safe == "hold":
        return ""
    parts = zip(actuator.low, actuator.safe, actuator.high, strict=True)
    if drives:
        is_away = any(low <= 0 <= high and value != 0 for low, value, high in parts)
    else:
        is_away = any(low < 0 < high and value in (low, high) for low, value, high in parts)
    return str(list(actuator.safe)) if is_away else ""


def _is_most(actuator: ChoiceSettings) -> bool:
    """Return whether the choices are numbers from 0 on, and the safe one is above 0."""
    try:
        values = [float(word.strip(" %")) for word in actuator.choices]
        return min(values) == 0 and float(actuator.safe.strip(" %")) > 0
    except ValueError:
        return False


_NUMBER = re.compile(r"[+-]?\d{1,16}(\.\d{0,16})?(e[+-]?\d{1,2})?", re.ASCII)


def _alike(choices: tuple[str, ...]) -> list[str]:
    """Return choices that only case, white space or the way to write a number tells apart."""
    first: dict[str | float, str] = {}
    for word in choices:
        plain = word.strip().casefold()
        is_number = _NUMBER.fullmatch(plain)
        if (other := first.setdefault(float(plain) if is_number else plain, word)) != word:
            return [other, word]
    return []
