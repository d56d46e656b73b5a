"""Versions of a fine-tuned task with different weights, without any training."""

from __future__ import annotations

from pathlib import Path

import torch

from learners.task_serving.versions import TaskVersion, TaskVersionStore
from learners.tasks.task_classes import open_task


@torch.no_grad()
def promote_version(state_dir: Path, task: str, model: str, number: int, scale: float = 0.02) -> TaskVersion:
    """Add a version with weights that differ from the model's by noise of `scale`, and make it the live one."""
    made = open_task("text-classification", model, labels=("x", "y"))
    torch.manual_seed(number)
    for parameter in made.model.parameters():
        parameter.add_(scale * torch.randn_like(parameter))
    versions = TaskVersionStore(state_dir / "learner" / "tasks" / task)
    version = versions.add(made, number)
    versions.promote(version)
    return version
