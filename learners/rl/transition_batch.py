"""Define the batch of an algorithm: B transitions as tensors.

Shapes: B batch, A components of one continuous actuator, n choices of one actuator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learners.model.features import Features

FORMER = {"is_expert": "taught", "acted": "moved"}
"""Names in learner states that were saved before 0.1.0."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B transitions of n steps each.

    `actions`: for a choice the index B int64, for a continuous actuator B,A in its units: what was executed.
    `rewards`: sum of gamma^k r over the steps. `discounts`: gamma^n, and 0 where the world ended; where only the time
    ran out it is not 0, since the future was cut off and not lost. `masks`: for a choice, B,n bool, allowed in the
    next state. `is_expert`: B bool, whether a person or a demonstration set this actuator, which the imitation loss
    follows. `acted`: B bool, whether the actuator was moved at all; absent means always. `weights`: B, of each transition in the losses.
    """

    features: Features
    next_features: Features
    actions: Mapping[str, Tensor]
    rewards: Tensor
    discounts: Tensor
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    is_expert: Mapping[str, Tensor] = field(default_factory=dict)
    acted: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    step_rewards: Tensor | None = None
    """Reward B of each transition alone, before any sum over steps; absent where `rewards` are of one step."""
    allowed: Mapping[str, Tensor] = field(default_factory=dict)
    """For a choice, B,n bool: allowed in this state."""

    def __len__(self) -> int:
        """B."""
        return len(self.rewards)

    def __getitem__(self, rows: slice) -> Batch:
        """Return some of the transitions."""
        cut = {
            name: {key: value[rows] for key, value in getattr(self, name).items()}
            for name in ("actions", "masks", "is_expert", "acted", "allowed")
        }
        return Batch(
            self.features[rows],
            self.next_features[rows],
            rewards=self.rewards[rows],
            discounts=self.discounts[rows],
            weights=None if self.weights is None else self.weights[rows],
            step_rewards=None if self.step_rewards is None else self.step_rewards[rows],
            **cut,
        )

    def to(self, device: torch.device) -> Batch:
        """Return the same on another device."""
        if device == self.rewards.device:
            return self
        return Batch.of({name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by a dotted name, as a checkpoint holds them."""
        flat = {"rewards": self.rewards, "discounts": self.discounts}
        if self.weights is not None:
            flat["weights"] = self.weights
        if self.step_rewards is not None:
            flat["step_rewards"] = self.step_rewards
        for name in ("actions", "masks", "is_expert", "acted", "allowed"):
            flat |= {f"{name}.{key}": value for key, value in getattr(self, name).items()}
        for name in ("features", "next_features"):
            f: Features = getattr(self, name)
            flat |= {f"{name}.tokens.{key}": value for key, value in f.tokens.items()}
            flat |= {f"{name}.present": f.present, f"{name}.ages": f.ages}
        return flat

    @classmethod
    def of(cls, flat: Mapping[str, Tensor]) -> Batch:
        """Return the batch that `tensors` took apart, also one with the names of before 0.1.0."""

        def below(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)}

        def features(name: str) -> Features:
            return Features(below(f"{name}.tokens."), flat[f"{name}.present"], flat[f"{name}.ages"])

        return cls(
            features("features"),
            features("next_features"),
            below("actions."),
            flat["rewards"],
            flat["discounts"],
            below("masks."),
            below("is_expert.") | below(f"{FORMER['is_expert']}."),
            below("acted.") | below(f"{FORMER['acted']}."),
            flat.get("weights"),
            flat.get("step_rewards"),
            below("allowed."),
        )

    def weighted(self, loss_B: Tensor) -> Tensor:
        """Return the weighted mean of a loss B (or N,B)."""
        return loss_B.mean() if self.weights is None else (loss_B * self.weights).mean()


def expert_mean(loss_B: Tensor, expert_B: Tensor | None) -> Tensor:
    """Return the sum of `loss_B` over expert transitions, divided by B; 0 if there are none."""
    if expert_B is None:
        return torch.zeros((), device=loss_B.device)
    return (loss_B * expert_B).mean()
