"""Pick the torch device that the settings name, and move the state of a generator to another one."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the first GPU where there is one, else the CPU.

    Raises:
        ValueError: a GPU is named and torch finds none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: torch finds no {name}; write auto or cpu")
    return device


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Put a saved state back; a state of another kind of device seeds the generator, because kinds draw differently.

    Args:
        generator: of any device.
        state: from `get_state` of a generator, perhaps of another kind of device.
    """
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
    else:
        generator.manual_seed(int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:7]))
