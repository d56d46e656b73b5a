"""Say what a second loaded version would have done at a tick, for the log of a live experiment.

Both versions see the same observations. The one that does not act draws nothing: its action is its best one, and the probabilities
include its exploration. So each tick of an experiment logs both actions with both probabilities. Belongs to the inference thread.

Shapes: H ticks of history, D width of a state.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.inference.numpy_policy.history import Fuse, TickFeatures


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
        self._states: deque[NDArray[np.float32]] = deque(maxlen=length)

    def states(
        self, version: str, names: tuple[str, ...], fuse: Fuse, window: tuple[TickFeatures, ...], tick: int
    ) -> NDArray[np.float32]:
        """Return the states 1,H,D up to this tick; only the newest features are fused where the tick before was, too."""
        missing = 1 if (version, tick - 1) == (self._version, self._tick) else len(window)
        for features in window[-missing:]:
            self._states.append(fuse(features.present, features.ages, *(features.tokens[name] for name in names)))
        self._version, self._tick = version, tick
        return np.stack(list(self._states), axis=1)
