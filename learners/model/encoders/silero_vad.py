"""Silero's voice activity detector as a transformers model: how likely each 32 ms of 16 kHz sound is speech.

The network of silero-vad 6 as its package describes it: a short-time Fourier transform by convolution, four convolutions,
one LSTM cell, a sigmoid. Frames are 512 samples; each is seen with the 64 samples before it.

Shapes: B batch, N samples, F frames of 512 samples.
"""

# transformers is typed in parts only
# mypy: disable-error-code="no-untyped-call,no-any-return"
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

FRAME, CONTEXT, RATE_HZ = 512, 64, 16_000


class SileroVadConfig(PreTrainedConfig):
    """The configuration; the sizes are fixed by the trained network."""

    model_type = "silero_vad"


class SileroVadModel(PreTrainedModel):
    """Sound B,N -> probability of speech B,F; silence fills the last frame."""

    config_class = SileroVadConfig
    main_input_name = "input_values"

    def __init__(self, config: SileroVadConfig) -> None:
        super().__init__(config)
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)
        self.post_init()

    def forward(self, input_values: Tensor, **_: Any) -> Tensor:
        """Compute the probabilities of speech, frame by frame, starting from silence."""
        padded_BN = F.pad(input_values, (CONTEXT, -input_values.shape[-1] % FRAME))
        windows_BFN = padded_BN.unfold(-1, CONTEXT + FRAME, FRAME)
        return self.step(windows_BFN, self.silent(len(windows_BFN)))[0]

    def silent(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the state after silence, for `step`."""
        zeros_BC = self.final_conv.weight.new_zeros(batch, 128)
        return zeros_BC, zeros_BC

    def step(self, windows_BFN: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Compute the probabilities of speech B,F of frames with their context B,F,576; return them and the state after them."""
        batch, frames = windows_BFN.shape[:2]
        features_BFC = self._features(windows_BFN.flatten(0, 1)).unflatten(0, (batch, frames))
        speech: list[Tensor] = []
        for features_BC in features_BFC.unbind(1):
            state = self.lstm_cell(features_BC, state)
            speech.append(self.final_conv(F.relu(state[0]).unsqueeze(-1)).sigmoid().flatten())
        return torch.stack(speech, dim=1), state

    def _features(self, windows_BN: Tensor) -> Tensor:
        x = self.stft_conv(F.pad(windows_BN.unsqueeze(1), (0, CONTEXT), "reflect"))
        real, imaginary = x.chunk(2, dim=1)
        x = (real.square() + imaginary.square()).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(conv(x))
        return x.squeeze(-1)


def register() -> None:
    """Make the Auto classes of transformers know this model; repeated calls do nothing."""
    AutoConfig.register("silero_vad", SileroVadConfig, exist_ok=True)
    AutoModel.register(SileroVadConfig, SileroVadModel, exist_ok=True)


def convert(weights: Path, folder: Path) -> None:
    """Write a transformers folder from the package's safetensors file."""
    model = SileroVadModel(SileroVadConfig())
    model.load_state_dict(load_file(weights))
    model.save_pretrained(folder)
