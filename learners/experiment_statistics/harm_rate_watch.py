"""Suspect that a rare harm of the live version has become more frequent: count its incidents in windows of recent blocks.

What it finds is a suspicion of the guard, no proof. Pure: knows no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from learners.experiment_statistics.level_watch import LEAST_BLOCKS, WINDOWS
from learners.special_functions import incomplete_beta

LEAST_EVENTS = 3
"""Harms in a window that a suspicion needs."""
EVENT_GAP = 3
"""Blocks without a harm after which the next one is another event."""
LASTING_BLOCKS, LASTING_SHARE = 6, 0.8
"""The least harmful blocks of a run, and their least share of it, with which the mean of the harm is compared as well."""
LONG_RUN = 6
"""Blocks of one event before any event was complete."""
PAST_RATE_BLOCKS = 50_000
"""Blocks after which earlier ones count half in a harm's rate."""


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
