"""Define the input of the policy: tokens of every stream, which are present, and how old they are.

The same object serves one tick, a batch of ticks and a batch of histories: all tensors share their leading dimensions,
`[B]` or `[B, H]`, oldest first along H. Telemetry tokens are the raw numbers; the policy normalises them. Where a
stream is not present its tokens and age are arbitrary and must not matter.

Shapes: B batch, H history, T tokens of a stream, W their width, S streams in the order of the spec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.model.recorded_arrays import recorded_arrays
from learners.model.spec import PolicySpec


@dataclass(frozen=True, slots=True)
class Features:
    """`tokens[name]`: float32 [..., T, W]; `present`: bool [..., S]; `ages`: float32 seconds [..., S]."""

    tokens: dict[str, Tensor]
    present: Tensor
    ages: Tensor

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading dimensions, (B,) or (B, H)."""
        return tuple(self.present.shape[:-1])

    def map(self, function: Callable[[Tensor], Tensor]) -> Features:
        """Apply `function` to every tensor; it may change leading dimensions only."""
        return Features({k: function(v) for k, v in self.tokens.items()}, function(self.present), function(self.ages))

    def __getitem__(self, index: Any) -> Features:
        """Index the leading dimensions."""
        return self.map(lambda x: x[index])

    def to(self, device: torch.device | str) -> Features:
        """Return the same features on another device."""
        return self.map(lambda x: x.to(device))

    def flatten(self) -> Features:
        """Flatten [B, H] to [B * H]; [B] does not change."""
        depth = len(self.lead)
        return self if depth == 1 else self.map(lambda x: x.flatten(0, depth - 1))

    def without(self, spec: PolicySpec, names: Sequence[str]) -> Features:
        """Return the same features with the named streams marked as not present."""
        keep_S = torch.tensor([name not in names for name in spec.names], device=self.present.device)
        return Features(self.tokens, self.present & keep_S, self.ages)


def stack(items: Sequence[Features], dim: int = 0) -> Features:
    """Join features of equal shape along a new leading dimension: items of [B] with dim=1 become [B, H]."""
    tokens = {name: torch.stack([f.tokens[name] for f in items], dim) for name in items[0].tokens}
    present, ages = (torch.stack([getattr(f, name) for f in items], dim) for name in ("present", "ages"))
    return Features(tokens, present, ages)


def concat(items: Sequence[Features]) -> Features:
    """Join along the first dimension."""
    tokens = {name: torch.cat([f.tokens[name] for f in items]) for name in items[0].tokens}
    return Features(tokens, torch.cat([f.present for f in items]), torch.cat([f.ages for f in items]))


def blank(spec: PolicySpec, *lead: int) -> Features:
    """Return features with every stream missing: zeros, and infinite ages."""
    tokens = {s.name: torch.zeros(*lead, s.tokens, s.width) for s in spec.streams}
    count = len(spec.streams)
    return Features(tokens, torch.zeros(*lead, count, dtype=torch.bool), torch.full((*lead, count), torch.inf))


def recorded(
    spec: PolicySpec,
    tokens: Sequence[Mapping[str, NDArray[Any]]],
    present: Sequence[Mapping[str, bool]],
    ages_s: Sequence[Mapping[str, float]],
) -> Features:
    """Return features [B] of B stored ticks (the fields of `Transition`); a stream without tokens is missing.

    Raises:
        ValueError: stored tokens have another shape than the spec says (another encoder or setting made them).
    """
    arrays = recorded_arrays(spec, tokens, present, ages_s)
    tensors = {name: torch.from_numpy(x) for name, x in arrays.tokens.items()}
    return Features(tensors, torch.from_numpy(arrays.present), torch.from_numpy(arrays.ages))
