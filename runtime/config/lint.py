"""What a settings file is valid with and its writer should know all the same: one line each, with file, line and remedy.

`reflexd check` says them on standard error, and a daemon in its log; none of them keeps it from running.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtime.config.errors import Problem
from runtime.config.loader import Loaded


def lint(path: Path, loaded: Loaded) -> list[Problem]:
    """Everything to be said of a settings file."""
    return list(_unjudged(path, loaded))


def _unjudged(path: Path, loaded: Loaded) -> Iterator[Problem]:
    """Tasks whose fine-tunes nothing will judge."""
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
                f"{task.eval_file}: no such file or folder: nothing will be fine-tuned",
                "name a file that `reflexd finetune` reads; a relative path counts from where the daemon starts",
            )
