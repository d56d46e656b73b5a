"""Split examples into three disjoint parts: held-out (approves a version), validation (selects the epoch), and training.

The held-out part is the operator's file `tasks.X.eval_file`. Without one it is what `request/label_readings` puts aside of the
labels that an operator gives on the page. A client that publishes labels cannot change either, and labels with the same content do
not train. Without both, the result of a fine-tune is inconclusive.

The validation part is a fixed share of the labels, selected by content. It never trains: it stops the training and selects the
epoch. It comes from the sources of the training labels, so it can reject their labels as noise, but never approve a version.

Pictures and sounds of one stream within five seconds of each other are in the same part, because they are nearly equal. This
begins when the labels cover enough of such blocks.

If the file has classes, labels of other classes do not train and are counted as uncovered, because nothing could evaluate them.
An image or sound of the file that is published again as a label is recognised by `near_duplicates.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from learners.continual.labels import LEAST_BLOCKS, Labelled
from learners.finetune.example_checks.near_duplicates import NearDuplicates
from learners.finetune.labelled_files.datasets import read
from learners.finetune.labelled_files.equal_content import normalized_text
from learners.finetune.labelled_files.example_fields import check
from learners.task_kinds import KINDS
from learners.tasks.base import Example
from learners.tasks.task_classes import check_modality, task_class

Examples = list[dict[str, Any]]
OTHER_TARGETS = tuple(sorted({declared.target for declared in KINDS.values()} - {"label", "tags"}))
"""Fields of an example that hold what is right, beside the two that every digest has."""


@dataclass(frozen=True, slots=True)
class LabelSplits:
    """Split labels into their parts."""

    new: Examples
    """Train, not seen by the live version."""
    known: Examples
    """May train again, as replay."""
    tried: Examples
    """Validation, of the new ones."""
    known_validation: Examples
    """Validation, of those known before."""
    uncovered: tuple[str, ...] = ()
    """Classes of new labels that the file says nothing of, one entry a label."""
    repeated: int = 0
    """New labels of what the file contains."""

    @property
    def validation(self) -> Examples:
        """What chooses the epoch."""
        return [*self.tried, *self.known_validation]


@dataclass(frozen=True, slots=True)
class Holdout:
    """The rule that keeps examples apart.

    Args:
        share: of the labels that is validation.
        file: the examples of the file, or those that were put aside; None without both.
        keys: of the labels that were put aside; labels of the same content do not train.
        labels: numbers of the labels that were put aside, in the order of `file`.
        media: the pictures and sounds of `file`.
    """

    share: float
    file: tuple[dict[str, Any], ...] | None = None
    keys: frozenset[str] = frozenset()
    labels: tuple[int, ...] = ()
    media: NearDuplicates = field(default_factory=NearDuplicates, compare=False)

    @classmethod
    def of(cls, eval_file: str | None, share: float, kind: str | None = None) -> Holdout:
        """Build the splits from the settings; with a task's kind, check that the file's examples have what the task needs.

        Raises:
            DataError: the file or one of its pictures or sounds cannot be read, it is empty, or it is not of the task.
        """
        if eval_file is None:
            return cls(share)
        examples = read(eval_file)
        if kind is not None:
            task = task_class(kind)
            check_modality(task, examples)
            check(examples, task)
        return cls(share, tuple(examples), media=NearDuplicates(examples))

    @classmethod
    def put_aside(cls, labels: Sequence[Labelled], share: float) -> Holdout:
        """Build the splits from the labels that were put aside; without any, nothing is held out."""
        if not labels:
            return cls(share)
        keys = frozenset(one.key for one in labels)
        examples = tuple(one.example for one in labels)
        return cls(share, examples, keys, tuple(one.id for one in labels), NearDuplicates(examples))

    @property
    def origin(self) -> Literal["none", "file", "labels"]:
        """Where the held-out figures come from."""
        if self.file is None:
            return "none"
        return "labels" if self.keys else "file"

    @property
    def digest(self) -> str:
        """Return a digest of the file's content and targets, in their order; of no file without one."""
        rows = [
            (normalized_text(row), str(row.get("label", "")), str(row.get("tags", "")), *_other_targets(row))
            for row in self.examples
        ]
        media = self.media.digest if any("picture" in row or "sound" in row for row in self.examples) else b""
        return hashlib.sha256(orjson.dumps([rows, sorted(self.keys)] if self.keys else rows) + media).hexdigest()

    @property
    def examples(self) -> Examples:
        """Everything that judges; nothing without a file."""
        return list(self.file or ())

    def parts(self, new: Sequence[Labelled], known: Sequence[Labelled]) -> LabelSplits:
        """Split labels into their parts."""
        there = {normalized_text(example) for example in self.examples} - {""}
        judged = {name for example in self.examples for name in classes(example)}
        train: tuple[Examples, Examples] = ([], [])
        validation: tuple[Examples, Examples] = ([], [])
        uncovered: list[str] = []
        repeated = 0
        by_block = len({one.block for one in (*new, *known)} - {""}) >= LEAST_BLOCKS
        for at, labels in enumerate((new, known)):
            for one in labels:
                foreign = classes(one.example) - judged if judged else frozenset[str]()
                if one.key in self.keys:
                    continue
                if foreign:
                    uncovered += [min(foreign)] if at == 0 else []
                elif normalized_text(one.example) in there or self.media.has(one.key, one.example):
                    repeated += at == 0
                else:
                    (validation if one.held(self.share, by_block=by_block) else train)[at].append(one.example)
        return LabelSplits(*train, *validation, tuple(uncovered), repeated)

    def apart(self, known: Collection[str] | None) -> tuple[Examples, Examples]:
        """Return the file's examples of new classes, and those of classes that the live version knows (the forgetting set).

        Args:
            known: the live version's classes, empty where its kind has none; None without a live version.
        """
        if known is None:
            return self.examples, []
        found: tuple[Examples, Examples] = ([], [])
        for example in self.examples:
            found[classes(example) <= set(known)].append(example)
        return found


def classes(example: Example) -> frozenset[str]:
    """Return the labels of an example, or the entity types of its tags; empty for targets that are texts or spans."""
    given = example.get("label", ())
    found = {given} if isinstance(given, str) else set(given)
    return frozenset(found | {tag[2:] if tag[1:2] == "-" else tag for tag in example.get("tags", ())})


def _other_targets(row: Example) -> list[str]:
    return [str(row[name]) for name in OTHER_TARGETS if name in row]
