"""Pick the torch device that the settings name."""

from __future__ import annotations

import torch


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
