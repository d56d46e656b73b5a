"""Heads on pretrained models: which modules they are, how they grow by labels, and silence while they are made.

Knows transformers models by their structure only: the backbone is what holds the lists of equal blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as untyped

logging: Any = untyped


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting that a head is new: it is meant to be."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@torch.no_grad()
def with_labels(old: Any, names: Sequence[str]) -> Any:
    """Return the same model with a head for other outputs; rows of outputs with the same name keep their weights."""
    before = {str(old.config.id2label[i]): int(i) for i in old.config.id2label}
    config = copy.deepcopy(old.config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    new = type(old)(config)
    output = output_layer(new)
    own = dict(old.named_parameters()) | dict(old.named_buffers())
    for name, tensor in [*new.named_parameters(), *new.named_buffers()]:
        if name.rpartition(".")[0] != output:
            tensor.copy_(own[name])
            continue
        for i, label in enumerate(names):
            if label in before:
                tensor[i] = own[name][before[label]]
    return new


def output_layer(model: nn.Module) -> str:
    """Return the name of the linear layer that computes a head's outputs.

    Raises:
        ValueError: the model has no linear head.
    """
    heads = head_modules(model)
    linear: list[str] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(name == head or name.startswith(head + ".") for head in heads)
    ]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no linear head among {heads}")
    return linear[-1]


def log_frequencies(counts: Sequence[int]) -> Tensor:
    """Log share of every class, each counted once more than it is there; [L]."""
    seen_L = torch.as_tensor(counts, dtype=torch.float32) + 1
    return (seen_L / seen_L.sum()).log()


@torch.no_grad()
def set_prior(model: nn.Module, bias_L: Tensor) -> None:
    """Begin a new head at the classes' own frequencies (Lin et al. 2017, section 4.1).

    Where one class is nearly all there is, as `O` is in named entities, the first thing that is learned is to say it everywhere.
    A head without this prior teaches that to the layers below: low-rank adapters then lose every difference between tokens.
    """
    bias = model.get_submodule(output_layer(model)).bias
    if isinstance(bias, Tensor):
        bias.copy_(bias_L)


def block_lists(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost lists of modules of one class, at least two: a transformer's layers, a network's stages.

    Of a model without such a list, those of one module: one layer, or one that ALBERT repeats.
    """
    return _lists(model, 2) or _lists(model, 1)


def _lists(model: nn.Module, least: int) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(name.startswith(outer + ".") for outer in found):
            continue
        children = list(module.children())
        listed = isinstance(module, nn.ModuleList | nn.Sequential)
        alike = len(children) >= least and len({type(child) for child in children}) == 1
        if listed and alike and _has_parameters(children[0]):
            found[name] = module
    return found


def following(model: nn.Module) -> list[str]:
    """Return names of the modules registered after a list of blocks, on its level and all levels above: norms, poolers, the head.

    What holds blocks of its own or an embedding is left out: a decoder does not belong to the encoder before it.
    """
    found: dict[str, None] = {}
    embedded = _embedded(model)
    for blocks in block_lists(model):
        at = blocks
        while at:
            parent, _, own = at.rpartition(".")
            level = dict(model.get_submodule(parent).named_children())
            later = list(level)[list(level).index(own) + 1 :]
            found |= {f"{parent}.{name}".lstrip("."): None for name in later if _plain(level[name], embedded)}
            at = parent
    return list(found)


def _plain(module: nn.Module, embedded: set[int]) -> bool:
    return not any(id(parameter) in embedded for parameter in module.parameters()) and not block_lists(module)


def _embedded(model: nn.Module) -> set[int]:
    """Return the identities of all embeddings' parameters, which output layers may share."""
    return {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}


def head_modules(model: nn.Module) -> list[str]:
    """Return names of the modules on top of the backbone that have their own parameters, without tied embeddings."""
    lists, tied = block_lists(model), _embedded(model)
    heads = []
    for name, child in model.named_children():
        inside = any(at == name or at.startswith(name + ".") for at in lists)
        own = [p for p in child.parameters() if id(p) not in tied]
        if not inside and own:
            heads.append(name)
    return heads


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
