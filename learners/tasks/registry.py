"""Every task of this folder by kind: the registry searches each module, so a new file is a new task."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import learners.tasks
from learners.task_kinds import FORMER_KINDS, KINDS
from learners.tasks.base import DataError, Example, Options, Task, saved


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


def open_task(kind: str, source: Path | str, *, labels: Sequence[str] = (), **options: Any) -> Task:
    """Open a task on a model; without `labels`, those of a saved folder hold."""
    return task_class(kind).open(
        source, labels=labels or tuple(saved(source).get("labels", ())), **Options.known(options)
    )
