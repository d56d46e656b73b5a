"""Train one candidate of a task on new labels and a sample of earlier ones, and write its report.

Training starts from the live version, its head grown by the new classes, else from the pretrained model. Validation, which is the part of
the labels that never trains, selects the epoch. Does not decide on promotion.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from learners.config.tasks import FinetuneSettings, TaskSettings, Train
from learners.continual.splits import Examples, LabelSplits, classes
from learners.finetune.build import fitting_options, settings_of
from learners.finetune.error_analysis.scores import each
from learners.finetune.few_labels.comparison import PairedGain, choose
from learners.finetune.labelled_files.equal_content import distinct
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.report import annotate, describe
from learners.finetune.trainer import OnProgress, TrainerSettings
from learners.finetune.training_phases import Tuned, tune
from learners.finetune.transfer import start_from
from learners.model.encoders.bundled_weights import resolve
from learners.task_kinds import KINDS
from learners.task_serving.options import options_of
from learners.task_serving.versions import LAST_LABEL, TaskVersion
from learners.tasks.augmentation.mixing import can_mix
from learners.tasks.base import Example, Task, learned_by, saved, without_target
from learners.tasks.task_classes import open_task, task_class

MIN_STEPS = 60
"""Updates with new labels a fine-tune takes at least: few labels see more epochs, with early stopping."""
PATIENCE = 5
"""Epochs without a better score before it stops, at least."""
GENTLE = 0.5
"""Of the learning rate, where a candidate is trained again because it forgot too much."""
WEIGH = 5
"""Earlier labels in validation, at most, for each new one there."""


@dataclass(frozen=True, slots=True)
class TrainedCandidate:
    """A candidate."""

    tuned: Tuned
    settings: TrainerSettings
    train: Train
    figures: dict[str, Any]
    """Of training and validation."""

    @property
    def task(self) -> Task:
        """The task with its trained model."""
        return self.tuned.task

    def describe(self, folder: Path, *, last: int, model: str, figures: Mapping[str, Any]) -> None:
        """Write report, curves and model card beside the weights, with the figures of the verdict."""
        run, metric = self.tuned.run, self.task.selection
        metrics = {"validation": run.history[run.best_epoch - 1]}
        if "all_after" in figures:
            metrics["held-out file"] = {metric: figures["all_after"]}
        report = describe(self.tuned, model, self.train, metrics)
        report |= {LAST_LABEL: last, "figures": {name: value for name, value in figures.items() if name != "slices"}}
        if "slices" in figures:
            report["slices"] = {"held-out file": figures["slices"]}
        if "known_before" in figures:
            before, after = figures["known_before"], figures["known_after"]
            examples = int(figures["held_known"])
            lost = {"before": before, "after": after, "lost": before - after}
            lost |= {name: figures[name] for name in ("known_among_after", "confused_with_new") if name in figures}
            report["forgotten"] = {"task": self.task.kind, "metric": metric, "examples": examples, **lost}
        data = {
            "train": f"labels over MQTT ({figures['trained_on']:.0f} new, {figures['replayed']:.0f} again)",
            "validation": f"labels over MQTT ({figures['validation_labels']:.0f})",
        }
        if "all_after" in figures:
            data["held-out"] = f"the operator's file ({figures['held_new'] + figures['held_known']:.0f})"
        annotate(folder, self.tuned, orjson.loads(orjson.dumps(report)), self.settings, data)


@dataclass(frozen=True, slots=True)
class CandidateTrainer:
    """Train candidates of one task.

    Args:
        settings: the settings of the task.
        finetune: the settings of fine-tuning.
        seed: seed of all random numbers.
        options: further fields of `TrainerSettings`.
        adapted: returns the folder of an encoder from which the first version starts; None for the pretrained one.
    """

    settings: TaskSettings
    finetune: FinetuneSettings
    seed: int
    options: Mapping[str, Any]
    adapted: Callable[[], Path | None] = lambda: None

    def train(
        self,
        live: TaskVersion | None,
        parts: LabelSplits,
        number: int,
        on_progress: OnProgress | None,
        stop: Callable[[], bool] | None,
        *,
        gently: bool = False,
        readable: Callable[[Examples], Examples] = list,
    ) -> TrainedCandidate:
        """Train a candidate.

        Args:
            live: the version to start from; the pretrained model if there is none.
            parts: the labels.
            number: number of the run, so that each run rehearses other examples.
            on_progress: called with the progress.
            stop: called after every update; True ends the run.
            gently: use `GENTLE` times the learning rate, so that the weights change less.
            readable: leaves out examples that the task cannot read.

        Raises:
            trainer.Stopped: `stop` returned True.
        """
        again = readable(
            replay(
                parts.known, rehearsal_count(parts.new, parts.known, self.finetune.rehearsal_ratio), self.seed + number
            )
        )
        train = [*parts.new, *again]
        tried = readable(balanced(parts.tried, parts.known_validation, self.seed + number))
        splits = Splits(train, tried or train)
        mode, rank = self.settings.train, self.settings.lora_rank

        def trained(augment: tuple[str, ...] | None) -> tuple[Tuned, TrainerSettings]:
            # new rows of the head must not depend on what was drawn before
            torch.manual_seed(self.seed + 2)
            task = self._open(live, [*train, *parts.validation])
            if augment is not None and not can_mix(task.model):
                augment = tuple(name for name in augment if name != "mixup")
            task.options = replace(task.options, augment=augment)
            settings = self._how(task, len(parts.new), GENTLE if gently else 1.0)
            tuned = tune(task, splits, settings, mode, rank=rank, on_progress=on_progress, stop=stop)
            if task.labels:
                task.learned = self._known(live) | {name for row in train for name in classes(row)}
            return tuned, settings

        (tuned, settings), selected = self._augmented(trained, tried)
        figures: dict[str, Any] = {
            **selected,
            "trained_on": float(len(parts.new)),
            "replayed": float(len(again)),
            "validation_labels": float(len(parts.validation)),
            "validation": tuned.run.best,
            "epochs": float(len(tuned.run.history)),
            "uncovered": float(len(parts.uncovered)),
            "repeated": float(parts.repeated),
        }
        return TrainedCandidate(tuned, settings, mode, figures)

    def _augmented(
        self, train: Callable[[tuple[str, ...] | None], tuple[Tuned, TrainerSettings]], validation: Sequence[Example]
    ) -> tuple[tuple[Tuned, TrainerSettings], dict[str, Any]]:
        """Train by `finetune.augment`; with `auto`, return what validation selects, and its figures."""
        given, names = self.finetune.augment, list(KINDS[self.settings.kind].augmentations)
        if given is None or "auto" not in given or not names:
            return train(None if given is None or not names else tuple(n for n in names if n in given)), {}
        plain = train(())
        # rows are repeated so that new and earlier labels weigh alike; that makes no more examples of them
        rows, weights = distinct(validation)
        if not rows:
            return plain, {"augmentation": "none", "augmentation_gain": 0.0}
        names = [name for name in names if name != "mixup" or can_mix(plain[0].task.model)]

        def scores(arm: tuple[Tuned, TrainerSettings]) -> list[float]:
            task = arm[0].task
            return each(task, rows, task.predict([without_target(example) for example in rows]))

        chosen = choose(names, lambda some: train(some) if some else plain, scores, weights)
        gain = PairedGain.of(scores(chosen.trained), scores(chosen.plain), weights)
        return chosen.trained, {"augmentation": ", ".join(chosen.used) or "none", "augmentation_gain": gain.gain}

    def _how(self, task: Task, new: int, pace: float) -> TrainerSettings:
        batch = self.finetune.batch
        # replay makes an epoch longer, not the new labels better known: how often they are seen counts
        epochs = max(self.finetune.epochs, math.ceil(MIN_STEPS / math.ceil(new / batch)))
        # a small validation part may not improve for a few epochs
        patience = max(PATIENCE, epochs // 2)
        given: dict[str, Any] = {
            "epochs": epochs,
            "batch": batch,
            "seed": self.seed,
            "patience": patience,
            "ties": "last",
            # a head that fits already needs no rate of its own
            "probe": True,
            "head_rate": 1.0,
        }
        if self.finetune.learning_rate:
            given["learning_rate"] = self.finetune.learning_rate
        settings = settings_of(task.recipe, self.settings.train, **given | dict(self.options))
        return replace(settings, learning_rate=pace * settings.learning_rate)

    def _known(self, live: TaskVersion | None) -> frozenset[str]:
        """Return the classes that the model knows from which training starts; those that are only declared are not among them."""
        source = live.path if live is not None else resolve(self.settings.model)
        found = learned_by(source)
        if found is not None:
            return found
        labels = saved(source).get("labels", ())
        return classes({"tags": labels} if self.settings.kind == "token-classification" else {"label": labels})

    def _open(self, live: TaskVersion | None, examples: Examples) -> Task:
        """Open the live version, or the pretrained model, with a head for every label in use."""
        source = live.path if live is not None else resolve(self.settings.model)
        cls = task_class(self.settings.kind)
        before = [*saved(source).get("labels", ()), *self.settings.labels]
        names = tuple(dict.fromkeys([*before, *cls.labels_of(examples)]))
        options = fitting_options(cls, source, examples) | options_of(self.settings)
        task = open_task(self.settings.kind, source, labels=names, **options)
        if live is None and (adapted := self.adapted()) is not None:
            start_from(adapted, task)
        return task


def rehearsal_count(new: Examples, known: Examples, share: float) -> int:
    """Return the number of earlier examples: for each of their classes, `share` times the mean size of a new class.

    The head prefers frequent classes (Rebuffi et al. 2017), so a class with too little rehearsal is forgotten. Without classes,
    the number is `share` times the number of new examples.
    """
    kinds = [len({str(row.get("label", "")) for row in rows}) for rows in (new, known)]
    return round(share * len(new) / max(kinds[0], 1) * kinds[1])


def replay(examples: Sequence[dict[str, Any]], count: int, seed: int) -> Examples:
    """Sample at most `count` earlier examples, as evenly over their labels as possible."""
    by_label: dict[str, Examples] = defaultdict(list)
    generator = np.random.default_rng(seed)
    for i in generator.permutation(len(examples)):
        by_label[str(examples[i].get("label", ""))].append(examples[i])
    picked: Examples = []
    while len(picked) < min(count, len(examples)):
        for label in sorted(by_label):
            if by_label[label] and len(picked) < count:
                picked.append(by_label[label].pop())
    return picked


def balanced(tried: Examples, known: Examples, seed: int) -> Examples:
    """Validation in which new and earlier labels weigh alike, however many waves came before: the fewer are there several times.

    Counted one by one, a class that is new would matter less with every wave, and the best epoch would be the first.
    """
    if not tried or not known:
        return [*tried, *known]
    known = replay(known, WEIGH * len(tried), seed)
    times = max(1, round(len(known) / len(tried)))
    return [*tried * times, *known * max(1, round(len(tried) / len(known)))]
