"""The past that a decision sees: the features of the last ticks and their fused states, and both as files of a recording.

Belongs to the inference thread. What is kept are the features; states follow from them and the acting weights, so that new weights
fuse the past again, as they learned it. H ticks of history, D width of a state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from learners.model.backends.selection import Run
from learners.model.features import Features
from learners.model.spec import PolicySpec


class ObservationHistory:
    """The last H ticks, oldest first.

    Args:
        spec: the policy's streams and how many ticks it looks back.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self._names, self._length = spec.names, spec.history
        self._features: deque[Features] = deque(maxlen=spec.history)
        self._states: deque[Tensor] = deque(maxlen=spec.history)

    def clear(self) -> None:
        """Begin again."""
        self._features.clear()
        self._states.clear()

    def take(self, features: Features, fuse: Run) -> Tensor:
        """Fuse this tick's features [1] and take them up: the states [1, H, D]. An episode starts as if it had always been so."""
        state_BD = self._fused(features, fuse)
        self._features.append(features)
        self._states.append(state_BD)
        while len(self._states) < self._length:
            self._features.appendleft(self._features[0])
            self._states.appendleft(self._states[0])
        return torch.stack(list(self._states), dim=1)

    def fuse_again(self, fuse: Run) -> None:
        """Fuse everything held by other weights, tick by tick as `take` and `unpack` do: batches may differ in the last bit."""
        self._states.extend([self._fused(features, fuse) for features in self._features])

    def pack(self) -> dict[str, Tensor]:
        """The features as named tensors."""
        rows = {f"{h}/tokens/{k}": x for h, f in enumerate(self._features) for k, x in f.tokens.items()}
        for h, features in enumerate(self._features):
            rows |= {f"{h}/present": features.present, f"{h}/ages": features.ages}
        return rows

    def unpack(self, rows: Mapping[str, Tensor], fuse: Run) -> None:
        """Take up what `pack` gave.

        Raises:
            KeyError: something of a tick is missing.
        """
        self.clear()
        for h in range(sum(name.endswith("/present") for name in rows)):
            tokens = {name: rows[f"{h}/tokens/{name}"] for name in self._names}
            features = Features(tokens, rows[f"{h}/present"], rows[f"{h}/ages"])
            self._features.append(features)
            self._states.append(self._fused(features, fuse))

    def _fused(self, features: Features, fuse: Run) -> Tensor:
        return fuse(features.present, features.ages, *(features.tokens[name] for name in self._names))
