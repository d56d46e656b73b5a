"""Check the models of encoders, tasks, speech and deliberator, and what the policy asks of its streams and of the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from actuators.actions import Continuous, action_space
from learners.goal_models.config import DecisionBackend, EmbeddingBackend
from learners.model.backends.graph_libraries import LIBRARIES, missing_reason
from learners.model.encoders import bundled_packages
from learners.model.spec import Modality, PolicySpec, SpecError, StreamSpec
from learners.task_kinds import KINDS
from runtime.config.errors import Found
from runtime.config.schema import Config
from sensors.config import MODALITIES, AnyStream, fields_of, policy_fields_of

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


def check_encoders(config: Config) -> Found:
    """Find encoders with a missing model or plug-in, or with one for another kind of stream."""
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


def check_tasks(config: Config) -> Found:
    """Find tasks with a model that is missing or cannot do the task."""
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


def check_speech(config: Config) -> Found:
    """Models that cannot transcribe, as far as their names say so."""
    for name, stream in config.streams.items():
        if stream.kind != "text" or not stream.microphone:
            continue
        if (problem := bundled_packages.missing(stream.model)) is not None:
            yield ("streams", name, "model"), problem, ""
        elif (problem := bundled_packages.unfit(stream.model, "automatic-speech-recognition")) is not None:
            yield ("streams", name, "model"), problem, "name a model that transcribes, such as bundled:whisper-tiny.en"


def check_deliberator(config: Config) -> Found:
    """Find a bundled model of the deliberator that is missing."""
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


def check_policy(config: Config) -> Found:
    """Find a policy that cannot be built for its streams and actuators."""
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


def check_mirror(config: Config) -> Found:
    """Find mirror augmentation of what has no sides."""
    sides = {name for name, actuator in config.actuators.items() if actuator.kind in ("choice", "continuous")}
    sides |= {name for name, stream in config.streams.items() if fields_of(stream)}
    if unknown := sorted(set(config.learner.mirror_augmentation) - sides):
        known = ", ".join(sorted(sides)) or "none"
        yield (
            ("learner", "mirror_augmentation"),
            f"{unknown} is neither a choice or continuous actuator nor a telemetry stream",
            f"there are {known}",
        )
    for name, actuator in config.actuators.items():
        if actuator.kind != "continuous" or name not in config.learner.mirror_augmentation:
            continue
        if not Continuous(name, actuator.low, actuator.high).is_symmetric:
            yield (
                ("actuators", name, "low"),
                f"the limits of {name} do not mirror each other, so learner.mirror_augmentation cannot mirror it",
                f"let high be -low, or take {name} out of learner.mirror_augmentation",
            )
    cameras = sorted(name for name, stream in config.streams.items() if stream.kind == "camera")
    if config.learner.mirror_augmentation and cameras and config.policy.tokens == 1:
        yield (
            ("policy", "tokens"),
            f"1 token has no left and right, so learner.mirror_augmentation cannot mirror {cameras}",
            "write policy.tokens: 4, or leave learner.mirror_augmentation out",
        )


def check_graphs(config: Config) -> Found:
    """Yield what the settings want of libraries of graphs that are not installed, or that these do not compute."""
    engine = config.engine
    libraries = [name for name in LIBRARIES if find_spec(name) is not None]
    lacks = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if engine.backend in LIBRARIES and engine.backend not in libraries:
        message, _, remedy = missing_reason(engine.backend).partition(": ")
        yield ("engine", "backend"), message, f"{remedy}, or write auto"
    elif engine.backend == "auto" and engine.runtime == "compiled" and not libraries:
        message, _, remedy = missing_reason("auto").partition(": ")
        yield ("engine", "runtime"), message, f"{remedy}, or write auto"
    elif "onnxruntime" in (engine.backend, *libraries[:1]) and engine.backend in ("auto", "onnxruntime"):
        if engine.backend == "onnxruntime" and lacks:
            message = f"ONNX Runtime needs graphs, and {' and '.join(lacks)}, which makes them, is not installed"
            yield ("engine", "backend"), message, "pip install 'reflexd[onnx]'"
        if engine.precision == "bfloat16" and engine.runtime != "torch":
            yield (
                ("engine", "precision"),
                "ONNX Runtime computes in float32 on a CPU",
                "write auto, or install openvino",
            )


def check_device(config: Config) -> Found:
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
