"""The last minutes of decisions with the rewards that came for each; those of the last second are not settled yet.

A reward belongs to a decision and so to the policy version that made it, however late it comes: rewards that arrive just after
a swap are the old version's. After `settle_s` a decision is settled: what came by then is what is judged by. It is still known
for a while, so that what comes later can be compared with what others said. Stamps are Unix seconds. Knows no queue and no file.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

TOLERANCE_S = 2.0
"""A reward by stamp goes to the decision in force then; one made longer ago than this is not it (as in the store)."""
AROUND_S = 0.5
"""Decisions that close in time are asked what else was said at the same time."""
MOST = 4_096
"""Decisions kept: some minutes."""


@dataclass(slots=True)
class Entry:
    """One decision."""

    decision: str
    stamp_s: float
    version: str
    acted: bool
    """Carried out, or refused for what it was: only then rewards say something of the policy."""
    refused: bool
    """The gate refused it for what it was."""
    own: float | None = None
    """The reward computed at the tick itself; None where none is configured."""
    rewards: dict[str, float] = field(default_factory=dict)
    """By source; several of one source add up."""
    done: bool = False
    """An episode ended with it."""

    def total(self, without: frozenset[str] = frozenset()) -> float | None:
        """Everything that came for it; None when nothing did."""
        values = [value for source, value in self.rewards.items() if source not in without]
        if self.own is not None:
            values.append(self.own)
        return sum(values) if values else None


@dataclass(slots=True)
class Ledger:
    """See the module."""

    settle_s: float = 1.0
    counts: Counter[str] = field(default_factory=Counter)
    """Rewards that found their decision `late`, or not at all: `unknown`."""
    _open: OrderedDict[str, Entry] = field(default_factory=OrderedDict)
    _settled: OrderedDict[str, Entry] = field(default_factory=OrderedDict)

    def decided(self, entry: Entry) -> None:
        """Note a decision, in the order of time."""
        self._open[entry.decision] = entry
        if len(self._open) > MOST:
            self._open.popitem(last=False)

    def credit(
        self, source: str, value: float, *, decision: str | None, stamp_s: float, done: bool = False
    ) -> Entry | None:
        """Add a reward to its decision, else to the one in force at `stamp_s`; the decision if it was settled before."""
        entry = self._named(decision) if decision is not None else self._in_force(stamp_s)
        if entry is None:
            self.counts["unknown"] += 1
            return None
        entry.rewards[source] = entry.rewards.get(source, 0.0) + value
        entry.done = entry.done or done
        if entry.decision in self._open:
            return None
        self.counts["late"] += 1
        return entry

    def settle(self, now_s: float) -> list[Entry]:
        """Decisions that nothing more is waited for, oldest first."""
        done = []
        while self._open and now_s - next(iter(self._open.values())).stamp_s >= self.settle_s:
            decision, entry = self._open.popitem(last=False)
            self._settled[decision] = entry
            done.append(entry)
        while len(self._settled) > MOST:
            self._settled.popitem(last=False)
        return done

    def around(self, entry: Entry) -> list[Entry]:
        """Other decisions within `AROUND_S` of one that has just been settled."""
        near = []
        for other in reversed(self._settled.values()):
            if other.stamp_s < entry.stamp_s - AROUND_S:
                break
            near.append(other)
        for other in self._open.values():
            if other.stamp_s > entry.stamp_s + AROUND_S:
                break
            near.append(other)
        return [other for other in near if other is not entry]

    def _named(self, decision: str) -> Entry | None:
        return self._open.get(decision) or self._settled.get(decision)

    def _in_force(self, stamp_s: float) -> Entry | None:
        for held in (self._open, self._settled):
            for entry in reversed(held.values()):
                if entry.stamp_s <= stamp_s:
                    return entry if stamp_s - entry.stamp_s <= TOLERANCE_S else None
        return None
