"""Score single examples, so that versions can be paired and slices measured."""

from __future__ import annotations

from collections.abc import Sequence

from learners.tasks.base import Example, Prediction, Task


def each(task: Task, examples: Sequence[Example], found: Sequence[Prediction]) -> list[float]:
    """Return the score of each single example; higher is better."""
    return [_one(task, example, prediction) for example, prediction in zip(examples, found, strict=True)]


def _one(task: Task, example: Example, prediction: Prediction) -> float:
    """Return 1 for a right label and 0 for another, the share of right tags, or the metric of this one example."""
    if isinstance(example.get("label"), str):
        return float(prediction.value == example["label"])
    if "tags" in example:
        tags = list(example["tags"])
        right = sum(bool(w == f) for w, f in zip(tags, prediction.value, strict=False))
        return right / max(len(tags), 1)
    return float(task.metrics([example], [prediction])[task.selection])
