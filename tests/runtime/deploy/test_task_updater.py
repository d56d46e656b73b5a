"""The task runner gets the version of each live pointer once, and reads no pointer itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tinymodels

from learners.task_serving.versions import TaskVersion, TaskVersionStore
from learners.tasks.task_classes import open_task
from runtime.deploy.task_updater import TaskUpdater


@dataclass
class FakeRunner:
    """The runner, as far as the updater needs it."""

    tasks: tuple[str, ...] = ("intents", "mood")
    versions: list[tuple[str, str]] = field(default_factory=list)

    def set_version(self, task: str, version: TaskVersion | None) -> bool:
        known = dict(self.versions).get(task, "pretrained")
        name = version.name if version is not None else "pretrained"
        if name == known:
            return False
        self.versions.append((task, name))
        return True


async def test_each_move_of_a_live_pointer_reaches_the_runner_once(tmp_path: Path) -> None:
    runner = FakeRunner()
    updater = TaskUpdater(tmp_path, runner, lambda *_: None)  # type: ignore[arg-type]
    assert not await updater.sync(), "no version yet"
    task = open_task("text-classification", tinymodels.bert(tmp_path / "model"), labels=("a", "b"))
    stores = {name: TaskVersionStore(tmp_path / name) for name in runner.tasks}
    first, second = stores["intents"].add(task, 1), stores["intents"].add(task, 2)
    mood = stores["mood"].add(task, 1)
    assert not await updater.sync(), "a version that waits is not live"
    stores["intents"].promote(first)
    stores["mood"].promote(mood)
    assert await updater.sync()
    assert runner.versions == [("intents", first.name), ("mood", mood.name)]
    assert not await updater.sync()
    stores["intents"].promote(second)
    assert await updater.sync()
    stores["intents"].rollback()
    assert await updater.sync()
    assert runner.versions[2:] == [("intents", second.name), ("intents", first.name)]
    stores["intents"].withdraw()
    assert await updater.sync(), "the first version is taken back"
    assert runner.versions[-1] == ("intents", "pretrained")
    assert not await updater.sync()
