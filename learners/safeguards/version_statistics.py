"""Collect the results of one version's decisions: rewards and rejections for each second of acting, and returns.

A return is the sum of the rewards of one whole episode, as rewards with `done` end them. It tells what the mean reward of a
second cannot where every tick earns the same until the episode is over, as with a pole that must not fall.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

BLOCK_S = 1.0
KEPT = 300
"""Blocks: five minutes of acting."""
KEPT_EPISODES = 20
LEAST_EPISODES = 5
"""What returns can be compared with."""
ENDLESS = 10_000
"""Ticks after which an episode counts as it is."""


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
class Episode:
    """The return so far."""

    total: float = 0.0
    ticks: int = 0
    whole: bool = False
    """It was this version's from its first tick on."""

    def add(self, reward: float | None, *, ends: bool) -> tuple[float, int] | None:
        """Take a tick; return and length when it ends a whole episode."""
        self.total += reward or 0.0
        self.ticks += 1
        if not ends:
            return None
        found = (self.total, self.ticks) if self.whole else None
        self.total, self.ticks, self.whole = 0.0, 0, True
        return found

    def interrupt(self) -> None:
        """Somebody else acted: what is left of the episode is not this version's."""
        self.total, self.ticks, self.whole = 0.0, 0, False


@dataclass(frozen=True, slots=True)
class CompletedBlock:
    """What one decision finished: the figures of a second, the return of an episode."""

    reward: float | None = None
    refused: float | None = None
    gained: float | None = None
    """The return."""


@dataclass(slots=True)
class VersionStatistics:
    """What came of one version's decisions."""

    rewards: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    refusals: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_EPISODES))
    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT_EPISODES))
    """Of the episodes, in ticks."""
    longest: int = ENDLESS
    """Ticks after which an episode is counted as it is, so that one without an end counts, too."""
    _reward: Blocks = field(default_factory=Blocks)
    _refusal: Blocks = field(default_factory=Blocks)
    _episode: Episode = field(default_factory=Episode)

    def add(self, stamp_s: float, reward: float | None, *, refused: bool, done: bool = False) -> CompletedBlock:
        """Take a settled decision."""
        refusal = self._refusal.add(stamp_s, float(refused))
        rewarded = None if reward is None else self._reward.add(stamp_s, reward)
        if refusal is not None:
            self.refusals.append(refusal)
        if rewarded is not None:
            self.rewards.append(rewarded)
        episode = self._episode.add(reward, ends=done or self._episode.ticks + 1 >= self.longest)
        if episode is None:
            return CompletedBlock(rewarded, refusal)
        self.returns.append(episode[0])
        self.lengths.append(episode[1])
        return CompletedBlock(rewarded, refusal, episode[0])

    def interrupt(self) -> None:
        """Record a decision of another version."""
        self._episode.interrupt()

    def follow(self, before: VersionStatistics) -> None:
        """Fill up with the newest episodes of the version before if there are too few to compare with."""
        room = max(0, LEAST_EPISODES - len(self.returns))
        self.returns.extendleft([*reversed(before.returns)][:room])
        self.lengths.extendleft([*reversed(before.lengths)][:room])

    def dump(self) -> dict[str, list[float]]:
        """Return the blocks as plain data."""
        return {
            "rewards": list(self.rewards),
            "refusals": list(self.refusals),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
        }

    @classmethod
    def of(cls, body: Mapping[str, Sequence[float]]) -> VersionStatistics:
        """Restore from the data of `dump`.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        watched = cls()
        watched.rewards.extend(map(float, body["rewards"]))
        watched.refusals.extend(map(float, body["refusals"]))
        # files of versions before returns were watched have none
        watched.returns.extend(map(float, body.get("returns", ())))
        watched.lengths.extend(map(int, body.get("lengths", ())))
        if len(watched.returns) != len(watched.lengths):
            raise ValueError(f"{len(watched.returns)} returns of {len(watched.lengths)} episodes")
        return watched
