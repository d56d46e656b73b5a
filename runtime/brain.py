"""Builds the engine from the settings: encoders, the policy's spec, untrained weights, backends.

Slow (seconds): it loads pretrained models and may calibrate backends. Knows no connection and no store.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import structlog
import torch

from actuators.registry import action_space
from learners.checkpoints import Checkpoints
from learners.inputs import window_s as longest
from learners.model.backends import Wanted
from learners.model.calibrations import Calibrations, shared_cache
from learners.model.encoders import Encoder
from learners.model.encoders import load as load_encoder
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from runtime.config import load as load_settings
from runtime.engine import Engine
from runtime.settings import Config
from runtime.versions import open_checkpoints
from sensors.config import fields_of
from sensors.registry import MODALITIES

_LOG = structlog.get_logger(__name__)


class BrainError(ValueError):
    """Streams and encoders do not fit; `str` names both and what would be right."""


def build_engine(config: Config, checkpoints: Checkpoints) -> Engine:
    """The engine with untrained weights; a checkpoint is loaded into it afterwards.

    Raises:
        BrainError: a stream and its encoder do not fit.
        BundledError, UnknownArchitecture, OSError: a model cannot be had.
    """
    torch.set_num_threads(config.engine.threads)
    device = pick_device(config.device)
    used = {stream.encoder for stream in config.streams.values() if stream.encoder is not None}
    encoders = {
        name: load_encoder(settings, config.policy.tokens, device, window_s=window_s(config, name))
        for name, settings in config.encoders.items()
        if name in used
    }
    spec = build_spec(config, encoders)
    wanted = Wanted(config.engine.backend, config.engine.precision, config.engine.threads, config.engine.tolerance)
    engine = Engine(
        policy=untrained(spec, config.learner.seed),
        encoders=encoders,
        routes={name: s.encoder for name, s in config.streams.items() if s.encoder is not None},
        calibrations=Calibrations(config.state_dir, wanted, shared_cache()),
        read=lambda directory: checkpoints.load(directory.name, {"policy": shapes_of_spec(spec)}),
        device=device,
        seed=zlib.crc32(config.agent.encode()),
    )
    engine.calibrations.tidy()
    chosen = {name: f"{c.backend} {c.precision}" for name, c in engine.choices.items()}
    _LOG.info("engine.ready", device=str(device), backends=chosen, streams=list(spec.names))
    return engine


def window_s(config: Config, encoder: str) -> float:
    """The longest window of the microphones that share an encoder; the others are filled with silence."""
    streams = config.streams.items()
    return longest({n: s.window_s for n, s in streams if s.kind == "microphone" and s.encoder == encoder})


def untrained(spec: PolicySpec, seed: int) -> Policy:
    """The weights a daemon starts with; the same at every start, so that an untrained decision can be explained later."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(spec).eval()


def build_spec(config: Config, encoders: Mapping[str, Encoder]) -> PolicySpec:
    """The policy's spec for these settings."""
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
    )


def _stream(name: str, config: Config, encoders: Mapping[str, Encoder]) -> StreamSpec:
    settings = config.streams[name]
    if fields := fields_of(settings):
        return StreamSpec(name, "telemetry", 1, len(fields))
    if settings.encoder is None:
        raise BrainError(f"streams.{name}.encoder: missing; a {settings.kind} stream needs one")
    encoder = encoders[settings.encoder]
    wanted = MODALITIES.get(settings.kind, encoder.modality)
    if encoder.modality != wanted:
        raise BrainError(
            f"streams.{name}.encoder: {settings.encoder} ({config.encoders[settings.encoder].model}) is a model of "
            f"{encoder.modality}; a {settings.kind} needs one of {wanted}"
        )
    columns = getattr(encoder, "columns", encoder.tokens)  # only pictures have a grid
    return StreamSpec(name, encoder.modality, encoder.tokens, encoder.width, columns)


def shapes_of_spec(spec: PolicySpec) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a policy, without allocating one."""
    with torch.device("meta"):
        return {name: tuple(x.shape) for name, x in Policy(spec).state_dict().items()}


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one.

    Raises:
        BrainError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BrainError(f"device: {name} is not here; write auto or cpu")
    return device


def main(arguments: list[str]) -> int:
    """`python -m runtime.brain CONFIG`: convert models and calibrate backends now, so that the first start need not.

    What it finds stays in the user's cache; the daemon's own state is not begun.
    """
    config = load_settings(Path(arguments[0])).config
    with tempfile.TemporaryDirectory() as folder:
        config = config.model_copy(update={"state_dir": Path(folder)})
        build_engine(config, open_checkpoints(config)).close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
