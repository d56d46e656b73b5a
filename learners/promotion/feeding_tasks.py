"""Find the tasks that feed the policy: their versions, and their held-out metrics before and after a change.

Only the task's held-out file is read, never labels that arrived over MQTT.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learners.data_error import DataError

if TYPE_CHECKING:
    from learners.continual.trainer import ContinualTrainer
    from learners.tasks.base import Example, Prediction, Task

CHUNK = 32
"""Examples that a version predicts before the learner's loop goes on."""


@dataclass(frozen=True, slots=True)
class HeldOutComparison:
    """A task's metric on its held-out file: of the version that fed the live policy, and of the present one."""

    before: float
    after: float
    examples: int
    metric: str


class FeedingTasks:
    """The tasks that feed the policy.

    Args:
        tasks: all tasks by name; those without `feeds_policy` are left out.
    """

    def __init__(self, tasks: Mapping[str, ContinualTrainer]) -> None:
        self.tasks = {name: task for name, task in tasks.items() if task.settings.feeds_policy}

    def __len__(self) -> int:
        """Count them."""
        return len(self.tasks)

    def versions(self) -> dict[str, str]:
        """Return the live version of each; a task that was never fine-tuned has none."""
        live = {name: task.versions.live() for name, task in self.tasks.items()}
        return {name: version.name for name, version in live.items() if version is not None}

    def compare(self, before: Mapping[str, str]) -> Generator[None, None, dict[str, HeldOutComparison]]:
        """Compare each task that has another version now than `before`; yield after every few examples."""
        found: dict[str, HeldOutComparison] = {}
        for name, version in before.items():
            one = (yield from _compare(self.tasks[name], version)) if name in self.tasks else None
            if one is not None:
                found[name] = one
        return found


def _compare(task: ContinualTrainer, before: str) -> Generator[None, None, HeldOutComparison | None]:
    from learners.tasks.task_classes import open_task  # noqa: PLC0415 - transformers: only where a task is compared

    now = task.versions.live()
    old = next((version for version in task.versions.all() if version.name == before), None)
    if now is None or old is None or now.name == before:
        return None
    try:
        examples = task.holdout().examples
    except DataError:  # `finetune_skipped` reports it whenever a fine-tune is due
        return None
    if not examples:
        return None
    kind = task.settings.kind
    earlier = yield from _score(open_task(kind, old.path), examples)
    present = open_task(kind, now.path)
    return HeldOutComparison(earlier, (yield from _score(present, examples)), len(examples), present.selection)


def _score(task: Task, examples: Sequence[Example]) -> Generator[None, None, float]:
    from learners.continual.evaluation import metric, predict  # noqa: PLC0415 - transformers, as above

    predictions: list[Prediction] = []
    for start in range(0, len(examples), CHUNK):
        predictions += predict(task, examples[start : start + CHUNK])
        yield
    return metric(task, examples, predictions)
