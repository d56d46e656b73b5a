"""The step `held_out`: held-out metrics of the tasks that feed the policy are no worse than the margin.

What judges is `holdout.py`'s: the task's `eval_file` file, nothing that came over MQTT. A candidate acts on what the task's present
version says, the live policy was promoted with another one, perhaps: both are measured on what is held out. Where no task feeds the
policy, or none of them changed or has a file, there is nothing to judge by, and the figures say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learners.continual.evaluation import score
from learners.continual.trainer import ContinualTrainer
from learners.promotion.pipeline import EvaluationContext, HeldOut, StepResult
from learners.tasks.base import DataError
from learners.tasks.registry import open_task


def held_out(trial: EvaluationContext) -> StepResult:
    """No task that feeds the policy has become worse."""
    found = trial.held_out()
    if not found:
        return StepResult(
            "held_out", passed=True, figures={"applies": False, "note": "no held-out file of a task that changed"}
        )
    margin = trial.settings.margin
    tasks: dict[str, Any] = {
        name: {"before": round(one.before, 4), "after": round(one.after, 4), "labels": one.labels, "metric": one.metric}
        for name, one in found.items()
    }
    figures = {"applies": True, "margin": margin, "tasks": tasks}
    worse = [
        f"{name}: {one.metric} {one.after:.3f} after {one.before:.3f}"
        for name, one in found.items()
        if one.after < one.before - margin
    ]
    return StepResult("held_out", passed=not worse, figures=figures, reason="; ".join(worse))


class Feeding:
    """The tasks whose answers are a token of the fusion."""

    def __init__(self, tasks: Mapping[str, ContinualTrainer]) -> None:
        self.tasks = {name: task for name, task in tasks.items() if task.settings.feeds_policy}

    def __len__(self) -> int:
        """How many there are."""
        return len(self.tasks)

    def versions(self) -> dict[str, str]:
        """The present version of each; a task that was never fine-tuned has none."""
        live = {name: task.versions.live() for name, task in self.tasks.items()}
        return {name: version.name for name, version in live.items() if version is not None}

    def held_out(self, before: Mapping[str, str]) -> dict[str, HeldOut]:
        """Of each task with another version now than `before`, both measured on its held-out labels."""
        found = {name: _measured(self.tasks[name], version) for name, version in before.items() if name in self.tasks}
        return {name: one for name, one in found.items() if one is not None}


def _measured(task: ContinualTrainer, before: str) -> HeldOut | None:
    now = task.versions.live()
    old = next((version for version in task.versions.all() if version.name == before), None)
    if now is None or old is None or now.name == before:
        return None
    try:
        examples = task.holdout().examples
    except DataError:  # said by `finetune_skipped` whenever it is due
        return None
    if not examples:
        return None
    kind = task.settings.kind
    present = open_task(kind, now.path)
    return HeldOut(
        score(open_task(kind, old.path), examples), score(present, examples), len(examples), present.selection
    )
