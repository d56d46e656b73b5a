"""Deep Q-learning for choices: double, n-step, dueling, quantile critics with LayerNorm, a branch for each actuator.

Sources:

- Double DQN: van Hasselt et al. 2016.
- Quantile regression: Dabney et al. 2018, equation 10.
- Branches with a common target: Tavakoli et al. 2018, equation 5.
- Large margin on demonstrations: Hester et al. 2018 (DQfD).

Shapes: B batch, n choices of one actuator, K quantiles.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from learners.model.exploration import masked
from learners.model.networks import Tracker
from learners.model.spec import FINAL_EPSILON
from learners.rl.adam import Group
from learners.rl.head_algorithm import Contexts, HeadSettings, add_prefix, group, strip_prefix
from learners.rl.transition_batch import Batch, expert_mean

if TYPE_CHECKING:
    from learners.model.heads import DuelingCategorical, DuelingQuantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonGreedySettings(HeadSettings):
    """Settings of every algorithm for choices."""

    epsilon: float = FINAL_EPSILON
    """Share of random choices after `epsilon_decisions`."""


Head = TypeVar("Head", bound="DuelingQuantiles | DuelingCategorical")
Settings = TypeVar("Settings", bound=EpsilonGreedySettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class DqnSettings(EpsilonGreedySettings):
    """One set for every task."""

    rate: float = 5e-4
    margin: float = 0.8


def quantile_huber(predicted_BK: Tensor, target_BJ: Tensor, kappa: float = 1.0) -> Tensor:
    """Return the quantile Huber loss B: summed over predicted quantiles, averaged over targets.

    With one quantile on each side it is half the Huber loss, since both of its slopes are weighted by 1/2.
    """
    count = predicted_BK.shape[-1]
    if count == target_BJ.shape[-1] == 1:
        plain_B1: Tensor = F.huber_loss(predicted_BK, target_BJ, reduction="none", delta=kappa)
        return plain_B1.squeeze(-1) / (2 * kappa)
    middle_K = (torch.arange(count, device=predicted_BK.device, dtype=predicted_BK.dtype) + 0.5) / count
    shape = (*predicted_BK.shape, target_BJ.shape[-1])
    predicted_BK1, target_B1J = predicted_BK.unsqueeze(-1).expand(shape), target_BJ.unsqueeze(-2).expand(shape)
    huber_BKJ = F.huber_loss(predicted_BK1, target_B1J, reduction="none", delta=kappa)
    slope_BKJ = torch.where(target_B1J < predicted_BK1, 1 - middle_K.unsqueeze(-1), middle_K.unsqueeze(-1))
    loss_B: Tensor = (slope_BKJ * huber_BKJ).mean(-1).sum(-1) / kappa
    return loss_B


def average(branches: list[Tensor]) -> Tensor:
    """Return the mean over branches; of one it is itself, as a stack and a mean cost as much as a layer of these networks."""
    return branches[0] if len(branches) == 1 else torch.stack(branches).mean(0)


def double_target(
    online: list[Tensor], target: list[Tensor], rewards_B: Tensor, discounts_B: Tensor, masks: list[Tensor | None]
) -> Tensor:
    """Return the target quantiles B,K, common to all branches.

    `online` and `target` are quantiles B,n,K of the next state; the online ones choose, the target ones say how good
    that is, and the branches are averaged.
    """
    chosen = []
    for online_BnK, target_BnK, mask_Bn in zip(online, target, masks, strict=True):
        best_B = masked(online_BnK.mean(-1), mask_Bn).argmax(-1)
        chosen.append(target_BnK[torch.arange(len(best_B), device=best_B.device), best_B])
    return rewards_B.unsqueeze(-1) + discounts_B.unsqueeze(-1) * average(chosen)


def large_margin(scores_Bn: Tensor, expert_B: Tensor, margin: float | Tensor) -> Tensor:
    """Return DQfD's loss B: max_a [Q(s, a) + margin (a != expert)] - Q(s, expert); a margin may be B,1."""
    penalty_Bn = (torch.zeros_like(scores_Bn) + margin).scatter(-1, expert_B.unsqueeze(-1), 0.0)
    best_B: Tensor = (scores_Bn + penalty_Bn).amax(-1)
    return best_B - scores_Bn.gather(-1, expert_B.unsqueeze(-1)).squeeze(-1)


def prior_margin(scores_Bn: Tensor, prior_Bn: Tensor, largest: float) -> Tensor:
    """Return the large-margin loss B towards the prior's choice; the margin is the prior's own lead over its second choice.

    So there is no pull where the prior is indifferent.
    """
    best_B2, index_B2 = prior_Bn.topk(2, dim=-1)
    lead_B1 = (best_B2[:, :1] - best_B2[:, 1:]).clamp(max=largest)
    return large_margin(scores_Bn, index_B2[:, 0], lead_B1)


class EpsilonGreedyCritic(Generic[Head, Settings]):
    """What the algorithms for choices share: a slow target, and an epsilon that decays.

    Args:
        head: the online critic.
        names: of the choice actuators, in the order of the branches.
        settings: the hyperparameters.
    """

    def __init__(self, head: Head, names: tuple[str, ...], settings: Settings) -> None:
        self.head, self.names, self.settings = head, names, settings
        self.target = copy.deepcopy(head).requires_grad_(False)
        self._follow = Tracker(self.target, head)

    def improve(self, contexts: Contexts, batch: Batch, updates: int) -> dict[str, Tensor]:
        """Move the target, after the critic's step."""
        del contexts, batch, updates
        self._follow(self.settings.track)
        return {}

    def fade(self, batch: Batch, decisions: float, new: float) -> None:
        """Reduce epsilon to what fits this number of decisions."""
        del batch, new
        left = max(0.0, 1 - decisions / self.settings.epsilon_decisions)
        self.head.epsilon.fill_(self.settings.epsilon + (1 - self.settings.epsilon) * left)

    def decisions_so_far(self) -> int:
        """Return after how many decisions epsilon has the value that the weights hold."""
        spread = 1 - self.settings.epsilon
        left = min(1.0, max(0.0, (float(self.head.epsilon) - self.settings.epsilon) / spread))
        return round((1 - left) * self.settings.epsilon_decisions)

    def groups(self) -> list[Group]:
        """Return the critic."""
        return [group(self.head, self.settings.rate, self.settings.beta1)]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the target critic."""
        return add_prefix("target", self.target.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        self.target.load_state_dict(strip_prefix("target", state))


class Dqn(EpsilonGreedyCritic["DuelingQuantiles", DqnSettings]):
    """Learns the choice head."""

    def __init__(self, head: DuelingQuantiles, names: tuple[str, ...], settings: DqnSettings | None = None) -> None:
        super().__init__(head, names, settings or DqnSettings())

    def loss(self, contexts: Contexts, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the temporal-difference loss plus the imitation loss, and metrics."""
        with torch.no_grad():
            prior = contexts.prior
            target_BK = double_target(
                [prior.upcoming[name].unsqueeze(-1) for name in self.names]
                if prior is not None and prior.fitting
                else self.head(contexts.upcoming),
                self.target(contexts.upcoming),
                batch.rewards,
                batch.discounts,
                [batch.masks.get(name) for name in self.names],
            )
        losses, imitation, values, pulls = [], [], [], []
        for name, q_BnK in zip(self.names, self.head(contexts.now), strict=True):
            action_B = batch.actions[name]
            taken_BK = q_BnK[torch.arange(len(action_B), device=action_B.device), action_B]
            loss_B = quantile_huber(taken_BK, target_BK)
            losses.append(loss_B * batch.acted[name] if name in batch.acted else loss_B)
            values.append(taken_BK.detach().mean())
            if name in batch.is_expert and bool(batch.is_expert[name].any()):
                margin_B = large_margin(q_BnK.mean(-1), action_B, self.settings.margin)
                imitation.append(expert_mean(margin_B, batch.is_expert[name]))
            if prior is not None:
                pulls.append(prior_margin(q_BnK.mean(-1), prior.now[name], self.settings.margin))
        loss = batch.weighted(average(losses))
        metrics = {"dqn_loss": loss.detach(), "dqn_value": average(values)}
        if imitation:
            cloning = average(imitation)
            metrics["dqn_imitation"] = cloning.detach()
            loss = loss + self.settings.imitation * cloning
        if prior is not None:
            pull = batch.weighted(average(pulls))
            metrics["dqn_prior"] = pull.detach()
            # times the number of quantiles, because the loss above is their sum
            loss = loss + self.settings.imitation * prior.weight * self.head.quantiles * pull
        return loss, metrics
