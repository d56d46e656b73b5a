"""CrossQ for continuous actuators: batch-renormalised critics without target networks (Bhatt et al. 2024).

The critics see the present and the next states in one forward pass, so that both share the batch statistics; the actor
follows every third update. One update a step is enough, which is what makes it cheap.

Shapes: B batch, A all continuous components, N critics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learners.model.gaussian_actor import ContinuousHead
from learners.rl.head_algorithm import Contexts
from learners.rl.sac import ActorCritic, SacSettings, soft_target
from learners.rl.transition_batch import Batch


@dataclass(frozen=True, slots=True)
class CrossqSettings(SacSettings):
    """One set for every task; the paper's values, with its batch-norm momentum in the networks."""

    rate: float = 1e-3
    beta1: float = 0.5
    delay: int = 3


class Crossq(ActorCritic):
    """CrossQ: no target critics."""

    prefix = "crossq"

    def __init__(
        self,
        head: ContinuousHead,
        names: tuple[str, ...],
        generator: torch.Generator,
        settings: CrossqSettings | None = None,
    ) -> None:
        super().__init__(head, names, settings or CrossqSettings(), generator)

    def loss(self, contexts: Contexts, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the critics' squared error, summed over critics, from one joint forward pass."""
        with torch.no_grad():
            next_BA, log_density_BA = self.act_on(contexts.upcoming)
        both_NB = self.head.critics(
            torch.cat((contexts.now, contexts.upcoming)), torch.cat((self.executed(batch), next_BA))
        )
        value_NB, next_NB = both_NB.chunk(2, dim=1)
        target_B = soft_target(
            next_NB.detach(),
            log_density_BA.sum(-1),
            batch.rewards,
            batch.discounts,
            self.log_temperature.detach().exp(),
        )
        loss = self.critic_loss(batch, value_NB - target_B)
        return loss, {"crossq_loss": loss.detach(), "crossq_value": value_NB.detach().mean()}
