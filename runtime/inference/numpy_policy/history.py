"""Hold the observation history of a decision: the features of the last ticks and their fused states.

Belongs to the inference thread. The features are stored; states follow from them and the acting weights, so that new weights
fuse the history again, as they were trained. Those of untrained weights also depend on the input statistics of their tick. H
ticks of history, D width of a state, S streams, T tokens of a stream, W their width, B batch (1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.model.spec import PolicySpec

Fuse = Callable[..., NDArray[np.float32]]
"""Fuses present [1, S], ages [1, S] and the tokens [1, T, W] of every stream into a state [1, D]."""


@dataclass(frozen=True, slots=True)
class TickFeatures:
    """What the policy sees at one tick, B = 1; where a stream is not present, its tokens are zeros and its age is infinite."""

    tokens: dict[str, NDArray[np.float32]]
    """By stream, [1, T, W]."""
    present: NDArray[np.bool_]
    """[1, S], in the order of the spec."""
    ages: NDArray[np.float32]
    """Seconds [1, S]."""


class ObservationHistory:
    """The last H ticks, oldest first.

    Args:
        spec: names the streams and the length of the history in ticks.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self._names, self._length = spec.names, spec.history
        self._features: deque[TickFeatures] = deque(maxlen=spec.history)
        self._states: deque[NDArray[np.float32]] = deque(maxlen=spec.history)

    def clear(self) -> None:
        """Drop the history: the next tick starts a new one."""
        self._features.clear()
        self._states.clear()

    def take(self, features: TickFeatures, fuse: Fuse) -> NDArray[np.float32]:
        """Fuse and append the features of this tick; return the states [1, H, D]. The first tick fills the whole history."""
        state_BD = self._fused(features, fuse)
        self._features.append(features)
        self._states.append(state_BD)
        while len(self._states) < self._length:
            self._features.appendleft(self._features[0])
            self._states.appendleft(self._states[0])
        return np.stack(list(self._states), axis=1)

    def fuse_again(self, fuse: Fuse) -> None:
        """Fuse everything held by other weights, tick by tick as `take` and `unpack` do: batches may differ in the last bit."""
        self._states.extend([self._fused(features, fuse) for features in self._features])

    def fuse_again_at_once(self, fuse: Callable[[Sequence[TickFeatures]], Sequence[NDArray[np.float32]]]) -> None:
        """Fuse everything held by a function of all ticks, for recordings that state no conditions: their program did so."""
        if self._features:
            self._states.extend(fuse(tuple(self._features)))

    def window(self) -> tuple[TickFeatures, ...]:
        """Return the features of the last H ticks, oldest first."""
        return tuple(self._features)

    def pack(self, *, states: bool) -> dict[str, NDArray[Any]]:
        """Return the features as named arrays; with their states where these do not follow from features and weights alone."""
        rows: dict[str, NDArray[Any]] = {
            f"{h}/tokens/{k}": x for h, f in enumerate(self._features) for k, x in f.tokens.items()
        }
        for h, features in enumerate(self._features):
            rows |= {f"{h}/present": features.present, f"{h}/ages": features.ages}
        if states:
            rows |= {f"{h}/state": state for h, state in enumerate(self._states)}
        return rows

    def unpack(self, rows: Mapping[str, NDArray[Any]], fuse: Fuse, *, states: bool) -> None:
        """Restore what `pack` returned; with `states` its states where it has them.

        Raises:
            KeyError: an array of a tick is missing.
        """
        self.clear()
        for h in range(sum(name.endswith("/present") for name in rows)):
            tokens = {name: rows[f"{h}/tokens/{name}"] for name in self._names}
            features = TickFeatures(tokens, rows[f"{h}/present"], rows[f"{h}/ages"])
            self._features.append(features)
            packed = rows.get(f"{h}/state") if states else None
            self._states.append(self._fused(features, fuse) if packed is None else packed)

    def _fused(self, features: TickFeatures, fuse: Fuse) -> NDArray[np.float32]:
        return fuse(features.present, features.ages, *(features.tokens[name] for name in self._names))
