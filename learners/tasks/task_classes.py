"""Every task of this folder by kind: the registry searches each module, so a new file is a new task."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, PreTrainedConfig

import learners.model.encoders.bundled_weights  # registers architectures that transformers does not know
import learners.tasks
from learners.data_error import DataError
from learners.task_kinds import FORMER_KINDS, KINDS
from learners.tasks.base import Example, Options, Task, saved
from learners.tasks.layers.heads import quiet


@functools.cache
def known() -> dict[str, type[Task]]:
    """Return the task classes by kind."""
    found: dict[str, type[Task]] = {}
    for info in pkgutil.iter_modules(learners.tasks.__path__):
        module = importlib.import_module(f"learners.tasks.{info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Task) and not inspect.isabstract(cls) and cls.__module__ == module.__name__:
                found[cls.kind] = cls
    return found


def task_class(kind: str) -> type[Task]:
    """Return the class of a task.

    Raises:
        ValueError: there is none of this kind.
    """
    cls = known().get(kind)
    if cls is None:
        if kind in FORMER_KINDS:
            raise ValueError(f"task {kind!r}: renamed to {' or '.join(FORMER_KINDS[kind])}")
        raise ValueError(f"no task {kind!r}; there are {', '.join(sorted(known()))}")
    return cls


def check_modality(cls: type[Task], examples: Sequence[Example]) -> None:
    """Check that examples hold what a task reads.

    Raises:
        DataError: they hold pictures, sounds or texts, and the task reads another of them.
    """
    held = next((name for name in ("picture", "sound") if examples and name in examples[0]), "text")
    modality = cls.declaration().modality
    if held != modality:
        fitting = sorted(name for name, other in KINDS.items() if other.modality == held)
        raise DataError(f"{cls.kind} reads a {modality}; these examples hold a {held}: use {' or '.join(fitting)}")


def unfit_reason(kind: str, source: Path | str) -> str | None:
    """Return why models of this architecture cannot do this kind of task, in one sentence; None if they can.

    Reads the configuration only, so a model that fits may still be damaged.

    Raises:
        ValueError: there is no such task, or transformers cannot read the configuration.
        OSError: there is no configuration.
    """
    cls = task_class(kind)
    with quiet():
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if (refusal := _refusal(kind, cls, config)) is None:
        return None
    fitting = sorted(name for name, other in known().items() if _refusal(name, other, config) is None)
    return f"{config.model_type} {refusal}" + (f"; it can do {', '.join(fitting)}" if fitting else "")


def unreadable_reason(folder: Path | str) -> str | None:
    """Return why a folder holds no model that can be loaded, in one sentence; None if it seems to.

    Reads the configuration and the names and sizes of the files, not the weights.

    Raises:
        ValueError: transformers does not know the model.
        OSError: there is no configuration, or it cannot be read.
    """
    with quiet():
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    found = [path for suffix in WEIGHTS for path in Path(folder).glob(suffix)]
    if not found:
        return f"no weights in it ({', '.join(WEIGHTS)}); name a folder that transformers or `reflexd finetune` wrote"
    empty = sorted(path.name for path in found if path.stat().st_size == 0)
    return f"{empty[0]} is empty; copy the folder again" if empty else None


PERMUTED = frozenset({"xlnet"})
"""Architectures that learn a token from those before and after it, in random orders, so that a plain loss shows them the answer."""
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pth", "*.pt", "*.index.json")


def _refusal(kind: str, cls: type[Task], config: PreTrainedConfig) -> str | None:
    if type(config) not in cls.auto._model_mapping:
        return f"has no head for {kind}"
    if kind != "text-generation":
        return None
    if config.is_encoder_decoder:
        return f"is an encoder with a decoder, and {kind} needs a decoder alone"
    gaps: Any = MODEL_FOR_MASKED_LM_MAPPING  # made for filling gaps: each token sees those after it
    both = type(config) in gaps or config.model_type in PERMUTED
    return f"reads texts in both directions, and {kind} needs a causal model" if both else None


def open_task(kind: str, source: Path | str, *, labels: Sequence[str] = (), **options: Any) -> Task:
    """Open a task on a model; without `labels`, those of a saved folder hold."""
    return task_class(kind).open(
        source, labels=labels or tuple(saved(source).get("labels", ())), **Options.known(options)
    )
