"""Weights of a stream's encoder, read from a task that was fine-tuned on the same model.

A task's folder holds the backbone under its own names; the encoder's tower holds the same weights under others. A pooler that the
tower does not use may be missing in the folder and stays as it was. Every other weight must be there in its shape: an encoder is the
fine-tuned one or the old one, never a mixture.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from learners.config.policy import EncoderSettings
from learners.config.tasks import TaskSettings
from learners.task_kinds import KINDS

if TYPE_CHECKING:
    from torch import Tensor

    from learners.model.encoders.base import Encoder


def encoder_tasks(
    encoders: Mapping[str, EncoderSettings], tasks: Mapping[str, TaskSettings], routes: Mapping[str, str | None]
) -> dict[str, str]:
    """Return, for each encoder that follows a task, the task that fine-tunes it: same model, on one of its streams.

    It must classify whole readings: other kinds change the inputs of their model (token types, marks) or have a decoder.

    `routes` says which encoder reads each stream. An encoder that has no such task is left out.
    """
    found: dict[str, str] = {}
    for name, encoder in encoders.items():
        for task, settings in tasks.items():
            reads = settings.stream is not None and routes.get(settings.stream) == name
            if encoder.follow_task and reads and KINDS[settings.kind].classifies and settings.model == encoder.model:
                found.setdefault(name, task)
    return found


def encoders_without_task(encoders: Mapping[str, EncoderSettings], trained: Mapping[str, str]) -> dict[str, str]:
    """Return, for each encoder that should follow a task and has none, the reason."""
    return {
        name: f"encoders.{name}.follow_task: no classification task with model {encoder.model} reads a stream of this"
        " encoder; its weights stay as they are"
        for name, encoder in encoders.items()
        if encoder.follow_task and name not in trained
    }


def state_of(settings: EncoderSettings, base: Encoder, folder: Path) -> dict[str, Tensor]:
    """Read all weights of `base` as a fine-tuned folder has them; no model is built.

    Raises:
        ValueError: the folder is of another architecture, or leaves out weights that the encoder uses.
        OSError: it cannot be read.
        SafetensorError: the file is damaged.
    """
    if base.module is None:
        raise ValueError(f"{settings.model}: an encoder without a module cannot take weights")
    own = base.module.state_dict()
    found: dict[str, Tensor] = {}
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        keys = frozenset(file.keys())
        prefix = _prefix([_stem(name) for name in own], keys)
        for name, tensor in own.items():
            key = prefix + _stem(name)
            if key in keys:
                found[name] = _fitting(file.get_tensor(key), tensor, name, folder)
            elif ".pooler." in f".{name}":
                found[name] = tensor
            else:
                raise ValueError(
                    f"{folder}: it has no weight {name}; is it of another architecture than {settings.model}?"
                )
    return found


def _stem(name: str) -> str:
    """Return a weight's name without the tower around the model."""
    return name.removeprefix("model.")


def _prefix(stems: Sequence[str], keys: Collection[str]) -> str:
    """Return the prefix of the backbone's names in the file: `bert.`, for example, or nothing; the most frequent one."""
    if not stems:
        return ""
    last = max(stems, key=len)
    found = {key.removesuffix(last) for key in keys if key == last or key.endswith("." + last)} | {""}
    return max(sorted(found), key=lambda prefix: sum(prefix + stem in keys for stem in stems))


def _fitting(there: Tensor, own: Tensor, name: str, folder: Path) -> Tensor:
    """Return a weight in the encoder's type; a table of positions is cut or continued where the encoder's windows differ."""
    if name.endswith("embed_positions.weight") and there.dim() == own.dim() == 2 and len(there) > len(own):
        there = there[: len(own)]
    if name.endswith("embed_positions.weight") and there.dim() == own.dim() == 2 and len(there) < len(own):
        import torch  # noqa: PLC0415 - who has tensors has imported it

        there = torch.cat(
            [there.to(own.dtype), own[len(there) :].cpu()]
        )  # the task heard less: later positions never trained
    if there.shape != own.shape:
        raise ValueError(f"{folder}: {name} is {tuple(there.shape)}, the encoder has {tuple(own.shape)}")
    return there.to(own.dtype)
