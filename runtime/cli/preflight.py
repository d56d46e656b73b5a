"""Find what keeps a daemon with valid settings from starting: all that can be checked without hardware and without a broker.

`reflexd check` prints it and `reflexd run` refuses to start over it, so that no child is restarted over its settings. Sensors,
rewards and commands are built as the agent and the gate build them and thrown away; nothing is opened, bound ports are
closed at once. Models are looked up, not loaded.
"""

from __future__ import annotations

import errno
import json
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from actuators.actions import action_space
from actuators.expressions import ExpressionError
from actuators.sim.registry import GROUP as PLANTS
from actuators.sim.registry import PANORAMA, ROOM, ROOMS, plant_settings
from actuators.wire import CommandWriter, WireError, check_state_value
from learners.checkpoints.signing import KeyRefused
from learners.checkpoints.trusted_keys import read_public
from learners.files import not_plain
from learners.goal_models.config import DecisionBackend, EmbeddingBackend
from learners.model.encoders import bundled_packages
from learners.model.spec import Modality, PolicySpec, SpecError, StreamSpec
from learners.rewards import RewardUnknown, build_rewards
from learners.task_kinds import KINDS
from runtime.config.errors import Problem, Steps, dotted, split_path
from runtime.config.lint import lint
from runtime.config.loader import ConfigError, LoadedConfig, load
from runtime.config.mqtt_settings import MqttSettings
from runtime.config.ports import busy_ports
from runtime.config.schema import Config
from runtime.supervisor.broker import BrokerError, ExposedError, check_exposure, installed
from sensors.config import MODALITIES, PREFIX, AnyStream, fields_of, policy_fields_of
from sensors.plugins import PluginError
from sensors.streams.registry import build as build_sensor

Found = Iterator[tuple[Steps, str, str]]
"""Path into the settings, what is wrong, and the remedy."""
GPU_TIMEOUT_S = 60.0
TASKS_TIMEOUT_S = 180.0
"""It imports transformers, which takes seconds, and longer on a busy machine."""
_ASK_TASKS = """\
import json, sys
from learners.tasks.task_classes import unfit_reason, unreadable_reason
found = {}
for name, kind, model in json.loads(sys.argv[1]):
    try:
        found[name] = (unfit_reason(kind, model) if kind else None) or unreadable_reason(model)
    except (OSError, ValueError) as error:
        found[name] = str(error).strip().partition("\\n")[0]
print(json.dumps({name: reason for name, reason in found.items() if reason}))
"""


def problems_and_warnings(path: Path, *, ports: bool) -> tuple[list[Problem], list[Problem], LoadedConfig | None]:
    """Return what `reflexd check` prints: problems, warnings, and the settings where they could be read.

    Args:
        path: the settings file.
        ports: whether to try the ports that the daemon would listen on.
    """
    try:
        loaded = load(path)
    except ConfigError as error:
        return list(error.problems), [], None
    problems = preflight(path, loaded)
    if problems:
        return problems, [], loaded
    return [], [*lint(path, loaded), *(busy_ports(path, loaded) if ports else ())], loaded


def preflight(path: Path, loaded: LoadedConfig) -> list[Problem]:
    """Return everything that would keep a daemon with these settings from starting."""
    config = loaded.config
    checks: tuple[Callable[[Config], Found], ...] = (
        _streams, _actuators, _rewards, _encoders, _tasks, _speech, _deliberator, _policy, _mirror, _device, _plant, _folder, _key, _tls, _broker, _fleet,
    )  # fmt: skip
    problems = []
    for check in checks:
        for where, message, remedy in _found(check, config):
            named, text = split_path(message)
            place = named if named[: len(where)] == where else where
            problems.append(Problem(path, loaded.line(place), dotted(place), text if named else message, remedy))
    return problems


def _found(check: Callable[[Config], Found], config: Config) -> Found:
    """Yield what a check finds; a path that the system refuses is a problem too."""
    try:
        yield from check(config)
    except OSError as error:
        yield (), f"{error.filename}: {error.strerror}", "correct the path"


def _streams(config: Config) -> Found:
    for name, stream in config.streams.items():
        if getattr(stream, "source", "") == f"{PREFIX}{name}":
            continue  # made from a task
        try:
            build_sensor(name, stream)
        except (ValueError, TypeError) as error:  # a plug-in's factory may refuse its options with either
            where, message = split_path(str(error))
            yield where or ("streams", name), message, ""


def _fleet(config: Config) -> Found:
    if config.fleet is None:
        return
    for package in ("pyarrow", "zstandard"):
        if find_spec(package) is None:
            yield ("fleet",), f"the uplink needs {package}, which is not installed", "pip install 'reflexd[uplink]'"
    if config.fleet.key is not None:
        try:
            read_public(config.fleet.key)
        except KeyRefused as refusal:
            yield ("fleet", "key"), str(refusal), "copy fleet-key.pem of the fleet's server to this path"


def _actuators(config: Config) -> Found:
    for name, actuator in config.actuators.items():
        try:
            CommandWriter("reflexd/check", {name: actuator}, "check")
        except WireError as error:
            yield ("actuators", name, "payload"), str(error), ""
        try:
            check_state_value(actuator.state_value)
        except WireError as error:
            yield ("actuators", name, "state_value"), str(error), ""


def _rewards(config: Config) -> Found:
    for number, reward in enumerate(config.rewards):
        try:
            build_rewards((reward,), config.streams, config.actuators)
        except ExpressionError as error:
            yield ("rewards", number, "value"), str(error), ""
        except (RewardUnknown, PluginError) as error:
            yield ("rewards", number, "plugin"), str(error), "install the package that provides it, or correct the name"


def _encoders(config: Config) -> Found:
    used = {stream.encoder for stream in config.streams.values()}
    for name, encoder in config.encoders.items():
        if name not in used:
            continue
        if encoder.plugin is not None:
            if not entry_points(group="reflexd.encoders", name=encoder.plugin):
                names = ", ".join(sorted({point.name for point in entry_points(group="reflexd.encoders")})) or "none"
                yield (
                    ("encoders", name, "plugin"),
                    f"no entry point {encoder.plugin!r} in reflexd.encoders; installed: {names}",
                    "install the package that provides it, or correct the name",
                )
        elif (problem := bundled_packages.missing(encoder.model)) is not None:
            yield ("encoders", name, "model"), problem, ""
        else:
            yield from _modality(config, name, encoder.model)
    folders = {
        name: encoder.model
        for name, encoder in config.encoders.items()
        if name in used and encoder.plugin is None and (Path(encoder.model) / "config.json").is_file()
    }
    for name, reason in _unfit({name: (None, model) for name, model in folders.items()}).items() if folders else ():
        yield ("encoders", name, "model"), f"{folders[name]}: {reason}", "name another model"


def _modality(config: Config, name: str, model: str) -> Found:
    """A model of sounds under a camera, as far as the model's name says what it is of."""
    is_of = bundled_packages.modality(model)
    for stream, settings in config.streams.items():
        wanted = MODALITIES.get(settings.kind)
        if settings.encoder == name and is_of is not None and wanted is not None and is_of != wanted:
            yield (
                ("streams", stream, "encoder"),
                f"{name} ({model}) is a model for {is_of}; a {settings.kind} needs one for {wanted}",
                "name another encoder",
            )


def _tasks(config: Config) -> Found:
    for name, task in config.tasks.items():
        if (problem := bundled_packages.missing(task.model)) is not None:
            yield ("tasks", name, "model"), problem, ""
        wanted, is_of = MODALITIES[KINDS[task.kind].stream], bundled_packages.modality(task.model)
        if is_of is not None and is_of != wanted:
            yield (
                ("tasks", name, "model"),
                f"{task.model} is a model for {is_of}; {task.kind} needs one for {wanted}",
                "name another model or kind",
            )
        elif (problem := bundled_packages.unfit(task.model, task.kind)) is not None:
            yield ("tasks", name, "kind"), problem, "name another model or kind"
    folders = {name: task for name, task in config.tasks.items() if (Path(task.model) / "config.json").is_file()}
    asked = {name: (task.kind, task.model) for name, task in folders.items()}
    for name, reason in _unfit(asked).items() if folders else ():
        yield ("tasks", name, "kind"), f"{folders[name].model}: {reason}", "name another model or kind"


def _speech(config: Config) -> Found:
    """Models that cannot transcribe, as far as their names say so."""
    for name, stream in config.streams.items():
        if stream.kind != "text" or not stream.microphone:
            continue
        if (problem := bundled_packages.missing(stream.model)) is not None:
            yield ("streams", name, "model"), problem, ""
        elif (problem := bundled_packages.unfit(stream.model, "automatic-speech-recognition")) is not None:
            yield ("streams", name, "model"), problem, "name a model that transcribes, such as bundled:whisper-tiny.en"


def _deliberator(config: Config) -> Found:
    if (settings := config.deliberator) is None:
        return
    if isinstance(settings.backend, EmbeddingBackend | DecisionBackend) and (
        problem := bundled_packages.missing(settings.backend.model)
    ):
        yield ("deliberator", "backend", "model"), problem, ""


def _unfit(models: Mapping[str, tuple[str | None, str]]) -> dict[str, str]:
    """Ask a process of its own which folders cannot be used: neither `check` nor the supervisor holds torch.

    Args:
        models: by name, the kind of task, or None for an encoder, and the folder.
    """
    pairs = [[name, kind, str(Path(model).absolute())] for name, (kind, model) in models.items()]
    command = [sys.executable, "-c", _ASK_TASKS, json.dumps(pairs)]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter and a fixed text
            command, capture_output=True, text=True, timeout=TASKS_TIMEOUT_S, check=False
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.TimeoutExpired, IndexError, ValueError):  # the run reports what it cannot open
        return {}


def _policy(config: Config) -> Found:
    p = config.policy
    if p.algorithm == "bandit" and p.gamma != 0:
        yield ("policy", "algorithm"), f"bandit learns from one-step feedback and needs gamma: 0, not {p.gamma}", ""
    streams = tuple(_stream_spec(config, name, stream) for name, stream in config.streams.items())
    plug_ins = any(s.kind == "plugin" and not fields_of(s) for s in config.streams.values())  # of any modality
    try:
        spec = PolicySpec(streams, action_space(config.actuators), width=p.width, heads=p.heads, history=p.history)
        if not plug_ins:
            replace(spec, fusion=p.fusion)
    except SpecError as error:
        yield ("policy",), str(error), ""


def _stream_spec(config: Config, name: str, stream: AnyStream) -> StreamSpec:
    if fields := policy_fields_of(stream):
        return StreamSpec(name, "telemetry", 1, len(fields))
    modality: dict[str, Modality] = {"camera": "image", "microphone": "audio"}
    return StreamSpec(name, modality.get(stream.kind, "text"), config.policy.tokens, 64)


def _mirror(config: Config) -> Found:
    sides = {name for name, actuator in config.actuators.items() if actuator.kind in ("choice", "continuous")}
    sides |= {name for name, stream in config.streams.items() if fields_of(stream)}
    if unknown := sorted(set(config.learner.mirror_augmentation) - sides):
        known = ", ".join(sorted(sides)) or "none"
        yield (
            ("learner", "mirror_augmentation"),
            f"{unknown} is neither a choice or continuous actuator nor a telemetry stream",
            f"there are {known}",
        )
    cameras = sorted(name for name, stream in config.streams.items() if stream.kind == "camera")
    if config.learner.mirror_augmentation and cameras and config.policy.tokens == 1:
        yield (
            ("policy", "tokens"),
            f"1 token has no left and right, so learner.mirror_augmentation cannot mirror {cameras}",
            "write policy.tokens: 4, or leave learner.mirror_augmentation out",
        )


def _device(config: Config) -> Found:
    """Ask a process of its own: neither `check` nor the supervisor holds torch in memory."""
    if not config.device.startswith("cuda"):
        return
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        output = subprocess.run(  # noqa: S603 - this interpreter and a fixed text
            command, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=False
        ).stdout.strip()
    except subprocess.TimeoutExpired:
        output = ""
    count = int(output) if output.isdecimal() else 0
    if int(config.device.partition(":")[2] or 0) >= count:
        yield (
            ("device",),
            f"{config.device}: torch finds {count} GPUs",
            "write auto or cpu, or install the GPU's driver",
        )


def _plant(config: Config) -> Found:
    if config.plant is None or config.plant.environment in {PANORAMA, ROOM, ROOMS}:
        return
    name = config.plant.environment
    if entry_points(group=PLANTS, name=name):
        return
    try:
        plant_settings(name, agent=config.agent)
    except (ValueError, ImportError) as error:
        yield (
            ("plant", "environment"),
            " ".join(str(error).split()),
            "write panorama, room, rooms, a plug-in or a gymnasium id",
        )


FOLDERS = ("broker", "checkpoints", "experience", "keys", "learner", "prepared", "recordings", "uplink")
FILES = ("experiments.json", "latches.json", "lock", "promotions.jsonl", "token")
"""What a daemon makes in its `state_dir`."""
MAY_PASS = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk, with which a daemon starts."""


def _folder(config: Config) -> Found:
    folder = config.state_dir.absolute()
    there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if there.is_symlink() and not there.exists():
        yield ("state_dir",), f"{there} is a link to nothing", "make the folder that it names, or name another"
    elif there == folder and folder.resolve() in (Path.home(), Path("/")):
        yield ("state_dir",), f"{folder} holds everything else, too", "name a folder of its own, such as .reflexd/NAME"
    elif not there.is_dir():
        yield ("state_dir",), f"{there} is a file", "name a folder"
    elif there != folder:
        yield from _can_be_made(folder, there)
    elif _is_read_only(folder) and (folder / "lock").exists():
        pass  # a daemon that has run there acts on; the page and `status` say that the disk is read-only
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield ("state_dir",), f"{folder} cannot be written", "name a folder that this user can write"
    else:
        yield from _kinds_in(folder)


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _can_be_made(folder: Path, there: Path) -> Found:
    """Make a folder beside the one to be, and delete it: some file systems refuse it although their rights permit it."""
    try:
        Path(tempfile.mkdtemp(dir=there, prefix=".reflexd-check-")).rmdir()
    except OSError as error:
        if error.errno not in MAY_PASS:
            yield ("state_dir",), f"{folder} cannot be made: {error.strerror}", "name a folder that this user can write"


def _kinds_in(folder: Path) -> Found:
    """Find files where a daemon has folders, and folders where it has files."""
    for name in FOLDERS:
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            yield ("state_dir",), f"{folder / name} is no folder, and the daemon needs one there", "move it away"
    for name in FILES:
        if (folder / name).is_dir():
            yield ("state_dir",), f"{folder / name} is a folder, and the daemon needs a file there", "move it away"


def _key(config: Config) -> Found:
    """Refuse a signing key with which neither agent nor learner could start; one that this user may not read is not judged."""
    path = config.state_dir / "keys" / "checkpoint-key.pem"
    if not path.exists() or not os.access(path, os.R_OK) or path.stat().st_uid not in {0, os.geteuid()}:
        return
    from learners.checkpoints.signing import KeyRefused, load_key

    try:
        load_key(config.state_dir)
    except KeyRefused as refused:
        yield ("state_dir",), str(refused), ""


def _tls(config: Config) -> Found:
    yield from _tls_of("mqtt", config.mqtt, "key")
    if config.fleet is not None:
        yield from _tls_of("fleet", config.fleet.mqtt(), "cert_key")


def _tls_of(section: str, mqtt: MqttSettings, key_name: str) -> Found:
    names = {"ca": "ca", "cert": "cert", "key": key_name}
    found = False
    for name, file in (("ca", mqtt.ca), ("cert", mqtt.cert), ("key", mqtt.key)):
        if file is None:
            continue
        if not os.access(file, os.R_OK) or not_plain(file) is not None or file.is_dir():
            found = True
            reason = "is a folder" if file.is_dir() else "cannot be read"
            yield (section, names[name]), f"{file} {reason}", "name a readable file in PEM format"
    if mqtt.key is not None and mqtt.cert is None:
        yield (section, key_name), "this key has no certificate", f"add {section}.cert"
    elif not found:
        for name, message, remedy in _pem(mqtt.ca, mqtt.cert, mqtt.key):
            yield (section, names[name]), message, remedy


def _pem(ca: Path | None, cert: Path | None, key: Path | None) -> Iterator[tuple[str, str, str]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca is not None:
            context.load_verify_locations(ca)
    except (ssl.SSLError, OSError) as error:
        yield "ca", f"{ca} contains no certificate in PEM format ({error})", "name the authority's certificate"
    try:
        if cert is not None:
            context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        yield (
            "key" if key is not None else "cert",
            f"certificate and key do not match or are not in PEM format ({error})",
            "name the certificate and its unencrypted key",
        )


def _broker(config: Config) -> Found:
    if config.mqtt.scheme != "embedded":
        return
    try:
        installed()
        check_exposure(config.mqtt)
    except (BrokerError, ExposedError) as error:
        yield ("mqtt", "url"), str(error).removeprefix("mqtt.url: "), ""
