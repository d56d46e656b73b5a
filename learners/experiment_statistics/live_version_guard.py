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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from learners.experiment_statistics.confidence_sequence import GRID_G, RunningScale, log_bet, log_mixture
from learners.experiment_statistics.paired_outcomes import HARMS, PairDifference

LARGEST_VALUE = 1e150
"""Above it a square may overflow."""
MONTH_S = 30 * 24 * 3600.0
RAISED_SHARE = 0.5
"""Share of the anchor while the guard suspects something."""
SUSPICION_DEVIATIONS = 4.0
WINDOWS = (4, 16, 64, 256)
"""Blocks over which the live version is compared with its own past."""
PAST_BLOCKS = 1_000
LEAST_BLOCKS = 32
WINDOWS_KNOWN = 4
"""Windows after which a window's usual distance from the past is known."""
CALM_BLOCKS = 200
"""Blocks for which a suspicion lasts, and for which pairs that contradict it prevent another one."""
LEAST_EVENTS = 3
"""Harms in a window that a suspicion needs."""
FREQUENT_EVENTS = 5.0
"""Harms that a window usually has, from which on it is compared by its mean; rarer harms are counted."""
EVENT_GAP = 3
"""Blocks without a harm after which the next one is another event."""
LASTING_BLOCKS, LASTING_SHARE = 6, 0.8
"""The least harmful blocks of a run, and their least share of it, with which the mean of the harm is compared as well."""
LONG_RUN = 6
"""Blocks of one event before any event was complete."""
PAST_RATE_BLOCKS = 50_000
"""Blocks after which earlier ones count half in a harm's rate."""
CLEARING_HARMS, CLEARING_EXCESS = 6.0, 0.25
"""Harms that the suspicion predicts for the pairs since then, and the share of them seen at most, that end it."""
CLEARING_PAIRS, CLEARING_ERRORS = 5, 2.0
"""Pairs since a suspicion, and standard errors above 0, that show that the anchor earns less now."""
FORMAT = 2

Array = NDArray[np.float64]


@dataclass(slots=True)
class PairedDetector:
    """An e-detector of one figure: alarms when pair differences have become positive (`sign` 1) or negative (-1)."""

    sign: int
    logs: Array = field(default_factory=lambda: np.full(len(GRID_G), -np.inf, np.float64))
    """Logarithm of the sum, for each multiple that is bet."""
    scale: RunningScale = field(default_factory=RunningScale)

    def update(self, value: float) -> float:
        """Take one pair; return the sum."""
        scale = self.scale.scale
        bets = log_bet(self.sign * GRID_G * (value / scale)) if scale > 0.0 else np.zeros(len(GRID_G))
        self.logs = np.logaddexp(self.logs, 0.0) + bets
        self.scale.update(value)
        return self.total

    @property
    def total(self) -> float:
        """Return the sum; an alarm is due when it reaches the threshold."""
        if not np.isfinite(self.logs).any():
            return 0.0
        return math.exp(min(700.0, log_mixture(self.logs)))

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data."""
        logs = [None if log == -math.inf else float(log) for log in self.logs]
        return {"logs": logs, "square": self.scale.square, "count": self.scale.count}

    def restore(self, body: Mapping[str, Any]) -> None:
        """Restore what `dump` returned."""
        logs = np.array([-np.inf if log is None else float(log) for log in body["logs"]])
        if logs.shape != GRID_G.shape:
            raise ValueError(f"{len(logs)} sums; {len(GRID_G)} are needed")
        self.logs, self.scale = logs, RunningScale(float(body["square"]), int(body["count"]))


@dataclass(slots=True)
class LevelWatch:
    """Whether a figure of the live version alone is above its own past; a suspicion, no proof.

    A running mean over each window is compared with the mean of the past, in units of how far the two were apart before. So rewards that
    depend on each other over many blocks raise no suspicion.
    """

    count: int = 0
    mean: float = 0.0
    square: float = 0.0
    fast: list[float] = field(default_factory=lambda: [0.0] * len(WINDOWS))
    spread: list[float] = field(default_factory=lambda: [0.0] * len(WINDOWS))
    """Mean square of the distance between each window and the past."""

    def update(self, value: float, event_rate: float = 1.0) -> bool:
        """Take the mean of one block; return whether one of the windows is far above the past.

        Args:
            value: of the block. One that is not finite, or too large to square, is left out.
            event_rate: usual events of a block; a window with less than `FREQUENT_EVENTS` of them is not compared.
        """
        if not abs(value) < LARGEST_VALUE:
            return False
        least = FREQUENT_EVENTS / event_rate if 0.0 < event_rate < 1.0 else 0.0 if event_rate else math.inf
        deviation = math.sqrt(max(self.square, 0.0))
        rate = max(1.0 / (self.count + 1), 1.0 / PAST_BLOCKS)
        found = False
        for i, window in enumerate(WINDOWS):
            self.fast[i] += (value - self.fast[i]) * max(1.0 / (self.count + 1), 1.0 / window)
            if self.count < max(LEAST_BLOCKS, WINDOWS_KNOWN * window):
                self._spread(i, max(1.0 / (self.count + 1), 1.0 / PAST_BLOCKS))
                continue
            limit = SUSPICION_DEVIATIONS * max(deviation / math.sqrt(2 * window - 1), math.sqrt(self.spread[i]))
            found |= window >= least and self.fast[i] - self.mean > limit + 1e-12
            self._spread(i, rate)
        self.count += 1
        away = value - self.mean
        self.mean += rate * away
        self.square += rate * (away * away * (1.0 - rate) - self.square)
        return found

    def _spread(self, i: int, rate: float) -> None:
        """Take the present distance of a window, limited, so that a fall does not hide itself."""
        distance = self.fast[i] - self.mean
        away = distance * distance
        floor = max(self.square, 0.0) / (2 * WINDOWS[i] - 1)
        limit = SUSPICION_DEVIATIONS**2 * max(self.spread[i], floor)
        self.spread[i] += rate * ((min(away, limit) if self.count >= LEAST_BLOCKS else away) - self.spread[i])

    def dump(self) -> list[float]:
        """Return the state as plain numbers."""
        return [self.count, self.mean, self.square, *self.fast, *self.spread]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> LevelWatch:
        """Restore what `dump` returned; what an earlier program wrote begins again.

        Raises:
            ValueError: it is something else.
        """
        if len(numbers) == 3 + len(WINDOWS):
            return cls()
        if len(numbers) != 3 + 2 * len(WINDOWS):
            raise ValueError(f"{len(numbers)} numbers; {3 + 2 * len(WINDOWS)} are needed")
        count, mean, square, *rest = map(float, numbers)
        return cls(int(count), mean, square, rest[: len(WINDOWS)], rest[len(WINDOWS) :])


@dataclass(slots=True)
class HarmRateWatch:
    """Whether a rare harm of the live version alone is more frequent than before; a suspicion, no proof.

    An event is a run of blocks with the harm; one that lasts longer than usual counts again. Given all events so far, the number in a
    window is binomial while nothing changes.
    """

    count: float = 0.0
    """Blocks; earlier ones count less after `PAST_RATE_BLOCKS`."""
    events: float = 0.0
    runs: float = 0.0
    run_blocks: float = 0.0
    """Blocks of complete runs."""
    units: float = 0.0
    """Units with the harm."""
    run: int = 0
    """Blocks since the present run began; 0 without one."""
    gap: int = 0
    recent: list[int] = field(default_factory=list)
    """Blocks ago of the events in the longest window."""
    excess: float = 0.0
    """Units with the harm per unit, above the past, in the window that was found last."""
    harmful: int = 0
    """Blocks with the harm in the present run."""

    @property
    def rate(self) -> float:
        """Return the usual events of a block."""
        return (self.events + 1.0) / (self.count + 1.0) if self.events else 0.0

    @property
    def lasts(self) -> bool:
        """Return whether the present run goes on and on: one event, but nearly every block has the harm."""
        return self.harmful >= LASTING_BLOCKS and self.harmful >= LASTING_SHARE * self.run

    @property
    def event_units(self) -> float:
        """Return the usual units with the harm of an event."""
        return max(1.0, self.units / self.events) if self.events else 1.0

    def update(self, share: float, units: int, probability: float) -> bool:
        """Take one block; return whether a window has more events than the past explains.

        Args:
            share: of the units with the harm.
            units: of the block.
            probability: of that many events while nothing changed, below which they are too many.
        """
        self.count += 1
        self.recent = [ago + 1 for ago in self.recent if ago + 1 < WINDOWS[-1]]
        self.units += share * units
        if not self._is_event(share):
            return False
        self.events += 1
        self.recent.append(0)
        found = False
        for window in WINDOWS:
            events, past = sum(ago < window for ago in self.recent), self.count - window
            if events < LEAST_EVENTS or past < LEAST_BLOCKS:
                continue
            before = max(0.0, self.events - events)
            if float(betainc(events, before + 1.0, window / self.count)) < probability:
                found = True
                per_block = events / window - before / past
                self.excess = per_block * self.event_units / max(1, units)
        if self.count > PAST_RATE_BLOCKS:
            self.count, self.events, self.units = self.count / 2, self.events / 2, self.units / 2
            self.runs, self.run_blocks = self.runs / 2, self.run_blocks / 2
        return found

    def _is_event(self, share: float) -> bool:
        """Return whether an event begins in this block, or the present one has lasted as long as a usual one again."""
        if self.run:
            self.run += 1
            self.harmful += share > 0.0
            self.gap = 0 if share > 0.0 else self.gap + 1
            if self.gap > EVENT_GAP:
                self.runs, self.run_blocks = self.runs + 1, self.run_blocks + self.run - self.gap
                self.run = self.gap = self.harmful = 0
            usual = math.ceil((self.run_blocks + LONG_RUN) / (self.runs + 1))
            return share > 0.0 and (self.run - 1) % usual == 0
        self.run = self.harmful = int(share > 0.0)
        return share > 0.0

    def dump(self) -> list[float]:
        """Return the state as plain numbers."""
        run = [self.run, self.gap, self.harmful]
        return [self.count, self.events, self.runs, self.run_blocks, self.units, *run, self.excess, *self.recent]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> HarmRateWatch:
        """Restore what `dump` returned.

        Raises:
            ValueError: it is something else.
        """
        if not 9 <= len(numbers) <= 9 + WINDOWS[-1] or not all(0 <= number < math.inf for number in numbers):
            raise ValueError(f"{len(numbers)} numbers; 9 and those of the events are needed, finite and at least 0")
        count, events, runs, run_blocks, units, run, gap, harmful, excess, *recent = map(float, numbers)
        ago = [int(each) for each in recent]
        return cls(count, events, runs, run_blocks, units, int(run), int(gap), ago, excess, int(harmful))


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
        if body["format"] not in (1, FORMAT):
            raise ValueError(f"format {body['format']!r}; this program reads 1 and {FORMAT}")
        self.pairs = int(body["pairs"])
        if body["format"] == FORMAT:  # an earlier program counted blocks, and no harm in them
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
            self.watches[name] = LevelWatch.of(body["watches"][name])


def rare_harm_bound(units: int, confidence: float = 0.95) -> float:
    """Return the largest rate that 0 harms in `units` units leave possible: about 3 / n at 95 % (the rule of three).

    Raises:
        ValueError: no unit was seen.
    """
    if units < 1:
        raise ValueError("no unit was seen")
    return min(1.0, -math.log(1.0 - confidence) / units)
