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
    def of(cls, after: Sequence[float], before: Sequence[float]) -> PairedGain:
        """Compare the scores of one version with those of another."""
        differences = np.subtract(after, before)
        if len(differences) < 2:
            return cls(float(np.mean(differences)) if len(differences) else 0.0, math.inf)
        return cls(float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(len(differences)))

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
) -> AugmentationChoice[Trained]:
    """Train without augmentation, with each, and with all that gain; return the best of them.

    Args:
        names: the augmentations.
        train: trains with some of them.
        scores: the score of each validation example; higher is better.
    """
    plain = train(())
    before = scores(plain)
    best: tuple[float, tuple[str, ...], Trained] = (0.0, (), plain)
    tried: list[dict[str, Any]] = []

    def attempt(some: tuple[str, ...]) -> bool:
        nonlocal best
        trained = train(some)
        after = scores(trained)
        found = PairedGain.of(after, before)
        tried.append({"names": list(some), "score": float(np.mean(after)), "gain": found.gain, "error": found.error})
        if found.is_better and found.gain > best[0]:
            best = (found.gain, some, trained)
        return found.is_better

    gaining = tuple(name for name in names if attempt((name,)))
    if len(gaining) > 1:
        attempt(gaining)
    for one in tried:
        one["on"] = tuple(one["names"]) == best[1]
    return AugmentationChoice(best[1], best[2], plain, tried)
