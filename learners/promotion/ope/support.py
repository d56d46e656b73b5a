"""Count the evidence where it matters for a comparison: decisions that the candidate prefers more than the live policy does.

Where both policies act alike, the log says much about both and nothing about their difference. So the effective sample size of a
policy's weights is largest where there is no evidence. A *try* is a logged action that the candidate prefers more: its weight is the
rise of its probability, divided by the logged probability. Tries of one horizon depend on each other, so windows that do not
overlap are counted, too.

Shapes: N decisions in the order of time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learners.promotion.ope.estimator_inputs import Evidence
from learners.promotion.ope.estimators import effective_samples

MIN_TRIES = 30
"""Tries below which a difference is unknown."""
REJECTING_TRIES = 5
"""Tries that suffice to reject: a wrong rejection costs one candidate, and a wrong approval a policy that works."""
MIN_BALANCE = 0.7
"""The rises and the falls of probability are equal on average; fewer rises in the log mean that some of them were never tried."""
ALIKE = 1e-3
"""Share of differing decisions below which both policies are the same."""
LARGEST_ALTERED = 0.05
"""Share of proposals that the gate changed, above which the probability of an executed action is unknown."""


@dataclass(frozen=True, slots=True)
class Support:
    """What the log contains of a difference.

    `differing`: estimated share of decisions in which the policies differ. `tries`: effective number of tries. `windows`: number of
    horizons with a try. `balance`: rises that the log contains, as a share of the falls.
    """

    differing: float
    tries: float
    windows: int
    balance: float

    @property
    def alike(self) -> bool:
        """Whether the policies do not differ."""
        return self.differing < ALIKE

    @property
    def count(self) -> float:
        """Return the number of independent tries."""
        return min(self.tries, float(self.windows))

    def missing(self) -> str:
        """Return why the difference is unknown; empty if it is supported."""
        if self.alike:
            return ""
        if self.count < MIN_TRIES:
            return f"{self.count:.1f} independent tries of what the candidate does differently; {MIN_TRIES} are needed"
        if self.balance < MIN_BALANCE:
            return f"the log contains {self.balance:.0%} of what the candidate does differently"
        return ""


def support(e: Evidence) -> Support:
    """Count the tries of a comparison."""
    usable = np.flatnonzero(e.own & e.known)
    change_N = (e.candidate.probability[usable] - e.live.probability[usable]) / e.logged[usable]
    rise_N, fall_N = np.maximum(change_N, 0.0), np.maximum(-change_N, 0.0)
    rises, falls = float(rise_N.sum()), float(fall_N.sum())
    differing = max(rises, falls) / max(len(usable), 1)
    tried = usable[rise_N > 0.1 * rise_N.max(initial=0.0)] if rises > 0 else usable[:0]
    return Support(
        differing=differing,
        tries=effective_samples(rise_N),
        windows=len(np.unique(tried // e.horizon)),
        balance=min(1.0, rises / falls) if falls > 0 else 1.0,
    )
