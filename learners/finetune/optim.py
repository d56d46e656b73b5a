"""Optimisers and learning rates of fine-tuning: AdamW, SGD with decoupled decay, warm-up, linear and cosine decay.

The rate is a function of the step alone, so resuming needs no scheduler state. Weight decay is decoupled (Loshchilov and
Hutter 2019) in both optimisers and leaves out vectors: biases and norms. `layer_decay` lowers the rate from the head down
to the embeddings, by a factor a layer (Howard and Ruder 2018).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

from learners.finetune.trainable_layers import base_of
from learners.tasks.layers.heads import block_lists, following, head_modules

Kind = Literal["linear", "cosine", "constant"]
OptimizerName = Literal["adamw", "sgd"]


def factor(step: int, total: int, *, warmup: float, kind: Kind) -> float:
    """Share of the full rate at a step (from 0): linear warm-up over a share of all steps, then down to zero."""
    rising = warmup * total
    if step < rising:
        return (step + 1) / (math.ceil(rising) + 1)
    if kind == "constant":
        return 1.0
    done = (step - rising) / max(total - rising, 1)
    return max(0.0, 1.0 - done) if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


class SGDW(torch.optim.SGD):
    """SGD with momentum and decoupled weight decay: weights shrink by rate x decay before the step."""

    def __init__(self, params: Iterable[Any], lr: float, *, momentum: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, momentum=momentum)
        for group in self.param_groups:
            group.setdefault("decoupled", weight_decay)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Shrink, then step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["decoupled"])
        return super().step(closure)


def groups(
    model: nn.Module, rate: float, weight_decay: float, layer_decay: float, head_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Parameter groups of everything that is trained, by depth and decay; each says its full rate as `rate`.

    Args:
        model: may be wrapped by an adapter.
        rate: of what follows the blocks.
        weight_decay: of matrices.
        layer_decay: factor a layer down.
        head_rate: factor of the head.
    """
    base = base_of(model)
    deepest, depth_of = _depths(base)
    heads = tuple(f"{name}." for name in head_modules(base))
    found: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in base.named_parameters():
        if parameter.requires_grad:
            found.setdefault((depth_of(name), name.startswith(heads), parameter.dim() > 1), []).append(parameter)
    made = []
    for (depth, of_head, decays), parameters in sorted(found.items(), key=lambda item: item[0]):
        own = rate * layer_decay ** (deepest - depth) * (head_rate if of_head else 1.0)
        decay = weight_decay if decays else 0.0
        made.append({"params": parameters, "lr": own, "rate": own, "weight_decay": decay, "decoupled": decay})
    return made


def _depths(model: nn.Module) -> tuple[int, Callable[[str], int]]:
    """Return the depth of the head and of every parameter: 0 for embeddings, 1 and more for blocks, then the layers after them."""
    lists, after = block_lists(model), tuple(f"{name}." for name in following(model))
    longest = max((len(list(module.children())) for module in lists.values()), default=0)
    where = re.compile("|".join(rf"^{re.escape(name)}\.(\d+)\." for name in lists) or "$^")

    def depth(name: str) -> int:
        if match := where.match(name):
            return 1 + int(next(group for group in match.groups() if group is not None))
        return longest + 1 if name.startswith(after) else 0

    return longest + 1, depth


def optimizer(
    name: OptimizerName, model: nn.Module, *, rate: float, weight_decay: float, layer_decay: float = 1.0,
    head_rate: float = 1.0, momentum: float = 0.9,
) -> torch.optim.Optimizer:  # fmt: skip
    """Build the optimizer of the trained parameters."""
    parts = groups(model, rate, weight_decay, layer_decay, head_rate)
    if name == "sgd":
        for part in parts:
            part["weight_decay"] = 0.0  # torch's SGD would couple it to the gradient
        return SGDW(parts, rate, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.AdamW(parts, lr=rate, fused=True)  # one pass over memory: most of a small model's step is that


def set_rate(made: torch.optim.Optimizer, share: float) -> None:
    """Set every group to its share of its full rate."""
    for group in made.param_groups:
        group["lr"] = group["rate"] * share
