"""Warn of settings that are valid but doubtful: one line each, with file, line and remedy.

`reflexd check` prints the warnings on standard error, a daemon writes them to its log. None prevents the start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from actuators.config import AnyActuator
from learners.task_kinds import KINDS
from runtime.config.errors import Problem, Steps, dotted
from runtime.config.loader import LoadedConfig


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


def _dangerous(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for each setting that is legal and that can do harm, with the reason."""
    config = loaded.config

    def problem(where: Steps, message: str, remedy: str) -> Problem:
        return Problem(path, loaded.line(where), dotted(where), message, remedy)

    for name, actuator in config.actuators.items():
        words = sorted(_words(name, actuator) & HEATS_OR_MOVES)
        if words and actuator.safe == "hold" and actuator.kind != "text":
            yield problem(
                ("actuators", name, "safe"),
                f"`hold` sends nothing when in doubt: the device goes on with its last value, and {', '.join(words)} in its "
                "name or topic says that it heats or moves something",
                "name a value that is safe, such as off or zero",
            )
        if actuator.kind == "continuous" and actuator.max_rate is None:
            yield problem(
                ("actuators", name),
                "no max_rate: the value may jump from one limit to the other within a tick",
                "give max_rate, the largest change a second of each component",
            )
        if actuator.requires == () and config.required_streams:
            yield problem(
                ("actuators", name, "requires"),
                "an empty list: it moves although every required stream is stale",
                "name the streams it needs, or leave `requires` out",
            )
    guarded = config.required_streams or any(actuator.requires for actuator in config.actuators.values())
    if config.gate.arm == "auto" and config.mode == "autonomous" and not guarded:
        yield problem(
            ("gate", "arm"),
            "the gate arms without a person, and the machine acts although every stream may be stale: none is required",
            "mark a stream with `required: true`, or write `arm: request`",
        )


def _unmeasured(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for a rate and a number of streams for which no benchmark shows that ticks are in time."""
    config = loaded.config
    rate_hz, count = config.tick.rate_hz, len(config.streams)
    remedy = "watch the latency and `missed` in `health`, and lower it if ticks are missed"
    if rate_hz > MEASURED_HZ:
        message = (
            f"{rate_hz:g} Hz leaves {1_000 / rate_hz:.1f} ms for a tick; the benchmarks end at {MEASURED_HZ:g} Hz, and a "
            "busy machine misses ticks"
        )
        yield Problem(path, loaded.line(("tick", "rate_hz")), "tick.rate_hz", message, remedy)
    if count > MEASURED_STREAMS:
        message = f"{count} streams, each of which costs a part of every tick; the benchmarks end at {MEASURED_STREAMS}"
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


def _words(name: str, actuator: AnyActuator) -> set[str]:
    texts = (name, actuator.topic or "", actuator.state_topic or "")
    return {word.lower() for text in texts for word in _WORDS.findall(text)}


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
