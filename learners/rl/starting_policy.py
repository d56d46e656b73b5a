"""Treat a policy that already works as a prior: evaluate it first, then stay near it until experience outweighs it.

A policy that was imported, or that became live again, knows more than a learner with a fresh optimiser. Its training has two phases:

1. For `FIT_UPDATES` updates only the critics learn, and they evaluate the prior: the target takes the prior's action in the next state.
   The encoder and the actor do not move.
2. Then the policy improves on them. A loss pulls it towards the prior's action in each state. Its weight is `STRENGTH / (STRENGTH + n)`
   after n more updates: the prior counts as that many updates of evidence. Below `LEAST` the prior is dropped.

The loss of choices acts from the first update on, because their critic is also what acts.

Used by `Algorithm`. A bandit needs no prior of this kind, because its posterior carries its own evidence.

Sources: critics that are fitted before the actor moves, Nakamoto et al. 2023 (Cal-QL); a pull that fades, Schmitt et al. 2018
(Kickstarting).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learners.rl.transition_batch import Batch

FIT_UPDATES = 1_000
"""Updates in which only the critics learn."""
STRENGTH = 10_000
"""Updates of experience that the prior counts as."""
HEAD_STRENGTH = 50
"""The same where only heads are trained on the features of a fleet's version. A device that differs must find out within minutes. Its
candidate has to beat that version in an experiment all the same."""
LEAST = 0.02


@dataclass(frozen=True, slots=True)
class PriorOpinion:
    """The output of a prior for one batch.

    `now`, `upcoming`: by actuator the scores B,n of the choices, or the mean motion B,a in [-1, 1]; `upcoming` is empty unless the critics
    are fitted. `weight`: of the pull.
    """

    now: Mapping[str, Tensor]
    upcoming: Mapping[str, Tensor]
    weight: float

    @property
    def fitting(self) -> bool:
        """Whether only the critics learn now."""
        return bool(self.upcoming)


class Prior:
    """A frozen copy of a policy, and how many updates its training has made since.

    Args:
        policy: what acts, with the weights of the prior; it is copied.
        updates: since the prior was adopted.
        strength: updates of experience that it counts as; default: `STRENGTH`.
    """

    def __init__(self, policy: Any, updates: int = 0, strength: float | None = None) -> None:
        self.strength = STRENGTH if strength is None else strength
        self.policy: Any = copy.deepcopy(policy).requires_grad_(False).eval()
        self.updates = updates

    @property
    def fitting(self) -> bool:
        """Whether only the critics learn now."""
        return self.updates < FIT_UPDATES

    @property
    def weight(self) -> float:
        """Weight of the pull, from 1 to 0."""
        return self.strength / (self.strength + max(0, self.updates - FIT_UPDATES))

    @property
    def outweighed(self) -> bool:
        """Whether experience outweighs the prior, so that it can be dropped."""
        return self.weight < LEAST

    @torch.no_grad()
    def opinion(self, batch: Batch) -> PriorOpinion:
        """Return what the prior does in the states of a batch, and in the next ones while the critics are fitted."""
        now = self._answer(batch.features)
        upcoming = self._answer(batch.next_features) if self.fitting else {}
        return PriorOpinion(now, upcoming, self.weight)

    def _answer(self, features: Any) -> dict[str, Tensor]:
        """Return by actuator the scores B,n of the choices, or the mean motion B,a in [-1, 1]."""
        context_BC, heads = self.policy.encode(features), self.policy.heads
        found: dict[str, Tensor] = {}
        if heads.choice is not None:
            scores = heads.choice_scores(context_BC)
            found |= {actuator.name: s_Bn for actuator, s_Bn in zip(heads.actions.choices, scores, strict=True)}
        if heads.continuous is not None:
            mean_BA, _ = heads.continuous.actor(context_BC)
            parts = torch.split(torch.tanh(mean_BA), list(heads.continuous.widths), dim=-1)
            found |= {actuator.name: part for actuator, part in zip(heads.actions.continuous, parts, strict=True)}
        return found
