"""Act on continuous actuators: a Gaussian actor squashed by tanh, an ensemble of critics, noise, and the actuators' units.

SAC and CrossQ train it; what they share of acting is here: one action of all actuators together, with the log density it was
drawn with.

Shapes: B batch, C context, A all continuous components together, a continuous actuators, N critics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actuators.actions import Continuous
from learners.model.exploration import INDEPENDENT, SLOW, ColouredNoise, Excursions
from learners.model.networks import Norm, UnitLinear, trunk
from learners.model.return_bins import BINS, expectation
from learners.model.spec import LEAST_NOISE

LOG_STD = (-5.0, 2.0)
EDGE = 0.999
"""Share of the range beyond which a motion counts as at its limit."""


class SquashedGaussian(nn.Module):
    """The actor: a Gaussian squashed by tanh to (-1, 1)^A, with a standard deviation that depends on the context."""

    def __init__(self, context: int, width: int, hidden: tuple[int, ...], norm: Norm) -> None:
        super().__init__()
        self.trunk = trunk(context, hidden, norm)
        self.out = nn.Linear(hidden[-1], 2 * width)
        low, high = LOG_STD
        nn.init.constant_(self.out.bias[width:], math.atanh(-(high + low) / (high - low)))  # starts at 1

    def forward(self, context_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing, B,A each."""
        mean_BA, raw_BA = self.out(self.trunk(context_BC)).chunk(2, dim=-1)
        low, high = LOG_STD
        return mean_BA, low + 0.5 * (high - low) * (torch.tanh(raw_BA) + 1)

    def sample(self, context_BC: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions B,A in (-1, 1) made from standard normal `noise_BA`, and their log density B,A by component."""
        mean_BA, log_std_BA = self(context_BC)
        raw_BA = mean_BA + log_std_BA.exp() * noise_BA
        return torch.tanh(raw_BA), squashed_log_density(raw_BA, noise_BA, log_std_BA)


def squashed_log_density(raw_BA: Tensor, noise_BA: Tensor, log_std_BA: Tensor) -> Tensor:
    """Log density of tanh(raw): Gaussian minus the log of tanh's slope, 2 (log 2 - raw - softplus(-2 raw)), stable."""
    gaussian_BA = -0.5 * noise_BA.square() - log_std_BA - 0.5 * math.log(2 * math.pi)
    return gaussian_BA - 2 * (math.log(2) - raw_BA - F.softplus(-2 * raw_BA))


def unit_log_density(unit_BA: Tensor, mean_BA: Tensor, log_std_BA: Tensor) -> Tensor:
    """Return the log density B,A of actions in [-1, 1]; beyond +-`EDGE` the density is constant, with the probability of that end.

    Near the limits float32, in which motions are stored, is too coarse for densities that differ by orders of magnitude.
    """
    raw_BA, edge = torch.atanh(unit_BA.clamp(-EDGE, EDGE)), math.atanh(EDGE)
    std_BA, width = log_std_BA.exp(), math.log(1 - EDGE)
    high_BA = torch.special.log_ndtr((mean_BA - edge) / std_BA) - width
    low_BA = torch.special.log_ndtr((-mean_BA - edge) / std_BA) - width
    inside_BA = squashed_log_density(raw_BA, (raw_BA - mean_BA) / std_BA, log_std_BA)
    return torch.where(unit_BA >= EDGE, high_BA, torch.where(unit_BA <= -EDGE, low_BA, inside_BA))


class Critics(nn.Module):
    """N independent critics of context and action."""

    def __init__(self, context: int, width: int, hidden: tuple[int, ...], norm: Norm, count: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(trunk(context + width, hidden, norm), nn.Linear(hidden[-1], 1)) for _ in range(count)
        )

    def forward(self, context_BC: Tensor, action_BA: Tensor) -> Tensor:
        """Return N,B values of actions in (-1, 1)."""
        x_BI = torch.cat((context_BC, action_BA), dim=-1)
        return torch.stack([member(x_BI).squeeze(-1) for member in self.members])


class CategoricalCritics(nn.Module):
    """N independent critics of context and action, each with a categorical distribution over the scaled return (XQC)."""

    scale: Tensor

    def __init__(self, context: int, width: int, hidden: tuple[int, ...], count: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(trunk(context + width, hidden, "unit"), UnitLinear(hidden[-1], BINS, bias=True))
            for _ in range(count)
        )
        self.register_buffer("scale", torch.ones(()))

    def logits(self, context_BC: Tensor, action_BA: Tensor, first: int = 0) -> Tensor:
        """Return N,B,K logits of the return of actions in (-1, 1), divided by `scale`.

        Args:
            context_BC: the contexts.
            action_BA: the actions.
            first: row of the first logits; rows before it only contribute to the batch statistics.
        """
        x_BI = torch.cat((context_BC, action_BA), dim=-1)
        pairs = [cast("nn.Sequential", member) for member in self.members]
        return torch.stack([out(hidden(x_BI)[first:]) for hidden, out in pairs])

    def forward(self, context_BC: Tensor, action_BA: Tensor) -> Tensor:
        """Return N,B values of actions in (-1, 1), in units of the rewards."""
        return self.scale * expectation(self.logits(context_BC, action_BA))


class ContinuousHead(nn.Module):
    """Actor and critics of all continuous actuators together, and the map between (-1, 1) and their units."""

    centre: Tensor
    reach: Tensor
    epsilon: Tensor

    def __init__(
        self, context: int, actuators: tuple[Continuous, ...], hidden: tuple[int, ...], norm: Norm, critics: int
    ) -> None:
        super().__init__()
        low_A = torch.tensor([x for a in actuators for x in a.low], dtype=torch.float32)
        high_A = torch.tensor([x for a in actuators for x in a.high], dtype=torch.float32)
        self.register_buffer("centre", (high_A + low_A) / 2, persistent=False)
        self.register_buffer("reach", (high_A - low_A) / 2, persistent=False)
        self.widths = tuple(len(a.low) for a in actuators)
        self.actor = SquashedGaussian(context, len(low_A), hidden, "none" if norm == "layer" else norm)
        self.critics: Critics | CategoricalCritics = (
            CategoricalCritics(context, len(low_A), hidden, critics)
            if norm == "unit"
            else Critics(context, len(low_A), hidden, norm, critics)
        )
        self.noise, self.wander = ColouredNoise(len(low_A), INDEPENDENT), ColouredNoise(len(low_A), SLOW)
        self.excursions = Excursions()
        self.register_buffer("epsilon", torch.zeros(()))
        self.factors = (1.0, 1.0)
        """On the share of excursions, and on the width of the noise."""

    def share_exploration(self, other: ContinuousHead) -> None:
        """Draw from the noise of `other` from now on, so that a change of weights does not interrupt it."""
        self.noise, self.wander, self.excursions = other.noise, other.wander, other.excursions

    def exploration_state(self) -> dict[str, Tensor]:
        """Return what the next draw depends on, by name; empty before the first draw."""
        states = {"noise": self.noise.state(), "wander": self.wander.state(), "free": self.excursions.state()}
        return {name: state for name, state in states.items() if state is not None}

    def restore_exploration(self, states: Mapping[str, Tensor]) -> None:
        """Continue from what `exploration_state` returned; further names are ignored."""
        self.noise.restore(states.get("noise"))
        self.wander.restore(states.get("wander"))
        self.excursions.restore(states.get("free"))

    def to_units(self, unit_BA: Tensor) -> Tensor:
        """Convert (-1, 1) to actuator units, never outside the limits by rounding."""
        return torch.clamp(self.centre + self.reach * unit_BA, self.centre - self.reach, self.centre + self.reach)

    def from_units(self, value_BA: Tensor) -> Tensor:
        """Actuator units -> [-1, 1]."""
        return ((value_BA - self.centre) / self.reach).clamp(-1, 1)

    def act(self, context_BC: Tensor, generator: torch.Generator, scale: float) -> tuple[Tensor, Tensor]:
        """Return unit actions B,A and the log density of each actuator's part in its units, B,actuators.

        `scale` widens the noise; 0 gives the mean, which is certain: log density 0.
        """
        mean_BA, log_std_BA = self.actor(context_BC)
        if scale == 0:
            return torch.tanh(mean_BA), self.by_actuator(torch.zeros_like(mean_BA))
        log_std_BA = log_std_BA + math.log(scale)
        noise_BA = self.noise(len(mean_BA), generator, mean_BA.device)
        unit_BA = torch.tanh(mean_BA + log_std_BA.exp() * noise_BA)
        log_density_BA = unit_log_density(self._as_stored(unit_BA), mean_BA, log_std_BA) - self.reach.log()
        return unit_BA, self.by_actuator(log_density_BA)

    def explore(self, context_BC: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Act as `act`, with excursions.

        An excursion takes all actuators together, slowly wandering over their whole ranges. The density is that of the
        mixture: (1 - epsilon) policy + epsilon excursion.
        """
        epsilon = self.excursion_share
        if epsilon == 0 and self.factors[1] == 0:
            return self.act(context_BC, generator, 0.0)
        mean_BA, log_std_BA = self.motion(context_BC)
        rows = len(mean_BA)
        wander_BA = self.wander(rows, generator, mean_BA.device)
        free_B = self.excursions(rows, epsilon, generator).to(mean_BA.device)
        raw_BA = mean_BA + log_std_BA.exp() * self.noise(rows, generator, mean_BA.device)
        unit_BA = torch.tanh(torch.where(free_B.unsqueeze(-1), wander_BA, raw_BA))
        return unit_BA, self._mixture(self._as_stored(unit_BA), mean_BA, log_std_BA)

    def log_density(self, context_BC: Tensor, unit_BA: Tensor) -> Tensor:
        """Return the log density B,a of given motions in [-1, 1] in the actuators' units, as `explore` draws them."""
        return self._mixture(unit_BA, *self.motion(context_BC))

    @property
    def excursion_share(self) -> float:
        """The share of time in excursions."""
        return float(self.epsilon) * self.factors[0]

    def motion(self, context_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation B,A as `explore` draws from them."""
        mean_BA, log_std_BA = self.actor(context_BC)
        return mean_BA, log_std_BA + math.log(max(self.factors[1], LEAST_NOISE))

    def log_density_before_squashing(
        self, context_BC: Tensor, actuators: tuple[Continuous, ...], name: str, value: tuple[float, ...]
    ) -> Tensor | None:
        """Return the log density B of one actuator's action before squashing; None without such an actuator."""
        mean_BA, log_std_BA = self.actor(context_BC)
        start = 0
        for actuator in actuators:
            part = slice(start, start + len(actuator.low))
            if actuator.name == name:
                unit_A = (torch.tensor(value) - self.centre[part]) / self.reach[part]
                raw_A = torch.atanh(unit_A.clamp(-EDGE, EDGE))
                z_BA = (raw_A - mean_BA[:, part]) / log_std_BA[:, part].exp()
                log_BA: Tensor = -0.5 * z_BA.square() - log_std_BA[:, part] - 0.5 * math.log(2 * math.pi)
                return log_BA.sum(-1)
            start = part.stop
        return None

    def _mixture(self, unit_BA: Tensor, mean_BA: Tensor, log_std_BA: Tensor) -> Tensor:
        own_Ba = self.by_actuator(unit_log_density(unit_BA, mean_BA, log_std_BA))
        standard_BA = torch.zeros_like(mean_BA)
        free_Ba = self.by_actuator(unit_log_density(unit_BA, standard_BA, standard_BA))
        epsilon = self.excursion_share
        weights = torch.tensor([1 - epsilon, epsilon], device=mean_BA.device).log().view(2, 1, 1)
        mixture_Ba = torch.logsumexp(torch.stack((own_Ba, free_Ba)) + weights, 0)
        return mixture_Ba - self.by_actuator(self.reach.log().unsqueeze(0))

    def _as_stored(self, unit_BA: Tensor) -> Tensor:
        """Return the motion as it is read from the store, where it has the actuators' units in float32."""
        return self.from_units(self.to_units(unit_BA))

    def by_actuator(self, x_BA: Tensor) -> Tensor:
        """Sum the components of each actuator."""
        return torch.stack([part.sum(-1) for part in torch.split(x_BA, list(self.widths), -1)], dim=-1)
