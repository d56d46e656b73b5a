"""Watch the live version for ever: take it back when it is proved worse than the anchor, by e-detectors.

An e-detector sums, over all possible moments of a change, the wealth of a bet that began there (Shiryaev-Roberts form). While nothing is
wrong, its mean time to an alarm is at least its threshold, whatever it has seen before: honest months earn no credit. The threshold
follows from `false_alarms_per_month`.

The bets use pairs of blocks of live version and anchor in an order that a coin decided (`confidence_sequence.py`). So a world that
becomes harder for both causes no alarm. The anchor has few blocks, and a pair adds at most a factor of 2. Therefore the guard
also watches the live version alone. If that looks worse than before, it raises the anchor's share (`anchor_share`), and the pairs
decide sooner. Suspicion alone takes nothing back. Means show rewards and frequent harms; rare harms are counted (`HarmRateWatch`).

Source: Shin, Ramdas & Rinaldo 2024 (E-detectors: a nonparametric framework for sequential change detection). Pure: knows no clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from learners.experiment_statistics.harm_rate_watch import HarmRateWatch
from learners.experiment_statistics.level_watch import WINDOWS, LevelWatch
from learners.experiment_statistics.paired_detector import PairedDetector
from learners.experiment_statistics.paired_outcomes import HARMS, PairDifference

MONTH_S = 30 * 24 * 3600.0
RAISED_SHARE = 0.5
"""Share of the anchor while the guard suspects something."""
CALM_BLOCKS = 200
"""Blocks for which a suspicion lasts, and for which pairs that contradict it prevent another one."""
CLEARING_HARMS, CLEARING_EXCESS = 6.0, 0.25
"""Harms that the suspicion predicts for the pairs since then, and the share of them seen at most, that end it."""
CLEARING_PAIRS, CLEARING_ERRORS = 5, 2.0
"""Pairs since a suspicion, and standard errors above 0, that show that the anchor earns less now."""
FORMAT = 3
"""2: blocks were counted as units; 3: a watch no longer measures its first block from 0."""


@dataclass(frozen=True, slots=True)
class GuardAlarm:
    """The live version is to be taken back; `figure` is the outcome that showed it."""

    figure: str
    evidence: float
    threshold: float
    pairs: int

    @property
    def reason(self) -> str:
        """Say it in one sentence."""
        what = "earns less than the anchor" if self.figure == "reward" else f"has more {self.figure}s than the anchor"
        return f"the live version {what} ({self.pairs} pairs)"


@dataclass(slots=True)
class Guard:
    """See the module.

    Args:
        pair_s: seconds of one pair, wash-out included.
        false_alarms_per_month: accepted mean number of false alarms, of all figures together.
        base_share: share of the anchor while nothing is suspected.
    """

    pair_s: float
    false_alarms_per_month: float = 1.0
    base_share: float = 0.05
    pairs: int = 0
    units: int = 0
    """Ticks or episodes of the live version in blocks that the guard has seen."""
    harmed: dict[str, float] = field(default_factory=lambda: dict.fromkeys(HARMS, 0.0))
    alarm: GuardAlarm | None = None
    detectors: dict[str, PairedDetector] = field(init=False)
    watches: dict[str, LevelWatch] = field(init=False)
    rates: dict[str, HarmRateWatch] = field(init=False)
    _suspected: int = 0
    """Blocks for which the suspicion still lasts."""
    _suspect: str = ""
    """Figure that raised it."""
    _cleared: int = 0
    """Blocks for which the rewards raise no suspicion, because pairs contradicted one."""
    _since: list[float] = field(default_factory=list)
    """Differences of the suspected figure in the pairs since the suspicion."""
    _predicted: float = 0.0
    """Units with the suspected harm that the suspicion predicts for the live version in these pairs, beyond its past."""
    _counted: float = 0.0
    """Units with the harm in these pairs, less those of the anchor."""

    def __post_init__(self) -> None:
        if not (self.pair_s > 0 and self.false_alarms_per_month > 0):
            raise ValueError("guard: pair_s and false_alarms_per_month must be positive")
        self.detectors = {"reward": PairedDetector(-1)} | {harm: PairedDetector(1) for harm in HARMS}
        self.watches = {name: LevelWatch() for name in self.detectors}
        self.rates = {harm: HarmRateWatch() for harm in HARMS}

    @property
    def threshold(self) -> float:
        """Return the sum at which a detector alarms: a month's pairs of all detectors, by the accepted alarms."""
        return max(2.0, MONTH_S / self.pair_s * len(self.detectors) / self.false_alarms_per_month)

    @property
    def suspicious(self) -> bool:
        """Whether something looks worse, without proof."""
        return self.suspect is not None

    @property
    def anchor_share(self) -> float:
        """Return the share of blocks that the anchor should have now; 0 stays 0."""
        return max(self.base_share, RAISED_SHARE) if self.suspicious and self.base_share > 0 else self.base_share

    def pair(self, difference: PairDifference) -> GuardAlarm | None:
        """Take one complete pair of live version and anchor; return the alarm if one figure reached the threshold."""
        if difference.kind != "guard":
            return None
        self.pairs += 1
        self._clear(difference.reward)
        self._clear_harm(difference)
        figures = {"reward": difference.reward, **difference.harms}
        for figure, value in figures.items():
            if value is None or figure not in self.detectors:
                continue
            total = self.detectors[figure].update(value)
            if total >= self.threshold and self.alarm is None:
                self.alarm = GuardAlarm(figure, total, self.threshold, self.pairs)
        return self.alarm

    def block(self, reward: float | None, harms: Mapping[str, float], units: int = 1) -> bool:
        """Take one block of the live version alone, as means per unit; return whether the guard suspects something.

        Args:
            reward: mean reward; None where it is unknown.
            harms: share of the units, by harm outcome.
            units: ticks, or episodes, in the block.
        """
        self.units += units
        if reward is not None:
            self._suspected, self._cleared = max(0, self._suspected - 1), max(0, self._cleared - 1)
        for harm, share in harms.items():
            self.harmed[harm] = self.harmed.get(harm, 0.0) + share * units
        figures = {"reward": None if reward is None else -reward, **harms}
        for figure, value in figures.items():
            if value is None or figure not in self.watches or not self._is_raised(figure, value, units):
                continue
            if figure == "reward" and self._cleared:
                continue
            if not self._suspected:
                self._suspect, self._since, self._predicted, self._counted = figure, [], 0.0, 0.0
            self._suspected = CALM_BLOCKS
        return self.suspicious

    def keep_harms(self, before: Guard) -> None:
        """Compare the harms of a version that was promoted with those of the version before, too: its own past has no others."""
        for harm in HARMS:
            self.watches[harm], self.rates[harm] = before.watches[harm], before.rates[harm]

    def forget_rewards(self) -> None:
        """Begin again with the rewards, because they mean something else now; what is known of harms stays."""
        self.detectors["reward"], self.watches["reward"] = PairedDetector(-1), LevelWatch()
        self._cleared = 0
        if self._suspect == "reward":
            self._suspected, self._since = 0, []

    def _is_raised(self, figure: str, value: float, units: int) -> bool:
        """Take one figure of a block; return whether it is above its past."""
        rate = self.rates.get(figure)
        if rate is None:
            return self.watches[figure].update(value)
        level = self.watches[figure]
        is_frequent = level.update(value, 1.0 if rate.lasts else rate.rate)
        if is_frequent:
            rate.excess = max(level.fast) - level.mean
        probability = 1.0 / (self.threshold * len(WINDOWS))
        return rate.update(value, units, probability) or is_frequent

    def _clear_harm(self, difference: PairDifference) -> None:
        """End a suspicion of a harm where the live version has hardly more of it in the pairs: the past is measured again."""
        value, rate = difference.harms.get(self._suspect), self.rates.get(self._suspect)
        if not self._suspected or value is None or rate is None:
            return
        units = difference.units / 2
        self._since = [*self._since[-CALM_BLOCKS:], value]
        self._predicted += rate.excess * units
        self._counted += value * units
        if len(self._since) < CLEARING_PAIRS or self._predicted < CLEARING_HARMS * rate.event_units:
            return
        if self._counted <= CLEARING_EXCESS * self._predicted:
            self.watches[self._suspect], self.rates[self._suspect] = LevelWatch(), HarmRateWatch()
            self._suspected, self._since = 0, []

    def _clear(self, reward: float | None) -> None:
        """End a suspicion about rewards where the anchor earns clearly less in the pairs since then: the world changed for both."""
        if not self._suspected or reward is None or self._suspect != "reward":
            return
        self._since = [*self._since[-CALM_BLOCKS:], reward]
        count = len(self._since)
        if count < CLEARING_PAIRS:
            return
        mean, spread = float(np.mean(self._since)), float(np.std(self._since, ddof=1))
        if mean > 0.0 and mean >= CLEARING_ERRORS * spread / math.sqrt(count):
            self._suspected, self._cleared, self._since = 0, CALM_BLOCKS, []

    @property
    def suspect(self) -> str | None:
        """Return the figure that looks worse; None without a suspicion."""
        if self._suspected:
            return self._suspect
        limit = math.sqrt(self.threshold)
        return next((name for name, detector in self.detectors.items() if detector.total >= limit), None)

    def excluded_rate(self, harm: str, confidence: float = 0.95) -> float | None:
        """Return the harm rate per unit that the evidence excludes, if the harm was never seen (3 / n); None otherwise."""
        if self.harmed.get(harm, 0.0) > 0 or not self.units:
            return None
        return rare_harm_bound(self.units, confidence)

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data for JSON."""
        return {
            "format": FORMAT,
            "pairs": self.pairs,
            "units": self.units,
            "harmed": dict(self.harmed),
            "suspected": self._suspected,
            "suspect": self._suspect,
            "cleared": self._cleared,
            "detectors": {name: detector.dump() for name, detector in self.detectors.items()},
            "rates": {name: rate.dump() for name, rate in self.rates.items()},
            "watches": {name: watch.dump() for name, watch in self.watches.items()},
        }

    def restore(self, body: Mapping[str, Any]) -> None:
        """Restore what `dump` returned.

        Raises:
            KeyError, TypeError, ValueError: the body is malformed.
        """
        if body["format"] not in (1, 2, FORMAT):
            raise ValueError(f"format {body['format']!r}; this program reads 1 to {FORMAT}")
        self.pairs = int(body["pairs"])
        if body["format"] >= 2:  # an earlier program counted blocks, and no harm in them
            self.units = int(body["units"])
            self.harmed = {str(name): float(value) for name, value in body["harmed"].items()}
        self._suspected, self._suspect = int(body["suspected"]), str(body.get("suspect", "reward"))
        self._cleared = int(body.get("cleared", 0))
        for name, detector in self.detectors.items():
            detector.restore(body["detectors"][name])
        for name, numbers in body.get("rates", {}).items():
            if name in self.rates:
                self.rates[name] = HarmRateWatch.of(numbers)
        for name in self.watches:
            found = LevelWatch.of(body["watches"][name])
            self.watches[name] = found if body["format"] == FORMAT else LevelWatch()


def rare_harm_bound(units: int, confidence: float = 0.95) -> float:
    """Return the largest rate that 0 harms in `units` units leave possible: about 3 / n at 95 % (the rule of three).

    Raises:
        ValueError: no unit was seen.
    """
    if units < 1:
        raise ValueError("no unit was seen")
    return min(1.0, -math.log(1.0 - confidence) / units)
