"""Decide when there is something to protect: the first version that is worth more than the untrained policy.

1. Versions follow freely, and each acts for a while. Their results are compared with those of the untrained policy before them.
   The comparison is one before and after, which is weaker than an experiment, and serves only for the start.
2. The best version leads. Each newer version races against the leader, in paired blocks, and takes the lead as soon as it is ahead.
3. A leader that `SURVIVED` newer versions in succession did not overtake is trusted, or without rivals after `LONG_UNITS`: it becomes the
   anchor. From then on only a proof replaces it.

The first leader is found once a version is clearly better than the untrained policy and learning does not climb any more:

- the newest version is clearly worse than the best one (a fall; the best of many has also been lucky, which is allowed for), or
- the last `WINDOW` versions or more together earned no more than as many before them, and both are well known (a stall), or
- the newest version has acted for `LONG_UNITS` units, and no other came.

The guard watches the leader alone as well. Once it looks worse than before, or clearly worse than another version was, the best of the
others races against it, and it has to earn trust again (`fell`).

While each version beats those before it, waiting costs nothing, and races would slow the learning down. A first leader may be far from
what the learner reaches a little later, so it is not trusted yet: proofs would keep it for too long.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runtime.deploy.experiments.reward_levels import Level
from runtime.inference.engine import UNTRAINED

LEAST_UNITS = 5
"""Units of a version before it counts."""
WINDOW = 3
LONG_UNITS = 60
STALL_ERROR = 0.1
"""Share of the gain over the untrained policy to which a stall has to be known, one standard error."""
VERSIONS = 64
"""Versions that are remembered, the newest."""
CLEAR = 3.0
"""Standard errors by which a version has to beat the untrained policy."""
FALL = 2.5
"""Standard errors by which the newest version has to be worse than the best one."""
SURVIVED = 3
"""Newer versions in succession that have to lose their race before the leader is trusted."""


@dataclass(slots=True)
class FirstAnchor:
    """See the module. A unit is a whole episode, or a block of ticks."""

    untrained: Level = field(default_factory=Level)
    versions: OrderedDict[str, Level] = field(default_factory=OrderedDict)
    """By version, oldest first."""
    leader: str | None = None
    """The version against which newer ones race; None while versions follow freely."""
    lost: int = 0
    """Races in succession that newer versions did not win."""
    led: int = 0
    """Units of the leader, those before it took the lead included; those since it fell, if it did."""
    rival: str | None = None
    """An earlier version that is to race against the leader, because that one fell."""
    episodic: bool = False
    """Units are episodes, not blocks; the two cannot be compared."""

    def count(self, returns: Mapping[str, Level] | None) -> None:
        """Note what a unit is from now on; where that changes, what was counted before counts no more.

        Args:
            returns: of the episodes so far, by version; None where units are blocks.
        """
        if (returns is not None) == self.episodic:
            return
        self.episodic = returns is not None
        self.untrained, self.versions = Level(), OrderedDict()
        for version, level in (returns or {}).items():
            if version == UNTRAINED:
                self.untrained = replace(level)
            else:
                self.versions[version] = replace(level)
        found = self.versions.get(self.leader or "")
        self.led = 0 if found is None else found.count

    def forget_rewards(self) -> None:
        """Forget what each version earned and survived; the leader stays, and has to earn trust again."""
        self.untrained, self.versions = Level(), OrderedDict()
        self.rival, self.lost, self.led = None, 0, 0

    def lead(self, version: str) -> None:
        """Give the lead to a version."""
        level = self.versions.get(version)
        self.leader, self.lost, self.led = version, 0, 0 if level is None else level.count
        self.rival = None

    def is_behind(self) -> bool:
        """Return whether another version earned clearly more, before or after; a race against it has to show whether that still holds."""
        judged, rival = self._judged(), self.best(without=self.leader)
        if self.rival is not None or rival is None or self.leader not in judged:
            return False
        away = judged[rival].mean - judged[self.leader].mean
        return away > 0 and away >= _clear(len(judged)) * _joint(judged[rival], judged[self.leader])

    def race_again(self, version: str) -> None:
        """Begin the race of the rival: what it earned in another time does not count."""
        if version == self.rival:
            self.versions.pop(version, None)

    def fell(self) -> str | None:
        """Note that the leader looks worse than before: what it earned and survived is forgotten. Return the rival, if there is any."""
        self.versions.pop(self.leader or "", None)
        self.lost, self.led = 0, 0
        self.rival = self.best(without=self.leader)
        return self.rival

    def drop(self, version: str) -> None:
        """Forget a version that cannot act any more."""
        self.versions.pop(version, None)
        if self.rival == version:
            self.rival = self.best(without=self.leader)

    def race_lost(self) -> None:
        """Note that a newer version did not overtake the leader."""
        self.lost += 1

    def settled(self, *, rivals: bool = False) -> str | None:
        """Return a sentence on why the leader is to be trusted; None while newer versions may still overtake it.

        Args:
            rivals: a newer version races or waits for its race, so that time alone proves nothing.
        """
        if self.leader is None:
            return None
        if self.lost >= SURVIVED:
            return f"{self.lost} newer versions did not overtake it in paired blocks"
        if self.led < LONG_UNITS or rivals or not self._earns_more():
            return None
        return f"no version overtook it in {self.led} units"

    def gain(self) -> str:
        """Say what the leader earned, and the untrained policy before it."""
        level = self.versions.get(self.leader or "")
        earned = f"{level.mean:.4g}" if level is not None else "more"
        claim = "better than the untrained policy" if self._earns_more() else "the best so far"
        return f"{claim} ({earned} after {self._start().mean:.4g} of the untrained policy)"

    def _earns_more(self) -> bool:
        """Return whether the leader earned more than the untrained policy, since it led or fell."""
        level = self.versions.get(self.leader or "")
        start = self._start()
        return level is None or not start.count or level.mean > start.mean

    def add(self, version: str, value: float, *, untrained: bool) -> None:
        """Take one unit of a version."""
        if untrained:
            self.untrained.add(value)
            return
        self.led += version == self.leader
        if version not in self.versions:
            self.versions[version] = Level()
            while len(self.versions) > VERSIONS:
                self.versions.popitem(last=False)
        level = self.versions[version]
        level.add(value)
        level.count = min(level.count, LONG_UNITS)  # what it earned long ago counts less and less

    def found(self) -> tuple[str, str] | None:
        """Return the first leader and a sentence with the reason; None while learning climbs or nothing is clear."""
        judged, best, start = self._judged(), self.best(), self._start()
        if best is None or start.count < LEAST_UNITS:
            return None
        gain = judged[best].mean - start.mean
        if gain <= 0 or gain < CLEAR * _joint(judged[best], start):
            return None
        newest = list(judged.values())[-1]
        away = judged[best].mean - newest.mean
        fell = away > 0 and away >= _clear(len(judged)) * _joint(judged[best], newest)
        long = newest.count >= LONG_UNITS
        if not fell and not long and not _stalled(list(judged.values()), STALL_ERROR * gain):
            return None
        why = (
            "a later version was worse"
            if fell
            else "it has acted long enough"
            if long
            else "later versions were no better"
        )
        unit = f"{judged[best].mean:.4g} after {start.mean:.4g} of the untrained policy"
        return best, f"better than the untrained policy ({unit}, before and after), and {why}"

    def _start(self) -> Level:
        """Return what the untrained policy earned, and the first versions after it where it did not act for long enough."""
        taken = [self.untrained]
        for level in self.versions.values():
            if sum(one.count for one in taken) >= LEAST_UNITS:
                break
            taken.append(level)
        return _pooled(taken)

    def best(self, without: str | None = None) -> str | None:
        """Return the version that earned most so far, of equal ones the newest; None before one has acted long enough."""
        judged = {name: level for name, level in self._judged().items() if name != without}
        return max(reversed(judged), key=lambda name: judged[name].mean - _error(judged[name]), default=None)

    def _judged(self) -> dict[str, Level]:
        return {name: level for name, level in self.versions.items() if level.count >= LEAST_UNITS}

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data."""
        levels = {name: [one.count, one.mean, one.square] for name, one in self.versions.items()}
        one = self.untrained
        return {
            "untrained": [one.count, one.mean, one.square],
            "versions": levels,
            "best": self.best(),
            "leader": self.leader,
            "lost": self.lost,
            "led": self.led,
            "rival": self.rival,
            "episodic": self.episodic,
        }

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> FirstAnchor:
        """Restore what `dump` returned.

        Raises:
            KeyError, TypeError, ValueError: the body is malformed.
        """
        count, mean, square = body["untrained"]
        found = cls(Level(int(count), float(mean), float(square)))
        for name, (count, mean, square) in body["versions"].items():
            found.versions[str(name)] = Level(int(count), float(mean), float(square))
        leader, rival = body.get("leader"), body.get("rival")  # an earlier program knew none
        found.leader = None if leader is None else str(leader)
        found.rival = None if rival is None else str(rival)
        found.lost, found.led = int(body.get("lost", 0)), int(body.get("led", 0))
        found.episodic = bool(body.get("episodic", False))
        return found


def _stalled(levels: list[Level], error: float) -> bool:
    """Return whether the newest versions earned no more than as many before them, known to a standard error of `error`.

    Each side has `WINDOW` versions, and more where the units vary so much that these few say nothing.
    """
    for window in range(WINDOW, len(levels) // 2 + 1):
        before, after = _pooled(levels[-2 * window : -window]), _pooled(levels[-window:])
        if _joint(before, after) <= error:
            return after.mean <= before.mean
    return False


def _pooled(levels: list[Level]) -> Level:
    """Return the level of all units of several versions."""
    count = sum(level.count for level in levels)
    if not count:
        return Level()
    mean = sum(level.count * level.mean for level in levels) / count
    squares = sum(level.count * (level.square + (level.mean - mean) ** 2) for level in levels)
    return Level(count, mean, squares / count)


def _clear(count: int) -> float:
    """Return `FALL`, enlarged by how far the luckiest of `count` equal versions is above their mean, in standard errors."""
    return math.hypot(FALL, math.sqrt(2.0 * math.log(count)))


def _error(level: Level) -> float:
    return level.deviation / math.sqrt(level.count)


def _joint(one: Level, two: Level) -> float:
    return math.hypot(_error(one), _error(two))
