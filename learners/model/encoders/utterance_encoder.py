"""Encode the newest utterance in the sound window, stretched to a fixed length; the encoder has no weights.

The energy marks the endpoints of speech (Rabiner & Sambur 1975, "An Algorithm for Determining the Endpoints of Isolated
Utterances"). The time between the endpoints is divided into one equal part for each token, and the log-mel energies are averaged
in each part. This is linear time normalisation, as in recognisers of isolated words (Rabiner & Juang 1993, "Fundamentals of
Speech Recognition", 4.7.1). A word has nearly the same tokens anywhere in the window, at any loudness and speed. An incomplete
word is used only if the window has no earlier complete one.

Use it for short commands between pauses; it does not find words in fluent speech or in a loud and changing background. The
mel energies are those of Whisper (transformers' WhisperFeatureExtractor), which need no weights.

Shapes: B batch, N samples, M mel bands, L frames (100 a second), T tokens, W = M + 2 their width.
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

from learners.model.encoders.bundled_packages import UTTERANCE
from learners.model.encoders.modulation_spectrum import RATE_HZ, fitted
from learners.model.encoders.utterance_bounds import MELS, utterance_tokens
from learners.model.spec import Modality
from sensors.readings import Reading

NAME = UTTERANCE


class UtteranceEncoder:
    """An `Encoder` for hearing; see `learners.model.encoders.base`.

    A token is a stretch's mel energies less the utterance's mean, its length in seconds, and 1; in silence all are 0.

    Args:
        tokens: stretches of the utterance.
        window_s: seconds heard at once; shorter sounds are padded with silence in front.
    """

    modality: Modality = "audio"

    def __init__(self, tokens: int, window_s: float) -> None:
        self.tokens, self.width = tokens, MELS + 2
        self.samples = round(window_s * RATE_HZ)
        self.module: nn.Module | None = None  # arithmetic on a few thousand numbers: nothing to convert
        self._extract: Any = WhisperFeatureExtractor(  # type: ignore[no-untyped-call]
            feature_size=MELS, sampling_rate=RATE_HZ
        )
        self.run: Callable[..., Tensor] = nn.Identity()
        self.version = hashlib.sha256(f"{NAME} 1 {tokens} {self.samples} {MELS}".encode()).hexdigest()[:16]

    def prepare(self, readings: Sequence[Reading]) -> tuple[Tensor, ...]:
        """Compute tokens B,T,W of the newest utterance of each sound."""
        return (torch.from_numpy(np.stack([self._tokens(fitted(reading, self.samples)) for reading in readings])),)

    def _tokens(self, samples_N: NDArray[np.float32]) -> NDArray[np.float32]:
        return utterance_tokens(samples_N, self.tokens, self._energies)

    def _energies(self, samples_N: NDArray[np.float32]) -> NDArray[Any]:
        features = self._extract([samples_N], sampling_rate=RATE_HZ, padding=False, return_tensors="np").input_features
        return np.asarray(features[0])

    def encode(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return tokens B,T,W float32."""
        return self.run(*inputs)

    def examples(self) -> list[tuple[Tensor, ...]]:
        """Return one window of silence."""
        return [(torch.zeros(1, self.tokens, self.width),)]

    def load_state(self, state: object) -> None:
        """Refuse any weights, because this encoder has none.

        Raises:
            ValueError: a checkpoint claims weights for it.
        """
        raise ValueError(f"{NAME} has no weights, but the checkpoint contains some: {type(state).__name__}")
