"""Name the settings of torch that an environment may change, and draw what its own random numbers begin with.

An environment that computes in torch sets a default device, switches gradients off, or seeds the global generator. The training has its
own values of all of these. An environment may also draw from the global generators of Python, numpy and torch. They begin with the seed of
the training, and with another one after each save, so that such an environment is repeated and resumed exactly.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from actuators.sim.foreign_code import FOREIGN, ForeignCode, ProcessSetting


def _device() -> torch.device | None:
    """Return the default device; None for the CPU, which is in force without a setting."""
    device = torch.empty(0).device
    return None if device.type == "cpu" else device


SETTINGS = (
    ProcessSetting("torch's default device", _device, torch.set_default_device),
    ProcessSetting("torch's default type", torch.get_default_dtype, torch.set_default_dtype),
    ProcessSetting("torch's gradients", torch.is_grad_enabled, torch.set_grad_enabled),
    ProcessSetting("torch's threads", torch.get_num_threads, torch.set_num_threads),
    ProcessSetting(
        "torch's choice of algorithms", torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms
    ),
)


def guard_torch(code: ForeignCode = FOREIGN) -> None:
    """Let the calls of environments leave torch as it is."""
    names = {each.name for each in code.settings}
    code.settings += [each for each in SETTINGS if each.name not in names]


class OwnRandomNumbers:
    """The random numbers of a training; the global generators are of the environments.

    Args:
        seed: of both.
    """

    def __init__(self, seed: int) -> None:
        self.state = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Let torch draw from the state of the training meanwhile."""
        theirs = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(theirs)


def seed_environments(seed: int) -> None:
    """Seed the global generators, from which environments draw; `seed` is 0 or more."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that environments draw from
    torch.manual_seed(seed)
