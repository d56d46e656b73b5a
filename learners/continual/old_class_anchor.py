"""Compare what a version knows of old classes with the best version of each, so that small losses of many waves do not add up.

Each held-out example of a known class has an anchor, which is its score with a version. This is the first one that went live with its
class, or a later one that was shown to be better. The score is of the answer among the classes of that version. So more classes, which make every answer harder,
are no forgetting. Examples with the same classes of their version are a group.

Used by `trainer.py`, which stores the anchors with its state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import betaincinv

from learners.continual.acceptance import CONFIDENCE, paired_bounds
from learners.continual.evaluation import known_classes
from learners.continual.splits import classes
from learners.finetune.error_analysis.scores import each
from learners.finetune.error_analysis.slices import LEAST_ROWS, without_nan
from learners.finetune.labelled_files.equal_content import content_key
from learners.task_kinds import KINDS
from learners.tasks.base import Example, Prediction, Task

WIDTH = 16
"""Hex digits of a row's key."""


@dataclass(frozen=True, slots=True)
class AnchoredRow:
    """One held-out example of a known class."""

    group: tuple[str, ...]
    """The classes of the version of its anchor."""
    anchor: float
    after: float
    """The candidate's score among the classes of the group."""
    newer: bool
    """Whether the candidate takes it for a class that is newer than the group."""


@dataclass(slots=True)
class OldClassAnchors:
    """The anchors of one task; what a person promotes or rolls back starts them over.

    Args:
        version: the live version when they were written.
        groups: the classes of each group.
        rows: key of an example -> place of its group, and its score.
    """

    version: str = ""
    groups: list[list[str]] = field(default_factory=list)
    rows: dict[str, tuple[int, float]] = field(default_factory=dict)

    def of_version(self, version: str) -> OldClassAnchors:
        """Return the anchors for the live version: none if a person has changed it."""
        return self if self.version == version else OldClassAnchors(version)

    def compare(
        self,
        examples: Sequence[Example],
        candidate: Task,
        found: Sequence[Prediction],
        before: Task,
        old: Sequence[Prediction],
    ) -> dict[str, AnchoredRow]:
        """Compare a candidate with the anchors, or with the version before where an example has none; by key of the example.

        Args:
            examples: of classes that the version before knows.
            candidate: the trained task.
            found: its predictions.
            before: the version that it would replace.
            old: its predictions.
        """
        present = tuple(sorted(known_classes(before)))
        earlier = without_nan(each(before, examples, old))
        keys = [row_key(example) for example in examples]
        groups = [tuple(self.groups[self.rows[key][0]]) if key in self.rows else present for key in keys]
        after, newer = [0.0] * len(examples), [False] * len(examples)
        for group in set(groups):
            at = [i for i, one in enumerate(groups) if one == group]
            among = [_among(candidate, found[i], group) for i in at]
            scores = without_nan(each(candidate, [examples[i] for i in at], among))
            for i, score in zip(at, scores, strict=True):
                after[i] = score
                newer[i] = _has_one_label(candidate) and str(found[i].value) not in group
        return {
            key: AnchoredRow(groups[i], self.rows[key][1] if key in self.rows else earlier[i], after[i], newer[i])
            for i, key in enumerate(keys)
        }

    def promoted(
        self,
        version: str,
        candidate: Task,
        rows: Mapping[str, AnchoredRow],
        scores: Mapping[str, float],
        confidence: float,
    ) -> OldClassAnchors:
        """Return the anchors after a promotion.

        Args:
            version: the new live version.
            candidate: its task.
            rows: of `compare`.
            scores: its score for each held-out example of a class that it knows, by key.
            confidence: with which a group must be better to replace its anchors.
        """
        better = {
            group
            for group in {one.group for one in rows.values()}
            if paired_bounds(*_scores(rows, group), confidence)[0] > 0.0
        }
        present = tuple(sorted(known_classes(candidate)))
        values = {key: (one.group, one.after if one.group in better else one.anchor) for key, one in rows.items()}
        values |= {key: (present, score) for key, score in scores.items() if key not in rows}
        order = list(dict.fromkeys(group for group, _ in values.values()))
        place = {group: at for at, group in enumerate(order)}
        return OldClassAnchors(
            version,
            [list(group) for group in order],
            {key: (place[group], score) for key, (group, score) in values.items()},
        )


def figures_of(rows: Mapping[str, AnchoredRow]) -> dict[str, Any]:
    """Return the mean of the anchors and of the candidate's scores, what is taken for newer classes, and the group that lost most.

    `old_newer_low` is the lower bound at 95 % (Clopper and Pearson 1934). `old_group_high` is the upper bound of the paired difference in
    the group of at least `LEAST_ROWS` examples where it is lowest, at 97.5 % for all groups together.
    """
    if not rows:
        return {}
    count, newer = len(rows), sum(one.newer for one in rows.values())
    found: dict[str, Any] = {
        "old_anchor": float(np.mean([one.anchor for one in rows.values()])),
        "old_after": float(np.mean([one.after for one in rows.values()])),
        "old_newer": newer / count,
        "old_newer_low": float(betaincinv(newer, count - newer + 1, 0.05)) if newer else 0.0,
    }
    large = [
        group
        for group in {one.group for one in rows.values()}
        if sum(one.group == group for one in rows.values()) >= LEAST_ROWS
    ]
    if len(large) > 1:
        level = 1.0 - (1.0 - CONFIDENCE) / len(large)
        found["old_group_high"] = min(paired_bounds(*_scores(rows, group), level)[1] for group in large)
    return found


def row_key(example: Example) -> str:
    """Return a digest of an example's content and target."""
    target = [str(example.get(name, "")) for name in ("label", "tags", "answers", "target")]
    return hashlib.sha256("\0".join([content_key(example), *target]).encode(errors="replace")).hexdigest()[:WIDTH]


def scores_of(task: Task, examples: Sequence[Example], scores: Sequence[float]) -> dict[str, float]:
    """Return the scores of the examples of classes that a task knows, by key."""
    known = known_classes(task)
    return {
        row_key(example): score for example, score in zip(examples, scores, strict=True) if classes(example) <= known
    }


def _scores(rows: Mapping[str, AnchoredRow], group: tuple[str, ...]) -> tuple[list[float], list[float]]:
    some = [one for one in rows.values() if one.group == group]
    return [one.after for one in some], [one.anchor for one in some]


def _has_one_label(task: Task) -> bool:
    return KINDS[task.kind].output == "label" and not task.options.multi_label


def _among(task: Task, one: Prediction, group: Collection[str]) -> Prediction:
    """Return a prediction with the most probable class of a group as the answer, for kinds with one label."""
    chances = {name: chance for name, chance in one.probabilities.items() if name in group}
    if not _has_one_label(task) or not chances:
        return one
    return Prediction(max(chances, key=chances.__getitem__), one.confidence, one.probabilities, one.details)
