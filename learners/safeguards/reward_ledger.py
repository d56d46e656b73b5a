"""Store the decisions of the last minutes with the rewards of each; those of the last second are not settled yet.

A reward belongs to a decision, and so to the policy version that made it, however late it arrives. Rewards that arrive just
after a swap belong to the old version. After `settle_s` a decision is settled: experiments and the comparison of sources use the
rewards that arrived by then. The ledger stores it for some more minutes, to compare later rewards with those of other sources.
Stamps are Unix seconds. Knows no queue and no file.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from learners.rewards.credit_assignment import decision_in_force

AROUND_S = 0.5
"""Rewards of decisions at most this far apart are compared."""
MOST = 4_096
"""Decisions held of each kind, open and settled: some minutes."""


@dataclass(slots=True)
class LedgerEntry:
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
    judged: dict[str, float] = field(default_factory=dict)
    """By source, rewards that a model gave: no experiment counts them, and sources are compared by them."""

    @property
    def all_rewards(self) -> dict[str, float]:
        """All rewards by source, those of models too."""
        return self.rewards | self.judged

    def total(self, without: frozenset[str] = frozenset()) -> float | None:
        """Return the sum of all rewards of a decision; None without one."""
        values = [value for source, value in self.rewards.items() if source not in without]
        if self.own is not None:
            values.append(self.own)
        return sum(values) if values else None


@dataclass(slots=True)
class Ledger:
    """See the module."""

    settle_s: float = 1.0
    counts: Counter[str] = field(default_factory=Counter)
    """Rewards for a settled decision (`late`), and for a decision that is not in the ledger (`unknown`)."""
    _open: OrderedDict[str, LedgerEntry] = field(default_factory=OrderedDict)
    _settled: OrderedDict[str, LedgerEntry] = field(default_factory=OrderedDict)
    _timeline: list[tuple[float, str]] = field(default_factory=list)
    """Stamp and id of every decision that is held, sorted by stamp; without those that the clock, set back, has yet to reach again."""

    def decided(self, entry: LedgerEntry) -> None:
        """Add a decision; its id is new, and it follows the earlier ones."""
        self._open[entry.decision] = entry
        del self._timeline[bisect_right(self._timeline, entry.stamp_s, key=_stamp_s) :]  # the clock was set back
        self._timeline.append((entry.stamp_s, entry.decision))
        if len(self._open) > MOST:
            self._forget(self._open)

    def decision_at(self, stamp_s: float) -> str | None:
        """Find the id of the decision that a reward of `stamp_s` (Unix seconds) belongs to; None where none is held."""
        return decision_in_force(self._timeline, stamp_s)

    def credit(self, source: str, value: float, decision: str | None, *, done: bool = False) -> LedgerEntry | None:
        """Add a reward to its decision; return the decision if it was settled before."""
        entry = self._entry(decision)
        if entry is None:
            return None
        entry.rewards[source] = entry.rewards.get(source, 0.0) + value
        entry.done = entry.done or done
        return self._late(entry)

    def judge(self, source: str, value: float, decision: str | None) -> LedgerEntry | None:
        """Add a reward that a model gave to its decision; return the decision if it was settled before."""
        entry = self._entry(decision)
        if entry is None:
            return None
        entry.judged[source] = entry.judged.get(source, 0.0) + value
        return self._late(entry)

    def _entry(self, decision: str | None) -> LedgerEntry | None:
        entry = None if decision is None else self._open.get(decision) or self._settled.get(decision)
        self.counts["unknown"] += entry is None
        return entry

    def _late(self, entry: LedgerEntry) -> LedgerEntry | None:
        if entry.decision in self._open:
            return None
        self.counts["late"] += 1
        return entry

    def settle(self, now_s: float) -> list[LedgerEntry]:
        """Settle the decisions that are `settle_s` old, or of the future because the clock was set back; return them, oldest first."""
        done = []
        while self._open and not 0.0 <= now_s - next(iter(self._open.values())).stamp_s < self.settle_s:
            decision, entry = self._open.popitem(last=False)
            self._settled[decision] = entry
            done.append(entry)
        while len(self._settled) > MOST:
            self._forget(self._settled)
        return done

    def around(self, entry: LedgerEntry) -> list[LedgerEntry]:
        """Return the other decisions within `AROUND_S` of one that has just been settled."""
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

    def _forget(self, held: OrderedDict[str, LedgerEntry]) -> None:
        """Remove the oldest decision of `held`."""
        decision, entry = held.popitem(last=False)
        index = bisect_left(self._timeline, entry.stamp_s, key=_stamp_s)
        while index < len(self._timeline) and self._timeline[index][0] == entry.stamp_s:
            if self._timeline[index][1] == decision:
                del self._timeline[index]
                break
            index += 1


def _stamp_s(entry: tuple[float, str]) -> float:
    return entry[0]
