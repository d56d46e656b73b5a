"""Soft actor-critic for continuous actuators, with RLPD's ingredients.

Sources:

- SAC with a learned temperature: Haarnoja et al. 2018.
- Several LayerNorm critics, and half the batch from demonstrations: RLPD, Ball et al. 2023. The replay buffer mixes the batch.
- The minimum over a random subset of critics: REDQ, Chen et al. 2021.
- Cloning of expert actions: Fujimoto and Gu 2021 (TD3+BC).

Shapes: B batch, A all continuous components, N critics.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from learners.model.exploration import silent
from learners.model.networks import BatchRenorm, Projection, Tracker, UnitBatchNorm
from learners.rl.adam import Adam, Group
from learners.rl.head_algorithm import Contexts, HeadSettings, add_prefix, group, strip_prefix
from learners.rl.transition_batch import Batch, expert_mean

if TYPE_CHECKING:
    from learners.model.gaussian_actor import ContinuousHead
    from learners.rl.starting_policy import PriorOpinion


@dataclass(frozen=True, slots=True, kw_only=True)
class SacSettings(HeadSettings):
    """One set for every task."""

    subset: int = 2
    delay: int = 1
    entropy: float = -1.0
    """Target entropy of each component."""
    temperature: float = 1.0


def soft_target(
    next_NB: Tensor, log_density_B: Tensor, rewards_B: Tensor, discounts_B: Tensor, temperature: Tensor
) -> Tensor:
    """Return r + discount (min_N Q(s', a') - temperature log pi(a'|s')), B."""
    return rewards_B + discounts_B * (next_NB.amin(0) - temperature * log_density_B)


def temperature_loss(log_temperature: Tensor, log_density_B: Tensor, target_entropy: float) -> Tensor:
    """Return -log temperature (log pi + target entropy): it rises while the policy is less random than its target."""
    return -(log_temperature * (log_density_B.detach() + target_entropy)).mean()


class ActorCritic:
    """What SAC and CrossQ share: the head, the temperature, the actor's step.

    Args:
        head: actor and critics.
        names: of the continuous actuators, in the order of the components.
        settings: the hyperparameters.
        generator: the only source of chance.
    """

    prefix = "sac"

    def __init__(
        self, head: ContinuousHead, names: tuple[str, ...], settings: SacSettings, generator: torch.Generator
    ) -> None:
        self.head, self.names, self.settings, self.generator = head, names, settings, generator
        self.target_entropy = settings.entropy * sum(head.widths)
        self._critic_parameters = list(head.critics.parameters())
        self._norms = [m for m in head.critics.modules() if isinstance(m, (BatchRenorm, UnitBatchNorm))]
        self._actor_norms = [m for m in head.actor.modules() if isinstance(m, (BatchRenorm, UnitBatchNorm))]
        self._project = Projection(head.critics), Projection(head.actor)
        start = torch.tensor(float(settings.temperature), device=head.centre.device).log()
        self.log_temperature = nn.Parameter(start)
        self.actor_optimiser = Adam([group(head.actor, settings.rate, settings.beta1)])
        self.temperature_optimiser = Adam([Group([self.log_temperature], settings.rate, settings.beta1)])

    def noise(self, rows: int) -> Tensor:
        """Draw standard normal B,A."""
        shape = (rows, sum(self.head.widths))
        drawn = torch.randn(shape, generator=self.generator, device=self.generator.device)
        return drawn.to(self.head.centre.device)

    def executed(self, batch: Batch) -> Tensor:
        """Return the executed actions B,A in [-1, 1]."""
        return self.head.from_units(torch.cat([batch.actions[name] for name in self.names], dim=-1))

    def critic_loss(self, batch: Batch, error_NB: Tensor) -> Tensor:
        """Return the squared error summed over critics, without the transitions at which no continuous actuator was moved."""
        loss_B = error_NB.square().sum(0)
        acted_B = self.acted(batch)
        return batch.weighted(loss_B if acted_B is None else loss_B * acted_B)

    def acted(self, batch: Batch) -> Tensor | None:
        """Return whether any continuous actuator was moved, B; None if that is always so."""
        if not all(name in batch.acted for name in self.names):
            return None
        return torch.stack([batch.acted[name] for name in self.names]).any(0)

    def groups(self) -> list[Group]:
        """Return the critics."""
        return [group(self.head.critics, self.settings.rate, self.settings.beta1)]

    def improve(self, contexts: Contexts, batch: Batch, updates: int) -> dict[str, Tensor]:
        """Step the actor and the temperature, every `delay` updates."""
        self._project[0]()
        if updates % self.settings.delay or (contexts.prior is not None and contexts.prior.fitting):
            return {}
        context_BC = contexts.now.detach()
        action_BA, log_density_BA = self.head.actor.sample(context_BC, self.noise(len(batch)))
        log_density_B = log_density_BA.sum(-1)
        temperature = self.log_temperature.detach().exp()
        loss_B = temperature * log_density_B - self.judge(context_BC, action_BA)
        cloning = self.cloning(context_BC, batch, loss_B)
        pull = self.pull(context_BC, batch, contexts.prior, loss_B)
        self.actor_optimiser.zero_grad()
        (batch.weighted(loss_B) + cloning + pull).backward()  # type: ignore[no-untyped-call] # torch ships it so
        self.actor_optimiser.step()
        self._project[1]()
        self.temperature_optimiser.zero_grad()
        temperature_loss(self.log_temperature, log_density_B, self.target_entropy).backward()  # type: ignore[no-untyped-call] # as above
        self.temperature_optimiser.step()
        p = self.prefix
        return {
            f"{p}_actor_loss": loss_B.detach().mean(),
            f"{p}_temperature": temperature,
            f"{p}_entropy": -log_density_B.detach().mean(),
            f"{p}_imitation": cloning.detach(),
            **({f"{p}_prior": pull.detach()} if contexts.prior is not None else {}),
        }

    def set_temperature(self, temperature: float | None) -> None:
        """Continue with a temperature; None, or one that is not positive, changes nothing."""
        if temperature is not None and 0 < temperature < math.inf:
            with torch.no_grad():
                self.log_temperature.fill_(math.log(temperature))

    def fade(self, batch: Batch, decisions: float, new: float) -> None:
        """Explore with excursions: always while rewards are silent, then more and more rarely."""
        del decisions
        rewards_B = batch.rewards if batch.step_rewards is None else batch.step_rewards
        action_BA, acted_B = self.executed(batch), self.acted(batch)
        if acted_B is not None:
            rewards_B, action_BA = rewards_B[acted_B], action_BA[acted_B]
        if not len(rewards_B):
            return
        if silent(rewards_B, action_BA):
            self.head.epsilon.fill_(1.0)
        else:
            self.head.epsilon.sub_(new / self.settings.epsilon_decisions).clamp_(min=0.0)

    def judge(self, context_BC: Tensor, action_BA: Tensor) -> Tensor:
        """Return the value B the actor climbs; the critics' weights get no gradient from it."""
        for parameter in self._critic_parameters:
            parameter.requires_grad = False
        self._mode(training=False)
        value_B: Tensor = self.head.critics(context_BC, action_BA).amin(0)
        self._mode(training=True)
        for parameter in self._critic_parameters:
            parameter.requires_grad = True
        return value_B

    def _mode(self, *, training: bool) -> None:
        """Switch what behaves differently in training; LayerNorm critics have nothing of the kind."""
        for part in self._norms:
            part.training = training

    def act_on(self, context_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actor's actions B,A and their log density as in acting: with running statistics."""
        for part in self._actor_norms:
            part.training = False
        sampled = self.head.actor.sample(context_BC, self.noise(len(context_BC)))
        for part in self._actor_norms:
            part.training = True
        return sampled

    def cloning(self, context_BC: Tensor, batch: Batch, loss_B: Tensor) -> Tensor:
        """Return the cloning loss: squared distance of the mean to expert actions, scaled as TD3+BC to the critics' size.

        Fujimoto and Gu 2021, equation 5: the value term has the size of |Q|, so the cloning term is scaled to it. A further
        constant lets it outweigh the entropy term while the critics are untrained.
        """
        experts = [batch.is_expert.get(name) for name in self.names]
        if not any(t is not None and bool(t.any()) for t in experts):
            return torch.zeros((), device=context_BC.device)
        mean_BA, _ = self.head.actor(context_BC)
        error_BA = (torch.tanh(mean_BA) - self.executed(batch)).square()
        scale = self._cloning_scale(loss_B)
        parts = torch.split(error_BA, list(self.head.widths), dim=-1)
        return (
            scale * torch.stack([expert_mean(e_BA.mean(-1), t) for e_BA, t in zip(parts, experts, strict=True)]).mean()
        )

    def pull(self, context_BC: Tensor, batch: Batch, prior: PriorOpinion | None, loss_B: Tensor) -> Tensor:
        """Return the squared distance of the mean to the prior's, scaled as `cloning` and by the prior's weight; 0 without a prior."""
        if prior is None:
            return torch.zeros((), device=context_BC.device)
        mean_BA, _ = self.head.actor(context_BC)
        wanted_BA = torch.cat([prior.now[name] for name in self.names], dim=-1)
        error_B = (torch.tanh(mean_BA) - wanted_BA).square().mean(-1)
        return prior.weight * self._cloning_scale(loss_B) * batch.weighted(error_B)

    def _cloning_scale(self, loss_B: Tensor) -> Tensor:
        return self.settings.imitation * (loss_B.detach().abs().mean() + 10 * self.log_temperature.detach().exp())

    def state_dict(self) -> dict[str, Tensor]:
        """Return temperature and optimisers."""
        return {
            "log_temperature": self.log_temperature.detach().clone(),
            **add_prefix("actor", self.actor_optimiser.state_dict()),
            **add_prefix("temperature", self.temperature_optimiser.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        with torch.no_grad():
            self.log_temperature.copy_(state["log_temperature"])
        self.actor_optimiser.load_state_dict(strip_prefix("actor", state))
        self.temperature_optimiser.load_state_dict(strip_prefix("temperature", state))


class Sac(ActorCritic):
    """SAC: target critics that follow slowly."""

    def __init__(
        self,
        head: ContinuousHead,
        names: tuple[str, ...],
        generator: torch.Generator,
        settings: SacSettings | None = None,
    ) -> None:
        super().__init__(head, names, settings or SacSettings(), generator)
        self.target = copy.deepcopy(head.critics).requires_grad_(False)
        self._follow = Tracker(self.target, head.critics)

    def loss(self, contexts: Contexts, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the critics' squared error, summed over critics."""
        with torch.no_grad():
            action_BA, log_density_BA = self.head.actor.sample(contexts.upcoming, self.noise(len(batch)))
            next_NB = self.target(contexts.upcoming, action_BA)
            if self.settings.subset < len(next_NB):
                order = torch.randperm(len(next_NB), generator=self.generator, device=self.generator.device)
                next_NB = next_NB[order[: self.settings.subset].to(next_NB.device)]
            target_B = soft_target(
                next_NB, log_density_BA.sum(-1), batch.rewards, batch.discounts, self.log_temperature.exp()
            )
        value_NB = self.head.critics(contexts.now, self.executed(batch))
        loss = self.critic_loss(batch, value_NB - target_B)
        return loss, {"sac_loss": loss.detach(), "sac_value": value_NB.detach().mean()}

    def improve(self, contexts: Contexts, batch: Batch, updates: int) -> dict[str, Tensor]:
        """Step the actor, then let the target critics follow."""
        metrics = super().improve(contexts, batch, updates)
        self._follow(self.settings.track)
        return metrics

    def state_dict(self) -> dict[str, Tensor]:
        """Return temperature, optimisers and target critics."""
        return super().state_dict() | add_prefix("target", self.target.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        super().load_state_dict(state)
        self.target.load_state_dict(strip_prefix("target", state))
