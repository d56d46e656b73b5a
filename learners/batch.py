"""What an algorithm learns from at once: B transitions as tensors.

Shapes: B batch, A components of one continuous actuator, n choices of one actuator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from learners.model.features import Features


@dataclass(frozen=True, slots=True)
class Batch:
    """B transitions of n steps each.

    `actions`: for a choice the index B int64, for a continuous actuator B,A in its units: what was executed.
    `rewards`: sum of gamma^k r over the steps. `discounts`: gamma^n, and 0 where the world ended; where only the time
    ran out it is not 0, since the future was cut off and not lost. `masks`: for a choice, B,n bool, allowed in the
    next state. `taught`: B bool, whether a person or a demonstration set this actuator, which the imitation loss
    follows. `moved`: B bool, whether the actuator was moved at all; absent means always. `weights`: B, of each transition in the losses.
    """

    features: Features
    next_features: Features
    actions: Mapping[str, Tensor]
    rewards: Tensor
    discounts: Tensor
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    taught: Mapping[str, Tensor] = field(default_factory=dict)
    moved: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None

    def __len__(self) -> int:
        """B."""
        return len(self.rewards)

    def weighted(self, loss_B: Tensor) -> Tensor:
        """Return the weighted mean of a loss B (or N,B)."""
        return loss_B.mean() if self.weights is None else (loss_B * self.weights).mean()


def taught_mean(loss_B: Tensor, taught_B: Tensor | None) -> Tensor:
    """Return the sum of `loss_B` over taught transitions, divided by B; 0 if there are none."""
    if taught_B is None:
        return torch.zeros((), device=loss_B.device)
    return (loss_B * taught_B).mean()
