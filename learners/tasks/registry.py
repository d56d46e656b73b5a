"""Every task of this folder by kind and modality: each module is looked through, so a new file is a new task."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import learners.tasks
from learners.tasks.base import Example, Options, Task, saved

MODALITIES = ("picture", "sound")


@functools.cache
def known() -> dict[tuple[str, str], type[Task]]:
    """The classes by (kind, modality)."""
    found: dict[tuple[str, str], type[Task]] = {}
    for info in pkgutil.iter_modules(learners.tasks.__path__):
        module = importlib.import_module(f"learners.tasks.{info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Task) and not inspect.isabstract(cls) and cls.__module__ == module.__name__:
                found[cls.kind, cls.modality] = cls
    return found


def task_class(kind: str, modality: str = "text") -> type[Task]:
    """The class of a task.

    Raises:
        ValueError: there is none.
    """
    cls = known().get((kind, modality))
    if cls is None:
        names = ", ".join(sorted(f"{k} ({m})" for k, m in known()))
        raise ValueError(f"no task {kind!r} for {modality}; there are {names}")
    return cls


def modality_of(examples: Sequence[Example]) -> str:
    """`picture`, `sound` or `text`, by what the first example holds."""
    return next((name for name in MODALITIES if examples and name in examples[0]), "text")


def open_task(
    kind: str, source: Path | str, *, modality: str | None = None, labels: Sequence[str] = (), **options: Any
) -> Task:
    """A task on a model; what a saved folder says of itself holds unless told otherwise."""
    told = saved(source)
    cls = task_class(kind, modality or told.get("modality", "text"))
    return cls.open(source, labels=labels or tuple(told.get("labels", ())), **Options.known(options))
