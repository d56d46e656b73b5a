"""Measure the forgetting of an encoder: put an earlier task's head back on it and evaluate again.

`before` is the earlier task as it was saved, `after` the same head on the encoder that was trained for another task since.
The measure does not show how fast the encoder could learn the earlier task again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from learners.tasks.base import Example, Task, saved
from learners.tasks.layers.heads import head_modules
from learners.tasks.task_classes import open_task


@torch.no_grad()
def transplant(encoder_of: PreTrainedModel, into: PreTrainedModel) -> int:
    """Copy the backbone's weights from one model into another; returns how many tensors were.

    Parts that only one of them has (a pooler), or that differ in shape (token types), do not change.
    """
    source, target = backbone(encoder_of), backbone(into)
    copied = 0
    for name, tensor in target.items():
        if name in source and source[name].shape == tensor.shape:
            tensor.copy_(source[name])
            copied += 1
    return copied


def backbone(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers below the head, by name, without the top-level module if there is only one."""
    heads = set(head_modules(model))
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if name.partition(".")[0] not in heads}


def measure(earlier: Path, examples: Sequence[Example], tuned: Task) -> dict[str, Any]:
    """Score an earlier task's folder on its examples, before and after its encoder became the tuned task's.

    Raises:
        ValueError: the two share no weights: another architecture.
    """
    old = open_task(saved(earlier)["kind"], earlier)
    before = old.metrics(examples, old.predict(examples))[old.selection]
    if not transplant(tuned.model, old.model):
        raise ValueError(f"{earlier}: another architecture than {tuned.source}: forgetting cannot be measured")
    after = old.metrics(examples, old.predict(examples))[old.selection]
    return {
        "task": old.kind, "metric": old.selection, "examples": len(examples), "before": before, "after": after,
        "lost": before - after,
    }  # fmt: skip
