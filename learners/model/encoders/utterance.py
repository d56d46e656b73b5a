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
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from learners.model.encoders.modulation_spectrum import RATE_HZ, fitted
from learners.model.encoders.packages import UTTERANCE
from learners.model.spec import Modality
from sensors.readings import Reading

NAME = UTTERANCE
MELS = 40
HOP = 160
QUIET = 1e-6
"""Power of -60 dB of full scale: quieter sounds are all alike."""
FLOOR = 10
"""Percentile of the frames' levels that counts as the background."""
AUDIBLE_DB = 12.0
"""Less range than this between background and loudest frame is no speech."""
ABOVE = (6.0, 0.35)
"""Threshold of speech above the background: dB, and a share of the range; the larger one applies."""
PAUSE = 15
"""Frames of silence that end an utterance; shorter ones are closures within a word, as before the t of rocket."""
SHORTEST = 10
"""Frames; anything shorter is a click."""

Span = tuple[int, int]


def levels_db(samples_N: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the level of each frame in dB, L."""
    frames = len(samples_N) // HOP
    power_L = np.square(samples_N[: frames * HOP], dtype=np.float64).reshape(frames, HOP).mean(1)
    return np.asarray(10.0 * np.log10(np.maximum(power_L, QUIET)))


def utterances(level_L: NDArray[np.float64]) -> list[Span]:
    """List the first frame and the one after the last of every utterance, in the order of time."""
    floor, peak = float(np.percentile(level_L, FLOOR)), float(level_L.max())
    if peak - floor < AUDIBLE_DB:
        return []
    speech_L = level_L > floor + max(ABOVE[0], ABOVE[1] * (peak - floor))
    edges = np.flatnonzero(np.diff(np.concatenate(([0], speech_L.astype(np.int8), [0]))))
    spans: list[Span] = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if spans and start - spans[-1][1] < PAUSE:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return [span for span in spans if span[1] - span[0] >= SHORTEST]


def newest(spans: Sequence[Span], frames: int) -> Span | None:
    """Return the last complete utterance; where there is none, the longest part of one; None in silence."""
    whole = [(start, end) for start, end in spans if start > 0 and end + PAUSE <= frames]
    if whole:
        return whole[-1]
    return max(spans, key=lambda span: span[1] - span[0], default=None)


def stretched(energies_ML: NDArray[np.float32], tokens: int) -> NDArray[np.float32]:
    """Average over `tokens` equal stretches, T,M; a stretch shorter than a frame takes its frame."""
    edges = np.linspace(0, energies_ML.shape[1], tokens + 1)
    spans = [(int(low), max(int(low) + 1, int(np.ceil(high)))) for low, high in pairwise(edges)]
    return np.stack([energies_ML[:, low:high].mean(1) for low, high in spans])


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
        level_L = levels_db(samples_N)
        span = newest(utterances(level_L), len(level_L))
        if span is None:
            return np.zeros((self.tokens, self.width), np.float32)
        features = self._extract([samples_N], sampling_rate=RATE_HZ, padding=False, return_tensors="np").input_features
        energies_ML = np.asarray(features[0], np.float32)[:, span[0] : span[1]]
        extra_T2 = np.tile([(span[1] - span[0]) * HOP / RATE_HZ, 1.0], (self.tokens, 1))
        return np.hstack([stretched(energies_ML - energies_ML.mean(), self.tokens), extra_T2]).astype(np.float32)

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
        raise ValueError(f"{NAME} has no weights, but the checkpoint brings some: {type(state).__name__}")
