"""Predictions of several labels for one example: where probabilities are cut, and how the sets that result are scored."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np

from learners.tasks.base import Prediction

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Those that are tried."""


def best_threshold(wanted: Sequence[Collection[str]], predictions: Sequence[Prediction]) -> float:
    """Return the threshold with the highest F1, the nearest to 0.5 among equals."""
    tried = sorted(THRESHOLDS, key=lambda at: abs(at - 0.5))
    return max(tried, key=lambda at: several_label_metrics(wanted, [cut(one, at) for one in predictions])["f1"])


def cut(one: Prediction, threshold: float) -> Prediction:
    """Return a prediction with the labels that have at least the probability `threshold`."""
    return replace(one, value=tuple(label for label, chance in one.probabilities.items() if chance >= threshold))


def log_likelihood(wanted: Iterable[Collection[str]], predictions: Sequence[Prediction]) -> float:
    """Return the mean log-likelihood over all labels of all examples; 0 without any."""
    logs = [
        math.log(max(chance if label in given else 1 - chance, 1e-12))
        for given, one in zip(wanted, predictions, strict=True)
        for label, chance in one.probabilities.items()
    ]
    return float(np.mean(logs)) if logs else 0.0


def several_label_metrics(wanted: Sequence[Collection[str]], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return `accuracy`, the share of examples with exactly the right set, and the F1 over all labels of all examples."""
    pairs = [(set(some), set(one.value)) for some, one in zip(wanted, predictions, strict=True)]
    hits = sum(len(right & found) for right, found in pairs)
    total = sum(len(right) + len(found) for right, found in pairs)
    return {
        "accuracy": sum(right == found for right, found in pairs) / max(len(pairs), 1),
        "f1": 2 * hits / total if total else 0.0,
    }
