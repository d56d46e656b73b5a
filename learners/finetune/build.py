"""Build the task, its model and the settings of a training from the options that were given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from learners.config.tasks import Train
from learners.data_error import DataError
from learners.finetune.trainer import TrainerSettings
from learners.model.encoders.bundled_packages import BundledError
from learners.model.encoders.bundled_weights import resolve
from learners.task_kinds import KINDS, TaskKind
from learners.tasks.base import Example, Options, Recipe, Task, saved_options
from learners.tasks.task_classes import check_modality, task_class, unfit_reason
from learners.torch_device import pick_device

WRITING = ("output", "stop", "banned", "temperature", "sampling_seed")
"""Options about generated text."""


class ModelError(ValueError):
    """A model cannot be opened; `str` says which, why and the remedy."""


@contextmanager
def opening(model: str) -> Iterator[None]:
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
    with opening(model):
        source = resolve(model)
        if isinstance(source, Path) and (reason := unfit_reason(kind, source)) is not None:
            raise ModelError(f"{model}: {reason}")
    if "threshold" in options:
        options = {"tune_threshold": False, **options}
    with opening(model):
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
