"""Fit a head to the frozen encoder before fine-tuning: linear probing first (Kumar et al. 2022, LP-FT).

A head drawn at random, or one with new rows beside trained ones, is wrong at first, and what it sends down moves the encoder away from
what it knew. Fitted before, it sends down only what the encoder itself is to change. With the few labels a person gives that
decides: see docs/benchmarks.md, orders in waves.

Shapes: N examples, X width of what the output layer reads, L labels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learners.tasks.base import Example, to_device
from learners.tasks.layers.heads import output_layer
from learners.tasks.text_classification import Classifier

STRENGTH = 10.0
"""How weak the penalty on weights is: `C` of logistic regression over inputs of unit root mean square."""
ITERATIONS = 300
"""Largest number of iterations of L-BFGS; it stops earlier when it has converged."""


def fit_head(task: Classifier, examples: Sequence[Example], *, batch: int = 32) -> float | None:
    """Fit the output layer in place to the task's own criterion, with a penalty on its weights; return the loss with that penalty.

    Nothing else changes. Rows of labels that no example has stay as they are: nothing speaks for them, so everything would speak
    against them. None, and nothing done, where the layer reads every token of a text, as behind a decoder.
    """
    layer: Any = task.model.get_submodule(output_layer(task.model))
    read, targets = _inputs(task, layer, examples, batch)
    if read[0].dim() != 2:
        return None
    read_NX, targets_N = torch.cat(read), torch.cat(targets)
    rows_NL = targets_N if targets_N.dim() == 2 else F.one_hot(targets_N, len(task.labels))
    absent_L = ~rows_NL.bool().any(0)
    penalty = float(read_NX.square().mean()) / (2 * STRENGTH * len(read_NX))
    # a copy without gradients
    fitted = copy.deepcopy(layer).requires_grad_(requires_grad=True)
    search: Any = torch.optim.LBFGS(fitted.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Any:
        search.zero_grad()
        whole: Any = task.criterion(fitted(read_NX), targets_N) + penalty * fitted.weight.square().sum()
        whole.backward()
        for parameter in fitted.parameters():
            parameter.grad[absent_L] = 0
        return whole

    search.step(closure)
    layer.load_state_dict(fitted.state_dict())
    with torch.no_grad():
        return float(task.criterion(layer(read_NX), targets_N) + penalty * layer.weight.square().sum())


def trains_alone(task: Classifier, model: nn.Module) -> bool:
    """Return whether the output layer is all that `model` trains: once it is fitted, no step improves it on the same examples."""
    layer = task.model.get_submodule(output_layer(task.model))
    own = {id(parameter) for parameter in layer.parameters()}
    return all(id(each) in own for each in model.parameters() if each.requires_grad)


@torch.no_grad()
def _inputs(task: Classifier, layer: Any, examples: Sequence[Example], batch: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs [B, X] of the output layer for every batch, and the targets: classes [B], or 0/1 rows [B, L]."""
    features = sorted((task.features(example)[0] for example in examples), key=task.length)
    read: list[Tensor] = []
    targets: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: read.append(given[0].float()))
    try:
        task.model.eval()
        for at in range(0, len(features), batch):
            inputs = to_device(task.collate(features[at : at + batch]), task.device)
            task.loss(task.model, inputs)
            targets.append(inputs["labels"])
    finally:
        hook.remove()
    return read, targets
