"""Supervised fine-tuning: files in, a transformers folder with report, curves and model card out.

Reads the splits (`labelled_files`), builds the task (`build`), trains it (`tune`) and writes what it became (`report`). The daemon's
fine-tuning (`learners/continual`) uses the same parts on labels. Validation chooses the epoch; the test split is read once, at the end, with
the weights that were chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

from learners.config.tasks import Train
from learners.data_error import DataError
from learners.data_parallel import WorkerGroup
from learners.files import new_files
from learners.finetune import forgetting
from learners.finetune.build import ModelError, build, opening
from learners.finetune.error_analysis.slices import check_slice
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.example_fields import check_features
from learners.finetune.labelled_files.splits import Splits, cuts, narrow, read_splits, repeats, splits_digest
from learners.finetune.progress import Bar
from learners.finetune.report import annotate, describe, measure, measure_slices, unknown_labels
from learners.finetune.trainer import OnProgress
from learners.finetune.trainer_state import State
from learners.finetune.training_phases import Tuned, tune
from learners.finetune.transfer import digest_of, gains, start_from
from learners.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Selection:
    """How a run trains several versions and selects one.

    Args:
        facts: what makes it another run.
        best: takes the task before training, a function that trains a copy of it, the examples and the state of the run. Returns
            the selected version and its part of the report.
    """

    facts: Mapping[str, Any]
    best: Callable[[Task, Callable[[Task, State], Tuned], Splits, State], tuple[Tuned, dict[str, Any]]]


def finetune(
    *, task: str, model: str, train: Path | str, validation: Path | str, out: Path | str, test: Path | str | None = None,
    mode: Train = "lora", seed: int = 0, resume: bool = True, progress: bool = False, adapter: bool = False,
    earlier: Path | str | None = None, earlier_data: Path | str | None = None, slices: Sequence[str] = (),
    start: Path | str | None = None, selection: Selection | None = None, group: WorkerGroup | None = None,
    on_progress: OnProgress | None = None, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune a model from files; returns the report, which `out/report.json` holds too.

    Args:
        task: a kind of `learners/tasks`.
        model: `bundled:NAME`, a transformers id or a folder.
        train: file or folder the weights learn from; see `learners.finetune.labelled_files.datasets`.
        validation: chooses the epoch and stops early.
        test: measured once at the end.
        out: the folder to write.
        mode: `frozen`, `top`, `lora` or `full`.
        seed: of everything random.
        resume: go on where an earlier run with the same arguments was killed.
        progress: show a bar on standard error.
        adapter: store the LoRA adapter too, in `out/adapter`, with the model that it fits in `out/adapter/base`.
        earlier: the folder of an earlier task on the same encoder, to measure what was forgotten.
        earlier_data: its examples.
        slices: how the test split, or without one validation, is divided for the report.
        start: the folder of another task on the same model; its encoder is where training starts. The report says what that gains.
        selection: trains several versions and selects one; `learners.finetune.few_labels` has them.
        group: workers that train together, each of which calls this. The first one writes and returns the report, the others return {}.
        on_progress: called after each step where `progress` is off.
        options: fields of `trainer.Settings` and `tasks.base.Options`, and `lora_rank`, `device`. `augment` is the names of
            augmentations.

    Raises:
        DataError: the data cannot be used.
        ModelError: the model cannot be opened, or memory does not suffice.
        ValueError: an unknown option, nothing to train, an adapter in a mode that trains none, or a selection by several workers.
    """
    group = group or WorkerGroup()
    if adapter and mode != "lora":
        raise ValueError(f"mode {mode} trains no adapter; use mode lora, or leave the adapter out")
    out = Path(out)
    paths = {"train": str(train), "validation": str(validation)} | ({"test": str(test)} if test else {})
    splits = read_splits(task, paths)
    fresh, settings, extra = build(task, model, splits.train, mode, {**options, "seed": seed})
    _check_examples(fresh, splits, slices)
    # with the recipe's settings too: another version of this program must not go on with other groups of parameters
    facts = {
        "task": task,
        "model": model,
        "mode": mode,
        "options": {k: v for k, v in options.items() if k != "device"},
        "settings": asdict(settings),
    }
    share = 0.0
    if start is not None:
        with opening(str(start)):
            share = start_from(Path(start), fresh)
        facts["start"] = digest_of(Path(start))
    facts["data"] = _shared_digest(splits, group, selection)
    facts |= selection.facts if selection is not None else {}
    state = _state(out, facts, resume=resume or group.rank > 0)
    keep, rank = out if adapter and not group.rank else None, extra["lora_rank"]
    bar: AbstractContextManager[OnProgress | None] = (
        Bar(f"{task} {mode}", fresh.selection) if progress else nullcontext(on_progress)
    )
    with _memory_suffices(model, settings.batch), bar as shown:

        def train_arm(arm: Task, part: State) -> Tuned:
            return tune(arm, splits, settings, mode, rank=rank, state=part, on_progress=shown, keep=keep, group=group)

        best = selection.best if selection is not None else _trained_once
        tuned, found = best(fresh, train_arm, splits, state)
    again = {**options, "augment": tuned.task.options.augment, "seed": seed}
    if group.rank:
        return _pretrained_metrics(task, model, splits, mode, again, group) if start is not None else {}
    used = {name: f"{path} ({len(getattr(splits, name))})" for name, path in paths.items()}
    chosen = {"validation": tuned.run.history[tuned.run.best_epoch - 1]}
    with new_files(out) as draft:  # before the test file is measured: no failure from here on loses the weights
        tuned.task.save(draft)
    with new_files(out) as draft:
        annotate(draft, tuned, describe(tuned, model, mode, chosen), settings, used)
    report = _report(tuned, splits, model, mode)
    unknown = _unknown_labels(tuned, splits)
    report |= _slices(tuned, splits, slices) | {"notes": _notes(fresh, splits, paths, unknown), **found}
    if start is not None:
        plain = _pretrained_metrics(task, model, splits, mode, again, group)
        report["transfer"] = gains(Path(start), share, fresh.selection, report["metrics"], plain)
    if earlier and earlier_data:
        report["forgotten"] = forgetting.measure(Path(earlier), datasets.read(earlier_data), tuned.task)
    report |= {"unknown_labels": unknown} | ({"workers": group.size} if group.size > 1 else {})
    with new_files(out) as draft:
        annotate(draft, tuned, report, settings, used)
    state.clear_parts()
    return report


def _check_examples(fresh: Task, splits: Splits, slices: Sequence[str]) -> None:
    """Check before training that the task can read the examples, and that the slices divide them.

    Raises:
        DataError: it cannot, or they do not.
    """
    for rule in slices:
        check_slice(rule, splits.test or splits.validation)
    for some in (splits.validation, splits.test):
        check_features(fresh, some, targets=False)
    check_features(fresh, splits.train if fresh.varying else ())


def _trained_once(
    fresh: Task, train: Callable[[Task, State], Tuned], _splits: Splits, state: State
) -> tuple[Tuned, dict[str, Any]]:
    """Train one version: the run of a fine-tune that selects among none."""
    return train(fresh, state), {}


@contextmanager
def _memory_suffices(model: str, batch: int) -> Iterator[None]:
    """Name the remedy where memory does not suffice.

    Raises:
        ModelError: it does not.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{model}: out of memory with batches of {batch}; give a smaller --batch, or --mode lora"
        ) from error


def _unknown_labels(tuned: Tuned, splits: Splits) -> dict[str, list[str]]:
    """Return the labels of the validation and the test examples that no training example has, by split."""
    found = {name: unknown_labels(tuned.task, getattr(splits, name)) for name in ("validation", "test")}
    return {name: labels for name, labels in found.items() if labels}


def _slices(tuned: Tuned, splits: Splits, slices: Sequence[str]) -> dict[str, Any]:
    """Measure the slices of the test split, or without one of validation: the part `slices` of the report."""
    measured = "test" if splits.test else "validation"
    return {"slices": {measured: measure_slices(tuned.task, getattr(splits, measured), slices)}}


def _notes(fresh: Task, splits: Splits, paths: Mapping[str, str], unknown: Mapping[str, list[str]]) -> list[str]:
    """Return what a reader of the report should know of the examples."""
    return [
        *(note for some in splits.all() for note in getattr(some, "notes", ())),
        *fresh.notes,
        *cuts(fresh, splits, paths),
        *repeats(splits, paths),
        *narrow(fresh, splits, paths["validation"]),
        *(
            f"{paths[name]}: labels that no training example has count as wrong: {', '.join(labels[:20])}"
            for name, labels in unknown.items()
        ),
    ]


def _shared_digest(splits: Splits, group: WorkerGroup, selection: Selection | None) -> str:
    """Return the digest of the examples, which is the same for all workers.

    Raises:
        DataError: it is not.
        ValueError: several workers would select among versions, and need not agree on the best one.
    """
    if selection is not None and group.size > 1:
        raise ValueError("several workers train one version; select among versions in one process")
    digest = splits_digest(splits)
    if group.of_first(digest) != digest:
        raise DataError("the examples here differ from those of worker 0; every machine needs the same files")
    return digest


def _pretrained_metrics(
    task: str, model: str, splits: Splits, mode: Train, options: dict[str, Any], group: WorkerGroup
) -> dict[str, dict[str, float]]:
    """Train the pretrained model on the same labels, and return its metrics by split, if this is the first worker; nothing is stored."""
    fresh, settings, extra = build(task, model, splits.train, mode, options)
    tuned = tune(fresh, splits, settings, mode, rank=extra["lora_rank"], group=group)
    if group.rank:
        return {}
    return _report(tuned, splits, model, mode)["metrics"]  # type: ignore[no-any-return]


def _state(out: Path, facts: dict[str, Any], *, resume: bool) -> State:
    """Open the state from which an interrupted run continues; other arguments, or `resume` off, start a new run. Makes `out`."""
    digest = hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()
    state = State(out / "state", digest)
    if not resume:
        state.clear_parts()
    out.mkdir(parents=True, exist_ok=True)
    return state


def _report(tuned: Tuned, splits: Splits, model: str, mode: Train) -> dict[str, Any]:
    """Measure the selected weights on the test split, which is read here only, and build the report."""
    metrics = {"validation": tuned.run.history[tuned.run.best_epoch - 1], "test": measure(tuned.task, splits.test)}
    return describe(tuned, model, mode, metrics)
