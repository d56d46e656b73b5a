"""Build the engine from the settings: encoders, the policy's spec, untrained weights, backends.

Takes seconds where models are loaded, calibrated or prepared. Knows no connection and no store. Imports torch only for an engine
in torch.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Collection, Mapping
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import structlog

from actuators.actions import action_space
from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.sealed_folder import Refused
from learners.checkpoints.store import Checkpoints
from learners.ipc.settings import encoder_window_s
from learners.model.backends.calibration_cache import Calibrations, shared_cache
from learners.model.backends.definitions import BackendSettings, NotCompiled
from learners.model.backends.graphs import GraphRun
from learners.model.spec import ExplorationSchedule, Modality, PolicySpec, StreamSpec, encoder_name
from learners.reencoding.task_encoder import encoder_tasks
from runtime.config.schema import Config
from runtime.inference.compiled_engine import CompiledEngine
from runtime.inference.engine import NEEDS_TORCH, Engine
from runtime.inference.graph_compiler import EncoderSource, GraphCompiler
from runtime.inference.graph_store import NotPrepared, Preparation, graph_settings
from runtime.process.emit import Emit
from sensors.config import MODALITIES, field_kinds_of, policy_fields_of

if TYPE_CHECKING:
    from torch import Tensor

    from learners.model.encoders.base import Encoder
    from runtime.inference.torch_engine import TorchEngine

Runtime = Literal["auto", "compiled", "torch"]
TORCH_REMEDY = "none needed: the agent acts in torch, with more memory and a slower start; correct what the reason names, then restart"
_LOG = structlog.get_logger(__name__)


class ModelConfigError(ValueError):
    """A stream and its encoder do not fit; `str` names both and what would fit."""


class Encoding(Protocol):
    """What the policy's spec needs to know of an encoder."""

    modality: Modality
    tokens: int
    width: int


def log_only(_kind: str, _fields: Mapping[str, object]) -> None:
    """Publish no event: a verb has no connection, and the log has the same."""


def build_engine(
    config: Config,
    checkpoints: Checkpoints,
    *,
    runtime: Runtime | None = None,
    emit: Emit = log_only,
    hold_modules: bool = False,
) -> Engine:
    """Build the engine with untrained weights; a checkpoint is loaded into it afterwards.

    Args:
        config: the settings.
        checkpoints: from which versions are loaded.
        runtime: in place of `engine.runtime`, for a replay.
        emit: publishes an event, from any thread.
        hold_modules: an engine in torch holds its encoders' modules, because checkpoints bring weights for them.

    Raises:
        ModelConfigError: a stream and its encoder do not fit, or `engine.runtime: compiled` is not possible.
        BundledError, UnknownArchitecture, OSError: a model cannot be had.
    """
    wanted = runtime or config.engine.runtime
    reason = needs_torch(config) if wanted != "torch" else "engine.runtime is torch"
    engine: Engine | None = None
    if reason is None:
        try:
            engine = _compiled_engine(config, checkpoints, _refuser(emit))
        except (NotPrepared, NotCompiled) as problem:
            reason = str(problem)
            if wanted == "auto":
                _say_torch(emit, reason)
    if engine is None:
        if wanted == "compiled":
            raise ModelConfigError(f"engine.runtime: compiled is not possible: {reason}; write auto")
        engine = _torch_engine(config, checkpoints, _refuser(emit), hold_modules=hold_modules)
    engine.calibrations.tidy()
    chosen = {name: f"{c.backend} {c.precision}" for name, c in engine.choices.items()}
    _LOG.info(
        "engine.ready",
        runtime=engine.runtime,
        device=engine.device_name,
        backends=chosen,
        streams=list(engine.spec.names),
    )
    return engine


async def build_acting_engine(config: Config, checkpoints: Checkpoints, emit: Emit) -> Engine:
    """Build the engine and load the live version into it; build it in torch where only torch can run that version.

    A version that is refused for another reason is left to who follows the live pointer.

    Args:
        config: the settings.
        checkpoints: from which versions are loaded.
        emit: publishes an event, from any thread.

    Raises:
        ModelConfigError, BundledError, UnknownArchitecture, OSError: as `build_engine`.
    """
    engine = await asyncio.to_thread(build_engine, config, checkpoints, emit=emit)
    engine.compiler = graph_compiler(config, engine, emit)  # the live version may lack a graph of this library
    live = await asyncio.to_thread(lambda: checkpoints.live().version)
    if engine.runtime != "compiled" or config.engine.runtime != "auto" or live is None:
        return engine
    try:
        await engine.load(live)
    except CheckpointRefused as refusal:
        if refusal.reason not in {NEEDS_TORCH, "not_compiled"}:
            return engine
        _say_torch(emit, f"{live}: {refusal.detail}")
        engine.close()
        changed = refusal.reason == NEEDS_TORCH
        engine = await asyncio.to_thread(
            partial(build_engine, config, checkpoints, runtime="torch", emit=emit, hold_modules=changed)
        )
        engine.compiler = graph_compiler(config, engine, emit)
    return engine


def _say_torch(emit: Emit, reason: str) -> None:
    _LOG.warning("engine.in_torch", reason=reason)
    emit("engine_in_torch", {"reason": reason, "remedy": TORCH_REMEDY})


def _refuser(emit: Emit) -> Refused:
    """Return what logs and publishes that a cached graph is not used."""

    def refused(folder: str, reason: str) -> None:
        _LOG.warning("engine.graph_refused", folder=folder, reason=reason)
        emit("graph_refused", {"folder": folder, "reason": reason})

    return refused


def needs_torch(config: Config) -> str | None:
    """Return why these settings need an engine in torch; None where graphs can run them."""
    if config.device.startswith("cuda") or (config.device == "auto" and _has_gpu()):
        return "the device is a GPU"
    if config.engine.backend == "torch":
        return "engine.backend is torch"
    routes = {name: stream.encoder for name, stream in config.streams.items()}
    for name in sorted({route for route in routes.values() if route is not None}):
        if config.encoders[name].plugin is not None:
            return f"encoder {name} is a plug-in"
    following = encoder_tasks(config.encoders, config.tasks, routes)
    return f"encoder {min(following)} follows a task" if following else None


def _has_gpu() -> bool:
    """Return whether torch could find a GPU; it is not imported for the answer."""
    return not installed_version("torch").endswith("+cpu") and Path("/dev/nvidiactl").exists()


def _compiled_engine(config: Config, checkpoints: Checkpoints, refused: Refused) -> CompiledEngine:
    """Build the engine on graphs; a process prepares what is missing.

    Raises:
        NotPrepared, NotCompiled: something runs in torch only, or cannot be stored.
    """
    routes = {name: s.encoder for name, s in config.streams.items() if s.encoder is not None}
    shared = shared_cache()
    calibrations = Calibrations(config.state_dir, graph_settings(config.engine), shared, refused=refused)
    preparation = Preparation(config.state_dir, shared, calibrations)
    try:
        encoders = {
            name: preparation.encoder(
                name, settings, config.policy.tokens, encoder_window_s(config.streams.values(), name)
            )
            for name, settings in config.encoders.items()
            if name in routes.values()
        }
        spec = build_spec(config, encoders)

        def build() -> CompiledEngine:
            return CompiledEngine(
                spec,
                preparation.untrained(spec, config.learner.seed),
                encoders,
                routes,
                calibrations,
                checkpoints.load_arrays,
                seed=zlib.crc32(config.agent.encode()),
                field_kinds={name: field_kinds_of(stream) for name, stream in config.streams.items()},
                at_arrival=_at_arrival(config),
            )

        try:
            return build()
        except NotCompiled:
            preparation.compile_untrained(spec, config.learner.seed)
            return build()
    finally:
        preparation.close()


def _torch_engine(
    config: Config, checkpoints: Checkpoints, refused: Refused, *, hold_modules: bool = False
) -> TorchEngine:
    """Build the engine in torch.

    Raises:
        ModelConfigError: a stream and its encoder do not fit.
        BundledError, UnknownArchitecture, OSError: a model cannot be had.
    """
    import torch  # noqa: PLC0415 - not for an agent that acts on graphs

    from learners.model.encoders.pretrained import load as load_encoder  # noqa: PLC0415 - as above
    from learners.torch_device import pick_device  # noqa: PLC0415 - as above
    from runtime.inference.torch_engine import TorchEngine, untrained  # noqa: PLC0415 - as above

    torch.set_num_threads(config.engine.threads)
    device = pick_device(config.device)
    used = {stream.encoder for stream in config.streams.values() if stream.encoder is not None}
    encoders = {
        name: load_encoder(
            settings, config.policy.tokens, device, window_s=encoder_window_s(config.streams.values(), name)
        )
        for name, settings in config.encoders.items()
        if name in used
    }
    spec = build_spec(config, encoders)
    wanted = BackendSettings(
        config.engine.backend, config.engine.precision, config.engine.threads, config.engine.tolerance
    )
    engine = TorchEngine(
        policy=untrained(spec, config.learner.seed),
        encoders=encoders,
        routes={name: s.encoder for name, s in config.streams.items() if s.encoder is not None},
        calibrations=Calibrations(config.state_dir, wanted, shared_cache(), refused=refused),
        load_weights=checkpoints.load,
        field_kinds={name: field_kinds_of(stream) for name, stream in config.streams.items()},
        at_arrival=_at_arrival(config),
        find_encoder=partial(find_encoder, config),
        device=device,
        seed=zlib.crc32(config.agent.encode()),
    )
    if not hold_modules:
        _free_modules(engine, encoder_tasks(config.encoders, config.tasks, engine.routes))
    return engine


def _at_arrival(config: Config) -> frozenset[str]:
    """Return the encoders that encode readings when these arrive."""
    return frozenset(name for name, settings in config.encoders.items() if settings.when == "arrival")


def _free_modules(engine: TorchEngine, following: Collection[str]) -> None:
    """Free the torch modules of encoders that run as a graph and get no other weights: 100 MB in the demo."""
    for name, encoder in engine.encoders.items():
        if name not in following and isinstance(encoder.run, GraphRun):
            encoder.module = None


def find_encoder(config: Config, name: str, version: str, base: Encoder) -> dict[str, Tensor] | None:
    """Return the weights of an encoder in a version, out of the versions of the task that it follows; None if none has them."""
    from learners.reencoding.encoder_versions import find_state  # noqa: PLC0415 - as above
    from learners.task_serving.versions import TaskVersionStore  # noqa: PLC0415 - only an engine in torch follows tasks

    routes = {stream: settings.encoder for stream, settings in config.streams.items()}
    task = encoder_tasks(config.encoders, config.tasks, routes).get(name)
    if task is None:
        return None
    return find_state(
        config.encoders[name], base, TaskVersionStore(config.state_dir / "learner" / "tasks" / task), version
    )


def graph_compiler(config: Config, engine: Engine, emit: Emit) -> GraphCompiler:
    """Return what compiles graphs for this engine in another process."""
    routes = {stream: settings.encoder for stream, settings in config.streams.items()}
    folder = config.state_dir / "learner" / "tasks"
    sources = {
        name: EncoderSource(
            config.encoders[name],
            config.policy.tokens,
            encoder_window_s(config.streams.values(), name),
            folder / task,
        )
        for name, task in encoder_tasks(config.encoders, config.tasks, routes).items()
    }
    return GraphCompiler(config.state_dir, engine.calibrations, engine.spec.to_json(), sources, emit)


def build_spec(config: Config, encoders: Mapping[str, Encoding]) -> PolicySpec:
    """Return the policy's spec for these settings."""
    p = config.policy
    return PolicySpec(
        streams=tuple(_stream(name, config, encoders) for name in config.streams),
        actions=action_space(config.actuators),
        fusion=p.fusion,
        hidden=p.hidden,
        width=p.width,
        latents=p.latents,
        layers=p.layers,
        heads=p.heads,
        history=p.history,
        gamma=p.gamma,
        algorithm=p.algorithm,
        modality_dropout=p.modality_dropout,
        feature_dropout=p.feature_dropout,
        exploration=ExplorationSchedule(
            p.exploration.initial,
            p.exploration.final,
            max(1, round(p.exploration.decisions(config.tick.rate_hz) * config.learner.updates_per_step)),
        ),
    )


def _stream(name: str, config: Config, encoders: Mapping[str, Encoding]) -> StreamSpec:
    settings = config.streams[name]
    if fields := policy_fields_of(settings):
        return StreamSpec(name, "telemetry", 1, len(fields), fields=fields)
    if settings.encoder is None:
        raise ModelConfigError(f"streams.{name}.encoder: missing; a {settings.kind} stream needs one")
    encoder = encoders[settings.encoder]
    wanted = MODALITIES.get(settings.kind, encoder.modality)
    if encoder.modality != wanted:
        raise ModelConfigError(
            f"streams.{name}.encoder: {settings.encoder} ({config.encoders[settings.encoder].model}) is a model of "
            f"{encoder.modality}; a {settings.kind} needs one of {wanted}"
        )
    columns = getattr(encoder, "columns", encoder.tokens)  # only pictures have a grid
    named = config.encoders[settings.encoder]
    model = f"plugin:{named.plugin}" if named.plugin is not None else encoder_name(named.model)
    return StreamSpec(name, encoder.modality, encoder.tokens, encoder.width, columns, encoder=model)
