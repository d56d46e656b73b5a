"""Normalise telemetry for untrained weights, by statistics of what this agent has seen.

A version brings the statistics that belong to it. Untrained weights have none, and ordinary telemetry (1013 hPa, encoder ticks)
would drive every action to its limit. Belongs to the inference thread. Shapes: B batch (1), W width of a stream.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from learners.model.backends.selection import Run
from learners.model.features import Features
from learners.model.normalizer import Normaliser
from learners.model.policy import Policy
from learners.model.spec import PolicySpec

PREFIX = "statistics/"
MEMORY = 1_000
"""Readings that the statistics remember: no weights depend on them yet, so they may follow quickly."""


class InputStatistics:
    """Running statistics of every telemetry stream.

    Args:
        spec: names the streams.
        device: where the policy lives.
    """

    def __init__(self, spec: PolicySpec, device: torch.device) -> None:
        self._names = spec.names
        self._by_stream = {s.name: Normaliser(s.width, limit=MEMORY).to(device) for s in spec.telemetry}
        self.enabled = True
        """False while a recording is replayed that was made without statistics."""

    def observe(self, features: Features, fresh: Collection[str]) -> None:
        """Merge the fresh readings of this tick."""
        if self.enabled:
            for name, normaliser in self._by_stream.items():
                if name in fresh:
                    normaliser.observe(features.tokens[name].flatten(0, -2))

    def applied_to(self, fuse: Run) -> Run:
        """Return `fuse` on normalised telemetry."""

        def run(present_BS: Tensor, ages_BS: Tensor, *tokens: Tensor) -> Tensor:
            if not self.enabled:
                return fuse(present_BS, ages_BS, *tokens)
            normal = (
                self._by_stream[name](x) if name in self._by_stream else x
                for name, x in zip(self._names, tokens, strict=True)
            )
            return fuse(present_BS, ages_BS, *normal)

        return run

    def copy_to(self, policy: Policy) -> None:
        """Give a copy of the untrained policy these statistics as its own."""
        if self.enabled:
            for name, normaliser in self._by_stream.items():
                policy.normalisers()[name].load_state_dict(normaliser.state_dict())

    def pack(self) -> dict[str, Tensor]:
        """Return the statistics as named tensors."""
        return {
            f"{PREFIX}{name}/{key}": value.clone()
            for name, normaliser in self._by_stream.items()
            for key, value in normaliser.state_dict().items()
        }

    def unpack(self, rows: Mapping[str, Tensor]) -> None:
        """Restore what `pack` returned; recordings of before 0.1.0 have no statistics, and were made without."""
        self.enabled = any(name.startswith(PREFIX) for name in rows) or not self._by_stream
        if self.enabled:
            for name, normaliser in self._by_stream.items():
                start = f"{PREFIX}{name}/"
                normaliser.load_state_dict({k.removeprefix(start): x for k, x in rows.items() if k.startswith(start)})
