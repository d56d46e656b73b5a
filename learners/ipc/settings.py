"""Pass the settings that the learner needs, as JSON: the learner knows no YAML and no other settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict

from learners.config.learner import LearnerSettings, PromotionSettings
from learners.config.policy import EncoderSettings
from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.files import private_folder, write_atomically
from sensors.config import MicrophoneSettings, StreamSettings

DEFAULT_WINDOW_S = 2.0
"""Of an encoder that reads no microphone."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TickRate(_Section):
    """Of the tick."""

    rate_hz: float = 10.0


class StreamRoute(_Section):
    """Which encoder reads a stream."""

    kind: str
    encoder: str | None = None
    window_s: float = DEFAULT_WINDOW_S


class Tokens(_Section):
    """Of the policy: number of tokens from each encoder."""

    tokens: int = 4


class Backend(_Section):
    """How the agent runs its encoders."""

    backend: Literal["auto", "torch", "openvino", "onnxruntime"] = "auto"
    threads: int = 1
    tolerance: float = 0.02


class FleetRoute(_Section):
    """Of the fleet: the key that signs its policies, and what this device trains itself."""

    key: Path | None = None
    local: Literal["all", "head", "none"] = "all"


class LearnerConfig(_Section):
    """The learner's part of the settings."""

    state_dir: Path
    device: str = "auto"
    tick: TickRate = TickRate()
    learner: LearnerSettings = LearnerSettings.model_validate({})
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


def encoder_window_s(streams: Iterable[StreamRoute | StreamSettings], encoder: str) -> float:
    """Return the longest window in seconds of the microphones that share an encoder; shorter ones are padded with silence.

    Args:
        streams: the streams, as the learner or the agent has them.
        encoder: its name.
    """
    windows_s = (
        stream.window_s
        for stream in streams
        if stream.encoder == encoder
        and (
            isinstance(stream, MicrophoneSettings) or (isinstance(stream, StreamRoute) and stream.kind == "microphone")
        )
    )
    return max(windows_s, default=DEFAULT_WINDOW_S)
