"""Define what the algorithms of all kinds of actuator share, so that several can train one policy together.

States are flat dictionaries of tensors, since that is what a checkpoint holds.

Shapes: B batch, C context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from learners.rl.adam import Group
from learners.rl.starting_policy import PriorOpinion
from learners.rl.transition_batch import Batch


@dataclass(frozen=True, slots=True)
class Contexts:
    """The encoded batch: `now` carries gradients to the encoder.

    `upcoming` is the next state as the encoder's slow copy sees it. Online heads choose on it as well: a second pass of the
    online encoder would cost a fifth more and differ little.
    """

    now: Tensor
    upcoming: Tensor
    prior: PriorOpinion | None = None
    """What the prior does in these states; None where the policy has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """Hyperparameters of every algorithm with a critic."""

    rate: float = 3e-4
    """Learning rate."""
    beta1: float = 0.9
    track: float = 0.005
    """Share of the online weights that a target takes over at each update (tau of Polyak averaging)."""
    imitation: float = 1.0
    """Weight of the imitation loss on expert actions."""
    epsilon_decisions: int = 2_000
    """Decisions over which exploration decays, however many updates they are worth."""


class HeadAlgorithm(Protocol):
    """One algorithm for one kind of actuator."""

    def loss(self, contexts: Contexts, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of critics and encoder, and metrics."""

    def groups(self) -> list[Group]:
        """Return what `loss` trains."""

    def improve(self, contexts: Contexts, batch: Batch, updates: int) -> dict[str, Tensor]:
        """Do what follows the critics' step (actor, temperature, targets); return metrics."""

    def fade(self, batch: Batch, decisions: float, new: float) -> None:
        """Explore as much as fits this many decisions in all, of which `new` came since the update before."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the policy itself does not hold."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""


def group(module: nn.Module, rate: float, beta1: float) -> Group:
    """Return everything in `module` that can be trained."""
    return Group([p for p in module.parameters() if p.requires_grad], rate, beta1)


def add_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a state with `prefix.` before every name."""
    return {f"{prefix}.{name}": value.detach().clone() for name, value in state.items()}


def strip_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries that begin with `prefix.`, without the prefix."""
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}
