"""Encode sound without weights, as the modulation spectrum of the log-mel energies of a window.

The energy of every mel band over time is Fourier-transformed, and only the magnitudes are used: the rhythm of each band, and
not when the window began. So a word, once or repeated, has nearly the same tokens anywhere in the window. Modulation spectra as speech features: Greenberg & Kingsbury 1997, "The modulation spectrogram". The mel energies are
Whisper's (transformers' WhisperFeatureExtractor), which need no weights either.

Shapes: B batch, N samples, M mel bands, L frames (100 a second), F modulation frequencies, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from learners.model.encoders.bundled_packages import MODULATION
from learners.model.spec import Modality
from sensors.readings import Reading, Sound

NAME = MODULATION
RATE_HZ = 16_000
MELS = 40
"""Smallest number of bands; it is rounded up to a multiple of the number of tokens."""
FREQUENCIES = 24
"""From 0 up to about 12 Hz in a 2 s window: syllables come 4 to 8 a second."""


class ModulationSpectrum(nn.Module):
    """Log-mel energies B,M,L -> tokens B,T,W, each token a group of neighbouring mel bands."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, energies_BML: Tensor) -> Tensor:
        """Return magnitudes, compressed by log1p; the mean level of every band is the frequency 0."""
        window_L = torch.hann_window(energies_BML.shape[-1], device=energies_BML.device)
        level_BM1 = energies_BML.mean(-1, keepdim=True)
        spectrum_BMF = torch.fft.rfft((energies_BML - level_BM1) * window_L, dim=-1).abs()[..., 1:FREQUENCIES]
        out_BMF = torch.cat((level_BM1, torch.log1p(spectrum_BMF)), dim=-1)
        return out_BMF.reshape(len(out_BMF), self.tokens, -1)


class ModulationEncoder:
    """An `Encoder` for hearing; see `learners.model.encoders.base`.

    Args:
        tokens: groups of mel bands.
        window_s: seconds heard at once; shorter sounds are padded with silence in front.
    """

    modality: Modality = "audio"

    def __init__(self, tokens: int, window_s: float) -> None:
        self.bands = -(-MELS // tokens) * tokens
        self.tokens, self.width = tokens, self.bands // tokens * FREQUENCIES
        self.samples = round(window_s * RATE_HZ)
        self.module: nn.Module | None = None  # a Fourier transform: nothing to convert, a fraction of a millisecond
        self._extract: Any = WhisperFeatureExtractor(  # type: ignore[no-untyped-call]
            feature_size=self.bands, sampling_rate=RATE_HZ
        )
        self.run: Callable[..., Tensor] = ModulationSpectrum(tokens)
        self.version = hashlib.sha256(
            f"{NAME} 1 {tokens} {self.samples} {self.bands} {FREQUENCIES}".encode()
        ).hexdigest()[:16]

    def prepare(self, readings: Sequence[Reading]) -> tuple[Tensor, ...]:
        """Compute log-mel energies B,M,L of the last window of each sound."""
        sounds = [fitted(reading, self.samples) for reading in readings]
        features = self._extract(sounds, sampling_rate=RATE_HZ, padding=False, return_tensors="np").input_features
        return (torch.from_numpy(np.asarray(features, np.float32)),)

    def encode(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return tokens B,T,W float32."""
        return self.run(*inputs)

    def examples(self) -> list[tuple[Tensor, ...]]:
        """Return one window of silence."""
        return [(torch.zeros(1, self.bands, self.samples // 160),)]

    def load_state(self, state: object) -> None:
        """Refuse any weights, because this encoder has none.

        Raises:
            ValueError: a checkpoint claims weights for it.
        """
        raise ValueError(f"{NAME} has no weights, but the checkpoint contains some: {type(state).__name__}")


def fitted(reading: Reading, samples: int) -> NDArray[np.float32]:
    """Return the newest `samples` of a sound, with silence in front where it is shorter.

    Raises:
        TypeError: the reading is not a sound.
    """
    if not isinstance(reading, Sound):
        raise TypeError(f"{reading.stream}: a sound is needed, not {type(reading).__name__}")
    newest = reading.samples[-samples:]
    return np.pad(newest, (samples - len(newest), 0)).astype(np.float32)
