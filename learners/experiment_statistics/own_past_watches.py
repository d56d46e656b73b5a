"""Watch figures of the live version alone, against its own past: the mean of each (`LevelWatch`), and how often a rare harm happens.

What they find is a suspicion of the guard, no proof. Pure: knows no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from learners.special_functions import incomplete_beta

LARGEST_VALUE = 1e150
"""Above it a square may overflow."""
SUSPICION_DEVIATIONS = 4.0
WINDOWS = (4, 16, 64, 256)
"""Blocks over which the live version is compared with its own past."""
PAST_BLOCKS = 1_000
LEAST_BLOCKS = 32
WINDOWS_KNOWN = 4
"""Windows after which a window's usual distance from the past is known."""
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
        if not self.count:
            self.mean = value  # the first block has no past, and its distance from 0 says nothing
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
            if incomplete_beta(events, before + 1.0, window / self.count) < probability:
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
