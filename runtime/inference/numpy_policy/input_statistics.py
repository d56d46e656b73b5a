"""Normalise telemetry for untrained weights, by statistics of what this agent has seen.

A version brings the statistics that belong to it. Untrained weights have none, and ordinary telemetry (1013 hPa, encoder ticks)
would drive every action to its limit. Belongs to the inference thread. The arithmetic is that of `learners.model.normalizer`,
number for number. Shapes: S streams of one width, B batch, T tokens of a stream, W its width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.model.spec import PolicySpec
from runtime.inference.numpy_policy.history import Fuse, TickFeatures

PREFIX = "statistics/"
MEMORY = 1_000
"""Readings that the statistics remember: no weights depend on them yet, so they may follow quickly."""
UNSEEN = np.float32(1e6)
"""Limit of a number before any was observed: squares and products of it stay finite."""
CLIP, EPS, RESOLUTION = 10.0, np.float32(1e-24), np.float32(2.0**-18)
FARTHEST, FARTHEST_AFTER = np.float32(30.0), 16
"""Deviations beyond which a number counts as this far, and the readings after which the deviation is known. Of these first ones, the
farthest from the middle has no part in the deviation by which they are judged."""
LARGEST = np.float32(1e16)
"""Larger readings count as this: the sum of their squares would be infinite, and hide the signal for ever."""
KEYS = ("count", "mean", "scatter")
FIRST = "first"
"""Key of the first readings of a stream, as long as it has no more than these."""


def normalised(
    x: NDArray[np.float32], count: float, mean_W: NDArray[np.float32], scatter_W: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Normalise the last dimension and clip to +-10; without any rows, limit `x` to +-1e6."""
    if count <= 0:
        limited: NDArray[np.float32] = np.minimum(np.maximum(x, -UNSEEN), UNSEEN)
        return limited
    deviation_W = _deviation(scatter_W / np.float32(max(count, 1.0)), mean_W)
    normal: NDArray[np.float32] = np.minimum(
        np.maximum((x - mean_W) / deviation_W, np.float32(-CLIP)), np.float32(CLIP)
    )
    return normal  # `np.clip` takes five times as long


class RunningStatistics:
    """Mean and scatter of each of W numbers of S streams (Welford 1962, merged by Chan et al. 1983).

    All streams of one width are one array: a tick makes the same calls of numpy for one stream and for a hundred.
    """

    def __init__(self, streams: int, width: int) -> None:
        self.count_S = np.zeros(streams)
        self.mean_SW, self.scatter_SW = (np.zeros((streams, width), np.float32) for _ in range(2))
        self.first_NSW = np.zeros((FARTHEST_AFTER, streams, width), np.float32)
        """The first readings of each stream; later ones are not stored."""
        self._deviation_SW: NDArray[np.float32] | None = None
        """Of these statistics; None until it is needed."""

    def observe(self, x_SW: NDArray[np.float32], fresh_S: NDArray[np.bool_]) -> None:
        """Merge one row of each fresh stream; earlier rows lose weight so that all together count as `MEMORY` at most."""
        remaining_S = np.minimum(self.count_S, MEMORY - 1.0)
        shrunk_S = np.divide(remaining_S, self.count_S, out=np.ones_like(remaining_S), where=self.count_S > 0)
        total_S = remaining_S + 1.0
        x_SW = np.clip(x_SW, -LARGEST, LARGEST)
        is_new_S = fresh_S & (self.count_S < FARTHEST_AFTER)
        if is_new_S.any():
            self.first_NSW[self.count_S[is_new_S].astype(int), is_new_S] = x_SW[is_new_S]
        shift_SW = x_SW - self.mean_SW
        reach_SW = np.where(_column(self.count_S) >= FARTHEST_AFTER, FARTHEST * self._deviations(), np.float32(np.inf))
        shift_SW = np.minimum(np.maximum(shift_SW, -reach_SW), reach_SW)
        old_SW = self.scatter_SW * _column(shrunk_S)
        scatter_SW = old_SW + np.square(shift_SW) * _column(remaining_S / total_S)
        mean_SW = self.mean_SW + shift_SW * _column(1.0 / total_S)
        if not fresh_S.all():
            scatter_SW = np.where(fresh_S[:, None], scatter_SW, self.scatter_SW)
            mean_SW = np.where(fresh_S[:, None], mean_SW, self.mean_SW)
            total_S = np.where(fresh_S, total_S, self.count_S)
        for stream in np.flatnonzero(is_new_S & (total_S == FARTHEST_AFTER)):
            mean_SW[stream], scatter_SW[stream] = _of_first(self.first_NSW[:, stream])
        self.restore(total_S, mean_SW, scatter_SW)

    def restore(
        self,
        count_S: NDArray[Any],
        mean_SW: NDArray[np.float32],
        scatter_SW: NDArray[np.float32],
        first_NSW: NDArray[np.float32] | None = None,
    ) -> None:
        """Continue from these numbers; without the first readings, from those that are known."""
        self.first_NSW = self.first_NSW if first_NSW is None else first_NSW
        self.count_S, self.mean_SW, self.scatter_SW, self._deviation_SW = count_S, mean_SW, scatter_SW, None

    def normalised(self, x_SBTW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalise the last dimension as `normalised` does."""
        mean_SBTW, deviation_SBTW = self.mean_SW[:, None, None], self._deviations()[:, None, None]
        normal_SBTW: NDArray[np.float32] = np.minimum(
            np.maximum((x_SBTW - mean_SBTW) / deviation_SBTW, np.float32(-CLIP)), np.float32(CLIP)
        )
        is_known_S = self.count_S > 0
        if is_known_S.all():
            return normal_SBTW
        limited_SBTW: NDArray[np.float32] = np.minimum(np.maximum(x_SBTW, -UNSEEN), UNSEEN)
        found: NDArray[np.float32] = np.where(is_known_S[:, None, None, None], normal_SBTW, limited_SBTW)
        return found

    def _deviations(self) -> NDArray[np.float32]:
        if self._deviation_SW is None:
            var_SW = self.scatter_SW / _column(np.maximum(self.count_S, 1.0))
            self._deviation_SW = _deviation(var_SW, self.mean_SW)
        return self._deviation_SW


def _of_first(x_NW: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and scatter of the first readings, with one that is far from the others as far as may be."""
    middle_W = np.median(x_NW, axis=0).astype(np.float32)
    var_W = np.sort(np.square(x_NW - middle_W), axis=0)[:-1].mean(0, dtype=np.float32)
    reach_W = FARTHEST * _deviation(var_W, middle_W)
    x_NW = np.minimum(np.maximum(x_NW, middle_W - reach_W), middle_W + reach_W)
    mean_W = x_NW.mean(0, dtype=np.float32)
    return mean_W, np.square(x_NW - mean_W).sum(0, dtype=np.float32)


def _deviation(var: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.sqrt(var + (EPS + np.square(RESOLUTION * mean)))
    return found


def _column(values_S: NDArray[np.float64]) -> NDArray[np.float32]:
    return values_S.astype(np.float32)[:, None]


class InputStatistics:
    """Running statistics of every telemetry stream.

    Args:
        spec: names the streams.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self._names = spec.names
        by_width: dict[int, list[str]] = {}
        for stream in spec.telemetry:
            by_width.setdefault(stream.width, []).append(stream.name)
        self._groups = [(names, RunningStatistics(len(names), width)) for width, names in by_width.items()]
        self._places = {name: (one, row) for names, one in self._groups for row, name in enumerate(names)}
        self._telemetry = tuple(stream.name for stream in spec.telemetry)
        self.enabled = True
        """False while a recording is replayed that was made without statistics."""

    def observe(self, features: TickFeatures, fresh: Collection[str]) -> None:
        """Merge the fresh readings of this tick."""
        if not self.enabled:
            return
        for names, statistics in self._groups:
            fresh_S = np.fromiter((name in fresh for name in names), bool, len(names))
            if fresh_S.any():
                statistics.observe(np.concatenate([features.tokens[name] for name in names], axis=1)[0], fresh_S)

    def applied_to(self, fuse: Fuse) -> Fuse:
        """Return `fuse` on normalised telemetry."""

        def run(
            present_BS: NDArray[np.bool_], ages_BS: NDArray[np.float32], *tokens: NDArray[np.float32]
        ) -> NDArray[np.float32]:
            if not self.enabled:
                return fuse(present_BS, ages_BS, *tokens)
            by_name = dict(zip(self._names, tokens, strict=True))
            for names, statistics in self._groups:
                normal_SBTW = statistics.normalised(np.stack([by_name[name] for name in names]))
                by_name.update(zip(names, normal_SBTW, strict=True))
            return fuse(present_BS, ages_BS, *by_name.values())

        return run

    def by_stream(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return the statistics of each telemetry stream under the names that a policy has for them; none while disabled."""
        if not self.enabled:
            return {}
        return {name: self._of(name) for name in self._telemetry}

    def _of(self, name: str) -> dict[str, NDArray[Any]]:
        one, row = self._places[name]
        return {
            "count": np.array(float(one.count_S[row])),
            "mean": one.mean_SW[row].copy(),
            "scatter": one.scatter_SW[row].copy(),
        }

    def _first_of(self, name: str) -> dict[str, NDArray[Any]]:
        one, row = self._places[name]
        return {FIRST: one.first_NSW[:, row].copy()} if 0 < one.count_S[row] < FARTHEST_AFTER else {}

    def pack(self) -> dict[str, NDArray[Any]]:
        """Return the statistics as named arrays."""
        return {
            f"{PREFIX}{name}/{key}": value
            for name in self._telemetry
            for key, value in (self._of(name) | self._first_of(name)).items()
        }

    def unpack(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Restore what `pack` returned; recordings of before 0.1.0 have no statistics, and were made without.

        Raises:
            KeyError: a number of a stream is missing.
        """
        self.enabled = any(name.startswith(PREFIX) for name in rows) or not self._telemetry
        if not self.enabled:
            return
        for names, one in self._groups:
            count_S, mean_SW, scatter_SW = (np.stack([rows[f"{PREFIX}{name}/{key}"] for name in names]) for key in KEYS)
            # a recording of an earlier program has no first readings; its mean is taken for each
            first_NSW = np.stack(
                [
                    rows.get(f"{PREFIX}{name}/{FIRST}", np.broadcast_to(mean_W, one.first_NSW[:, 0].shape))
                    for name, mean_W in zip(names, mean_SW, strict=True)
                ],
                axis=1,
            )
            one.restore(count_S.astype(np.float64), mean_SW, scatter_SW, first_NSW)
