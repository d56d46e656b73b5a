"""Measure the reward of a unit (a tick, or a whole episode) of each version that acts: mean, deviation, and length of episodes.

The experiment needs the champion's level and deviation for its margin, the length of episodes for its pace, and whether the task has
episodes at all.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from learners.experiment_statistics.paired_outcomes import HARMS, TickOutcome
from learners.safeguards.reward_ledger import LedgerEntry

VERSIONS = 8
"""Versions that are remembered, those that acted last."""
MEMORY = 10_000
"""Units over which a level adapts."""
EPISODES = 3
"""Episodes that have to be seen before a task counts as one with episodes."""
NONE_FOR = 20
"""Lengths of an episode without an end after which the task counts as one without."""

DECISIONS = 20_000
"""Decisions that are remembered for late rewards and late harms, the newest."""
BORDER_TICKS = 3
"""Ticks after the end of an episode in which the version may still change: the end is known when its reward has arrived."""


@dataclass(slots=True)
class Level:
    """Running mean and variance."""

    count: int = 0
    mean: float = 0.0
    square: float = 0.0

    def add(self, value: float) -> None:
        """Take one unit."""
        self.count += 1
        rate = max(1.0 / self.count, 1.0 / MEMORY)
        away = value - self.mean
        self.mean += rate * away
        self.square += rate * (away * away * (1.0 - rate) - self.square)

    @property
    def deviation(self) -> float:
        """Return the standard deviation of a unit."""
        return math.sqrt(max(0.0, self.square))


@dataclass(slots=True)
class RewardLevels:
    """Takes settled decisions in order."""

    ticks: OrderedDict[str, Level] = field(default_factory=OrderedDict)
    """Reward of a tick, by version."""
    returns: OrderedDict[str, Level] = field(default_factory=OrderedDict)
    """Return of a whole episode, by version."""
    lengths: OrderedDict[str, Level] = field(default_factory=OrderedDict)
    """Ticks of a whole episode, by version."""
    episodes: int = 0
    length: float = 0.0
    """Mean ticks of an episode."""
    since_end: int = 0
    """Ticks since an episode ended."""
    _version: str | None = None
    """Of the running episode, if one version acted in all of it."""
    _return: float = 0.0
    _ticks: int = 0
    _begun: bool = False
    """The beginning of the running episode was seen: the first one after a start may have begun long before."""

    @property
    def episodic(self) -> bool:
        """Return whether the task has episodes now."""
        return self.episodes >= EPISODES and self.since_end <= NONE_FOR * max(self.length, 1.0)

    def settled(self, entries: Iterable[LedgerEntry], without: frozenset[str]) -> list[tuple[str, float]]:
        """Take settled decisions; return version and return of every episode that ended whole."""
        ended: list[tuple[str, float]] = []
        for entry in entries:
            reward = entry.total(without) or 0.0
            self.since_end += 1
            self._ticks += 1
            self._return += reward
            if entry.acted:
                _level(self.ticks, entry.version).add(reward)
            if self._ticks <= BORDER_TICKS:
                self._version = entry.version
            if entry.version != self._version or not entry.acted:
                self._version = None
            if not entry.done:
                continue
            if self._begun and self._version is not None:
                _level(self.returns, self._version).add(self._return)
                _level(self.lengths, self._version).add(self._ticks)
                ended.append((self._version, self._return))
            if self._begun:
                self.episodes += 1
                self.length += (self._ticks - self.length) / min(self.episodes, 50)
            self._begun, self.since_end, self._ticks, self._return = True, 0, 0, 0.0
        return ended

    def forget_rewards(self) -> None:
        """Forget what each version earned, and the return of the running episode."""
        self.ticks.clear()
        self.returns.clear()
        self._begun = False

    def of(self, version: str | None, *, episodic: bool) -> Level | None:
        """Return the level of a version; None before its first unit."""
        return None if version is None else (self.returns if episodic else self.ticks).get(version)

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {
            "ticks": {name: [one.count, one.mean, one.square] for name, one in self.ticks.items()},
            "returns": {name: [one.count, one.mean, one.square] for name, one in self.returns.items()},
            "lengths": {name: [one.count, one.mean, one.square] for name, one in self.lengths.items()},
            "episodes": self.episodes,
            "length": self.length,
        }

    @classmethod
    def restored(cls, body: Mapping[str, Any]) -> RewardLevels:
        """Restore what `dump` returned.

        Raises:
            KeyError, TypeError, ValueError: the body is malformed.
        """
        found = cls(episodes=int(body["episodes"]), length=float(body["length"]))
        for levels, saved in (
            (found.ticks, body["ticks"]),
            (found.returns, body["returns"]),
            (found.lengths, body["lengths"]),
        ):
            for name, (count, mean, square) in saved.items():
                levels[str(name)] = Level(int(count), float(mean), float(square))
                if levels[str(name)].count < 0:
                    raise ValueError(f"level of {name}: a count of {count}")
        return found


def _level(levels: OrderedDict[str, Level], version: str) -> Level:
    """Return the level of a version that has just acted; what has not acted for longest is forgotten."""
    if version not in levels:
        levels[version] = Level()
    levels.move_to_end(version)
    while len(levels) > VERSIONS:
        del levels[next(name for name in levels if name != "untrained")]
    return levels[version]


@dataclass(slots=True)
class NewestEpisodeEnd:
    """Tells a new end of an episode from one that was reported before: another source may report it much later."""

    _newest: tuple[str, int] = ("", -1)
    """Run and tick of the newest decision that ended an episode."""

    def is_new(self, decision: str | None) -> bool:
        """Return whether no end of this decision or of a later one was reported; an end without a decision is new."""
        run, _, index = (decision or "").rpartition("-")
        if not index.isdecimal():
            return True
        end = (run, int(index))
        if run == self._newest[0] and end <= self._newest:
            return False
        self._newest = end
        return True


@dataclass(slots=True)
class RunningBlock:
    """Collects the rewards of a block of ticks in which one version acts."""

    version: str = ""
    rewards: list[float] = field(default_factory=list)

    def add(self, entries: Iterable[LedgerEntry], size: int, without: frozenset[str]) -> list[tuple[str, float]]:
        """Take settled decisions, oldest first; return version and mean reward of each block of `size` ticks that became complete."""
        found = []
        for entry in entries:
            if not entry.acted:
                continue
            if entry.version != self.version:
                self.version, self.rewards = entry.version, []
            self.rewards.append(entry.total(without) or 0.0)
            if len(self.rewards) >= size:
                found.append((entry.version, sum(self.rewards) / len(self.rewards)))
                self.rewards = []
        return found


@dataclass(slots=True)
class RunningHarms:
    """Counts the harms of the live version, in blocks of its ticks; each harm once for each decision."""

    ticks: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    _seen: OrderedDict[str, tuple[str, ...]] = field(default_factory=OrderedDict)
    """Harms by decision, for the newest decisions of the live version."""

    def add(self, decision: str, outcome: TickOutcome, size: int) -> tuple[dict[str, float], int] | None:
        """Take one tick; return the share of the ticks with each harm, and the ticks, when `size` of them are complete.

        Harms beyond one a tick, which became known late and together, wait for the next block.
        """
        self.ticks += 1
        self._seen[decision] = ()
        while len(self._seen) > DECISIONS:
            self._seen.popitem(last=False)
        for harm in HARMS:
            if getattr(outcome, harm):
                self.late(decision, harm)
        if self.ticks < size:
            return None
        shares = {harm: min(1.0, self.counts[harm] / self.ticks) for harm in HARMS}
        ticks, self.ticks = self.ticks, 0
        self.counts = Counter({harm: count - ticks for harm, count in self.counts.items() if count > ticks})
        return shares, ticks

    def late(self, decision: str, harm: str) -> None:
        """Count a harm that became known after its decision, once, if the decision is one of the live version."""
        seen = self._seen.get(decision)
        if seen is not None and harm not in seen:
            self._seen[decision] = (*seen, harm)
            self.counts[harm] += 1
