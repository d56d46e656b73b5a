"""Learn categorical critics on networks of unit norm, for choices (C51) and for continuous actuators (XQC).

Both share the network, the scaled returns, the loss, the slow target and the settings. Present and next states pass the critic
in one batch, so that both have the same batch statistics. After each step the weights return to the unit sphere. Rewards are
divided by the deviation of returns, so that their scale does not matter.

Sources:

- XQC: Palenicek et al. 2025 (arXiv 2509.25174), on CrossQ (Bhatt et al. 2024).
- C51: Bellemare et al. 2017; double: van Hasselt et al. 2016; branches with a common target: Tavakoli et al. 2018, equation 5.

Shapes: B batch, n choices of one actuator, K bins, A all continuous components, N critics.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learners.model.exploration import masked
from learners.model.gaussian_actor import CategoricalCritics
from learners.model.networks import Projection, Tracker
from learners.model.return_bins import bins, cross_entropy, expectation
from learners.model.return_bins import project as onto_bins
from learners.rl.dqn import EpsilonGreedyCritic, EpsilonGreedySettings, average, large_margin, prior_margin
from learners.rl.head_algorithm import Contexts, add_prefix, strip_prefix
from learners.rl.sac import ActorCritic, SacSettings
from learners.rl.transition_batch import Batch, expert_mean

if TYPE_CHECKING:
    from learners.model.gaussian_actor import ContinuousHead
    from learners.model.heads import DuelingCategorical
    from learners.rl.starting_policy import PriorOpinion


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoricalSettings(EpsilonGreedySettings):
    """Settings of choices: one set for every task."""

    rate: float = 1e-3
    margin: float = 0.2
    """Of the imitation loss, in deviations of returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XqcSettings(SacSettings):
    """Settings of continuous actuators: one set for every task."""

    rate: float = 1e-3
    delay: int = 3
    temperature: float = 0.01
    track: float = 0.2
    """Values follow with a time constant of 1 / (track (1 - discount)) updates; XQC's .005 is meant for a million of them."""


def bootstrapped(next_BK: Tensor, rewards_B: Tensor, discounts_B: Tensor, scale: Tensor) -> Tensor:
    """Return the target distribution B,K of r / scale + discount Z'; not finite where a reward or a discount is not.

    Args:
        next_BK: probabilities of the scaled return Z' of the next state.
        rewards_B: in units of the rewards.
        discounts_B: 0 where the episode ended.
        scale: deviation of returns.
    """
    return onto_bins(next_BK, (rewards_B / scale).unsqueeze(-1) + discounts_B.unsqueeze(-1) * bins(next_BK))


class C51(EpsilonGreedyCritic["DuelingCategorical", CategoricalSettings]):
    """Learns the choice head."""

    def __init__(
        self, head: DuelingCategorical, names: tuple[str, ...], settings: CategoricalSettings | None = None
    ) -> None:
        super().__init__(head, names, settings or CategoricalSettings())
        self.target.train()
        self._project = Projection(head)

    @property
    def deviation(self) -> float:
        """The deviation of returns by which rewards are divided."""
        return float(self.head.scale)

    def rescale(self, deviation: float) -> None:
        """Divide rewards by this deviation of returns from now on."""
        self.head.scale.fill_(deviation)

    def loss(self, contexts: Contexts, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy of the taken choices, with the imitation losses, and metrics."""
        prior, rows = contexts.prior, len(batch)
        joint_BC = torch.cat((contexts.now, contexts.upcoming))
        # one trunk for the statistics of both; logits of the next state need no gradient, and cost half of the largest layer
        hidden_BH = self.head.trunk(joint_BC)
        with torch.no_grad():
            target_BK = self._target(joint_BC, batch, prior, self.head.branches(hidden_BH[rows:]))
        losses, imitation, values, pulls = [], [], [], []
        every_B = torch.arange(rows, device=joint_BC.device)
        for name, logits_BnK in zip(self.names, self.head.branches(hidden_BH[:rows]), strict=True):
            action_B = batch.actions[name]
            taken_BK = logits_BnK[every_B, action_B]
            loss_B = cross_entropy(taken_BK, target_BK)
            losses.append(loss_B * batch.acted[name] if name in batch.acted else loss_B)
            values.append(expectation(taken_BK.detach()).mean() * self.head.scale)
            if name in batch.is_expert and bool(batch.is_expert[name].any()):
                margin_B = large_margin(expectation(logits_BnK), action_B, self.settings.margin)
                imitation.append(expert_mean(margin_B, batch.is_expert[name]))
            if prior is not None:
                scaled_Bn = prior.now[name] / self.head.scale
                pulls.append(prior_margin(expectation(logits_BnK), scaled_Bn, self.settings.margin))
        loss = batch.weighted(average(losses))
        metrics = {"c51_loss": loss.detach(), "c51_value": average(values)}
        if imitation:
            cloning = average(imitation)
            metrics["c51_imitation"] = cloning.detach()
            loss = loss + self.settings.imitation * cloning
        if prior is not None:
            pull = batch.weighted(average(pulls))
            metrics["c51_prior"] = pull.detach()
            loss = loss + self.settings.imitation * prior.weight * pull
        return loss, metrics

    def _target(self, joint_BC: Tensor, batch: Batch, prior: PriorOpinion | None, online: list[Tensor]) -> Tensor:
        """Return the target distribution B,K, common to all branches: the online critic chooses, the slow one evaluates."""
        rows = len(batch)
        slow = self.target(joint_BC, rows)
        every_B = torch.arange(rows, device=joint_BC.device)
        chosen: list[Tensor] = []
        for name, online_BnK, slow_BnK in zip(self.names, online, slow, strict=True):
            fitting = prior is not None and prior.fitting
            scores_Bn = prior.upcoming[name] if prior is not None and fitting else expectation(online_BnK)
            best_B = masked(scores_Bn, batch.masks.get(name)).argmax(-1)
            chosen.append(torch.softmax(slow_BnK[every_B, best_B], dim=-1))
        return bootstrapped(average(chosen), batch.rewards, batch.discounts, self.head.scale)

    def improve(self, contexts: Contexts, batch: Batch, updates: int) -> dict[str, Tensor]:
        """Project the weights and move the target."""
        self._project()
        return super().improve(contexts, batch, updates)


class Xqc(ActorCritic):
    """Learns the continuous head: soft actor-critic with two categorical critics and slow targets."""

    prefix = "xqc"

    def __init__(
        self,
        head: ContinuousHead,
        names: tuple[str, ...],
        generator: torch.Generator,
        settings: XqcSettings | None = None,
    ) -> None:
        super().__init__(head, names, settings or XqcSettings(), generator)
        assert isinstance(head.critics, CategoricalCritics)
        self.critics = head.critics
        self.target = copy.deepcopy(head.critics).requires_grad_(False).train()
        self._follow = Tracker(self.target, head.critics)

    @property
    def deviation(self) -> float:
        """The deviation of returns by which rewards are divided."""
        return float(self.critics.scale)

    def rescale(self, deviation: float) -> None:
        """Divide rewards by this deviation of returns from now on."""
        self.critics.scale.fill_(deviation)

    def loss(self, contexts: Contexts, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the critics' cross-entropy, summed over critics, from one joint pass, and metrics."""
        rows = len(batch)
        with torch.no_grad():
            next_BA, _ = self.act_on(contexts.upcoming)
            joint = (torch.cat((contexts.now, contexts.upcoming)), torch.cat((self.executed(batch), next_BA)))
            next_NBK = self.target.logits(*joint, rows)
            lowest_B = expectation(next_NBK).argmin(0)
            next_BK = torch.softmax(next_NBK[lowest_B, torch.arange(rows, device=lowest_B.device)], dim=-1)
            # without the entropy of coming actions: its sum over time alone would fill the bins
            target_BK = bootstrapped(next_BK, batch.rewards, batch.discounts, self.critics.scale)
        now_NBK = self.critics.logits(torch.cat((contexts.upcoming, contexts.now)), joint[1].roll(-rows, 0), rows)
        loss_B = cross_entropy(now_NBK, target_BK).sum(0)
        acted_B = self.acted(batch)
        loss = batch.weighted(loss_B if acted_B is None else loss_B * acted_B)
        value = expectation(now_NBK.detach()).mean() * self.critics.scale
        return loss, {"xqc_loss": loss.detach(), "xqc_value": value}

    def improve(self, contexts: Contexts, batch: Batch, updates: int) -> dict[str, Tensor]:
        """Step the actor, then let the target critics follow."""
        metrics = super().improve(contexts, batch, updates)
        self._follow(self.settings.track)
        return metrics

    def judge(self, context_BC: Tensor, action_BA: Tensor) -> Tensor:
        """Return the value B that the actor climbs, in deviations of returns."""
        return super().judge(context_BC, action_BA) / self.critics.scale

    def state_dict(self) -> dict[str, Tensor]:
        """Return temperature, optimisers and target critics."""
        return super().state_dict() | add_prefix("target", self.target.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        super().load_state_dict(state)
        self.target.load_state_dict(strip_prefix("target", state))
