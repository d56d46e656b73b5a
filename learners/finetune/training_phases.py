"""Train the model of a task: the head first, then the weights of the mode; LoRA is merged at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from learners.config.tasks import Train
from learners.data_parallel import WorkerGroup
from learners.files import new_files
from learners.finetune import trainable_layers
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.linear_probe import fit_head, trains_alone
from learners.finetune.trainer import OnProgress, RunState, Trainer, TrainerSettings
from learners.finetune.trainer_state import State
from learners.tasks.base import Task
from learners.tasks.classifier import Classifier
from learners.tasks.layers.heads import set_prior


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a run became."""

    task: Task
    run: RunState
    trained: int
    total: int


def tune(
    task: Task, splits: Splits, settings: TrainerSettings, mode: Train, *, rank: int = 8, state: State | None = None,
    on_progress: OnProgress | None = None, keep: Path | None = None, stop: Callable[[], bool] | None = None,
    group: WorkerGroup | None = None,
) -> Tuned:  # fmt: skip
    """Train the task's model in place, and merge LoRA at the end.

    With `keep`, the folder `keep/adapter` gets the adapter and, in `base`, the model that it fits. Head, pooling layer, token types and
    positions of a task differ from those of the pretrained model.
    """
    torch.set_flush_denormal(True)
    task.model.to(memory_format=torch.channels_last)  # convolutions on a processor take less time so
    loss = fit_head(task, splits.train) if settings.probe and isinstance(task, Classifier) else None
    if loss is None and task.new_head and (prior := task.prior(splits.train)) is not None:
        set_prior(task.model, prior)
    if keep is not None:
        with new_files(keep / "adapter") as draft:
            task.save(draft / "base")
    torch.manual_seed(settings.seed)  # the adapters
    model = trainable_layers.prepare(task.model, mode, rank=rank, extra=task.extra_trainable)
    trained, total = trainable_layers.counts(model)
    trainer = Trainer(
        task, model, splits.train, splits.validation, settings,
        state=state, on_progress=on_progress, stop=stop, group=group,
    )  # fmt: skip
    if loss is not None and isinstance(task, Classifier) and not task.options.augment and trains_alone(task, model):
        run = trainer.measure_fitted(loss)
    else:
        run = trainer.run()
    if keep is not None:
        with new_files(keep / "adapter") as draft:
            trainable_layers.save_adapter(model, draft, keep / "adapter" / "base")
    task.model = trainable_layers.merged(model)
    return Tuned(task, run, trained, total)
