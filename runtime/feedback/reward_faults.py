"""Show rewards that cannot be computed: a plug-in that fails, an expression over a stream that is missing.

Such a reward counts as 0 at that tick. `health.reward_faults` has the totals; the event `reward_failed` names the reward, the
reason and the total, at most once a minute for each reward. A reward beyond its limit is published as `reward_clipped`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from learners.rewards.tick_rewards import TickRewards
from runtime.control.tick import TickResult
from runtime.process.emit import Emit

EVENT_EVERY_S = 60.0


@dataclass(slots=True)
class RewardFaultReporter:
    """Listens to ticks."""

    rewards: TickRewards
    emit: Emit
    now: Callable[[], float]
    """Monotonic seconds."""
    _published: dict[str, tuple[float, int]] = field(default_factory=dict)
    """By reward: when its last event was published, and the total in it."""
    _clipped: dict[str, tuple[float, int]] = field(default_factory=dict)
    """The same for `reward_clipped`."""

    def ticked(self, _result: TickResult) -> None:
        """Publish what is new since the last event of each reward."""
        for name, count in self.rewards.faults.items():
            published_s, published = self._published.get(name, (-math.inf, 0))
            if count > published and self.now() - published_s >= EVENT_EVERY_S:
                self._published[name] = (self.now(), count)
                self.emit("reward_failed", {"name": name, "reason": self.rewards.reasons[name], "count": count})
        for name, count in self.rewards.clipped.items():
            published_s, published = self._clipped.get(name, (-math.inf, 0))
            if count > published and self.now() - published_s >= EVENT_EVERY_S:
                self._clipped[name] = (self.now(), count)
                value, limit = self.rewards.beyond[name]
                self.emit(
                    "reward_clipped", {"name": name, "source": name, "value": value, "limit": limit, "count": count}
                )
