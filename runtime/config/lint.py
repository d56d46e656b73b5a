"""Warn of settings that are valid but doubtful: one line each, with file, line and remedy.

`reflexd check` prints the warnings on standard error, a daemon writes them to its log. None prevents the start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings
from actuators.expressions import Expression
from actuators.safety.decisions import MODES
from learners.files import read_plain_file
from learners.task_kinds import KINDS
from runtime.config.errors import Problem, Steps, dotted
from runtime.config.loader import LoadedConfig
from runtime.config.schema import Config
from sensors.config import AnyStream


def lint(path: Path, loaded: LoadedConfig) -> list[Problem]:
    """List the warnings about a settings file."""
    return [
        *_dangerous(path, loaded),
        *_unmeasured(path, loaded),
        *_unjudged(path, loaded),
        *_shared_encoders(path, loaded),
    ]


MEASURED_HZ, MEASURED_STREAMS = 50.0, 64
"""Up to here docs/benchmarks.md has figures of ticks that are missed and of their latency."""


HEATS_OR_MOVES = frozenset(
    [
        "heat",
        "heater",
        "heating",
        "boiler",
        "oven",
        "kettle",
        "stove",
        "furnace",
        "burner",
        "thermostat",
        "radiator",
        "iron",
        "motor",
        "drive",
        "wheel",
        "wheels",
        "throttle",
        "speed",
        "velocity",
        "torque",
        "thrust",
        "thruster",
        "propeller",
        "rotor",
        "pump",
        "valve",
        "winch",
        "lift",
        "crane",
        "arm",
        "gripper",
        "servo",
        "joint",
        "joints",
        "leg",
        "laser",
        "saw",
        "spindle",
        "drill",
        "blade",
        "press",
        "conveyor",
        "belt",
        "door",
        "gate",
        "shutter",
        "blind",
    ]
)
"""Words in the name or a topic of an actuator for which `safe: hold` is doubted."""
_WORDS = re.compile(r"[A-Z]?[a-z]+")


Doubt = tuple[tuple[str, ...], str, str]
"""Setting of an actuator, what is doubtful, and the remedy."""


def _of_safe_action(config: Config, name: str, actuator: AnyActuator) -> Iterator[Doubt]:
    words = sorted(_words(name, actuator) & HEATS_OR_MOVES)
    if words and actuator.safe == "hold" and actuator.kind != "text":
        yield (
            ("safe",),
            (
                f"`hold` sends nothing when in doubt, so the device continues with its last value, and {', '.join(words)} in its "
                "name or topic says that it heats or moves something"
            ),
            "name a value that is safe, such as off or zero",
        )
    if words and (moves := _moving_safe(actuator)):
        yield (
            ("safe",),
            f"the safe action is {moves}, and {', '.join(words)} in its name or topic says that it heats or moves something",
            "make sure that it is safe, as an opened valve of a cooler may be, or name another value",
        )
    if actuator.requires == () and config.required_streams:
        yield (
            ("requires",),
            "an empty list: the actuator may move although every required stream is stale",
            "name the streams it needs, or leave `requires` out",
        )


def _of_commands(config: Config, actuator: AnyActuator) -> Iterator[Doubt]:
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
    if actuator.state_topic is not None and actuator.state_topic == actuator.topic:
        yield (
            ("state_topic",),
            "the same topic as the commands: the gate counts each command as a report of the device, even while the device is off",
            "name the topic on which the device reports, or leave it out",
        )
    if actuator.kind == "choice" and (alike := _alike(actuator.choices)):
        yield (
            ("choices",),
            f"{' and '.join(map(repr, alike))} differ only in case or white space, and a device may not tell them apart",
            "give each choice a distinct word",
        )


def _dangerous(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for each setting that is legal and that can do harm, with the reason."""
    config = loaded.config

    def problem(where: Steps, message: str, remedy: str) -> Problem:
        return Problem(path, loaded.line(where), dotted(where), message, remedy)

    for name, actuator in config.actuators.items():
        for setting, message, remedy in (*_of_safe_action(config, name, actuator), *_of_commands(config, actuator)):
            yield problem(("actuators", name, *setting), message, remedy)
    for name, stream in config.streams.items():
        if stream.required and (age_s := age_of(stream)) > LONGEST_AGE_S:
            yield problem(
                ("streams", name, "ttl_s" if stream.kind == "text" else "max_age_s"),
                f"required, and fresh for {age_s / 86_400:.0f} days after its source falls silent: it guards nothing",
                "lower it to the longest interval between two readings of the source",
            )
    yield from _rules(path, loaded)
    guarded = config.required_streams or any(actuator.requires for actuator in config.actuators.values())
    if config.gate.arm == "auto" and config.mode == "autonomous" and not guarded:
        yield problem(
            ("gate", "arm"),
            "no stream is required: the gate arms without a person, and the policy may act although every stream is stale",
            "mark a stream with `required: true`, or write `arm: request`",
        )


LONGEST_AGE_S = 86_400.0
"""A required stream may be silent for a day; beyond that it is doubted."""
_ACTIVE = frozenset(
    {"on", "heat", "heating", "open", "start", "run", "go", "forward", "backward", "up", "full", "high", "max"}
)
"""Words of a safe action with which a device heats or moves."""


def age_of(stream: AnyStream) -> float:
    """Return the seconds for which a reading of a stream counts as fresh."""
    return stream.ttl_s if stream.kind == "text" else stream.max_age_s


def _moving_safe(actuator: AnyActuator) -> str:
    """Return a safe action that seems to heat or move; empty for any other."""
    if isinstance(actuator, ChoiceSettings):
        return actuator.safe if actuator.safe.casefold() in _ACTIVE else ""
    is_away = (
        isinstance(actuator, ContinuousSettings)
        and actuator.safe != "hold"
        and any(
            low < 0 < high and value in (low, high)
            for low, value, high in zip(actuator.low, actuator.safe, actuator.high, strict=True)
        )
    )
    return str(list(actuator.safe)) if is_away else ""


def _alike(choices: tuple[str, ...]) -> list[str]:
    """Return choices that only case or white space tells apart."""
    first: dict[str, str] = {}
    for word in choices:
        if (other := first.setdefault(word.strip().casefold(), word)) != word:
            return [other, word]
    return []


def _rules(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for each rule under `forbid` that the policy cannot break, or can break with one of its actuators only."""
    config, modes = loaded.config, _modes(loaded)
    for number, text in enumerate(config.gate.forbid):
        names = Expression(text).names & config.actuators.keys()
        shadow = sorted(name for name in names if modes[name] == "shadow")
        if not shadow:
            continue
        others = ", ".join(f"{name} in {modes[name]}" for name in sorted(names - set(shadow)))
        reason = f", while {others} moves at the same time as what a person sets" if others else ""
        yield Problem(
            path,
            loaded.line(("gate", "forbid", number)),
            f"gate.forbid.{number}",
            f"in mode shadow the policy never moves {', '.join(shadow)}: only a person's override can break this rule there{reason}",
            "test the rule in the mode in which the machine will act",
        )


def _modes(loaded: LoadedConfig) -> dict[str, str]:
    """Return the mode of each actuator: of the settings, or a more careful one that an operator set and the state folder has."""
    config = loaded.config
    modes = dict.fromkeys(config.actuators, str(config.mode))
    try:
        latched = json.loads(read_plain_file(config.state_dir / "latches.json", MOST_LATCH_BYTES))
    except (OSError, ValueError):
        return modes
    found = latched.get("modes") if isinstance(latched, dict) else None
    for name, mode in found.items() if isinstance(found, dict) else ():
        if name in modes and mode in MODES and MODES.index(mode) < MODES.index(modes[name]):
            modes[name] = mode
    return modes


MOST_LATCH_BYTES = 65_536


def _unmeasured(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for a rate and a number of streams for which no benchmark shows that ticks are in time."""
    config = loaded.config
    rate_hz, count = config.tick.rate_hz, len(config.streams)
    remedy = "watch the latency and `missed` in `health`, and lower rate_hz if the agent misses ticks"
    if rate_hz > MEASURED_HZ:
        message = (
            f"{rate_hz:g} Hz leaves {1_000 / rate_hz:.1f} ms for a tick; the benchmarks end at {MEASURED_HZ:g} Hz, and a "
            "busy machine misses ticks"
        )
        yield Problem(path, loaded.line(("tick", "rate_hz")), "tick.rate_hz", message, remedy)
    if count > MEASURED_STREAMS:
        message = f"{count} streams, each of which takes time in every tick; the benchmarks end at {MEASURED_STREAMS}"
        yield Problem(path, loaded.line(("streams",)), "streams", message, remedy)


def _shared_encoders(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for each task that would fine-tune an encoder if another task did not."""
    config = loaded.config
    first: dict[str, str] = {}
    for name, task in config.tasks.items():
        stream = config.streams.get(task.stream or "")
        encoder = stream.encoder if stream is not None else None
        settings = config.encoders.get(encoder or "")
        fits = KINDS[task.kind].classifies and settings is not None and settings.model == task.model
        if encoder is None or settings is None or not (settings.follow_task and fits):
            continue
        if (other := first.setdefault(encoder, name)) != name:
            yield Problem(
                path,
                loaded.lines.get(("tasks", name), 1),
                f"tasks.{name}",
                f"the encoder {encoder} follows tasks.{other} alone; what this task learns does not reach it",
                f"write tasks.{name} before tasks.{other}, or give its stream an encoder of its own",
            )


LIGHTS = frozenset({"light", "lights", "lamp", "lamps", "led", "leds", "bulb"})
"""Words of a name or topic that neither heats nor moves, whatever else is in it."""


def _words(name: str, actuator: AnyActuator) -> set[str]:
    texts = (name, actuator.topic or "", actuator.state_topic or "")
    found = [{word.lower() for word in _WORDS.findall(text)} for text in texts]
    return set().union(*(words for words in found if not words & LIGHTS))


def _unjudged(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for each task without a file that could evaluate its fine-tunes."""
    config = loaded.config
    for name, task in config.tasks.items() if config.learner.enabled else ():
        line = loaded.lines.get(("tasks", name), 1)
        if task.eval_file is None:
            yield Problem(
                path,
                line,
                f"tasks.{name}",
                "no held-out file: what it learns from labels waits until a person promotes it",
                f"name one under tasks.{name}.eval_file, or use request/promote",
            )
        elif not Path(task.eval_file.partition("#")[0]).exists():
            yield Problem(
                path,
                loaded.lines.get(("tasks", name, "eval_file"), line),
                f"tasks.{name}.eval_file",
                f"{task.eval_file}: no such file or folder: no version of this task is trained",
                "name a file that `reflexd finetune` reads; a relative path counts from where the daemon starts",
            )
