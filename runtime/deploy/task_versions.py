"""List, promote and roll back the versions of tasks on request.

A version without a held-out evaluation waits here until a person promotes it. The components that use a task (the task runner,
an encoder that follows it, the learner) read the live pointer themselves.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.task_serving.versions import TaskVersion, TaskVersionStore
from runtime.config.schema import Config

PRETRAINED = "pretrained"
"""Where the first version of a task is rolled back to."""


class TaskRefused(ValueError):  # noqa: N818 - reads as what happened
    """A version of a task cannot be promoted or rolled back; `str` returns the reason and the versions on disk."""


@dataclass(frozen=True, slots=True)
class TaskVersions:
    """The versions of all tasks of a daemon."""

    folder: Path
    tasks: Collection[str]

    @classmethod
    def of(cls, config: Config) -> TaskVersions:
        """Make it from the settings."""
        return cls(config.state_dir / "learner" / "tasks", tuple(config.tasks))

    def promote(self, task: str, wanted: str | None) -> dict[str, Any]:
        """Make a version live; `newest` is the one written last.

        Raises:
            TaskRefused: no such task or version.
        """
        versions = self._of(task)
        there = {version.name: version for version in versions.all()}
        if wanted == "newest" and there:
            wanted = list(there)[-1]
        if wanted not in there:
            raise TaskRefused(f"task {task} has no version {wanted!r}; there are {list(there)}")
        before = versions.live()
        versions.promote(there[wanted])
        return {"task": task, "version": wanted, "before": before.name if before is not None else None}

    def rollback(self, task: str) -> dict[str, Any]:
        """Return to the version that was live before; before the first version, this is the pretrained model.

        Raises:
            TaskRefused: no such task, or no version is live.
        """
        versions = self._of(task)
        before = versions.live()
        if before is None:
            raise TaskRefused(f"task {task} has nothing to roll back to: no version is live")
        now = versions.rollback()
        if now is None:
            versions.withdraw()
        return {"task": task, "version": before.name, "to": now.name if now is not None else PRETRAINED}

    def rows(self, task: str) -> dict[str, Any]:
        """List the live version and all on disk, oldest first, with their figures.

        Raises:
            TaskRefused: no such task.
        """
        versions = self._of(task)
        live = versions.live()
        return {
            "task": task,
            "live": live.name if live is not None else None,
            "versions": [_row(version) for version in versions.all()],
        }

    def _of(self, task: str) -> TaskVersionStore:
        if task not in self.tasks:
            raise TaskRefused(f"{task!r} is not under tasks: {sorted(self.tasks)}")
        return TaskVersionStore(self.folder / task)


def _row(version: TaskVersion) -> dict[str, Any]:
    report = version.report
    made = {"version": version.name, "created": version.path.stat().st_mtime}
    return made | {"metrics": report.get("metrics", {}), "figures": report.get("figures", {})}
