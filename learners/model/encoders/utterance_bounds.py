"""Find the newest utterance in a sound and stretch it to a fixed length. Imports no torch; `utterance_encoder.py` explains the method.

Shapes: N samples, M mel bands, L frames (100 a second), T tokens, W = M + 2 their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
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


def utterance_tokens(
    samples_N: NDArray[np.float32], tokens: int, energies: Callable[[NDArray[np.float32]], NDArray[Any]]
) -> NDArray[np.float32]:
    """Return the tokens T,W of the newest utterance; zeros in silence.

    Args:
        samples_N: of the window.
        tokens: T.
        energies: computes the log-mel energies M,L of samples.
    """
    level_L = levels_db(samples_N)
    span = newest(utterances(level_L), len(level_L))
    if span is None:
        return np.zeros((tokens, MELS + 2), np.float32)
    energies_ML = np.asarray(energies(samples_N), np.float32)[:, span[0] : span[1]]
    extra_T2 = np.tile([(span[1] - span[0]) * HOP / RATE_HZ, 1.0], (tokens, 1))
    return np.hstack([stretched(energies_ML - energies_ML.mean(), tokens), extra_T2]).astype(np.float32)
