"""Measure a trained task and write its report: metrics, slices, curves and model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from learners.config.tasks import Train
from learners.files import write_atomically
from learners.finetune import model_card
from learners.finetune.error_analysis.scores import each
from learners.finetune.error_analysis.slices import measure as slice_metrics
from learners.finetune.error_analysis.slices import shown
from learners.finetune.trainer import TrainerSettings
from learners.finetune.training_phases import Tuned
from learners.finetune.training_plot import plot
from learners.tasks.base import Example, Task, without_target
from learners.tasks.layers.pooling import MARK


def measure(task: Task, examples: Sequence[Example]) -> dict[str, float]:
    """Return the task's metrics on examples; empty without examples."""
    return task.metrics(examples, task.predict([without_target(example) for example in examples])) if examples else {}


def measure_slices(task: Task, examples: Sequence[Example], slices: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the metric of each slice of examples; empty without slices.

    Raises:
        DataError: no example has the column of a slice.
    """
    if not slices or not examples:
        return []
    found = task.predict([without_target(example) for example in examples])
    return shown([one.row() for one, _ in slice_metrics(slices, examples, each(task, examples, found))])


def unknown_labels(task: Task, examples: Sequence[Example]) -> list[str]:
    """Return labels and tags of examples that the task's head does not have, sorted."""
    found: set[str] = set()
    for example in examples if task.labels else ():
        given = example.get("label", ())
        found |= {given} if isinstance(given, str) else set(given)
        found |= set(example.get("tags", ()))
    return sorted(found - set(task.labels))


def describe(tuned: Tuned, model: str, mode: Train, metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return the report."""
    run = tuned.run
    return {
        "task": tuned.task.kind, "model": model, "train": mode, "metrics": metrics,
        "trained_parameters": tuned.trained, "total_parameters": tuned.total,
        "epochs": len(run.history), "best_epoch": run.best_epoch, "wall_s": run.wall_s,
        "mean_pooling_layer": bool(getattr(tuned.task.model.config, MARK, False)),
        "history": [{"loss": loss, **found} for loss, found in zip(run.losses, run.history, strict=True)],
    }  # fmt: skip


def annotate(out: Path, tuned: Tuned, report: dict[str, Any], settings: TrainerSettings, data: dict[str, str]) -> None:
    """Write report, curves and card into a draft; `data` says what each split was made from."""
    task, run = tuned.task, tuned.run
    scores = [found[task.selection] for found in run.history]
    plot(
        out / "curves.png",
        run.losses,
        scores,
        metric=task.selection,
        best_epoch=run.best_epoch,
        title=f"{report['model']}: {task.kind} ({report['train']})",
    )
    model_card.write(out / "README.md", report, data=data, settings=asdict(settings) | asdict(task.options))
    write_atomically(out / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))
