"""What came of one version's decisions, second by second of acting: rewards, and the share that the gate refused."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

BLOCK_S = 1.0
KEPT = 300
"""Blocks: five minutes of acting."""


@dataclass(slots=True)
class Blocks:
    """Means over seconds of acting."""

    second: int = 0
    total: float = 0.0
    count: int = 0

    def add(self, stamp_s: float, value: float) -> float | None:
        """Take a value; the mean of the second before when this one begins another."""
        second = int(stamp_s / BLOCK_S)
        done = self.total / self.count if self.count and second != self.second else None
        if second != self.second:
            self.second, self.total, self.count = second, 0.0, 0
        self.total += value
        self.count += 1
        return done


@dataclass(slots=True)
class Watched:
    """Second by second, what came of one version's decisions."""

    rewards: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    refusals: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    _reward: Blocks = field(default_factory=Blocks)
    _refusal: Blocks = field(default_factory=Blocks)

    def add(self, stamp_s: float, reward: float | None, *, refused: bool) -> tuple[float | None, float | None]:
        """Take a settled decision; the reward and refusal blocks that were finished by it."""
        done = self._refusal.add(stamp_s, float(refused)), None if reward is None else self._reward.add(stamp_s, reward)
        for block, kept in zip(done, (self.refusals, self.rewards), strict=True):
            if block is not None:
                kept.append(block)
        return done[1], done[0]

    def dump(self) -> dict[str, list[float]]:
        """The blocks as plain data."""
        return {"rewards": list(self.rewards), "refusals": list(self.refusals)}

    @classmethod
    def of(cls, body: Mapping[str, Sequence[float]]) -> Watched:
        """From what `dump` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        watched = cls()
        watched.rewards.extend(map(float, body["rewards"]))
        watched.refusals.extend(map(float, body["refusals"]))
        return watched
