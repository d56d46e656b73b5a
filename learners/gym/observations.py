"""Convert observations of a gymnasium environment to the policy's features.

Pictures go through a pretrained encoder, one at a time; vectors are telemetry as they are.

Shapes: H history, T tokens of a stream, W their width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from actuators.sim.gym_spaces import (
    PICTURE_ENCODER,
    PICTURE_HISTORY,
    action_space,
    fields,
    is_picture,
    split,
    streams,
    vector,
    width,
)
from learners.config.policy import EncoderSettings, PolicySettings
from learners.model.encoders.base import Encoder
from learners.model.encoders.pretrained import load
from learners.model.features import Features
from learners.model.spec import Algorithm, PolicySpec, StreamSpec, encoder_name
from sensors.readings import Frame

Tokens = Mapping[str, NDArray[Any]]
"""Of one frame: [T, W] of each stream."""


class ObservationEncoder:
    """Makes tokens of observations.

    Args:
        space: of the observations.
        encoder: for pictures; by default the bundled one, loaded only where there are any.
    """

    def __init__(self, space: spaces.Space[Any], encoder: Encoder | None = None) -> None:
        self.space, self.streams = space, streams(space)
        self.pictures = any(is_picture(part) for part in self.streams.values())
        if self.pictures and encoder is None:
            encoder = load(EncoderSettings(model=PICTURE_ENCODER), PolicySettings().tokens, torch.device("cpu"))
        self.encoder = encoder

    def specify(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        gamma: float,
        algorithm: Algorithm,
        width: int = 256,
        hidden: tuple[int, ...] = (256, 256),
    ) -> PolicySpec:
        """Return the spec of a policy for an environment: one state is enough unless there are pictures."""
        return PolicySpec(
            tuple(self._stream(name, space) for name, space in self.streams.items()),
            action_space(env.action_space),
            width=width,
            hidden=hidden,
            history=PICTURE_HISTORY if self.pictures else 1,
            gamma=gamma,
            algorithm=algorithm,
        )

    def _stream(self, name: str, space: spaces.Space[Any]) -> StreamSpec:
        if is_picture(space):
            assert self.encoder is not None
            return StreamSpec(
                name, "image", self.encoder.tokens, self.encoder.width, encoder=encoder_name(PICTURE_ENCODER)
            )
        return StreamSpec(name, "telemetry", 1, width(space), fields=fields(space))

    @property
    def encoder_versions(self) -> dict[str, str]:
        """The encoder's version, by the streams that it encodes."""
        pictures = [name for name, space in self.streams.items() if is_picture(space)]
        return {} if self.encoder is None else dict.fromkeys(pictures, self.encoder.version)

    def tokens(self, observation: Any) -> Tokens:
        """Return one frame."""
        parts = split(self.space, observation)
        return {name: self._tokens(name, space, parts[name]) for name, space in self.streams.items()}

    def _tokens(self, name: str, space: spaces.Space[Any], value: Any) -> NDArray[Any]:
        if not is_picture(space):
            return vector(space, value)
        assert self.encoder is not None
        image = np.repeat(value, 3, axis=2) if value.shape[2] == 1 else np.array(value)
        tokens_BTW = self.encoder.encode(self.encoder.prepare([Frame(name, 0.0, 0, image)]))
        return tokens_BTW[0].numpy().astype(np.float16)


class FrameWindow:
    """The newest frames of one episode."""

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec
        self._frames: deque[Tokens] = deque(maxlen=spec.history)

    def restart(self) -> None:
        """Forget, at the start of an episode."""
        self._frames.clear()

    def remember(self, frame: Tokens) -> Self:
        """Take in the newest frame."""
        self._frames.append(frame)
        return self

    def features(self) -> Features:
        """Return features [1, H]; the first frame of an episode replaces the missing earlier ones."""
        history = self.spec.history
        frames = list(self._frames)
        missing = history - len(frames)
        frames = [frames[0]] * missing + frames
        tokens = {
            s.name: torch.from_numpy(np.stack([f[s.name] for f in frames])).float().unsqueeze(0)
            for s in self.spec.streams
        }
        present_1HS = torch.ones(1, history, len(self.spec.streams), dtype=torch.bool)
        return Features(tokens, present_1HS, torch.zeros(present_1HS.shape))
