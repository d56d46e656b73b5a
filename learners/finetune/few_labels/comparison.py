"""Compare versions of a fine-tune on the same validation examples, and select the augmentations that gain there.

A version is better where the mean of the paired differences is above its standard error. On few examples that is weak evidence, so
the reports have gain and error, and with a test file the gain on it, which selected nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

Trained = TypeVar("Trained")


@dataclass(frozen=True, slots=True)
class PairedGain:
    """The mean difference of scores of the same examples, and its standard error."""

    gain: float
    error: float

    @classmethod
    def of(cls, after: Sequence[float], before: Sequence[float], weights: Sequence[float] | None = None) -> PairedGain:
        """Compare the scores of one version with those of another.

        Args:
            after: of examples of different content.
            before: of the same examples.
            weights: how much each counts, for instance how often its content is there. Weights add no evidence: the error is that of
                a weighted mean of as many examples as there are.
        """
        differences = np.subtract(after, before)
        count = len(differences)
        if not count:
            return cls(0.0, math.inf)
        shares = np.ones(count) if weights is None else np.asarray(weights, float)
        shares = shares / shares.sum()
        gain = float(shares @ differences)
        if count < 2:
            return cls(gain, math.inf)
        return cls(gain, float(np.sqrt(np.square(shares) @ np.square(differences - gain) * count / (count - 1))))

    @property
    def is_better(self) -> bool:
        """Whether the gain is above its standard error."""
        return self.gain > self.error


@dataclass(frozen=True, slots=True)
class AugmentationChoice(Generic[Trained]):
    """What validation selected."""

    used: tuple[str, ...]
    trained: Trained
    plain: Trained
    """Without augmentation."""
    tried: list[dict[str, Any]]
    """Each trained set of augmentations, with mean score, gain over none, its standard error, and whether it is on."""


def choose(
    names: Sequence[str],
    train: Callable[[tuple[str, ...]], Trained],
    scores: Callable[[Trained], Sequence[float]],
    weights: Sequence[float] | None = None,
) -> AugmentationChoice[Trained]:
    """Train without augmentation, with each, and with all that gain; return the best of them.

    Args:
        names: the augmentations.
        train: trains with some of them.
        scores: the score of each validation example; higher is better. No two examples have one content.
        weights: of these examples; None for equal ones.
    """
    plain = train(())
    before = scores(plain)
    best: tuple[float, tuple[str, ...], Trained] = (0.0, (), plain)
    tried: list[dict[str, Any]] = []

    def attempt(some: tuple[str, ...]) -> bool:
        nonlocal best
        trained = train(some)
        after = scores(trained)
        found = PairedGain.of(after, before, weights)
        tried.append(
            {
                "names": list(some),
                "score": float(np.average(after, weights=weights)),
                "gain": found.gain,
                "error": found.error,
            }
        )
        if found.is_better and found.gain > best[0]:
            best = (found.gain, some, trained)
        return found.is_better

    gaining = tuple(name for name in names if attempt((name,)))
    if len(gaining) > 1:
        attempt(gaining)
    for one in tried:
        one["on"] = tuple(one["names"]) == best[1]
    return AugmentationChoice(best[1], best[2], plain, tried)
