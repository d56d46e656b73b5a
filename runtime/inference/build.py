"""Build the engine from the settings: encoders, the policy's spec, untrained weights, backends.

Takes seconds: it loads pretrained models and may calibrate backends. Knows no connection and no store.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from functools import partial

import structlog
import torch
from torch import Tensor

from actuators.actions import action_space
from learners.checkpoints.store import Checkpoints
from learners.continual.versions import TaskVersionStore
from learners.ipc.settings import encoder_window_s
from learners.model.backends.calibration_cache import Calibrations, shared_cache
from learners.model.backends.openvino import OpenVinoRun
from learners.model.backends.selection import BackendSettings
from learners.model.encoders.base import Encoder
from learners.model.encoders.pretrained import load as load_encoder
from learners.model.policy import Policy
from learners.model.spec import ExplorationSchedule, PolicySpec, StreamSpec
from learners.reencoding.encoder_versions import find_state
from learners.reencoding.task_encoder import encoder_tasks
from learners.torch_device import pick_device
from runtime.config.schema import Config
from runtime.inference.engine import Engine
from runtime.inference.graph_compiler import EncoderSource, GraphCompiler
from runtime.process.events import Emit
from sensors.config import MODALITIES, field_kinds_of, policy_fields_of

_LOG = structlog.get_logger(__name__)


class ModelConfigError(ValueError):
    """A stream and its encoder do not fit; `str` names both and what would fit."""


def build_engine(config: Config, checkpoints: Checkpoints) -> Engine:
    """Build the engine with untrained weights; a checkpoint is loaded into it afterwards.

    Raises:
        ModelConfigError: a stream and its encoder do not fit.
        BundledError, UnknownArchitecture, OSError: a model cannot be had.
    """
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
    engine = Engine(
        policy=untrained(spec, config.learner.seed),
        encoders=encoders,
        routes={name: s.encoder for name, s in config.streams.items() if s.encoder is not None},
        calibrations=Calibrations(config.state_dir, wanted, shared_cache()),
        load_weights=checkpoints.load,
        field_kinds={name: field_kinds_of(stream) for name, stream in config.streams.items()},
        find_encoder=partial(find_encoder, config),
        device=device,
        seed=zlib.crc32(config.agent.encode()),
    )
    _free_modules(engine, encoder_tasks(config.encoders, config.tasks, engine.routes))
    engine.calibrations.tidy()
    chosen = {name: f"{c.backend} {c.precision}" for name, c in engine.choices.items()}
    _LOG.info("engine.ready", device=str(device), backends=chosen, streams=list(spec.names))
    return engine


def _free_modules(engine: Engine, following: Collection[str]) -> None:
    """Free the torch modules of encoders that run as a graph and get no other weights: 100 MB in the demo."""
    for name, encoder in engine.encoders.items():
        if name not in following and isinstance(encoder.run, OpenVinoRun):
            encoder.module = None


def find_encoder(config: Config, name: str, version: str, base: Encoder) -> dict[str, Tensor] | None:
    """Return the weights of an encoder in a version, out of the versions of the task that it follows; None if none has them."""
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
    return GraphCompiler(config.state_dir, engine.calibrations.settings, engine.spec.to_json(), sources, emit)


def untrained(spec: PolicySpec, seed: int) -> Policy:
    """Make the weights a daemon starts with; the same at every start, so that an untrained decision can be explained later."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(spec).eval()


def build_spec(config: Config, encoders: Mapping[str, Encoder]) -> PolicySpec:
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


def _stream(name: str, config: Config, encoders: Mapping[str, Encoder]) -> StreamSpec:
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
    model = f"plugin:{named.plugin}" if named.plugin is not None else named.model.rstrip("/").rpartition("/")[2]
    return StreamSpec(name, encoder.modality, encoder.tokens, encoder.width, columns, encoder=model)
