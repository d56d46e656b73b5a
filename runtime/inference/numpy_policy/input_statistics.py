"""Normalise telemetry for untrained weights, by statistics of what this agent has seen.

A version brings the statistics that belong to it. Untrained weights have none, and ordinary telemetry (1013 hPa, encoder ticks)
would drive every action to its limit. Belongs to the inference thread. The arithmetic is that of `learners.model.normalizer`,
number for number. Shapes: N rows, W width of a stream.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.model.spec import PolicySpec
from runtime.inference.numpy_policy.history import Fuse, TickFeatures

PREFIX = "statistics/"
MEMORY = 1_000
"""Readings that the statistics remember: no weights depend on them yet, so they may follow quickly."""
CLIP, EPS = 10.0, np.float32(1e-6)
LARGEST = np.float32(1e18)
"""Larger readings count as this: their squares would be infinite, and every later decision not a number."""
KEYS = ("count", "mean", "scatter")


def normalised(
    x: NDArray[np.float32], count: float, mean_W: NDArray[np.float32], scatter_W: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Normalise the last dimension and clip to +-10; without any rows, return `x`."""
    if count <= 0:
        return x
    deviation_W = np.sqrt(scatter_W / np.float32(max(count, 1.0)) + EPS)
    normal: NDArray[np.float32] = np.minimum(
        np.maximum((x - mean_W) / deviation_W, np.float32(-CLIP)), np.float32(CLIP)
    )
    return normal  # `np.clip` takes five times as long


@dataclass(slots=True)
class RunningStatistics:
    """Mean and scatter of each of W numbers (Welford 1962, merged by Chan et al. 1983)."""

    width: int
    count: float = 0.0
    mean: NDArray[np.float32] = field(init=False)
    scatter: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.scatter = np.zeros(self.width, np.float32), np.zeros(self.width, np.float32)

    def observe(self, x_W: NDArray[np.float32]) -> None:
        """Merge one row; earlier rows lose weight so that all together count as `MEMORY` at most."""
        remaining = min(self.count, MEMORY - 1.0)
        if remaining < self.count:
            self.scatter = self.scatter * np.float32(remaining / self.count)
        total = remaining + 1.0
        shift_W = np.clip(x_W, -LARGEST, LARGEST) - self.mean
        self.scatter = self.scatter + np.square(shift_W) * np.float32(remaining / total)
        self.mean = self.mean + shift_W * np.float32(1.0 / total)
        self.count = total


class InputStatistics:
    """Running statistics of every telemetry stream.

    Args:
        spec: names the streams.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self._names = spec.names
        self._by_stream = {s.name: RunningStatistics(s.width) for s in spec.telemetry}
        self.enabled = True
        """False while a recording is replayed that was made without statistics."""

    def observe(self, features: TickFeatures, fresh: Collection[str]) -> None:
        """Merge the fresh readings of this tick."""
        if self.enabled:
            for name, statistics in self._by_stream.items():
                if name in fresh:
                    statistics.observe(features.tokens[name].reshape(-1))

    def applied_to(self, fuse: Fuse) -> Fuse:
        """Return `fuse` on normalised telemetry."""

        def run(
            present_BS: NDArray[np.bool_], ages_BS: NDArray[np.float32], *tokens: NDArray[np.float32]
        ) -> NDArray[np.float32]:
            if not self.enabled:
                return fuse(present_BS, ages_BS, *tokens)
            normal = (self._applied(name, x) for name, x in zip(self._names, tokens, strict=True))
            return fuse(present_BS, ages_BS, *normal)

        return run

    def _applied(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        one = self._by_stream.get(name)
        return x if one is None else normalised(x, one.count, one.mean, one.scatter)

    def by_stream(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return the statistics of each telemetry stream under the names that a policy has for them; none while disabled."""
        if not self.enabled:
            return {}
        return {
            name: {"count": np.array(one.count), "mean": one.mean.copy(), "scatter": one.scatter.copy()}
            for name, one in self._by_stream.items()
        }

    def pack(self) -> dict[str, NDArray[Any]]:
        """Return the statistics as named arrays."""
        return {
            f"{PREFIX}{name}/{key}": value
            for name, one in self._by_stream.items()
            for key, value in {
                "count": np.array(one.count), "mean": one.mean.copy(), "scatter": one.scatter.copy()
            }.items()
        }  # fmt: skip

    def unpack(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Restore what `pack` returned; recordings of before 0.1.0 have no statistics, and were made without.

        Raises:
            KeyError: a number of a stream is missing.
        """
        self.enabled = any(name.startswith(PREFIX) for name in rows) or not self._by_stream
        if self.enabled:
            for name, one in self._by_stream.items():
                count, mean_W, scatter_W = (rows[f"{PREFIX}{name}/{key}"] for key in KEYS)
                one.count, one.mean, one.scatter = float(count), mean_W.copy(), scatter_W.copy()
