"""Warn of settings that are valid but doubtful: one line each, with file, line and remedy.

`reflexd check` prints the warnings on standard error, a daemon writes them to its log. None prevents the start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from actuators.config import requirements
from actuators.expressions import Expression
from actuators.safety.decisions import MODES
from actuators.safety.forbid_rules import known_names
from actuators.safety.rest_orders import detours
from actuators.wire import command_topic
from learners.files import read_plain_file, source_and_split
from learners.task_kinds import KINDS
from runtime.config.actuator_lint import Doubt, doubts_of_commands, doubts_of_safe_action
from runtime.config.errors import Problem, Steps, dotted
from runtime.config.forbid_lint import blocked_choices
from runtime.config.loader import LoadedConfig, enum_fields, known_readings
from runtime.config.schema import Config
from sensors.config import AnyStream


def lint(path: Path, loaded: LoadedConfig) -> list[Problem]:
    """List the warnings about a settings file."""
    return [
        *_dangerous(path, loaded),
        *_unmeasured(path, loaded),
        *_unjudged(path, loaded),
        *_shared_encoders(path, loaded),
        *_sources(path, loaded),
        *_state_dir(path, loaded),
        *_without_graphs(path, loaded),
        *_certificates(path, loaded),
    ]


MEASURED_HZ, MEASURED_STREAMS = 50.0, 64
"""Up to here docs/benchmarks.md has figures of ticks that are missed and of their latency."""


def _dangerous(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for each setting that is legal and that can do harm, with the reason."""
    config = loaded.config

    def problem(where: Steps, message: str, remedy: str) -> Problem:
        return Problem(path, loaded.line(where), dotted(where), message, remedy)

    for name, actuator in config.actuators.items():
        for setting, message, remedy in (
            *doubts_of_safe_action(config, name, actuator),
            *doubts_of_commands(config, name, actuator),
        ):
            yield problem(("actuators", name, *setting), message, remedy)
    for name, stream in config.streams.items():
        if stream.required and (age_s := age_of(stream)) > LONGEST_AGE_S:
            yield problem(
                ("streams", name, "ttl_s" if stream.kind == "text" else "max_age_s"),
                f"required, and fresh for {age_s / 86_400:.0f} days after its source falls silent: it guards nothing",
                "lower it to the longest interval between two readings of the source",
            )
        if (interval_s := _interval_s(stream, config.tick.period_s)) > (age_s := age_of(stream)):
            yield problem(
                ("streams", name, "max_age_s"),
                f"a reading is fresh for {age_s:g} s, and one comes, or is used, every {interval_s:g} s: the stream is missing in between",
                f"raise it above {interval_s:g}",
            )
    yield from _rules(path, loaded)
    for setting, message, remedy in _unguarded(config):
        yield problem(setting, message, remedy)


def _unguarded(config: Config) -> Iterator[Doubt]:
    """Yield what may move although every stream is stale, without a person."""
    if config.gate.arm != "auto" or config.mode != "autonomous":
        return
    needs = {
        name: requirements(actuator.requires, config.required_streams) for name, actuator in config.actuators.items()
    }
    if not any(needs.values()):
        yield (
            ("gate", "arm"),
            "no stream is required: the gate arms without a person, and the policy may act although every stream is stale",
            "mark a stream with `required: true`, or write `arm: request`",
        )
        return
    for name, actuator in config.actuators.items():
        if not needs[name] and actuator.requires is None and actuator.kind != "text":
            yield (
                ("actuators", name),
                "it requires no stream, as others do: the gate arms without a person, and it may move although every stream is stale",
                "name streams under `requires`, mark a stream with `required: true`, or write `gate.arm: request`",
            )


LONGEST_AGE_S = 86_400.0
"""A required stream may be silent for a day; beyond that it is doubted."""


def _interval_s(stream: AnyStream, period_s: float) -> float:
    """Return the longest time between two readings that the settings permit, as far as they tell."""
    if stream.kind == "camera":
        return max(period_s, 1 / stream.rate_hz)
    return max(period_s, stream.hop_s) if stream.kind == "microphone" else period_s


def age_of(stream: AnyStream) -> float:
    """Return the seconds for which a reading of a stream counts as fresh."""
    return stream.ttl_s if stream.kind == "text" else stream.max_age_s


def _rules(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for rules under `forbid` that the policy cannot break, or with some of its actuators only, or that leave no choice."""
    config, modes = loaded.config, _modes(loaded)
    known = {**known_readings(config), **known_names(config.actuators)}
    for name, words in blocked_choices(config.gate.forbid, config.actuators, known, enum_fields(config)).items():
        number = next(n for n, text in enumerate(config.gate.forbid) if name in Expression(text).names)
        yield Problem(
            path,
            loaded.line(("gate", "forbid", number)),
            f"gate.forbid.{number}",
            f"the rules never allow {' or '.join(f'{name} == {word!r}' for word in words)}: neither the policy nor a person can choose it",
            "correct the rule, or take the word out of `choices`",
        )
    for detour in detours(config.actuators, config.gate, known_readings(config)):
        how = (
            "commands from rest lead there"
            if detour.is_reachable
            else "commands from rest do not lead there, but devices may be found so"
        )
        yield Problem(
            path,
            loaded.line(("gate", "forbid", detour.rule)),
            f"gate.forbid.{detour.rule}",
            f"{detour.problem}; the gate takes any of them, and {how}",
            "allow one of these combinations, or choose other safe values",
        )
    for number, text in enumerate(config.gate.forbid):
        names = Expression(text).names & config.actuators.keys()
        held = {name: modes[name] for name in sorted(names) if modes[name] != "autonomous"}
        if not held:
            continue
        others = ", ".join(f"{name} in {modes[name]}" for name in sorted(names - held.keys()))
        reason = f", while {others} moves at the same time as what a person sets" if others else ""
        inside = " and ".join(
            f"in mode {mode} the policy {acts} {', '.join(name for name in held if held[name] == mode)}"
            for mode, acts in (("shadow", "never moves"), ("assist", "only proposes for"))
            if mode in held.values()
        )
        yield Problem(
            path,
            loaded.line(("gate", "forbid", number)),
            f"gate.forbid.{number}",
            f"{inside}: only a person's override can break this rule there{reason}",
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
        elif not source_and_split(task.eval_file)[0].exists():
            yield Problem(
                path,
                loaded.lines.get(("tasks", name, "eval_file"), line),
                f"tasks.{name}.eval_file",
                f"{task.eval_file}: no such file or folder: no version of this task is trained",
                "name a file that `reflexd finetune` reads; a relative path counts from where the daemon starts",
            )


def _sources(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for each source that is not there, that skips sound, or that reads the agent's own commands."""
    config = loaded.config
    commands = {command_topic(f"reflexd/{config.agent}", name, each): name for name, each in config.actuators.items()}
    for name, stream in config.streams.items():
        source = str(getattr(stream, "source", ""))
        where: Steps = ("streams", name, "source")
        if (problem := _file_problem(stream.kind, source)) is not None:
            remedy = "correct the path, unless the file appears later; until then the stream is missing"
            yield Problem(path, loaded.line(where), dotted(where), problem, remedy)
        topic = source.removeprefix("topic:")
        if source.startswith("topic:") and topic in commands:
            message = f"{topic} is the command topic of actuators.{commands[topic]}: the policy reads what it sends"
            yield Problem(
                path, loaded.line(where), dotted(where), message, "name the topic on which the device reports"
            )
        if source.startswith("topic:") and topic != topic.strip():
            message = f"{topic!r} begins or ends with white space, which is a part of a topic"
            yield Problem(
                path, loaded.line(where), dotted(where), message, "delete it, unless the sender writes it, too"
            )
        if stream.kind == "microphone" and stream.hop_s > stream.window_s:
            where = ("streams", name, "hop_s")
            message = f"a window has {stream.window_s:g} s, and one begins every {stream.hop_s:g} s: the sound in between is never heard"
            yield Problem(path, loaded.line(where), dotted(where), message, "lower it to window_s or less")


def _file_problem(kind: str, source: str) -> str | None:
    """Return why a source that is a file cannot be read now; None for any other source."""
    if kind == "text":
        file = source.removeprefix("file:") if source.startswith("file:") else ""
    elif kind == "camera" and "://" not in source and not source.isdecimal() and source.partition(":")[0] != "topic":
        file = source.removeprefix("file:")
    else:
        return None
    if not file:
        return None
    try:
        if Path(file).is_dir():
            return f"{file} is a folder"
        return None if Path(file).exists() else f"{file}: no such file"
    except OSError as error:
        return f"{file}: {error.strerror}"


def _state_dir(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for a state folder with files of others: its size counts them, and a restore moves them away."""
    folder = loaded.config.state_dir
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError:
        return
    if names and not names & {"lock", "keys", "learner", "experience", "checkpoints", "latches.json"}:
        yield Problem(
            path,
            loaded.line(("state_dir",)),
            "state_dir",
            f"{folder} has files of something else, such as {min(names)}: they count in `storage.max_gb`, and a restore replaces them",
            "name a folder of its own, such as .reflexd/NAME",
        )


def _without_graphs(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning where the agent would run on graphs, and nothing that runs them is installed."""
    engine, device = loaded.config.engine, loaded.config.device
    if engine.runtime != "auto" or engine.backend != "auto" or device.startswith("cuda") or find_spec("openvino"):
        return
    missing = [name for name in ("onnxruntime", "onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        yield Problem(
            path,
            loaded.line(("engine", "backend")),
            "engine.backend",
            f"neither OpenVINO nor all of ONNX Runtime is installed ({', '.join(missing)}): the agent acts in torch, with more memory "
            "and a slower start",
            "pip install openvino, or pip install 'reflexd[onnx]'",
        )


def _certificates(path: Path, loaded: LoadedConfig) -> Iterator[Problem]:
    """Yield a warning for each certificate that is not valid today; a clock may be wrong, so it is no reason not to start."""
    from cryptography import x509  # noqa: PLC0415 - few settings have certificates

    config = loaded.config
    given = [(("mqtt", name), getattr(config.mqtt, name)) for name in ("ca", "cert")]
    given += [(("fleet", name), getattr(config.fleet, name)) for name in ("ca", "cert")] if config.fleet else []
    now = datetime.now(UTC)
    for where, file in given:
        if file is None:
            continue
        try:
            certificates = x509.load_pem_x509_certificates(Path(file).read_bytes())
        except (OSError, ValueError):  # reported elsewhere
            continue
        for certificate in certificates[:1]:
            begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            if begin <= now <= end:
                continue
            message = f"{file} is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}, and today is {now:%Y-%m-%d}"
            yield Problem(path, loaded.line(where), dotted(where), message, "renew it, or set the clock")
