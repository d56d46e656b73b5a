"""Train the versions of a fine-tune from files that differ in augmentation and in the encoder they start from, and report both.

Validation selects. A row that is there twice, or that is trained on, selects once or not at all. The test file, where there is one, measures what was selected and what it was selected against.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from learners.data_error import DataError
from learners.finetune.error_analysis.scores import each
from learners.finetune.few_labels.comparison import PairedGain, choose
from learners.finetune.few_labels.continued_pretraining import AdaptedEncoder, adapt
from learners.finetune.forgetting import transplant
from learners.finetune.labelled_files.equal_content import content_key, distinct
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.trainer_state import State
from learners.tasks.augmentation.mixing import can_mix
from learners.tasks.base import Example, Task, without_target
from learners.tasks.classifier import Classifier


class HasTask(Protocol):
    """What a training returns."""

    @property
    def task(self) -> Task:
        """The task with its trained model."""


Trained = TypeVar("Trained", bound=HasTask)


@dataclass(frozen=True, slots=True)
class ArmSettings:
    """What differs between the versions."""

    augment: tuple[str, ...] | None
    """None for what the kind of task has by default."""
    adapted: bool


@dataclass
class Arms(Generic[Trained]):
    """The versions of one fine-tune; each is trained once.

    Args:
        train: trains a version.
        validation: selects; no two examples have one content.
        test: measures; may be empty.
    """

    train: Callable[[ArmSettings], Trained]
    validation: Sequence[Example]
    test: Sequence[Example] = ()
    _trained: dict[ArmSettings, Trained] = field(default_factory=dict)

    def trained(self, settings: ArmSettings) -> Trained:
        """Return a version, trained when it is first asked for."""
        if settings not in self._trained:
            self._trained[settings] = self.train(settings)
        return self._trained[settings]

    def compare_adapted(self, augment: tuple[str, ...] | None, made: AdaptedEncoder) -> tuple[bool, dict[str, Any]]:
        """Compare the adapted encoder with the pretrained one; return whether it is used, and what the report says."""
        arms = [self.trained(ArmSettings(augment, adapted)) for adapted in (True, False)]
        after, before = (self._scores(arm, self.validation) for arm in arms)
        found = PairedGain.of(after, before)
        report: dict[str, Any] = {
            "objective": made.objective,
            "readings": made.readings,
            "unreadable": made.unreadable,
            **({"unreadable_reason": made.unreadable_reason} if made.unreadable else {}),
            "losses": made.losses,
            "used": found.is_better,
            "validation": _pair("adapted", after, "pretrained", before),
        }
        if self.test:
            rows, times = distinct(self.test)
            report["test"] = _pair(
                "adapted", self._scores(arms[0], rows), "pretrained", self._scores(arms[1], rows), times
            )
        return found.is_better, report

    def choose_augmentations(self, names: Sequence[str], *, adapted: bool) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Select augmentations; return those that are on, and what the report says."""
        chosen = choose(
            names,
            lambda some: self.trained(ArmSettings(some, adapted)),
            lambda arm: self._scores(arm, self.validation),
        )
        report: dict[str, Any] = {"used": list(chosen.used), "tried": chosen.tried}
        plain = self._scores(chosen.plain, self.validation)
        report["validation"] = _pair("used", self._scores(chosen.trained, self.validation), "plain", plain)
        if self.test:
            rows, times = distinct(self.test)
            report["test"] = _pair(
                "used", self._scores(chosen.trained, rows), "plain", self._scores(chosen.plain, rows), times
            )
        return chosen.used, report

    def _scores(self, arm: Trained, examples: Sequence[Example]) -> list[float]:
        task = arm.task
        return each(task, examples, task.predict([without_target(example) for example in examples]))


def _pair(
    name: str, after: Sequence[float], other: str, before: Sequence[float], times: Sequence[float] | None = None
) -> dict[str, float]:
    """Return both mean scores of single examples, each counted `times`, and the gain with its standard error."""
    found = PairedGain.of(after, before, times)
    return {
        name: float(np.average(after, weights=times)), other: float(np.average(before, weights=times)),
        "gain": found.gain, "error": found.error,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class FewLabels:
    """What a run does so that few labels go further; false where it does nothing of it."""

    automatic: tuple[str, ...] = ()
    """Augmentations that validation switches on or off."""
    unlabelled: Sequence[Example] = ()

    def __bool__(self) -> bool:
        return bool(self.automatic or self.unlabelled)


def best_arm(
    few: FewLabels,
    fresh: Task,
    train: Callable[[Task, State], Trained],
    splits: Splits,
    seed: int,
    state: State,
) -> tuple[Trained, dict[str, Any]]:
    """Train all versions, and return the one that validation selects and its part of the report.

    Args:
        few: what is compared.
        fresh: the task before training; it does not change.
        train: trains a task in place, with the state of its version.
        splits: validation selects, and test measures; it may be empty.
        seed: of the adaptation.
        state: of the run.

    Raises:
        DataError: too few unlabelled readings can be used, or training contains all rows of validation.
    """
    trained_on = {content_key(example) for example in splits.train}
    validation, _ = distinct(splits.validation, trained_on)
    if not validation:
        raise DataError("validation: every row is one that is trained on; give other rows")
    encoder = copy.deepcopy(fresh)
    made: AdaptedEncoder | None = None
    if few.unlabelled:
        assert isinstance(encoder, Classifier)
        made = adapt(encoder, few.unlabelled, seed=seed)

    def trained(arm: ArmSettings) -> Trained:
        task = copy.deepcopy(fresh)
        task.options = replace(task.options, augment=arm.augment)
        if arm.adapted:
            transplant(encoder.model, task.model)
        name = "-".join(
            ("adapted" if arm.adapted else "pretrained", *(("default",) if arm.augment is None else arm.augment))
        )
        return train(task, state.of_part(name))

    arms = Arms(trained, validation, splits.test)
    augment = None if fresh.options.augment is None else tuple(fresh.options.augment)
    report: dict[str, Any] = {}
    if left := len(splits.validation) - len(validation):
        report["selection"] = {"rows": len(validation), "repeated_or_trained_on": left}
    adapted = False
    if made is not None:
        adapted, report["adaptation"] = arms.compare_adapted(augment, made)
    if few.automatic:
        names = tuple(name for name in few.automatic if name != "mixup" or can_mix(fresh.model))
        augment, report["augmentation"] = arms.choose_augmentations(names, adapted=adapted)
    return arms.trained(ArmSettings(augment, adapted)), report
