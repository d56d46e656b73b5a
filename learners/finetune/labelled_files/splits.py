"""Read the training, validation and test examples of a run, and check them together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from learners.data_error import DataError
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.equal_content import content_key
from learners.finetune.labelled_files.example_fields import check
from learners.tasks.base import Example, Task
from learners.tasks.task_classes import check_modality, task_class


@dataclass(frozen=True, slots=True)
class Splits:
    """The examples of a run; `test` may be empty."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example] = ()

    def all(self) -> tuple[Sequence[Example], ...]:
        """Return the three."""
        return self.train, self.validation, self.test


def read_splits(kind: str, paths: Mapping[str, Path | str]) -> Splits:
    """Read training, validation and test examples, each with what the task needs.

    Raises:
        DataError: a file cannot be used, or all training examples are of one class.
        ValueError: there is no such task.
    """
    read = [datasets.read(path) for path in paths.values()]
    cls = task_class(kind)
    for examples in read:
        check_modality(cls, examples)
        check(examples, cls)
    found = (
        {label if isinstance(label := example["label"], str) else None for example in read[0]}
        if "label" in cls.declaration().needs
        else set()
    )
    if found and not any(example["label"] for example in read[0]):
        raise DataError(f"{paths['train']}: no example has a label; add examples with one")
    if len(found) == 1 and None not in found:
        raise DataError(
            f"{paths['train']}: all {len(read[0])} examples have the label {found.pop()!r}; add examples of another class"
        )
    return Splits(*read)


def cuts(task: Task, splits: Splits, paths: Mapping[str, Path | str]) -> list[str]:
    """Return a sentence for each split of which the task leaves a part unread."""
    found = []
    for name, path in paths.items():
        examples = getattr(splits, name)
        shares = [share for example in examples if (share := task.unread(example)) > 0]
        if shares:
            found.append(
                f"{path}: {len(shares)} of {len(examples)} examples are longer than the task reads; on average "
                f"{sum(shares) / len(shares):.0%} of each is cut"
            )
    return found


def narrow(task: Task, splits: Splits, path: Path | str) -> list[str]:
    """Return a sentence if the validation examples cannot choose an epoch, or only by one class.

    Args:
        task: to train.
        splits: of the run.
        path: of the validation examples.
    """
    if reason := task.no_choice(splits.validation):
        return [f"{path}: {reason}: it chooses no epoch, and the last one is used"]
    found = {label if isinstance(label := each.get("label"), str) else None for each in splits.validation}
    if len(task.labels) > 1 and len(found) == 1 and None not in found:
        return [f"{path}: all examples are of the class {found.pop()!r}: the epoch is chosen by this class alone"]
    return []


def repeats(splits: Splits, paths: Mapping[str, Path | str]) -> list[str]:
    """Return a sentence for each split of which examples are in another one, too, and one for contents of several classes.

    Examples are equal if their texts are, without spacing and case, or the bytes of their picture or sound. An image that was only
    cut or compressed again is not found.
    """
    seen: dict[str, dict[str, Example]] = {}
    found: list[str] = []
    for name in paths:
        examples: Sequence[Example] = getattr(splits, name)
        mine: dict[str, Example] = {}
        several: set[str] = set()
        counts = dict.fromkeys(seen, 0)
        for example in examples:
            key = content_key(_input_of(example))
            if _target_of(mine.setdefault(key, example)) != _target_of(example):
                several.add(key)
            for other, there in seen.items():
                counts[other] += key in there
        found += [
            f"{paths[name]}: {count} of {len(examples)} examples are in {paths[other]}, too: its figures are too good"
            for other, count in counts.items()
            if count
        ]
        if several:
            found.append(
                f"{paths[name]}: {len(several)} contents are there with different labels: at most one of each is right"
            )
        seen[name] = mine
    return found


def _input_of(example: Example) -> Example:
    """Return what a model reads of an example: the text of a sound is what it is to write."""
    return {name: value for name, value in example.items() if name != "text"} if "sound" in example else example


def _target_of(example: Example) -> Any:
    """Return the classes of an example; None for targets that are texts, of which several can be right."""
    label = example.get("label")
    return (label if label is None or isinstance(label, str) else sorted(label)), example.get("tags")


def splits_digest(splits: Splits) -> str:
    """Return a digest of the training data, so that a state is only resumed on the same data; the test may change."""
    return rows_digest([list(splits.train), list(splits.validation)])


def rows_digest(rows: Sequence[Any]) -> str:
    """Return a digest of examples."""
    return hashlib.sha256(orjson.dumps(rows, default=str)).hexdigest()
