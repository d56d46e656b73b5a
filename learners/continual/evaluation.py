"""Evaluate a task on held-out examples: as a whole, on the parts that verdicts use, and example by example.

Example by example two versions can be paired: `sign_test` is the exact sign test on the examples where they differ, which needs no
assumption about the metric. Ties say nothing and are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scipy.special import betaincinv

from learners.continual.acceptance import CONFIDENCE, agreement, below_chance, by_chance, more_needed, paired_bounds
from learners.continual.chance_agreement import FEWEST, compare_with_chance
from learners.continual.splits import Holdout, classes
from learners.finetune.error_analysis.scores import each
from learners.finetune.error_analysis.slices import LEAST_ROWS, SliceMetrics, measure, without_nan
from learners.task_kinds import KINDS
from learners.tasks.base import Example, Prediction, Task, without_target


@dataclass(frozen=True, slots=True)
class CandidateMetrics:
    """Figures of a candidate beside the version before, and the score of every held-out example, in the order of the file."""

    figures: dict[str, float]
    after: list[float]
    before: list[float] | None
    """None where there was no version before."""
    predictions: list[Prediction]
    """Of the candidate, in the order of the file."""
    slices: list[dict[str, Any]] = field(default_factory=list)
    """The slices of the file, as `SliceMetrics.row` returns them."""
    earlier: list[Prediction] = field(default_factory=list)
    """Of the version before, in the order of the file; empty where there was none."""


def evaluate_candidate(
    holdout: Holdout,
    candidate: Task,
    before: Task | None,
    trained_classes: Collection[str],
    slices: Sequence[str] = (),
) -> CandidateMetrics:
    """Evaluate a candidate on the held-out file.

    Args:
        holdout: the examples; it must have a file.
        candidate: the trained task.
        before: the version that it would replace; the pretrained model for kinds of task without their own head.
        trained_classes: the classes of the training examples; empty where the kind has none.
        slices: how the examples are divided; see `learners.finetune.error_analysis.slices`.

    Without a version before, its metrics are 0, because an untrained head has no useful prediction.

    Raises:
        DataError: no example has the column of a slice.
    """
    new, known = holdout.apart(None if before is None else known_classes(before))
    examples = [*known, *new]
    found = predict(candidate, examples)
    old = predict(before, examples) if before is not None else None
    figures = {"held_new": float(len(new)), "held_known": float(len(known))}
    at = len(known)
    for part, cut in {"new": slice(at, None), "known": slice(at), "all": slice(None)}.items():
        if examples[cut]:
            figures[f"{part}_after"] = metric(candidate, examples[cut], found[cut])
            figures[f"{part}_before"] = (
                metric(before, examples[cut], old[cut]) if before is not None and old is not None else 0.0
            )
    if before is not None and known and known_classes(candidate) > known_classes(before):
        figures |= apart_from_new(candidate, known, found[:at], known_classes(before))
    about = [i for i, one in enumerate(examples) if not trained_classes or classes(one) & set(trained_classes)]
    figures |= agreed(candidate, [examples[i] for i in about], [found[i] for i in about])
    place = {id(example): i for i, example in enumerate(examples)}
    order = [place[id(example)] for example in holdout.examples]
    after = without_nan(each(candidate, examples, found))
    earlier = without_nan(each(before, examples, old)) if before is not None and old is not None else None
    if earlier is not None:
        figures["before_lower"], figures["before_upper"] = paired_bounds(after, earlier)
    in_order = [after[i] for i in order]
    predictions = [found[i] for i in order]
    earlier_in_order = None if earlier is None else [earlier[i] for i in order]
    rows = compare_slices(measure(slices, holdout.examples, in_order), in_order, earlier_in_order)
    before_in_order = [] if old is None else [old[i] for i in order]
    return CandidateMetrics(figures, in_order, earlier_in_order, predictions, rows, before_in_order)


def apart_from_new(
    task: Task, examples: Sequence[Example], found: Sequence[Prediction], known: Collection[str]
) -> dict[str, Any]:
    """Return how well known classes are distinguished among themselves, and how often they are taken for new ones.

    Args:
        task: the candidate.
        examples: of known classes.
        found: the candidate's predictions.
        known: the classes of the version before.

    Returns:
        `known_among_after` is the metric where the most probable known class is the answer. `confused_with_new` is the share of answers that
        are new classes. `confused_class` is the known class with the highest lower bound of this share, and `confused_class_low` is that
        bound (Clopper and Pearson 1934, 95 % for all classes together). Empty for kinds without one label.
    """
    if KINDS[task.kind].output != "label" or task.options.multi_label:
        return {}
    among = [
        replace(
            one, value=max((name for name in one.probabilities if name in known), key=one.probabilities.__getitem__)
        )
        for one in found
    ]
    rows, new = Counter[str](), Counter[str]()
    for example, one in zip(examples, found, strict=True):
        name = str(example["label"])
        rows[name] += 1
        new[name] += str(one.value) not in known
    alpha = 0.05 / len(rows)
    lows = {n: float(betaincinv(new[n], rows[n] - new[n] + 1, alpha)) if new[n] else 0.0 for n in rows}
    worst = max(lows, key=lows.__getitem__)
    return {
        "known_among_after": metric(task, examples, among),
        "confused_with_new": new.total() / len(found),
        "confused_class": worst,
        "confused_class_low": lows[worst],
    }


def compare_slices(
    slices: Sequence[tuple[SliceMetrics, list[int]]], after: Sequence[float], before: Sequence[float] | None
) -> list[dict[str, Any]]:
    """Return the slices with the metric of the version before, and the bound of the difference.

    The confidence is divided among the slices that can reject a candidate (Bonferroni), so that many slices reject as few honest
    candidates by chance as one does. Slices of the same rows count once.
    """
    if before is None:
        return [one.row() for one, _ in slices]
    count = max(1, len({frozenset(some) for one, some in slices if one.examples >= LEAST_ROWS}))
    after, before, rows = without_nan(after), without_nan(before), []
    for one, some in slices:
        now, then = [after[i] for i in some], [before[i] for i in some]
        high = paired_bounds(now, then, 1.0 - (1.0 - CONFIDENCE) / count)[1]
        compared = replace(one, before=sum(then) / len(then), difference_high=high if math.isfinite(high) else None)
        rows.append(compared.row())
    return rows


def agreed(task: Task, examples: Sequence[Example], found: Sequence[Prediction]) -> dict[str, float]:
    """Return agreement, its lower bound and chance agreement; nothing where there are too few examples."""
    if KINDS[task.kind].output != "label" or task.options.multi_label:
        return compare_with_chance(task, examples, found)
    pairs = [
        (e["label"], str(f.value)) for e, f in zip(examples, found, strict=True) if isinstance(e.get("label"), str)
    ]
    return agreement([wanted for wanted, _ in pairs], [given for _, given in pairs]) if pairs else {}


def single_labels(task: Task, examples: Sequence[Example], about: Collection[str] = ()) -> list[str]:
    """Return the label of each example, of some classes or of all; none for kinds of task with another target."""
    if KINDS[task.kind].output != "label" or task.options.multi_label:
        return []
    labels = [e["label"] for e in examples if isinstance(e.get("label"), str)]
    return [label for label in labels if not about or label in about]


def more_held_out_needed(task: Task, examples: Sequence[Example], about: Collection[str]) -> int:
    """Return how many more held-out examples of some classes are needed before chance differs from what was learned."""
    if KINDS[task.kind].output == "label" and not task.options.multi_label:
        return more_needed(single_labels(task, examples, about))
    count = sum(not about or bool(classes(one) & set(about)) for one in examples)
    return max(0, FEWEST - count)


def opinion(task: Task, examples: Sequence[Example], least: int) -> dict[str, float]:
    """Return a task's agreement with labels of its classes; nothing if there are fewer than `least`."""
    about = [example for example in examples if classes(example) <= known_classes(task)]
    return agreed(task, about, predict(task, about)) if len(about) >= least else {}


def contradicts(task: Task, examples: Sequence[Example], least: int) -> bool:
    """Return whether labels of a task's classes are shown to agree with it less than chance; False for fewer than `least`."""
    return below_chance(opinion(task, examples, least), "") is not None


def knows_nothing_of(task: Task, examples: Sequence[Example], least: int) -> bool:
    """Return whether a task agrees with examples of its classes no better than chance; False for fewer than `least`."""
    return by_chance(opinion(task, examples, least), "") is not None


def known_classes(task: Task) -> frozenset[str]:
    """Return the classes that a task has learned, as `holdout.classes` names those of examples; one that is only declared is unknown."""
    found = classes({"tags": task.labels}) if task.kind == "token-classification" else frozenset(task.labels)
    return found if task.learned is None else found & task.learned


def predict(task: Task, examples: Sequence[Example]) -> list[Prediction]:
    """What a task says of examples, without being shown what is right: a head need not know every label."""
    return task.predict([without_target(example) for example in examples])


def metric(task: Task, examples: Sequence[Example], found: Sequence[Prediction]) -> float:
    """Return the task's selection metric."""
    return float(task.metrics(examples, found)[task.selection])


def score(task: Task, examples: Sequence[Example]) -> float:
    """Return the task's selection metric on examples."""
    return metric(task, examples, predict(task, examples))


def sign_test(after: Sequence[float], before: Sequence[float]) -> float:
    """Return the p-value of the one-sided exact sign test that `after` is worse than `before`."""
    down = sum(a < b for a, b in zip(after, before, strict=True))
    up = sum(a > b for a, b in zip(after, before, strict=True))
    n = down + up
    return float(sum(math.comb(n, k) for k in range(down, n + 1)) / 2**n)
