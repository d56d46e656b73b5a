"""Pass the settings that the learner needs, as JSON: the learner knows no YAML and no other settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict

from learners.config import (
    EncoderSettings,
    ExperienceSettings,
    FinetuneSettings,
    LearnerSettings,
    PromotionSettings,
    TaskSettings,
)
from learners.files import private_folder, write_atomically


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TickRate(_Section):
    """Of the tick."""

    rate_hz: float = 10.0


class StreamRoute(_Section):
    """Which encoder reads a stream."""

    kind: str
    encoder: str | None = None
    window_s: float = 2.0


class Tokens(_Section):
    """Of the policy: number of tokens from each encoder."""

    tokens: int = 4


class Backend(_Section):
    """How the agent runs its encoders."""

    backend: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 1
    tolerance: float = 0.02


class FleetRoute(_Section):
    """Of the fleet: the key that signs its policies."""

    key: Path | None = None


class LearnerConfig(_Section):
    """The learner's part of the settings."""

    state_dir: Path
    device: str = "auto"
    tick: TickRate = TickRate()
    learner: LearnerSettings = LearnerSettings.model_validate({})
    experience: ExperienceSettings = ExperienceSettings.model_validate({})
    promotion: PromotionSettings = PromotionSettings.model_validate({})
    finetune: FinetuneSettings = FinetuneSettings.model_validate({})
    tasks: dict[str, TaskSettings] = {}
    encoders: dict[str, EncoderSettings] = {}
    streams: dict[str, StreamRoute] = {}
    policy: Tokens = Tokens()
    engine: Backend = Backend()
    fleet: FleetRoute | None = None


def write_learner_config(settings: Mapping[str, Any]) -> None:
    """Write the learner's part of the settings, and nothing else, where its process reads it: `state_dir/learner/settings.json`.

    Where streams come from stays out, because it may hold a password.
    """
    inputs = LearnerConfig.model_validate(settings)
    folder = inputs.state_dir / "learner"
    private_folder(folder)
    content = orjson.dumps(inputs.model_dump(mode="json"))
    write_atomically(folder / "settings.json", content, durable=False, mode=0o600)


def encoder_window_s(streams: Iterable[Any], encoder: str) -> float:
    """Return the longest window of the microphones that share an encoder; shorter ones are padded with silence.

    Args:
        streams: settings of streams, with `kind` and `encoder`; of a microphone also `window_s`.
        encoder: its name.
    """
    return max((s.window_s for s in streams if s.kind == "microphone" and s.encoder == encoder), default=2.0)
