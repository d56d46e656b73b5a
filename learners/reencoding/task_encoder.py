"""Weights of a stream's encoder out of a task that was fine-tuned on the same model.

A task's folder holds the backbone under its own names; the encoder's tower is filled through transformers' own loading, so any
architecture the encoders know works. A pooler that the tower does not use may be missing there and stays as it was. Everything else
must be there in its shape: an encoder is the fine-tuned one or the old one, never half of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from learners.config import EncoderSettings, TaskSettings
from learners.model.encoders.base import Encoder
from learners.model.encoders.pretrained import load
from learners.tasks.heads import quiet

KINDS = frozenset({"classify"})
"""Kinds of task whose backbone reads as the encoder does; the others change it (token types, marks) or have a decoder."""


def encoder_tasks(
    encoders: Mapping[str, EncoderSettings], tasks: Mapping[str, TaskSettings], routes: Mapping[str, str | None]
) -> dict[str, str]:
    """Of each encoder that is not frozen, the task that fine-tunes it: of the same model, on one of its streams.

    `routes` says which encoder reads each stream. An encoder that has no such task is left out.
    """
    found: dict[str, str] = {}
    for name, encoder in encoders.items():
        for task, settings in tasks.items():
            reads = settings.stream is not None and routes.get(settings.stream) == name
            if encoder.train != "frozen" and reads and settings.kind in KINDS and settings.model == encoder.model:
                found.setdefault(name, task)
    return found


def encoders_without_task(encoders: Mapping[str, EncoderSettings], taught: Mapping[str, str]) -> dict[str, str]:
    """Of each encoder that is to be trained and has no task that would: why nothing will happen."""
    return {
        name: f"encoders.{name}.train: {encoder.train}: no classify task with model {encoder.model} reads a stream of it;"
        " it stays as it is"
        for name, encoder in encoders.items()
        if encoder.train != "frozen" and name not in taught
    }


def state_of(settings: EncoderSettings, base: Encoder, folder: Path, *, window_s: float) -> dict[str, Tensor]:
    """All weights of `base` as a fine-tuned folder has them.

    Raises:
        ValueError: the folder is of another architecture, or leaves out weights that the encoder uses.
        OSError: it cannot be read.
    """
    if base.module is None:
        raise ValueError(f"{settings.model}: an encoder without a module cannot take weights")
    with quiet():
        source = settings.model_copy(update={"model": str(folder), "plugin": None})
        made = load(source, base.tokens, torch.device("cpu"), window_s=window_s)
    if made.module is None:
        raise ValueError(f"{folder}: no module in it")
    state, own = made.module.state_dict(), base.module.state_dict()
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        written = {part for key in file.keys() for part in (key, key.partition(".")[2])}  # noqa: SIM118 - no mapping
    merged: dict[str, Tensor] = {}
    for name, tensor in own.items():
        there = name.removeprefix("model.") in written and name in state
        if not there and ".pooler." not in f".{name}":
            raise ValueError(f"{folder}: it has no weight {name}; is it of another architecture than {settings.model}?")
        if there and state[name].shape != tensor.shape:
            raise ValueError(f"{folder}: {name} is {tuple(state[name].shape)}, the encoder has {tuple(tensor.shape)}")
        merged[name] = state[name] if there else tensor
    return merged
