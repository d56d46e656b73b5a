"""Continue the pretraining of an encoder on unlabelled readings of its own stream, before or without labels.

A language model with a head for masked predictions goes on with them (Gururangan et al. 2020). Every other model learns to recognise a
reading behind changes and dropout. Two views of one reading are compared with those of all others in the batch, as in SimCSE (Gao et
al. 2021) and SimCLR (Chen et al. 2020). Whether the result is used is decided elsewhere.

Shapes: B batch, X width of what the output layer reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DataCollatorForLanguageModeling

from learners.data_error import DataError
from learners.finetune.example_checks.readable_examples import ReadableExamples
from learners.finetune.forgetting import transplant
from learners.finetune.linear_probe import classified_by
from learners.finetune.optim import factor, optimizer, set_rate
from learners.finetune.trainable_layers import set_training
from learners.finetune.trainer import Stopped
from learners.finetune.trainer_state import seed_generators
from learners.task_kinds import KINDS, Augmentation, Modality
from learners.tasks.augmentation.texts import masked_model
from learners.tasks.base import Example, Task, to_device, without_target
from learners.tasks.classifier import Classifier
from learners.tasks.layers.heads import output_layer
from learners.tasks.text_base import TextTask

VIEWS: dict[Modality, tuple[Augmentation, ...]] = {
    "text": ("token_dropout",),
    "picture": ("crops", "brightness", "colour"),
    "sound": ("speed", "noise", "spec_augment"),
}
"""What makes two views of one reading differ, besides dropout."""
TEMPERATURE = 0.05
"""Of the softmax over cosines."""
BATCH = 64
RATE = {"masked": 5e-5, "contrastive": 3e-5}
"""Learning rate by objective, as in the papers."""
WARMUP = 0.1
CLIP = 1.0
LEAST = 8
"""Readings below which nothing is learned, because each is compared with all others of a batch."""

Objective = Literal["masked", "contrastive"]


@dataclass(frozen=True, slots=True)
class AdaptedEncoder:
    """What continued pretraining did."""

    objective: Objective
    readings: int
    unreadable: int
    """Readings that the task cannot take."""
    losses: list[float]
    """Mean loss of each pass."""
    unreadable_reason: str = ""
    """Why the first of them is unreadable."""


def can_adapt(kind: str) -> bool:
    """Return whether encoders of a kind of task can be adapted: those of classifications, where the head reads one vector."""
    return any(
        name == kind and declared.augmentations and declared.target == "label" for name, declared in KINDS.items()
    )


def adapt(
    task: Classifier,
    readings: Sequence[Example],
    *,
    passes: int = 1,
    seed: int = 0,
    stop: Callable[[], bool] | None = None,
) -> AdaptedEncoder:
    """Continue the pretraining of a task's encoder in place; its head stays as it is.

    Args:
        task: a classification.
        readings: examples of its stream; their labels are never read.
        passes: over all readings.
        seed: of the order, the views and dropout.
        stop: called after each update; True ends it.

    Raises:
        DataError: fewer than `LEAST` readings can be used, or no vector of the model represents a reading.
        Stopped: `stop` returned True.
    """
    readable = ReadableExamples(task)
    usable = readable([without_target(example) for example in readings])
    if len(usable) < LEAST:
        why = f"; the first of the others: {readable.first}" if readable.count else ""
        raise DataError(
            f"{len(usable)} of {len(readings)} readings can be used; pretraining needs at least {LEAST}{why}"
        )
    seed_generators(seed)
    masked = (
        masked_model(task.source) if isinstance(task, TextTask) and task.processor.mask_token_id is not None else None
    )
    objective: Objective = "contrastive" if masked is None else "masked"
    if masked is not None:
        transplant(task.model, masked)  # the task may start from another encoder than its source
        losses = _run(masked.to(task.device), _masked_loss(task, masked), usable, RATE[objective], passes, seed, stop)
        transplant(masked, task.model)
    else:
        losses = _adapt_by_views(task, usable, passes, seed, stop)
    task.model.eval()
    return AdaptedEncoder(objective, len(usable), readable.count, losses, readable.first)


def _adapt_by_views(
    task: Classifier, readings: Sequence[Example], passes: int, seed: int, stop: Callable[[], bool] | None
) -> list[float]:
    before = task.options
    task.options = replace(before, augment=VIEWS[task.declaration().modality])
    head: Any = task.model.get_submodule(output_layer(task.model))
    read: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    head.requires_grad_(requires_grad=False)
    try:
        return _run(task.model, _views_loss(task, head, read), readings, RATE["contrastive"], passes, seed, stop)
    finally:
        head.requires_grad_(requires_grad=True)
        hook.remove()
        task.options = before


Loss = Callable[[Sequence[Example], np.random.Generator], Tensor]


def _run(
    model: nn.Module,
    loss_of: Loss,
    readings: Sequence[Example],
    rate: float,
    passes: int,
    seed: int,
    stop: Callable[[], bool] | None,
) -> list[float]:
    """Train all weights; return the mean loss of each pass."""
    made = optimizer("adamw", model, rate=rate, weight_decay=0.01)
    steps = math.ceil(len(readings) / BATCH)
    losses = []
    set_training(model)
    for number in range(passes):
        rng = np.random.default_rng((seed, number))
        order = rng.permutation(len(readings)).tolist()
        total = 0.0
        for step in range(steps):
            some = [readings[at] for at in order[step * BATCH : (step + 1) * BATCH]]
            if len(some) < 2:
                continue  # one reading alone has no other to differ from
            set_rate(made, factor(number * steps + step, steps * passes, warmup=WARMUP, kind="linear"))
            made.zero_grad(set_to_none=True)
            loss: Any = loss_of(some, rng)
            loss.backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], CLIP)
            made.step()
            total += float(loss.detach()) * len(some)
            if stop is not None and stop():
                raise Stopped("stopped while the encoder was adapted")
        losses.append(total / len(readings))
    return losses


def _views_loss(task: Classifier, layer: Any, read: list[Tensor]) -> Loss:
    """Return the loss that tells the views of a reading from those of others; `read` gets what the output layer reads."""

    def loss(some: Sequence[Example], rng: np.random.Generator) -> Tensor:
        views: list[Tensor] = []
        for _ in range(2):
            features = [task.features(example, rng=rng)[0] for example in some]
            batch = to_device(task.collate(features), task.device)
            read.clear()
            logits_BL = task.model(**batch).logits
            vectors_BX = classified_by(layer, read[0], logits_BL, batch.get("attention_mask"))
            if vectors_BX is None:
                raise DataError(f"{task.model.config.model_type}: no single vector of it represents a reading")
            views.append(F.normalize(vectors_BX.float(), dim=1))
        cosines_BB = views[0] @ views[1].T / TEMPERATURE
        own_B = torch.arange(len(some), device=cosines_BB.device)
        return (F.cross_entropy(cosines_BB, own_B) + F.cross_entropy(cosines_BB.T, own_B)) / 2

    return loss


def _masked_loss(task: Task, model: Any) -> Loss:
    """Return the loss of masked predictions, 15 % of the tokens (Devlin et al. 2019)."""
    collate = DataCollatorForLanguageModeling(task.processor)

    def loss(some: Sequence[Example], _: np.random.Generator) -> Tensor:
        rows = [task.features(example)[0]["input_ids"] for example in some]
        batch = collate([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
        found: Tensor = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss
        return found

    return loss
