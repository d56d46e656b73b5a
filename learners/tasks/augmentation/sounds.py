"""Change sounds: another speed, another loudness with noise, and masks of frequencies and times (SpecAugment).

Shapes: N samples, M mels, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPEED, GAIN_DB, NOISE_DB = 0.15, 6.0, (20.0, 50.0)
MASKS = 2
"""Masks of frequencies, and as many of times."""
WIDEST = 0.15
"""Share of the frequencies or times that one mask covers at most."""


def changed(
    samples_N: NDArray[np.float32], rng: np.random.Generator, window: int, names: Collection[str]
) -> tuple[NDArray[np.float32], int, int]:
    """Return a sound that is changed by the named augmentations, at a random place in a window of silence; and where it begins and ends.

    `speed` makes it faster or slower (and so higher or deeper, as another speaker); `noise` makes it louder or softer, with noise.
    """
    moved_N = samples_N
    if "speed" in names:
        speed = 1 + rng.uniform(-SPEED, SPEED)
        at_N = np.arange(0, len(samples_N) - 1, speed)
        moved_N = np.interp(at_N, np.arange(len(samples_N)), samples_N).astype(np.float32)
    noise_db: float | None = None
    if "noise" in names:
        moved_N = moved_N * np.float32(10 ** (rng.uniform(-GAIN_DB, GAIN_DB) / 20))
        noise_db = float(rng.uniform(*NOISE_DB))
    room = max(0, window - len(moved_N))
    out_N = np.zeros(max(window, len(moved_N)), np.float32)
    start = int(rng.integers(0, room + 1)) if room else 0
    out_N[start : start + len(moved_N)] = moved_N
    if noise_db is not None:
        level = float(np.sqrt(np.mean(moved_N**2)) + 1e-6) * 10 ** (-noise_db / 20)
        out_N += rng.standard_normal(len(out_N)).astype(np.float32) * np.float32(level)
    return out_N, start, start + len(moved_N)


def masked(
    features: Tensor, rng: np.random.Generator, heard: tuple[float, float] = (0.0, 1.0), *, time_axis: int = -1
) -> Tensor:
    """Return features of a sound with masks (Park et al. 2019): of frequencies and times in [M, T] or [T, M], of times in samples [N].

    A mask has the mean of the sound's features: extractors normalise sounds, so zero means loud or silent by the model.

    Args:
        features: of a window.
        rng: draws the masks.
        heard: where in the window the sound begins and ends, from 0 to 1. The rest is silence that fills the window, and masks of times
            lie and are measured in the sound.
        time_axis: of the features.
    """
    made, time_axis = features.clone(), time_axis % features.dim()
    frames = made.shape[time_axis]
    first = max(0, min(int(heard[0] * frames), frames - 1))
    count = max(1, min(frames, math.ceil(heard[1] * frames)) - first)
    mean = features.narrow(time_axis, first, count).mean()
    for axis in range(made.dim()):
        begin, size = (first, count) if axis == time_axis else (0, made.shape[axis])
        for _ in range(MASKS):
            width = int(rng.integers(0, int(WIDEST * size) + 1))
            start = begin + int(rng.integers(0, max(1, size - width + 1)))
            made.narrow(axis, start, width).copy_(torch.broadcast_to(mean, made.narrow(axis, start, width).shape))
    return made
