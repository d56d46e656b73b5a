"""Describe the last evaluated candidate of a task for people: counts, a confusion matrix, and the examples that it gets wrong.

The fine-tuning process writes `evaluation.json` into the folder of the task, and the agent reads it for the page. It is for
classifications with one label; for other kinds it has the metric and the counts alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from learners.files import write_atomically

if TYPE_CHECKING:
    from learners.tasks.base import Example, Prediction

FILE = "evaluation.json"
MAX_CLASSES = 24
"""Classes of the confusion matrix, the most frequent ones; the others are joined."""
MAX_WRONG = 100
OTHERS = "(others)"


def write_evaluation(
    folder: Path,
    facts: Mapping[str, Any],
    examples: Sequence[Example],
    found: Sequence[Prediction],
    labels: Sequence[int],
    *,
    wall: Callable[[], float] = time.time,
) -> None:
    """Write the report of one candidate.

    Args:
        folder: of the task.
        facts: outcome, reason, version, metrics and counts.
        examples: of the held-out file.
        found: what the candidate predicts of each.
        labels: the numbers of the labels that the examples are; empty for a file.
        wall: Unix seconds.
    """
    body = {**facts, "stamp": wall(), **confusion(examples, found, labels)}
    write_atomically(folder / FILE, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), durable=False)


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """Return the report of the last candidate; None without one that is readable."""
    try:
        body = orjson.loads((folder / FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return body if isinstance(body, dict) else None


def confusion(examples: Sequence[Example], found: Sequence[Prediction], labels: Sequence[int]) -> dict[str, Any]:
    """Return classes, the matrix (rows: what is right, columns: what was predicted), and the wrong examples."""
    pairs = [
        (e["label"], str(p.value)) for e, p in zip(examples, found, strict=True) if isinstance(e.get("label"), str)
    ]
    if not pairs or len(pairs) != len(examples):
        return {}
    counts = Counter(wanted for wanted, _ in pairs) + Counter(given for _, given in pairs)
    names = sorted(name for name, _ in counts.most_common(MAX_CLASSES))
    if len(names) < len(counts):
        names.append(OTHERS)
    place = {name: i for i, name in enumerate(names)}
    matrix = [[0] * len(names) for _ in names]
    wrong: list[dict[str, Any]] = []
    for i, (wanted, given) in enumerate(pairs):
        matrix[place.get(wanted, len(names) - 1)][place.get(given, len(names) - 1)] += 1
        if wanted != given and len(wrong) < MAX_WRONG:
            number = labels[i] if i < len(labels) else None
            confidence = found[i].confidence
            wrong.append({"label": number, "is": wanted, "predicted": given, "confidence": confidence})
    right = sum(wanted == given for wanted, given in pairs)
    return {
        "classes": names,
        "confusion": matrix,
        "wrong": wrong,
        "accuracy": right / len(pairs),
        "examples": len(pairs),
    }
