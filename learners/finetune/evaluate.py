"""Measure a fine-tuned folder on a labelled file: the verb `reflexd evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from learners.files import write_atomically
from learners.finetune.build import check_writing, opening
from learners.finetune.error_analysis.occlusion import explain_errors
from learners.finetune.error_analysis.scores import each
from learners.finetune.error_analysis.slices import check_slice, shown
from learners.finetune.error_analysis.slices import measure as slice_metrics
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.example_fields import check_features
from learners.model.encoders.bundled_weights import resolve
from learners.tasks.base import saved, without_target
from learners.tasks.task_classes import open_task, task_class


def evaluate(
    *,
    task: str,
    model: str,
    test: Path | str,
    out: Path | str | None = None,
    slices: Sequence[str] = (),
    explain: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Measure a fine-tuned folder on a file; the report goes to `out/report.json` too.

    Args:
        task: a kind of `learners/tasks`.
        model: a folder that `finetune` wrote.
        test: the examples.
        out: folder of the report; None for none.
        slices: how the examples are divided for the report.
        explain: number of errors to explain; see `error_analysis.occlusion`.
        options: fields of `tasks.base.Options`, in place of those that the folder has.

    Raises:
        DataError: the data cannot be used.
        ValueError: the folder was not made by `finetune`, or for another task, or an option does not fit the task.
    """
    check_writing(task_class(task).kind, options)
    with opening(model):
        record = saved(resolve(model))
    if record.get("kind") != task:
        raise ValueError(f"{model}: fine-tuned for {record.get('kind', 'nothing')}, not for {task}")
    with opening(model):
        opened = open_task(task, resolve(model), **options)
    examples = datasets.read(test, type(opened))
    check_features(opened, examples, targets=False)
    for rule in slices:
        check_slice(rule, examples)
    found = opened.predict([without_target(example) for example in examples])
    total = sum(parameter.numel() for parameter in opened.model.parameters())
    before = Path(resolve(model)) / "report.json"
    with opening(model):
        earlier = dict(orjson.loads(before.read_bytes())) if before.is_file() else {}
    report = {
        "task": task, "model": model, "train": earlier.get("train", "none"),
        "metrics": {"validation": {}, "test": opened.metrics(examples, found)},
        "trained_parameters": 0, "total_parameters": total, "epochs": 0, "wall_s": 0.0, "notes": list(examples.notes),
        "slices": {"test": shown([one.row() for one, _ in slice_metrics(slices, examples, each(opened, examples, found))])},
    }  # fmt: skip
    if explain:
        report["errors"] = explain_errors(opened, examples, found, explain)
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(out) / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))
    return report
