"""What the algorithms for one kind of actuator share, so that mixed actuators are learned by several at once.

States are flat dictionaries of tensors, since that is what a checkpoint holds.

Shapes: B batch, C context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from learners.batch import Batch


@dataclass(frozen=True, slots=True)
class Contexts:
    """The encoded batch: `now` carries gradients to the encoder.

    `upcoming` is the next state as the encoder's slow copy sees it. Online heads choose on it as well: a second pass of the
    online encoder would cost a fifth more and differ little.
    """

    now: Tensor
    upcoming: Tensor


class Part(Protocol):
    """One algorithm for one kind of actuator."""

    def loss(self, contexts: Contexts, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of critics and encoder, and metrics."""

    def groups(self) -> list[dict[str, object]]:
        """Return the optimiser groups that `loss` trains."""

    def improve(self, contexts: Contexts, batch: Batch, updates: int) -> dict[str, Tensor]:
        """Do what follows the critics' step (actor, temperature, targets); return metrics."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the policy itself does not hold."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""


def groups(module: nn.Module, rate: float, beta1: float) -> list[dict[str, object]]:
    """Return one Adam group with everything in `module` that can be trained."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [{"params": parameters, "lr": rate, "betas": (beta1, 0.999)}] if parameters else []


def nest(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a state with `prefix.` before every name."""
    return {f"{prefix}.{name}": value.detach().clone() for name, value in state.items()}


def pick(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what stands behind `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return moments and step counts as `index.name`; empty before the first step."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Take up what `optimiser_state` gave, for an optimiser of the same parameters."""
    whole = optimiser.state_dict()
    indices = {int(name.split(".")[0]) for name in state}
    whole["state"] = {index: {n: v.clone() for n, v in pick(str(index), state).items()} for index in indices}
    optimiser.load_state_dict(whole)
