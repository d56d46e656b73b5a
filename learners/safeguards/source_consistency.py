"""Find sources of rewards that contradict sources of higher authority; they are quarantined until a person releases them.

The settings say what each source rates and which authority it has. Only sources that rate the same thing are compared: comfort and
energy may go opposite ways and are both right. Of two sources that contradict each other the one with less authority is
quarantined, however many messages each sends. Without a difference of authority an event reports both, and nothing else happens.

Each two sources are compared by their rewards for the same decision, else for decisions within half a second. Two comparisons further
apart than the correlation time make a pair. A pair is discordant if one value rose and the other fell (Kendall 1938). So a source
that scales or shifts its values contradicts no one. Pairs do not overlap, and pairs with almost no change on a side are ignored.

An e-detector runs on the share of discordant pairs (Shin, Ramdas & Rinaldo 2024). It sums bets that began at every earlier moment, so
honest hours earn no credit for later lies. Two sources with at most `LIMIT` discordant pairs have a false alarm once in `THRESHOLD`
pairs or more.

Limits: the test cannot detect who publishes under a name (the broker's access rules must prevent misuse).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from learners.config.rewards import RANKS, AnyReward, DecisionReward, TopicReward, rank_of
from learners.safeguards.reward_ledger import LedgerEntry

LIMIT = 0.35
"""Share of discordant pairs that two honest ratings of one thing may have: a correlation of .45."""
THRESHOLD = 10_000.0
BETS = (0.1, 0.25, 0.5, 0.9)
"""Shares of the largest bet that cannot lose everything; the wealth is spread over them."""
GAP_S = 1.0
LONGEST_GAP_S = 600.0
UNKNOWN_GAP_S = 30.0
"""Gap until dependence is measured."""
LAGS_S = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LEAST_PRODUCTS = 20
FORGOTTEN = 0.25
STALE_GAPS = 10.0
"""A comparison waits for its partner at most this many gaps, or a minute."""
STILL = 0.3
"""A side that moved less than this share of its usual way hardly moved."""
MOST = 256
"""Comparisons of two sources that are remembered."""
FORMAT = 2
OWN = "tick"
"""What a source rates that is to be compared with the rewards computed at the tick itself."""


@dataclass(frozen=True, slots=True)
class SourceRule:
    """What the settings say of a source: what it rates (None: nothing that others rate), and its rank (None: unranked)."""

    rates: str | None = None
    rank: int | None = None


def source_rules(rewards: Iterable[AnyReward]) -> dict[str, SourceRule]:
    """Return the rules of all sources that the settings of the rewards name."""
    found: dict[str, SourceRule] = {}
    for reward in rewards:
        if isinstance(reward, TopicReward):
            found |= {name: SourceRule(one.rates, rank_of(one.authority)) for name, one in reward.sources.items()}
        elif isinstance(reward, DecisionReward):
            found[reward.source] = SourceRule(reward.rates, rank_of(reward.authority))
    return found


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding about a source: it `contradicts` and is quarantined, or sources `disagree` and neither has more authority."""

    kind: Literal["contradicts", "disagree"]
    source: str
    figures: dict[str, Any]


@dataclass(slots=True)
class ShareDetector:
    """An e-detector: whether the share of ones has risen above a limit at some moment."""

    limit: float = LIMIT
    sums: list[float] = field(default_factory=lambda: [0.0] * len(BETS))
    count: int = 0
    recent: float = 0.0
    """Share of ones, over the last 100 values or so."""

    def update(self, value: bool) -> float:  # noqa: FBT001 - the value of a series
        """Take one value; return the sum, which is due for an alarm at `THRESHOLD`."""
        self.count += 1
        self.recent += (float(value) - self.recent) / min(self.count, 100)
        for i, share in enumerate(BETS):
            self.sums[i] = min(1e300, (self.sums[i] + 1.0) * (1.0 + share * (float(value) / self.limit - 1.0)))
        return self.total

    @property
    def total(self) -> float:
        """Return the sum."""
        return sum(self.sums) / len(BETS)


@dataclass(slots=True)
class CorrelationTime:
    """After how many seconds a series has forgotten its past; noise of single values does not shorten it."""

    values: OrderedDict[int, float] = field(default_factory=OrderedDict)
    """First value of each second, the newest."""
    mean: float = 0.0
    count: int = 0
    products: list[float] = field(default_factory=lambda: [0.0] * len(LAGS_S))
    counts: list[int] = field(default_factory=lambda: [0] * len(LAGS_S))

    def update(self, stamp_s: float, value: float) -> None:
        """Take one value; further ones of the same second are left out."""
        second = int(stamp_s)
        if second in self.values:
            return
        self.count += 1
        self.mean += (value - self.mean) / min(self.count, 1_000)
        for i, lag in enumerate(LAGS_S):
            earlier = self.values.get(second - lag)
            if earlier is not None:
                self.counts[i] += 1
                product = (value - self.mean) * (earlier - self.mean)
                self.products[i] += (product - self.products[i]) / min(self.counts[i], 500)
        self.values[second] = value
        if len(self.values) > 2 * LAGS_S[-1]:
            self.values.popitem(last=False)

    @property
    def gap_s(self) -> float:
        """Return the first lag with a quarter of the dependence of the shortest one; `UNKNOWN_GAP_S` where too little is known."""
        known = [i for i, count in enumerate(self.counts) if count >= LEAST_PRODUCTS]
        if not known:
            return UNKNOWN_GAP_S
        level = max(self.products[i] for i in known)
        if level <= 0.0:
            return GAP_S
        found = next((LAGS_S[i] for i in known if self.products[i] < FORGOTTEN * level), None)
        return float(2 * LAGS_S[known[-1]] if found is None else found)


@dataclass(slots=True)
class SourceComparison:
    """The evidence on two sources."""

    detector: ShareDetector = field(default_factory=ShareDetector)
    waiting: tuple[float, float, float] | None = None
    """Stamp, and the value of each."""
    usual: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """How far each side moves between the two halves of a pair, as a running mean."""
    pairs: int = 0
    memories: tuple[CorrelationTime, CorrelationTime] = field(
        default_factory=lambda: (CorrelationTime(), CorrelationTime())
    )

    def take(self, stamp_s: float, one: float, other: float) -> bool:
        """Take one comparison; return True when an alarm is due."""
        for memory, value in zip(self.memories, (one, other), strict=True):
            memory.update(stamp_s, value)
        gap_s = min(LONGEST_GAP_S, *(memory.gap_s for memory in self.memories))
        if self.waiting is None or stamp_s - self.waiting[0] > max(60.0, STALE_GAPS * gap_s):
            self.waiting = (stamp_s, one, other)
            return False
        if stamp_s - self.waiting[0] < gap_s:
            return False
        ways = (one - self.waiting[1], other - self.waiting[2])
        self.waiting = None
        self.pairs += 1
        moved = all(abs(way) > STILL * usual for way, usual in zip(ways, self.usual, strict=True))
        rate = max(1.0 / self.pairs, 0.02)
        self.usual = [usual + rate * (abs(way) - usual) for way, usual in zip(ways, self.usual, strict=True)]
        return moved and self.detector.update(ways[0] * ways[1] < 0) >= THRESHOLD


@dataclass(slots=True)
class Quarantine:
    """See the module.

    Args:
        rules: by source, from the settings. A source without a rule is compared with no other.
        own_rank: rank of the rewards computed at the tick.
    """

    rules: Mapping[str, SourceRule] = field(default_factory=dict)
    own_rank: int | None = RANKS["program"]
    isolated: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Quarantined sources, with the finding."""
    released: set[str] = field(default_factory=set)
    """Sources that an operator released; they are not compared any more."""
    comparisons: dict[tuple[str, str], SourceComparison] = field(default_factory=dict)
    """By the names of both, sorted; the tick's own rewards have the name of `OWN`."""

    @property
    def names(self) -> frozenset[str]:
        """Return the quarantined sources."""
        return frozenset(self.isolated)

    def observe(self, entry: LedgerEntry, around: Callable[[], Iterable[LedgerEntry]] = tuple) -> list[Finding]:
        """Compare the rewards of one decision; `around` returns decisions of the same time, if needed."""
        if not any(source in self.rules for source in entry.all_rewards):
            return []
        near = list(around()) if len(entry.all_rewards) == 1 else []
        done: set[tuple[str, str]] = set()
        return [finding for source in entry.all_rewards for finding in self._judge(entry, source, near, done)]

    def judge(self, entry: LedgerEntry, source: str, around: Iterable[LedgerEntry] = ()) -> list[Finding]:
        """Compare one source's reward for a decision with the other rewards."""
        return self._judge(entry, source, around, set())

    def _judge(
        self, entry: LedgerEntry, source: str, around: Iterable[LedgerEntry], done: set[tuple[str, str]]
    ) -> list[Finding]:
        rule = self.rules.get(source)
        if rule is None or rule.rates is None or source in self.isolated:
            return []
        found: list[Finding] = []
        others = self._others(entry, source, rule.rates)
        if not others:
            for near in around:
                others |= self._others(near, source, rule.rates)
        for other, value in others.items():
            key = (source, other) if source < other else (other, source)
            if key in done or (source in self.released and other in self.released | {OWN}):
                continue
            done.add(key)
            if key not in self.comparisons and len(self.comparisons) >= MOST:
                continue
            comparison = self.comparisons.setdefault(key, SourceComparison())
            values = (entry.all_rewards[source], value) if source < other else (value, entry.all_rewards[source])
            if comparison.take(entry.stamp_s, *values):
                found.append(self._found(source, other, comparison))
        return found

    def _others(self, entry: LedgerEntry, source: str, rates: str) -> dict[str, float]:
        """Return the rewards of a decision by other sources that rate the same."""
        found = {
            name: value
            for name, value in entry.all_rewards.items()
            if name != source
            and name not in self.isolated
            and (rule := self.rules.get(name)) is not None
            and rule.rates == rates
        }
        if rates == OWN and entry.own is not None:
            found[OWN] = entry.own
        return found

    def _rank(self, source: str) -> int | None:
        return self.own_rank if source == OWN else self.rules[source].rank

    def _found(self, source: str, other: str, comparison: SourceComparison) -> Finding:
        ranks = {name: self._rank(name) for name in (source, other)}
        detector = comparison.detector
        one, two = ranks[source], ranks[other]
        guilty = source if one is None or two is None or one <= two else other
        figures = {
            "kind": "rewards",
            "against": ["rewards of the tick" if name == OWN else name for name in ranks if name != guilty],
            "discordant": round(detector.recent, 3),
            "pairs": detector.count,
            "limit": detector.limit,
            "evidence": float(f"{detector.total:.3g}"),
            "rank": ranks[guilty],
            "rank_against": next(rank for name, rank in ranks.items() if name != guilty),
        }
        comparison.detector = ShareDetector()
        if one is None or two is None or one == two or guilty == OWN or guilty in self.released:
            return Finding("disagree", guilty if guilty != OWN else source, figures)
        self.keep(guilty, figures)
        return Finding("contradicts", guilty, figures)

    def keep(self, source: str, figures: dict[str, Any]) -> None:
        """Quarantine a source."""
        self.isolated[source] = figures
        self.released.discard(source)
        self._forget(source)

    def release(self, source: str) -> bool:
        """Release a source on a person's request; return False if it was not quarantined."""
        if self.isolated.pop(source, None) is None:
            return False
        self.released.add(source)
        self._forget(source)
        return True

    def _forget(self, source: str) -> None:
        """Discard the evidence on a source."""
        self.comparisons = {key: found for key, found in self.comparisons.items() if source not in key}

    def dump(self) -> dict[str, Any]:
        """Return the state that survives a restart, as plain data; evidence is collected again."""
        return {"format": FORMAT, "kept": self.isolated, "released": sorted(self.released)}

    def restore(self, body: Mapping[str, Any]) -> None:
        """Restore what `dump` returned; also what the program before wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        if body["format"] not in (1, FORMAT):
            raise ValueError(f"format {body['format']!r}; this program reads 1 and {FORMAT}")
        self.isolated = {str(name): dict(figures) for name, figures in body["kept"].items()}
        self.released = set(map(str, body["released"]))
