"""Say what a second loaded version would have done at a tick, for the log of a live experiment.

Both versions see the same observations. The one that does not act draws nothing: its action is its best one, and the probabilities
include its exploration. So each tick of an experiment logs both actions with both probabilities. Belongs to the inference thread.

Shapes: H ticks of history, D width of a state, C context.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learners.model.backends.selection import Run
from learners.model.features import Features
from learners.model.heads import HeadOutput, Heads, actuator_values
from learners.model.policy import Policy
from learners.promotion.ope.propensities import taken


@dataclass(frozen=True, slots=True)
class OtherDecision:
    """What a version that does not act would have done.

    `actions`: by actuator the value, its probability under this version (`probability`) and under the acting one (`acting`).
    `taken`: by actuator, this version's probability of the action that the acting one proposed.
    """

    policy: str
    actions: dict[str, dict[str, Any]]
    taken: dict[str, float]

    def fields(self) -> dict[str, Any]:
        """Return the fields of the `decision` message."""
        return {"policy": self.policy, "actions": self.actions, "taken": self.taken}


class SecondPolicy:
    """The states of a version that does not act.

    Args:
        length: H.
    """

    def __init__(self, length: int) -> None:
        self._version, self._tick = "", -1
        self._states: deque[Tensor] = deque(maxlen=length)

    def context(self, version: str, policy: Policy, fuse: Run, window: tuple[Features, ...], tick: int) -> Tensor:
        """Return the context 1,C of this tick; only the newest features are fused where the tick before was, too."""
        missing = 1 if (version, tick - 1) == (self._version, self._tick) else len(window)
        for features in window[-missing:]:
            names = policy.spec.names
            self._states.append(fuse(features.present, features.ages, *(features.tokens[name] for name in names)))
        self._version, self._tick = version, tick
        return policy.context(torch.stack(list(self._states), dim=1))


def compare(
    version: str, other: Heads, theirs_1C: Tensor, acting: Heads, ours_1C: Tensor, out: HeadOutput
) -> OtherDecision:
    """Return what a version would have done at a tick.

    Args:
        version: its name.
        other: its heads.
        theirs_1C: its context.
        acting: the heads that acted.
        ours_1C: their context.
        out: what they decided, while they explored.
    """
    best = other.act(theirs_1C, generator=torch.Generator(theirs_1C.device), explore=False)
    values = actuator_values(other.actions, best)
    own, by_acting = taken(other, theirs_1C, best.values), taken(acting, ours_1C, best.values)
    ours = taken(other, theirs_1C, out.values)
    actions = {
        name: {"value": value, "probability": float(own[name][0]), "acting": float(by_acting[name][0])}
        for name, value in values.items()
    }
    return OtherDecision(version, actions, {name: float(p_B[0]) for name, p_B in ours.items()})
