"""Find sources of rewards that contradict the others, with a sequential test; they are quarantined until a person releases them.

A source is compared with the median reward of the other sources for the same decision, else with their rewards for decisions
within half a second. It is also compared, separately, with the rewards computed at the tick itself.

Two comparisons at least a second apart make a pair. A pair is discordant if the source's value rose and the others' fell, or the
reverse (Kendall 1938). A source that only scales or shifts its values is therefore consistent. Pairs do not overlap, and pairs
with almost no change on either side are ignored.

A `BettingTest` (`sequential_tests.py`) runs on the share of discordant pairs. An unrelated source (share one half) is found
contradictory with probability at most `ALPHA`, however long it is monitored. The tick's own rewards often measure something
else, such as effort: for them the share must be much higher.

A contradiction has the same strength for both sides, so the weight decides: the number of decisions that a source has ever
rewarded. A source is quarantined if those it contradicts weigh at least twice as much. If neither side outweighs the other, an
event reports it, and nothing else happens. A single source cannot contradict any other.

Limits: the test cannot detect who publishes under a name (the broker's access rules must prevent misuse), or a majority that lies.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from learners.safeguards.reward_ledger import LedgerEntry
from learners.safeguards.sequential_tests import BettingTest

LIMIT, LIMIT_OWN = 0.55, 0.75
"""Share of discordant pairs that is still no contradiction: with other sources, with the tick's own rewards."""
ALPHA = 0.001
GAP_S = 1.0
STALE_S = 60.0
"""A comparison waits no longer for its partner."""
STILL = 0.3
"""A side that moved less than this share of its usual way hardly moved."""
MIN_WEIGHT_RATIO = 2.0
MOST = 256
"""Sources remembered."""
FORMAT = 1

Others = Literal["sources", "tick"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding about a source: it `contradicts` and is quarantined, or sources `disagree` and neither outweighs the other."""

    kind: Literal["contradicts", "disagree"]
    source: str
    figures: dict[str, Any]


@dataclass(slots=True)
class Comparison:
    """One side of the evidence on a source."""

    bet: BettingTest
    against: set[str] = field(default_factory=set)
    waiting: tuple[float, float, float] | None = None
    """Stamp, the source's value, the others'."""
    usual: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """How far each side moves between the two halves of a pair, as a running mean."""
    pairs: int = 0

    def take(self, stamp_s: float, value: float, others: float) -> bool:
        """Take one comparison; True once the bet is won."""
        if self.waiting is None or stamp_s - self.waiting[0] > STALE_S:
            self.waiting = (stamp_s, value, others)
            return self.bet.crossed
        if stamp_s - self.waiting[0] < GAP_S:
            return self.bet.crossed
        ways = (value - self.waiting[1], others - self.waiting[2])
        self.waiting = None
        self.pairs += 1
        moved = all(abs(way) > STILL * usual for way, usual in zip(ways, self.usual, strict=True))
        rate = max(1.0 / self.pairs, 0.02)
        self.usual = [usual + rate * (abs(way) - usual) for way, usual in zip(ways, self.usual, strict=True)]
        return self.bet.update(float(ways[0] * ways[1] < 0)) if moved else self.bet.crossed


@dataclass(slots=True)
class SourceRecord:
    """What is known of a source."""

    weight: int = 0
    """Decisions it rewarded."""
    sides: dict[Others, Comparison] = field(
        default_factory=lambda: {
            "sources": Comparison(BettingTest(LIMIT, ALPHA)),
            "tick": Comparison(BettingTest(LIMIT_OWN, ALPHA)),
        }
    )


@dataclass(slots=True)
class Quarantine:
    """See the module."""

    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Quarantined sources, with the finding."""
    released: set[str] = field(default_factory=set)
    """Sources a person vouched for: not judged any more."""
    standings: dict[str, SourceRecord] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """Return the quarantined sources."""
        return frozenset(self.kept)

    def observe(self, entry: LedgerEntry, around: Callable[[], Iterable[LedgerEntry]] = tuple) -> list[Finding]:
        """Take a decision with everything that came for it; `around` gives others of the same time, asked where needed."""
        for source in entry.rewards:
            self.standings.setdefault(source, SourceRecord()).weight += 1
        alone = len(entry.rewards) == 1 and len(self.standings) > 1
        near = list(around()) if alone else []
        return [finding for source in entry.rewards for finding in self.judge(entry, source, near)]

    def judge(self, entry: LedgerEntry, source: str, around: Iterable[LedgerEntry] = ()) -> list[Finding]:
        """Compare one source's reward for a decision with the other rewards."""
        if source in self.kept or source in self.released:
            return []
        standing = self.standings.setdefault(source, SourceRecord())
        value = entry.rewards[source]
        said = self._said(entry, source) or [one for other in around for one in self._said(other, source)]
        if said:
            side = standing.sides["sources"]
            side.against |= {name for name, _ in said}
            if side.take(entry.stamp_s, value, statistics.median(one for _, one in said)):
                return self._found(source, side, "sources")
        if entry.own is not None:
            side = standing.sides["tick"]
            if side.take(entry.stamp_s, value, entry.own):
                return self._found(source, side, "tick")
        return []

    def _said(self, entry: LedgerEntry, source: str) -> list[tuple[str, float]]:
        return [(name, value) for name, value in entry.rewards.items() if name != source and name not in self.kept]

    def _found(self, source: str, side: Comparison, others: Others) -> list[Finding]:
        weight = self.standings[source].weight
        against = {name: self.standings[name].weight for name in sorted(side.against) if name in self.standings}
        figures = {
            "kind": "rewards",
            "against": list(against) if others == "sources" else ["rewards of the tick"],
            "discordant": round(side.bet.mean, 3),
            "pairs": side.bet.count,
            "limit": side.bet.limit,
            "evidence": float(f"{side.bet.wealth():.3g}"),
            "alpha": ALPHA,
            "weight": weight,
            "weight_against": sum(against.values()) if others == "sources" else None,
        }
        if others == "sources" and sum(against.values()) < MIN_WEIGHT_RATIO * weight:
            self.standings[source].sides["sources"] = Comparison(BettingTest(LIMIT, ALPHA))
            outweighs = weight >= MIN_WEIGHT_RATIO * sum(
                against.values()
            )  # then the others are to be found, not this one
            return [] if outweighs else [Finding("disagree", source, figures)]
        self.keep(source, figures)
        return [Finding("contradicts", source, figures)]

    def keep(self, source: str, figures: dict[str, Any]) -> None:
        """Keep a source apart."""
        self.kept[source] = figures
        self.released.discard(source)
        self._forget()

    def release(self, source: str) -> bool:
        """Release a source on a person's request; return False if it was not quarantined."""
        if self.kept.pop(source, None) is None:
            return False
        self.released.add(source)
        self._forget()
        return True

    def _forget(self) -> None:
        """Discard the evidence, because the set of the other sources has changed."""
        self.standings = {name: SourceRecord(standing.weight) for name, standing in self.standings.items()}

    def dump(self) -> dict[str, Any]:
        """Return the state that survives a restart, as plain data; evidence is collected again."""
        weights = {name: standing.weight for name, standing in self.standings.items()}
        return {"format": FORMAT, "kept": self.kept, "released": sorted(self.released), "weights": weights}

    def restore(self, body: Mapping[str, Any]) -> None:
        """Take up what `dump` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}; this program reads {FORMAT}")
        self.kept = {str(name): dict(figures) for name, figures in body["kept"].items()}
        self.released = set(map(str, body["released"]))
        heaviest = sorted(body["weights"].items(), key=lambda item: -int(item[1]))[:MOST]
        self.standings = {str(name): SourceRecord(int(weight)) for name, weight in heaviest}
