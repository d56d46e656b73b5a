"""Keep the task runner at the live version of each task: one follower of a live pointer for each.

The learner and an operator's request move the pointers (`learner/tasks/NAME/current.json`). The runner loads the version before
its next reading and reports one that cannot be loaded.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from learners.task_serving.versions import TaskVersion, TaskVersionStore
from runtime.deploy.pointer_follower import PointerFollower
from runtime.models.client import Runner
from runtime.process.emit import Emit
from runtime.process.read_again import ReadAgain

POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class LiveVersion:
    """What a task's pointer names; no version before the first, and after that was rolled back."""

    version: TaskVersion | None


@dataclass(slots=True)
class TaskUpdater:
    """Gives the runner each new live version once."""

    folder: Path
    """`state_dir/learner/tasks`."""
    runner: Runner
    emit: Emit
    _pointers: list[PointerFollower[LiveVersion]] = field(init=False)

    def __post_init__(self) -> None:
        self._pointers = [
            PointerFollower(partial(_live, TaskVersionStore(self.folder / task)), partial(self._activate, task))
            for task in self.runner.tasks
        ]

    async def run(self) -> None:
        """Follow until cancelled."""
        again = ReadAgain("the versions of the tasks", self.emit)
        while True:
            with again.attempt():
                await self.sync()
            await asyncio.sleep(POLL_S)

    async def sync(self) -> bool:
        """Read every pointer once; True when a task has another version now."""
        return any([await pointer.sync() for pointer in self._pointers])

    async def _activate(self, task: str, live: LiveVersion) -> bool:
        return self.runner.set_version(task, live.version)


def _live(versions: TaskVersionStore) -> LiveVersion:
    return LiveVersion(versions.live())
