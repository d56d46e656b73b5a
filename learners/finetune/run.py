"""Supervised fine-tuning: files in, a transformers folder with report, curves and model card out.

Adapts a pretrained model to a task of `learners/tasks`: reads the data (`datasets`), decides what is trained
(`trainable`), runs the loop (`trainer`), and writes what it became. The daemon's periodic fine-tuning (`online`) is the same
code on labels. Validation chooses the epoch; the test split is read once, at the end, with the weights that were chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError

from learners.config import Train
from learners.files import new_files, write_atomically
from learners.finetune import forgetting, model_card, trainable_layers
from learners.finetune.error_analysis.occlusion import explain_errors
from learners.finetune.error_analysis.scores import each
from learners.finetune.error_analysis.slices import check_slice, shown
from learners.finetune.error_analysis.slices import measure as slice_metrics
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.example_fields import check, check_features
from learners.finetune.linear_probe import fit_head, trains_alone
from learners.finetune.progress import Bar, plot
from learners.finetune.trainer import OnProgress, RunState, Trainer, TrainerSettings
from learners.finetune.trainer_state import State
from learners.finetune.transfer import digest_of, gains, start_from
from learners.model.encoders.bundled_packages import BundledError
from learners.model.encoders.bundled_weights import resolve
from learners.task_kinds import KINDS, TaskKind
from learners.tasks.base import DataError, Example, Options, Recipe, Task, saved, saved_options, without_target
from learners.tasks.layers.heads import set_prior
from learners.tasks.layers.pooling import MARK
from learners.tasks.task_classes import check_modality, open_task, task_class, unfit_reason
from learners.tasks.text_classification import Classifier
from learners.torch_device import pick_device


@dataclass(frozen=True, slots=True)
class Splits:
    """The examples of a run; `test` may be empty."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example] = ()

    def all(self) -> tuple[Sequence[Example], ...]:
        """Return the three."""
        return self.train, self.validation, self.test


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a run became."""

    task: Task
    run: RunState
    trained: int
    total: int


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


WRITING = ("output", "stop", "banned", "temperature", "sampling_seed")
"""Options about generated text."""


class ModelError(ValueError):
    """A model cannot be opened; `str` says which, why and the remedy."""


@contextmanager
def _opening(model: str) -> Iterator[None]:
    """Turn what libraries raise for a missing, damaged or unfit model into one line."""
    try:
        yield
    except (DataError, BundledError, ModelError):
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"{model}: cannot be opened ({type(error).__name__}: {reason}); name `bundled:NAME`, a transformers id that is "
            "in the cache, or a folder that transformers or `reflexd finetune` wrote"
        ) from error


def finetune(
    *, task: str, model: str, train: Path | str, validation: Path | str, out: Path | str, test: Path | str | None = None,
    mode: Train = "lora", seed: int = 0, resume: bool = True, progress: bool = False, adapter: bool = False,
    earlier: Path | str | None = None, earlier_data: Path | str | None = None, slices: Sequence[str] = (),
    start: Path | str | None = None, selection: Selection | None = None, **options: Any,
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
        options: fields of `trainer.Settings` and `tasks.base.Options`, and `lora_rank`, `device`. `augment` is the names of
            augmentations.

    Raises:
        DataError: the data cannot be used.
        ModelError: the model cannot be opened, or memory does not suffice.
        ValueError: an unknown option, nothing to train, or an adapter in a mode that trains none.
    """
    if adapter and mode != "lora":
        raise ValueError(f"mode {mode} trains no adapter; use mode lora, or leave the adapter out")
    out = Path(out)
    paths = {"train": str(train), "validation": str(validation)} | ({"test": str(test)} if test else {})
    splits = read_splits(task, paths)
    fresh, settings, extra = build(task, model, splits.train, mode, {**options, "seed": seed})
    for rule in slices:
        check_slice(rule, splits.test or splits.validation)
    for some in (splits.validation, splits.test):
        check_features(fresh, [without_target(example) for example in some])
    check_features(fresh, splits.train if fresh.varying else ())
    # with the recipe's settings too: another version of this program must not go on with other groups of parameters
    facts = {"task": task, "model": model, "mode": mode, "options": options, "settings": asdict(settings)}
    share = 0.0
    if start is not None:
        with _opening(str(start)):
            share = start_from(Path(start), fresh)
        facts["start"] = digest_of(Path(start))
    facts["data"] = splits_digest(splits)
    facts |= selection.facts if selection is not None else {}
    state = _state(out, facts, resume=resume)
    bar: AbstractContextManager[OnProgress | None] = (
        Bar(f"{task} {mode}", fresh.selection) if progress else nullcontext()
    )
    keep, rank = out if adapter else None, extra["lora_rank"]
    found: dict[str, Any] = {}
    with _memory_suffices(model, settings.batch), bar as on_progress:

        def train_arm(arm: Task, part: State) -> Tuned:
            return tune(arm, splits, settings, mode, rank=rank, state=part, on_progress=on_progress, keep=keep)

        if selection is not None:
            tuned, found = selection.best(fresh, train_arm, splits, state)
        else:
            tuned = train_arm(fresh, state)
    with new_files(out) as draft:  # before the test file is measured: no failure from here on loses the weights
        tuned.task.save(draft)
    used = {name: f"{path} ({len(getattr(splits, name))})" for name, path in paths.items()}
    chosen = {"validation": tuned.run.history[tuned.run.best_epoch - 1]}
    with new_files(out) as draft:
        annotate(draft, tuned, describe(tuned, model, mode, chosen), settings, used)
    unknown = _unknown_labels(tuned, splits)
    report = _report(tuned, splits, model, mode)
    measured = "test" if splits.test else "validation"
    report["slices"] = {measured: measure_slices(tuned.task, getattr(splits, measured), slices)}
    report |= {"notes": _notes(fresh, splits, paths, unknown), **found}
    if start is not None:
        plain = _pretrained_metrics(
            task, model, splits, mode, {**options, "augment": tuned.task.options.augment, "seed": seed}
        )
        report["transfer"] = gains(Path(start), share, fresh.selection, report["metrics"], plain)
    if earlier and earlier_data:
        report["forgotten"] = forgetting.measure(Path(earlier), datasets.read(earlier_data), tuned.task)
    report["unknown_labels"] = unknown
    with new_files(out) as draft:
        annotate(draft, tuned, report, settings, used)
    state.clear_parts()
    return report


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


def _notes(fresh: Task, splits: Splits, paths: Mapping[str, str], unknown: Mapping[str, list[str]]) -> list[str]:
    """Return what a reader of the report should know of the examples."""
    return [
        *(note for some in splits.all() for note in getattr(some, "notes", ())),
        *fresh.notes,
        *cuts(fresh, splits, paths),
        *(
            f"{paths[name]}: labels that no training example has count as wrong: {', '.join(labels[:20])}"
            for name, labels in unknown.items()
        ),
    ]


def _pretrained_metrics(
    task: str, model: str, splits: Splits, mode: Train, options: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Train the pretrained model on the same labels, and return its metrics by split; nothing is stored."""
    fresh, settings, extra = build(task, model, splits.train, mode, options)
    tuned = tune(fresh, splits, settings, mode, rank=extra["lora_rank"])
    return _report(tuned, splits, model, mode)["metrics"]  # type: ignore[no-any-return]


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
    with _opening(model):
        record = saved(resolve(model))
    if record.get("kind") != task:
        raise ValueError(f"{model}: fine-tuned for {record.get('kind', 'nothing')}, not for {task}")
    with _opening(model):
        opened = open_task(task, resolve(model), **options)
    examples = datasets.read(test, type(opened))
    check_features(opened, [without_target(example) for example in examples])
    for rule in slices:
        check_slice(rule, examples)
    found = opened.predict([without_target(example) for example in examples])
    total = sum(parameter.numel() for parameter in opened.model.parameters())
    before = Path(resolve(model)) / "report.json"
    with _opening(model):
        earlier = dict(orjson.loads(before.read_bytes())) if before.is_file() else {}
    report = {
        "task": task, "model": model, "train": earlier.get("train", "none"),
        "metrics": {"validation": {}, "test": opened.metrics(examples, found)},
        "trained_parameters": 0, "total_parameters": total, "epochs": 0, "wall_s": 0.0,
        "slices": {"test": shown([one.row() for one, _ in slice_metrics(slices, examples, each(opened, examples, found))])},
    }  # fmt: skip
    if explain:
        report["errors"] = explain_errors(opened, examples, found, explain)
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(out) / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))
    return report


def build(
    kind: str, model: str, train: Sequence[Example], mode: Train, options: dict[str, Any]
) -> tuple[Task, TrainerSettings, dict[str, Any]]:
    """Return the task with its model, the default settings of the mode, and the remaining options.

    Raises:
        ValueError: an option is unknown.
    """
    cls = task_class(kind)
    check_modality(cls, train)
    own = {f.name for f in fields(TrainerSettings)}
    extra = {"lora_rank": 8, "device": "auto"} | {k: v for k, v in options.items() if k in ("lora_rank", "device")}
    if unknown := set(options) - own - set(Options.known(options)) - set(extra):
        raise ValueError(
            f"unknown options {sorted(unknown)}; there are {sorted(own | {f.name for f in fields(Options)} | set(extra))}"
        )
    check_writing(cls.kind, options)
    names = cls.declaration().augmentations
    if odd := set(options.get("augment") or ()) - set(names):
        raise ValueError(f"augment: {sorted(odd)}: {kind} has {', '.join(names) or 'none'}")
    settings = settings_of(cls.recipe, mode, **{name: value for name, value in options.items() if name in own})
    torch.manual_seed(settings.seed)  # the new head
    with _opening(model):
        source = resolve(model)
        if isinstance(source, Path) and (reason := unfit_reason(kind, source)) is not None:
            raise ModelError(f"{model}: {reason}")
    if "threshold" in options:
        options = {"tune_threshold": False, **options}
    with _opening(model):
        options = fitting_options(cls, source, train) | options
        task = cls.open(source, labels=cls.labels_of(train), **Options.known(options))
    task.model.to(pick_device(str(extra["device"])))
    return task, settings, extra


def check_writing(kind: TaskKind, options: Mapping[str, Any]) -> None:
    """Check that the options about generated text are for a kind of task that generates it.

    Raises:
        ValueError: they are for another kind, or contradict each other.
    """
    if (given := [name for name in WRITING if options.get(name)]) and not KINDS[kind].written:
        writing = " and ".join(name for name, declared in KINDS.items() if declared.written)
        raise ValueError(f"{given[0]}: {kind} writes no text by it; leave it out, or use {writing}")
    if options.get("output") and (given := [name for name in ("stop", "banned") if options.get(name)]):
        raise ValueError(f"{given[0]}: not together with output; leave one of the two out")


def fitting_options(cls: type[Task], source: Path | str, examples: Sequence[Example]) -> dict[str, Any]:
    """Return the options that examples need: room for the longest text or answer, the length of sounds, contexts without answer.

    Args:
        cls: the class of the task.
        source: the model; what its folder allows is never lowered.
        examples: the ones to train on.
    """
    found: dict[str, Any] = {}
    before = saved_options(source)
    if (count := cls.fitting_new_tokens(source, examples)) is not None:
        found["max_new_tokens"] = max(count, before.get("max_new_tokens", Options().max_new_tokens))
    if (count := cls.fitting_answer(source, examples)) is not None:
        found["longest_answer"] = max(count, before.get("longest_answer", Options().longest_answer))
    if "window_s" not in before and (window_s := cls.fitting_window_s(examples)) is not None:
        found["window_s"] = window_s
    if any(not example["answers"] for example in examples if "answers" in example):
        found["unanswerable"] = True
    return found


def settings_of(recipe: Recipe, mode: Train, **others: Any) -> TrainerSettings:
    """Return a task's default settings for a mode, except for `others`."""
    own = {
        "epochs": recipe.epochs, "batch": recipe.batch, "learning_rate": recipe.rates.get(mode, 1e-4),
        "layer_decay": recipe.layer_decay if mode in ("full", "top") else 1.0,
        "head_rate": recipe.head_rates.get(mode, 1.0), "patience": recipe.patience,
    }  # fmt: skip
    return TrainerSettings(**own | others)


def tune(
    task: Task, splits: Splits, settings: TrainerSettings, mode: Train, *, rank: int = 8, state: State | None = None,
    on_progress: OnProgress | None = None, keep: Path | None = None, stop: Callable[[], bool] | None = None,
) -> Tuned:  # fmt: skip
    """Train the task's model in place, and merge LoRA at the end.

    With `keep`, the folder `keep/adapter` gets the adapter and, in `base`, the model that it fits. Head, pooling layer, token types and
    positions of a task differ from those of the pretrained model.
    """
    torch.set_flush_denormal(True)
    task.model.to(memory_format=torch.channels_last)  # convolutions on a processor take less time so
    loss = fit_head(task, splits.train) if settings.probe and isinstance(task, Classifier) else None
    if loss is None and task.new_head and (prior := task.prior(splits.train)) is not None:
        set_prior(task.model, prior)
    if keep is not None:
        with new_files(keep / "adapter") as draft:
            task.save(draft / "base")
    torch.manual_seed(settings.seed)  # the adapters
    model = trainable_layers.prepare(task.model, mode, rank=rank, extra=task.extra_trainable)
    trained, total = trainable_layers.counts(model)
    trainer = Trainer(
        task, model, splits.train, splits.validation, settings, state=state, on_progress=on_progress, stop=stop
    )
    if loss is not None and isinstance(task, Classifier) and not task.options.augment and trains_alone(task, model):
        run = trainer.measure_fitted(loss)
    else:
        run = trainer.run()
    if keep is not None:
        with new_files(keep / "adapter") as draft:
            trainable_layers.save_adapter(model, draft, keep / "adapter" / "base")
    task.model = trainable_layers.merged(model)
    return Tuned(task, run, trained, total)


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


def splits_digest(splits: Splits) -> str:
    """Return a digest of the training data, so that a state is only resumed on the same data; the test may change."""
    return rows_digest([list(splits.train), list(splits.validation)])


def rows_digest(rows: Sequence[Any]) -> str:
    """Return a digest of examples."""
    return hashlib.sha256(orjson.dumps(rows, default=str)).hexdigest()
