"""Run the fine-tuning loop: epochs of length-grouped batches, validation after each, early stopping, restored best weights.

Everything random comes from (seed, epoch, example): a run that was killed goes on from its last state and ends with the
same weights. Knows tasks only through `learners.tasks.base`; what is trained is `learners.finetune.trainable_layers`'s affair.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from learners.data_error import DataError
from learners.data_parallel import WorkerGroup
from learners.finetune import trainer_state
from learners.finetune.labelled_files.text_files import located
from learners.finetune.optim import Kind, OptimizerName, factor, optimizer, set_rate
from learners.finetune.trainable_layers import set_training
from learners.tasks.base import Example, Feature, Task, to_device, without_target

MEGABATCH = 50
"""Number of batches that are sorted by length together."""


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How a fine-tune runs."""

    epochs: int = 5
    batch: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-4
    optimizer: OptimizerName = "adamw"
    schedule: Kind = "linear"
    warmup: float = 0.1
    """Share of all steps."""
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    head_rate: float = 1.0
    """How many times the learning rate the head learns at."""
    probe: bool = False
    """Classification: fit the head first, to the encoder as it is."""
    momentum: float = 0.9
    clip: float = 1.0
    """Largest gradient norm."""
    patience: int = 3
    """Epochs without a better validation score before it stops."""
    ties: Literal["first", "last"] = "first"
    """Which of equally good epochs is the best: on a small validation set, which is soon all right, the last one has learned longest."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    save_every_s: float = 60.0


@dataclass(slots=True)
class RunState:
    """Where a run is; what it became once it is over."""

    epoch: int = 0
    at: int = 0
    """Batches done in this epoch."""
    losses: list[float] = field(default_factory=list)
    """Mean training loss of each epoch."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Validation metrics of each epoch."""
    best: float = -math.inf
    best_epoch: int = 0
    tie: float = 0.0
    """What chose the best epoch among equally good ones."""
    threshold: float | None = None
    """Of the best epoch, for several labels."""
    worse: int = 0
    total: float = 0.0
    """Sum of the losses of this epoch so far."""
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """The progress of a run, reported after every step and epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    """Of this epoch."""
    loss: float
    score: float | None


class Stopped(Exception):  # noqa: N818 - reads as what happened
    """A run was stopped on request; its state is saved if it has a folder for it."""


OnProgress = Callable[[TrainingProgress], None]


class Trainer:
    """One run over fixed data; `model` is the task's model as `trainable.prepare` returned it.

    With a `group` of several workers each trains its share of every batch, and predicts its share of the validation. The first one
    decides which epoch is the best, and saves the state. Everything random of a step is then drawn from (seed, epoch, batch, worker).
    """

    def __init__(
        self, task: Task, model: nn.Module, train: Sequence[Example], validation: Sequence[Example], settings: TrainerSettings,
        *, state: trainer_state.State | None = None, on_progress: OnProgress | None = None, stop: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.monotonic, group: WorkerGroup | None = None,
    ) -> None:  # fmt: skip
        self.task, self.model, self.settings = task, model, settings
        self.train, self.validation = train, validation
        self.group = group or WorkerGroup()
        self.run_state = RunState()
        self.best: dict[str, Tensor] = {}
        self._takes_last = bool(task.no_choice(validation))
        """No epoch can be chosen: none stops the run, and the last one counts."""
        self._state, self._on_progress, self._clock, self._stop = state, on_progress, clock, stop
        self._features = None if task.varying else [self._make(0, i) for i in range(len(train))]
        self._units = (
            [(i, 0) for i in range(len(train))]
            if self._features is None
            else [(i, j) for i, some in enumerate(self._features) for j in range(len(some))]
        )
        """Example and window of each feature that an epoch trains."""
        self._optimizer = optimizer(
            settings.optimizer, model, rate=settings.learning_rate, weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay, head_rate=settings.head_rate, momentum=settings.momentum,
        )  # fmt: skip
        self._bfloat16 = settings.precision == "bfloat16" or (
            settings.precision == "auto" and bfloat16_helps(task.device)
        )
        self._saved_s = clock()

    def run(self) -> RunState:
        """Train to the end, with the best epoch's weights in the model."""
        trainer_state.seed_generators(self.settings.seed)
        self._resume()
        self.group.equalize(self.model)
        run = self.run_state
        while run.epoch < self.settings.epochs and run.worse < self.settings.patience:
            start_s = self._clock()
            self._epoch(run)
            improved = self._validate(run)
            run.wall_s += self._clock() - start_s
            self._save(best=improved)
        if self.best:
            trainer_state.restore(self.model, self.best)
        return self._ended(run)

    def measure_fitted(self, loss: float) -> RunState:
        """Measure a model that was fitted as a whole, by `linear_probe`, as the only epoch of the run; no weight changes.

        Args:
            loss: of its training examples.
        """
        self.group.equalize(self.model)
        self.run_state.losses.append(loss)
        self._validate(self.run_state)
        return self._ended(self.run_state)

    def _ended(self, run: RunState) -> RunState:
        if run.threshold is not None:
            self.task.options = replace(self.task.options, threshold=run.threshold)
        self.model.eval()
        return run

    def _epoch(self, run: RunState) -> None:
        """Train the rest of one epoch."""
        set_training(self.model)
        batches = self._batches(run.epoch)
        steps = math.ceil(len(batches) / self.settings.accumulate)
        while run.at < len(batches):
            group = batches[run.at : run.at + self.settings.accumulate]
            done = run.epoch * steps + run.at // self.settings.accumulate
            if self.group.size > 1:
                place = (self.settings.seed, run.epoch, run.at, self.group.rank)
                trainer_state.seed_generators(int(np.random.SeedSequence(place).generate_state(1)[0]))
            loss = self._step(run.epoch, group, done, steps * self.settings.epochs)
            run.at += len(group)
            run.total += loss * len(group)
            if self._stop is not None and self._stop():
                self._save(best=False)
                raise Stopped(f"stopped in epoch {run.epoch + 1}")
            self._report(run, len(batches), run.total / run.at)
            if self._clock() - self._saved_s > self.settings.save_every_s:
                self._save(best=False)
        run.losses.append(run.total / max(len(batches), 1))

    def _step(self, epoch: int, group: Sequence[Sequence[int]], done: int, total: int) -> float:
        """Make one update over the batches of a group, of which this worker computes its share; return their mean loss."""
        set_rate(self._optimizer, factor(done, total, warmup=self.settings.warmup, kind=self.settings.schedule))
        self._optimizer.zero_grad(set_to_none=True)
        mean = 0.0
        parts = [part for batch in group if (part := self.group.share(batch))]
        collated = [self.task.collate([self._feature(epoch, number) for number in part]) for part in parts]
        weights = [self.task.weight(inputs) for inputs in collated]
        whole = self.group.total(sum(weights)) or 1.0
        for inputs, weight in zip(collated, weights, strict=True):
            with torch.autocast(self.task.device.type, torch.bfloat16, enabled=self._bfloat16):
                loss = self.task.loss(self.model, to_device(inputs, self.task.device))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} in epoch {epoch + 1}; lower the learning rate or use float32"
                )
            share: Any = loss * (weight / whole)
            share.backward()
            mean += value * (weight / whole)
        self.group.add_gradients([p for p in self.model.parameters() if p.requires_grad])
        trained = [p for p in self.model.parameters() if p.grad is not None]
        nn.utils.clip_grad_norm_(trained, self.settings.clip)
        self._optimizer.step()
        return self.group.total(mean)

    def _validate(self, run: RunState) -> bool:
        """Measure, move on to the next epoch, and say whether it is the best so far."""
        self.model.eval()
        shown = [without_target(example) for example in self.group.share(self.validation)]
        found = self.group.joined(self.task.predict(shown, model=self.model))
        predictions = self.task.tuned(self.validation, found)
        measured = (
            self.task.metrics(self.validation, predictions),
            self.task.tie_break(self.validation, predictions),
            self.task.options.threshold,
        )
        metrics, tie, threshold = self.group.of_first(measured)
        run.history.append(metrics)
        run.epoch, run.at, run.total = run.epoch + 1, 0, 0.0
        score = metrics[self.task.selection]
        better = self._takes_last or score > run.best or (score == run.best and tie > run.tie)
        run.worse = 0 if better else run.worse + 1
        improved = better or (score == run.best and tie == run.tie and self.settings.ties == "last")
        if improved:
            run.best, run.best_epoch, run.tie = score, run.epoch, tie
            run.threshold = threshold if self.task.options.multi_label else None
            self.best = trainer_state.trained_of(self.model)
        self._report(run, 0, run.losses[-1], score)
        return improved

    def _batches(self, epoch: int) -> list[list[int]]:
        """Return batches of all examples, sorted by length within groups, in random order."""
        generator = np.random.default_rng((self.settings.seed, epoch))
        order = generator.permutation(len(self._units)).tolist()
        size = self.settings.batch
        lengths: list[int] | None = None
        if self._features is not None:
            lengths = [self.task.length(self._features[i][j]) for i, j in self._units]
            mega = size * MEGABATCH
            order = [
                i for at in range(0, len(order), mega) for i in sorted(order[at : at + mega], key=lengths.__getitem__)
            ]
        if lengths is not None and self.task.pads_change_outputs:  # no padding, as in prediction
            runs = [list(run) for _, run in itertools.groupby(order, lengths.__getitem__)]
        else:
            runs = [order]
        batches = [run[at : at + size] for run in runs for at in range(0, len(run), size)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def _make(self, epoch: int, number: int) -> list[Feature]:
        example = self.train[number]
        try:
            return self.task.features(example, rng=np.random.default_rng((self.settings.seed, epoch, number)))
        except DataError as error:
            raise located(example, error) from None

    def _feature(self, epoch: int, number: int) -> Feature:
        """Return a feature by its number among `_units`."""
        example, window = self._units[number]
        some = self._features[example] if self._features is not None else self._make(epoch, example)
        return some[window]

    def _report(self, run: RunState, steps: int, loss: float, score: float | None = None) -> None:
        if self._on_progress is not None:
            latest = run.history[-1][self.task.selection] if run.history else None
            self._on_progress(
                TrainingProgress(
                    run.epoch, self.settings.epochs, run.at, steps, loss, latest if score is None else score
                )
            )

    def _save(self, *, best: bool) -> None:
        self._saved_s = self._clock()
        if self._state is None or self.group.rank:
            return
        facts = {name: getattr(self.run_state, name) for name in RunState.__slots__}
        facts["best"] = None if math.isinf(self.run_state.best) else self.run_state.best
        tensors = {f"model/{name}": tensor for name, tensor in trainer_state.trained_of(self.model).items()}
        tensors |= trainer_state.optimizer_tensors(self._optimizer) | trainer_state.generators(self.task.device)
        self._state.save(facts, tensors, self.best if best else None)

    def _resume(self) -> None:
        loaded = self._state.load() if self._state is not None and not self.group.rank else None
        loaded = self.group.of_first(loaded)
        if loaded is None:
            return
        facts: dict[str, Any] = loaded.facts
        facts["best"] = -math.inf if facts["best"] is None else facts["best"]
        self.run_state = RunState(**facts)
        self.best = loaded.best
        trainer_state.restore(self.model, loaded.tensors, "model/")
        trainer_state.restore_optimizer(self._optimizer, loaded.tensors)
        trainer_state.restore_generators(loaded.tensors, self.task.device)


def bfloat16_helps(device: torch.device) -> bool:
    """Return whether the device has bfloat16 units: recent GPUs, CPUs with AMX or AVX512-BF16 (a third less time)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
