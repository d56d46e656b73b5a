"""Warn of settings that are valid but doubtful: one line each, with file, line and remedy.

`reflexd check` prints the warnings on standard error, a daemon writes them to its log. None prevents the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtime.config.errors import Problem
from runtime.config.loader import Loaded


def lint(path: Path, loaded: Loaded) -> list[Problem]:
    """List the warnings about a settings file."""
    return list(_unjudged(path, loaded))


def _unjudged(path: Path, loaded: Loaded) -> Iterator[Problem]:
    """Yield a warning for each task without a file that could evaluate its fine-tunes."""
    config = loaded.config
    for name, task in config.tasks.items() if config.learner.enabled else ():
        line = loaded.lines.get(("tasks", name), 1)
        if task.eval_file is None:
            yield Problem(
                path,
                line,
                f"tasks.{name}",
                "no held-out file: what it learns from labels waits until a person promotes it",
                f"name one under tasks.{name}.eval_file, or use request/promote",
            )
        elif not Path(task.eval_file.partition("#")[0]).exists():
            yield Problem(
                path,
                loaded.lines.get(("tasks", name, "eval_file"), line),
                f"tasks.{name}.eval_file",
                f"{task.eval_file}: no such file or folder: no version of this task is trained",
                "name a file that `reflexd finetune` reads; a relative path counts from where the daemon starts",
            )
