"""Fine-tune from files so that few labels go further: adapted encoder and augmentations, selected by validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from learners.data_error import DataError
from learners.finetune import run
from learners.finetune.example_checks.near_duplicates import NearDuplicates
from learners.finetune.few_labels.arms import FewLabels, best_arm
from learners.finetune.few_labels.continued_pretraining import can_adapt
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.equal_content import content_key, normalized_text
from learners.finetune.labelled_files.splits import Splits, rows_digest
from learners.finetune.trainer_state import State
from learners.finetune.training_phases import Tuned
from learners.tasks.base import Example, Task, without_target
from learners.tasks.task_classes import check_modality, task_class


def finetune(
    *, task: str, unlabelled: Path | str | None = None, augment: Any = None, adapter: bool = False, seed: int = 0, **options: Any
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune a model from files; returns the report.

    Args:
        task: a kind of `learners/tasks`.
        unlabelled: readings on which the encoder's pretraining continues first; labels in it are not read.
        augment: names of augmentations, `auto` (each is on or off by validation), or None for those of the kind.
        adapter: as in `run.finetune`.
        seed: of everything random.
        options: as in `run.finetune`.

    Raises:
        DataError: the data cannot be used.
        ValueError: as in `run.finetune`; or nothing changes the examples of this kind, or its encoder cannot be adapted.
    """
    cls, automatic = task_class(task), augment == "auto"
    given = {"task": task, "adapter": adapter, "seed": seed, **options}
    given |= {} if automatic or augment is None else {"augment": augment}
    names = cls.declaration().augmentations
    if automatic and not names:
        raise ValueError(f"augment: nothing changes the examples of {task}; leave it out")
    if unlabelled is not None and not can_adapt(task):
        raise ValueError(f"unlabelled: the encoder of {task} cannot be adapted; leave it out")
    if not automatic and unlabelled is None:
        return run.finetune(**given)
    if adapter:
        raise ValueError("adapter: not together with augment auto or unlabelled readings; name the augmentations")
    readings = datasets.read(unlabelled) if unlabelled is not None else ()
    check_modality(cls, readings)
    few = FewLabels(names if automatic else (), readings)

    def best(fresh: Task, train: Any, splits: Splits, state: State) -> tuple[Tuned, dict[str, Any]]:
        apart = without_held(readings, [*splits.validation, *splits.test])
        tuned, report = best_arm(replace(few, unlabelled=apart), fresh, train, splits, seed, state)
        if readings:
            report["adaptation"]["left_out"] = len(readings) - len(apart)
        return tuned, report

    facts = {"automatic": few.automatic, "unlabelled": rows_digest(list(readings))}
    return run.finetune(**given, selection=run.Selection(facts, best))


def without_held(readings: Sequence[Example], held: Sequence[Example]) -> list[Example]:
    """Return readings without those that validation or the test has: an encoder that has seen them knows more of them than of others.

    Texts are compared without spacing and case, pictures and sounds as labels are with a held-out file.

    Raises:
        DataError: nothing is left.
    """
    texts = {normalized_text(example) for example in held} - {""}
    media = NearDuplicates(held)

    def is_held(example: Example) -> bool:
        try:
            return normalized_text(example) in texts or media.has(content_key(example), without_target(example))
        except (DataError, OSError):
            return False  # the adaptation counts what it cannot read

    found = [example for example in readings if not is_held(example)]
    if readings and not found:
        raise DataError(f"unlabelled: validation and test contain all {len(readings)} readings; give others")
    return found
