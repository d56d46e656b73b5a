"""Hold the observation history of a decision: the features of the last ticks and their fused states.

Belongs to the inference thread. The features are stored; states follow from them and the acting weights, so that new weights
fuse the history again, as they were trained. Those of untrained weights also depend on the input statistics of their tick. H ticks of history, D width of a state, B batch (1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from learners.model.backends.selection import Run
from learners.model.features import Features, stack
from learners.model.policy import Policy
from learners.model.spec import PolicySpec


class ObservationHistory:
    """The last H ticks, oldest first.

    Args:
        spec: names the streams and the length of the history in ticks.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self._names, self._length = spec.names, spec.history
        self._features: deque[Features] = deque(maxlen=spec.history)
        self._states: deque[Tensor] = deque(maxlen=spec.history)

    def clear(self) -> None:
        """Drop the history: the next tick starts a new one."""
        self._features.clear()
        self._states.clear()

    def take(self, features: Features, fuse: Run) -> Tensor:
        """Fuse and append the features [1] of this tick; return the states [1, H, D]. The first tick fills the whole history."""
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

    def fuse_again_as_batch(self, policy: Policy) -> None:
        """Fuse everything held in one batch by torch, for recordings that state no conditions: their program did so."""
        if self._features:
            past = stack(list(self._features)).map(lambda x: x.squeeze(1))
            self._states.extend(state_D.unsqueeze(0) for state_D in policy.fuse(past).unbind(0))

    def window(self) -> tuple[Features, ...]:
        """Return the features of the last H ticks, oldest first."""
        return tuple(self._features)

    def pack(self, *, states: bool) -> dict[str, Tensor]:
        """Return the features as named tensors; with their states where these do not follow from features and weights alone."""
        rows = {f"{h}/tokens/{k}": x for h, f in enumerate(self._features) for k, x in f.tokens.items()}
        for h, features in enumerate(self._features):
            rows |= {f"{h}/present": features.present, f"{h}/ages": features.ages}
        if states:
            rows |= {f"{h}/state": state for h, state in enumerate(self._states)}
        return rows

    def unpack(self, rows: Mapping[str, Tensor], fuse: Run, *, states: bool) -> None:
        """Restore what `pack` returned; with `states` its states where it has them.

        Raises:
            KeyError: a tensor of a tick is missing.
        """
        self.clear()
        for h in range(sum(name.endswith("/present") for name in rows)):
            tokens = {name: rows[f"{h}/tokens/{name}"] for name in self._names}
            features = Features(tokens, rows[f"{h}/present"], rows[f"{h}/ages"])
            self._features.append(features)
            packed = rows.get(f"{h}/state") if states else None
            self._states.append(self._fused(features, fuse) if packed is None else packed)

    def _fused(self, features: Features, fuse: Run) -> Tensor:
        return fuse(features.present, features.ages, *(features.tokens[name] for name in self._names))
