"""Fit a head to the frozen encoder before fine-tuning: linear probing first (Kumar et al. 2022, LP-FT).

A head drawn at random, or one with new rows beside trained ones, is wrong at first, and what it sends down moves the encoder away from
what it knew. Fitted before, it sends down only what the encoder itself is to change. With the few labels a person gives that
decides: see docs/benchmarks.md, orders in waves.

An example that is read in several windows counts once: each of its N windows has the same share.

Shapes: N windows, B batch, T tokens, X width of what the output layer reads, L labels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learners.tasks.base import Example, Feature, to_device
from learners.tasks.classifier import Classifier
from learners.tasks.layers.heads import output_layer
from learners.tasks.text_base import inputs as without_labels

STRENGTH = 10.0
"""How weak the penalty on weights is: `C` of logistic regression over inputs of unit root mean square."""
TOLERANCE = 1e-4
"""Largest difference, relative to the outputs, between what the layer makes of a token and the outputs of the model."""
ITERATIONS = 300
"""Largest number of iterations of L-BFGS; it stops earlier when it has converged."""


def fit_head(task: Classifier, examples: Sequence[Example], *, batch: int = 32) -> float | None:
    """Fit the output layer in place to the task's own criterion, with a penalty on its weights; return the loss with that penalty.

    Nothing else changes. Rows of labels that no example has stay as they are: nothing speaks for them, so everything would speak
    against them. Behind a decoder, the layer is fitted to the token that the model classifies by. None, and nothing done, where no
    single input of the layer explains the model's outputs.
    """
    layer: Any = task.model.get_submodule(output_layer(task.model))
    windows = [task.features(example) for example in examples]
    found = _inputs(task, layer, windows, batch)
    if found is None:
        return None
    read_NX, targets_N = found
    rows_NL = targets_N if targets_N.dim() == 2 else F.one_hot(targets_N, len(task.labels))
    absent_L = ~rows_NL.bool().any(0)
    penalty = float(read_NX.square().mean()) / (2 * STRENGTH * len(examples))
    parts = _parts([len(some) for some in windows], read_NX.device)
    # a copy without gradients
    fitted = copy.deepcopy(layer).requires_grad_(requires_grad=True)
    search: Any = torch.optim.LBFGS(fitted.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss(of: Any) -> Any:
        logits_NL = of(read_NX)
        means = [share * task.criterion(logits_NL[at], targets_N[at]) for at, share in parts]
        return sum(means) + penalty * of.weight.square().sum()

    def closure() -> Any:
        search.zero_grad()
        whole: Any = loss(fitted)
        whole.backward()
        for parameter in fitted.parameters():
            parameter.grad[absent_L] = 0
        return whole

    search.step(closure)
    layer.load_state_dict(fitted.state_dict())
    with torch.no_grad():
        return float(loss(layer))


def _parts(counts: Sequence[int], device: torch.device) -> list[tuple[Tensor, float]]:
    """Group windows by how many their example has: return the places of each group, and its share of the examples."""
    of_window = torch.tensor([count for count in counts for _ in range(count)], device=device)
    return [
        ((of_window == count).nonzero().flatten(), sum(one == count for one in counts) / len(counts))
        for count in sorted(set(counts))
    ]


def trains_alone(task: Classifier, model: nn.Module) -> bool:
    """Return whether the output layer is all that `model` trains: once it is fitted, no step improves it on the same examples."""
    layer = task.model.get_submodule(output_layer(task.model))
    own = {id(parameter) for parameter in layer.parameters()}
    return all(id(each) in own for each in model.parameters() if each.requires_grad)


def classified_by(layer: Any, read: Tensor, logits_BL: Tensor, mask_BT: Tensor | None) -> Tensor | None:
    """Return what the output layer read of each example, [B, X]; None where no single input explains the outputs.

    Args:
        layer: computes the outputs.
        read: what it read: [B, X], or [B, T, X] behind a decoder, which classifies a text by one of its tokens.
        logits_BL: what the model made of it.
        mask_BT: 1 for tokens, 0 for padding.
    """
    if read.dim() == 2:
        return read
    if read.dim() != 3 or mask_BT is None or mask_BT.shape != read.shape[:2]:
        return None
    with torch.no_grad():
        apart_BT = (layer(read) - logits_BL[:, None]).abs().amax(-1)
        fits_BT = (apart_BT <= TOLERANCE * (1.0 + logits_BL.abs().amax(-1, keepdim=True))) & mask_BT.bool()
        if not bool(fits_BT.any(1).all()):
            return None
        last_B = (fits_BT * torch.arange(1, fits_BT.shape[1] + 1, device=fits_BT.device)).argmax(1)
    return read[torch.arange(len(read), device=read.device), last_B]


@torch.no_grad()
def _inputs(
    task: Classifier, layer: Any, windows: Sequence[Sequence[Feature]], batch: int
) -> tuple[Tensor, Tensor] | None:
    """Return the inputs [N, X] of the output layer for every window, in order, and the targets: classes [N], or 0/1 rows [N, L].

    None where no single input explains the outputs.
    """
    read: list[Tensor] = []
    found: list[Tensor] = []
    places: list[tuple[int, int]] = []
    targets: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    try:
        task.model.eval()
        for ats in task.batches_of(windows, batch):
            given = to_device(task.collate([windows[i][j] for i, j in ats]), task.device)
            read.clear()
            logits_BL = task.model(**without_labels(given)).logits
            rows_BX = classified_by(layer, read[0], logits_BL, given.get("attention_mask"))
            if rows_BX is None:
                return None
            found.append(rows_BX.float())
            targets.append(given["labels"])
            places += ats
    finally:
        hook.remove()
    order = sorted(range(len(places)), key=places.__getitem__)
    return torch.cat(found)[order], torch.cat(targets)[order]
