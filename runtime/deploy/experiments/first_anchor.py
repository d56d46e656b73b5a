"""Decide when there is something to protect: the first version that is worth more than the untrained policy.

Until then versions follow freely, and each acts for a while. Their results are compared with those of the untrained policy before them.
The comparison is one before and after, which is weaker than an experiment, and serves only for the start. Trust begins once a version
is clearly better than the untrained policy and learning does not climb any more:

- the newest version is clearly worse than the best one (a fall), or
- the last `WINDOW` versions together earned no more than the `WINDOW` before them (a stall), or
- the newest version has acted for `LONG_UNITS` units, and no other came.

The best version becomes the anchor. While each version beats those before it, waiting costs nothing, and experiments would slow the
learning down.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.deploy.experiments.reward_levels import Level

LEAST_UNITS = 5
"""Units of a version before it counts."""
WINDOW = 3
LONG_UNITS = 60
VERSIONS = 16
"""Versions that are remembered, the newest."""
CLEAR = 3.0
"""Standard errors by which a version has to beat the untrained policy."""
FALL = 2.5
"""Standard errors by which the newest version has to be worse than the best one."""


@dataclass(slots=True)
class FirstAnchor:
    """See the module. A unit is a whole episode, or a block of ticks."""

    untrained: Level = field(default_factory=Level)
    versions: OrderedDict[str, Level] = field(default_factory=OrderedDict)
    """By version, oldest first."""

    def add(self, version: str, value: float, *, untrained: bool) -> None:
        """Take one unit of a version."""
        if untrained:
            self.untrained.add(value)
            return
        if version not in self.versions:
            self.versions[version] = Level()
            while len(self.versions) > VERSIONS:
                self.versions.popitem(last=False)
        self.versions[version].add(value)

    def found(self) -> tuple[str, str] | None:
        """Return the version to trust and a sentence with the reason; None while learning climbs or nothing is clear."""
        judged = {name: level for name, level in self.versions.items() if level.count >= LEAST_UNITS}
        if not judged or self.untrained.count < LEAST_UNITS:
            return None
        best = max(judged, key=lambda name: judged[name].mean - _error(judged[name]))
        gain = judged[best].mean - self.untrained.mean
        if gain <= 0 or gain < CLEAR * _joint(judged[best], self.untrained):
            return None
        newest = list(judged.values())[-1]
        away = judged[best].mean - newest.mean
        fell = away > 0 and away >= FALL * _joint(judged[best], newest)
        long = newest.count >= LONG_UNITS
        if not fell and not long and not _stalled(list(judged.values())):
            return None
        why = (
            "a later version was worse"
            if fell
            else "it has acted long enough"
            if long
            else "later versions were no better"
        )
        unit = f"{judged[best].mean:.4g} after {self.untrained.mean:.4g} of the untrained policy"
        return best, f"better than the untrained policy ({unit}, before and after), and {why}"

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data."""
        levels = {name: [one.count, one.mean, one.square] for name, one in self.versions.items()}
        one = self.untrained
        return {"untrained": [one.count, one.mean, one.square], "versions": levels}

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
        return found


def _stalled(levels: list[Level]) -> bool:
    """Return whether the last `WINDOW` versions earned no more than the `WINDOW` before them."""
    if len(levels) < 2 * WINDOW:
        return False
    before, after = levels[-2 * WINDOW : -WINDOW], levels[-WINDOW:]
    return _mean(after) <= _mean(before)


def _mean(levels: list[Level]) -> float:
    count = sum(level.count for level in levels)
    return sum(level.mean * level.count for level in levels) / count


def _error(level: Level) -> float:
    return level.deviation / math.sqrt(level.count)


def _joint(one: Level, two: Level) -> float:
    return math.hypot(_error(one), _error(two))
