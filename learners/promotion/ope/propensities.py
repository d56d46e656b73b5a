"""Compute how a policy acts on given contexts: the probability of every choice, the density of a given motion, and draws.

`Heads.act` draws one action and returns its probability; the evaluation on actions of another policy needs all of them. They
include exploration. Its amount follows from the weights (epsilon of DQN and of the continuous head's excursions, the width of the
bandit's posterior) and from `policy.exploration`. The density of a motion is that of one tick. It ignores the dependence of
successive noise, so products over ticks are approximate for continuous actuators.

Shapes: B contexts, n choices, A components of all continuous actuators, a continuous actuators, M draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.model.gaussian_actor import ContinuousHead
from learners.model.heads import Heads


@dataclass(frozen=True, slots=True)
class Preference:
    """Of one choice actuator: critic's values and probabilities, B,n each, exploration included."""

    scores: Tensor
    probabilities: Tensor


@torch.no_grad()
def preferences(heads: Heads, context_BC: Tensor, masks: Mapping[str, Tensor] | None = None) -> dict[str, Preference]:
    """Return the probability of every choice of every choice actuator; `masks` B,n: what was allowed, all where absent."""
    found: dict[str, Preference] = {}
    if heads.actions.choices:
        every = heads.preferences(context_BC, explore=True, masks=masks or {})
        found |= {actuator.name: Preference(*one) for actuator, one in zip(heads.actions.choices, every, strict=True)}
    return found


@torch.no_grad()
def densities(head: ContinuousHead, context_BC: Tensor, unit_BA: Tensor) -> Tensor:
    """Density B,a (float64) of given motions in (-1, 1), in the actuators' units: (1 - epsilon) policy + epsilon excursion."""
    return head.log_density(context_BC, unit_BA).double().exp()


@torch.no_grad()
def motions(head: ContinuousHead, context_BC: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """M independent draws M,B,A in (-1, 1)."""
    mean_BA, log_std_BA = head.motion(context_BC)
    noise_MBA = torch.randn(count, *mean_BA.shape, generator=generator)
    free_MB1 = torch.rand(count, len(mean_BA), 1, generator=generator) < head.excursion_share
    return torch.tanh(torch.where(free_MB1, noise_MBA, mean_BA + log_std_BA.exp() * noise_MBA))


def unit_actions(heads: Heads, actions: Mapping[str, Tensor]) -> Tensor:
    """Return the given motions of all continuous actuators, B,A in [-1, 1]."""
    assert heads.continuous is not None
    values = [actions[a.name].float() for a in heads.actions.continuous]
    return heads.continuous.from_units(torch.cat(values, dim=-1))


def taken(
    heads: Heads, context_BC: Tensor, actions: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Probability (or density) B, float64, of given actions of every actuator; `masks` as for `preferences`."""
    found: dict[str, Tensor] = {}
    for name, preference in preferences(heads, context_BC, masks).items():
        index_B1 = actions[name].unsqueeze(-1)
        found[name] = preference.probabilities.gather(-1, index_B1).squeeze(-1).double()
    if heads.continuous is not None:
        density_Ba = densities(heads.continuous, context_BC, unit_actions(heads, actions))
        found |= {a.name: density_Ba[:, i] for i, a in enumerate(heads.actions.continuous)}
    return found
