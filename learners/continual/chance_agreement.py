"""Compare a task's predictions with targets, example by example, and with what chance would reach.

Each kind of task has a score of one example in [0, 1] and the score that a prediction reaches by chance:

- label: chance agreement of two raters with the same class frequencies (Cohen 1960), with Wilson's bound (`acceptance.py`);
- labels, tags, texts: the mean score against the targets of other examples, so that shuffled labels and a constant answer are
  both at chance;
- span: the mean score of a span of the same length at every other place of the same context;
- turn: how probable the answers of other examples are in its place.

The difference of both is tested on single examples with a one-sided t-test. An answer that is right more often than chance for
most examples passes; one that is never, or equally often, does not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from learners.task_kinds import KINDS
from learners.tasks.base import Example, Prediction, Task
from learners.tasks.question_answering import word_f1

FEWEST = 8
"""Examples below which no agreement is computed for tags, sets, spans, texts and turns."""
OTHERS = 24
"""Targets of other examples that a prediction is compared with."""
CONFIDENCE = 0.95
"""Of each bound of the agreement, one-sided."""
Scores = tuple[list[float], list[float]]
"""Of each example: its score, and its score by chance."""


def compare_with_chance(task: Task, examples: Sequence[Example], found: Sequence[Prediction]) -> dict[str, float]:
    """Return `agreement`, its bounds `agreement_low` and `agreement_high`, and `chance`; nothing for too few examples.

    Args:
        task: that predicted; it scores the answers of other examples where the kind is `turn`.
        examples: with their targets.
        found: one prediction for each example.
    """
    if len(examples) < FEWEST:
        return {}
    output = KINDS[task.kind].output
    scores = _turns(task, examples) if output == "turn" else _SCORERS[output](examples, found)
    reached, chance = (np.array(part) for part in scores)
    above = reached - chance
    spread = float(above.std(ddof=1)) / math.sqrt(len(above))
    away = float(stats.t.ppf(CONFIDENCE, len(above) - 1)) * spread
    return {
        "agreement": float(reached.mean()),
        "agreement_low": float(chance.mean() + above.mean()) - away,
        "agreement_high": float(chance.mean() + above.mean()) + away,
        "chance": float(chance.mean()),
    }


def _against_others(targets: Sequence[Any], values: Sequence[Any], score: Callable[[Any, Any], float]) -> Scores:
    """Score each value with its own target, and with targets of others, evenly spread over the examples."""
    count = len(values)
    steps = sorted(
        {1 + round(i * (count - 2) / max(1, min(OTHERS, count - 1) - 1)) for i in range(min(OTHERS, count - 1))}
    )
    reached = [score(target, value) for target, value in zip(targets, values, strict=True)]
    chance = [
        float(np.mean([score(targets[(at + step) % count], value) for step in steps]))
        for at, value in enumerate(values)
    ]
    return reached, chance


def _sets(examples: Sequence[Example], found: Sequence[Prediction]) -> Scores:
    targets = [{given} if isinstance(given := example["label"], str) else set(given) for example in examples]
    values = [{value} if isinstance(value := one.value, str) else set(value) for one in found]
    return _against_others(targets, values, _overlap)


def _overlap(wanted: set[str], found: set[str]) -> float:
    """F1 of two sets; 1 where both are empty."""
    return 2 * len(wanted & found) / (len(wanted) + len(found)) if wanted or found else 1.0


def _tags(examples: Sequence[Example], found: Sequence[Prediction]) -> Scores:
    """Score words: the share of right tags, and the share that tags drawn with the same frequencies would reach."""
    pairs = [list(zip(example["tags"], one.value, strict=False)) for example, one in zip(examples, found, strict=True)]
    wanted, given = (Counter(pair[side] for row in pairs for pair in row) for side in (0, 1))
    words = max(1, wanted.total())
    share = {tag: count / words for tag, count in wanted.items()}
    reached, chance = [], []
    for row in pairs:
        size = max(1, len(row))
        reached.append(sum(w == f for w, f in row) / size)
        # half by what is predicted here, half by what is wanted here: an example of its own frequencies has no advantage
        by_found = sum(share.get(f, 0.0) for _, f in row) / size
        by_wanted = sum(given[w] / words for w, _ in row) / size
        chance.append((by_found + by_wanted) / 2)
    return reached, chance


def _spans(examples: Sequence[Example], found: Sequence[Prediction]) -> Scores:
    reached, chance = [], []
    for example, one in zip(examples, found, strict=True):
        answers = [str(answer["text"]) for answer in example["answers"]] or [""]
        value, words = str(one.value), str(example["context"]).split()
        reached.append(_best(answers, value))
        width = len(value.split())
        starts = np.unique(np.linspace(0, max(0, len(words) - width), OTHERS).astype(int))
        chance.append(float(np.mean([_best(answers, " ".join(words[at : at + width])) for at in starts])))
    return reached, chance


def _best(answers: Sequence[str], value: str) -> float:
    return max(word_f1(answer, value) for answer in answers)


def _texts(examples: Sequence[Example], found: Sequence[Prediction]) -> Scores:
    return _against_others([str(e["target"]) for e in examples], [str(one.value) for one in found], word_f1)


def _turns(task: Task, examples: Sequence[Example]) -> Scores:
    """Score the probability of an answer's mean token, and that of another example's answer in its place."""
    count = len(examples)
    others = [_with_answer_of(example, examples[(at + count // 2) % count]) for at, example in enumerate(examples)]
    own, other = ([one.confidence or 0.0 for one in task.predict(some)] for some in (examples, others))
    return own, other


def _with_answer_of(example: Example, other: Example) -> dict[str, Any]:
    return {**example, "messages": [*example["messages"][:-1], other["messages"][-1]]}


_SCORERS: dict[str, Callable[[Sequence[Example], Sequence[Prediction]], Scores]] = {
    "label": _sets, "tags": _tags, "span": _spans, "text": _texts,
}  # fmt: skip
