"""Statistics of a dataset's columns, as LeRobotDataset v3.0 keeps them: of each episode, and of all together.

Knows columns of numbers and of encoded pictures, and no file.

Shapes: N frames, A components.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SAMPLED = 32
"""Pictures of an episode that its statistics are made of."""
QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)

Column = NDArray[Any] | list[bytes]
Stats = dict[str, dict[str, Any]]


def statistics(column: Column) -> dict[str, Any]:
    """Compute min, max, mean, std, quantiles and count of one episode, by component (images: by channel, 3,1,1 in [0, 1])."""
    if isinstance(column, list):
        step = max(1, len(column) // SAMPLED)
        return _of_pictures(column[::step])
    x_NA = np.asarray(column, np.float64).reshape(len(column), -1)
    return _figures(x_NA, list) | {"count": [len(column)]}


def _of_pictures(pictures: Sequence[bytes]) -> dict[str, Any]:
    pixels: list[NDArray[np.float64]] = []
    for data in pictures:
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((150, 150))  # as the format's own statistics: no picture is looked at in full size
            pixels.append(np.asarray(image.convert("RGB"), np.float64).reshape(-1, 3) / 255)
    return _figures(np.concatenate(pixels), lambda x: [[[v]] for v in x]) | {"count": [len(pictures)]}


def _figures(x_NA: NDArray[np.float64], shaped: Any) -> dict[str, Any]:
    out = {"min": x_NA.min(0), "max": x_NA.max(0), "mean": x_NA.mean(0), "std": x_NA.std(0)}
    out |= {f"q{round(q * 100):02d}": x for q, x in zip(QUANTILES, np.quantile(x_NA, QUANTILES, axis=0), strict=True)}
    return {name: shaped(x.tolist()) for name, x in out.items()}


def merged(episodes: Sequence[Stats]) -> Stats:
    """Merge the statistics of all episodes: exact, except the quantiles, which are means of the episodes' by count."""
    out: Stats = {}
    for name in episodes[0] if episodes else ():
        parts = [episode[name] for episode in episodes]
        counts = np.array([part["count"][0] for part in parts], np.float64)
        arrays = {what: np.array([part[what] for part in parts], np.float64) for what in parts[0] if what != "count"}
        weights = (counts / counts.sum()).reshape(-1, *itertools.repeat(1, arrays["mean"].ndim - 1))
        mean = (weights * arrays["mean"]).sum(0)
        spread = (weights * (arrays["std"] ** 2 + (arrays["mean"] - mean) ** 2)).sum(0)
        figures = {what: (weights * x).sum(0) for what, x in arrays.items() if what.startswith("q")}
        figures |= {"min": arrays["min"].min(0), "max": arrays["max"].max(0), "mean": mean, "std": np.sqrt(spread)}
        out[name] = {what: x.tolist() for what, x in figures.items()} | {"count": [int(counts.sum())]}
    return out
