"""Compare a version on probation with the version before: the tests, their data, and their results.

Three tests share alpha: rewards a second and returns of episodes must not fall by more than the margin, the share of refused
decisions must not rise. Where too little is known of the version before, a test is left out, and the figures say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from learners.safeguards.sequential_tests import LEAST, Baseline, BettingTest, MixtureSprt
from learners.safeguards.version_statistics import LEAST_EPISODES, CompletedBlock, VersionStatistics

SHARES = {"rewards": 0.5, "refusals": 0.25, "returns": 0.25}
"""Of alpha."""
MORE_REFUSALS = 0.1
"""Share of decisions that may be refused more than before."""
MOST_REFUSALS = 0.95
"""Share of rejected actions of the version before, above which rejections cannot be compared."""
TOO_LONG = 3
"""Times the longest episode before, after which an episode counts as it is."""
EPISODE_RHO = 1.0
"""Episodes are few and say much: their boundary is tightest early."""


@dataclass(slots=True)
class VersionComparison:
    """The tests of one probation."""

    rewards: MixtureSprt | None = None
    returns: MixtureSprt | None = None
    refusals: BettingTest | None = None
    reason: str = ""
    """Why rewards are not compared."""
    refused_before: float = 0.0
    """Share of decisions."""

    @classmethod
    def of(
        cls, known: VersionStatistics, watched: VersionStatistics, *, margin: float, alpha: float
    ) -> VersionComparison:
        """Against what is `known` of the version before; episodes of the new one, `watched`, get their longest length."""
        reference = Baseline.of(known.rewards)
        found = cls(returns=_returns(known, margin, alpha), refusals=_refusals(known, alpha))
        if reference is None:
            found.reason = f"{len(known.rewards)} s of rewards of the version before; {LEAST} are needed"
        else:
            found.rewards = MixtureSprt(reference, alpha * SHARES["rewards"], margin)
        if found.refusals is not None and known.refusals:
            found.refused_before = sum(known.refusals) / len(known.refusals)
        if found.returns is not None:
            watched.longest = TOO_LONG * max(known.lengths)
        return found

    def update(self, done: CompletedBlock) -> str | None:
        """Add what a decision completed; return the name of the test that finds the version worse."""
        tests: tuple[tuple[str, MixtureSprt | BettingTest | None, float | None], ...] = (
            ("rewards", self.rewards, done.reward),
            ("returns", self.returns, done.gained),
            ("refusals", self.refusals, done.refused),
        )
        for why, test, figure in tests:
            if test is not None and figure is not None and test.update(figure):
                return why
        return None

    def replay(self, watched: VersionStatistics) -> None:
        """Take what was watched before a restart."""
        if self.rewards is not None:
            self.rewards.replay(watched.rewards)
        if self.returns is not None:
            self.returns.replay(watched.returns)
        if self.refusals is not None:
            self.refusals.replay(watched.refusals)

    def figures(self) -> dict[str, Any]:
        """Return all numbers."""
        found: dict[str, Any] = {"not_compared": self.reason} if self.rewards is None else _told(self.rewards)
        if self.refusals is not None:
            found |= {"refused_before": round(self.refused_before, 4), "refused_now": round(self.refusals.mean, 4)}
            found["refused_limit"] = round(self.refusals.limit, 4)
        if self.returns is not None:
            found["returns"] = _told(self.returns)
        return found


def _returns(known: VersionStatistics, margin: float, alpha: float) -> MixtureSprt | None:
    """Return a test of the returns: episodes are independent; the margin is that of a tick times the ticks of an episode."""
    reference = Baseline.of(known.returns, least=LEAST_EPISODES, memory=1)
    if reference is None:
        return None
    length = sum(known.lengths) / len(known.lengths)
    return MixtureSprt(reference, alpha * SHARES["returns"], margin * length, EPISODE_RHO)


def _refusals(known: VersionStatistics, alpha: float) -> BettingTest | None:
    refused = Baseline.of(known.refusals)
    limit = MOST_REFUSALS if refused is None else refused.upper() + MORE_REFUSALS
    return BettingTest(limit, alpha * SHARES["refusals"]) if limit < MOST_REFUSALS else None


def _told(drop: MixtureSprt) -> dict[str, Any]:
    """Return the numbers of one test."""
    return {
        "mean_before": round(drop.reference.mean, 4),
        "mean_now": round(drop.mean, 4) if drop.count else None,
        "bound": round(drop.bound(), 4) if drop.count else None,
        "n_before": drop.reference.count,
        "n": drop.count,
        "deviation": round(drop.variance() ** 0.5, 4),
        "inflation": round(drop.reference.inflation, 2),
        "margin": round(drop.margin, 4),
    }
