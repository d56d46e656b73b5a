"""Small policies and batches for the tests of the learning algorithms."""

from __future__ import annotations

import torch
from torch import Tensor

from actuators.actions import ActionSpace, Choice, Continuous
from learners.batch import Batch
from learners.model.features import Features
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec

CHOICE = Choice("head", ("left", "stay", "right"))
OTHER = Choice("lamp", ("OFF", "ON"))
ARM = Continuous("arm", (-1.0, 0.0), (1.0, 4.0))


def seen(x_BW: Tensor, name: str = "joints") -> Features:
    rows = len(x_BW)
    return Features(
        {name: x_BW.float().reshape(rows, 1, 1, -1)}, torch.ones(rows, 1, 1, dtype=torch.bool), torch.zeros(rows, 1, 1)
    )


def plain(
    *actuators: Choice | Continuous, width: int = 3, gamma: float = 0.9, algorithm: str = "auto", seed: int = 0
) -> Policy:
    torch.manual_seed(seed)
    spec = PolicySpec(
        (StreamSpec("joints", "telemetry", 1, width),),
        ActionSpace(actuators),
        history=1,
        gamma=gamma,
        algorithm=algorithm,  # type: ignore[arg-type]
    )
    return Policy(spec).eval()


def random_batch(policy: Policy, size: int, generator: torch.Generator, *, taught: bool = False) -> Batch:
    width = policy.spec.streams[0].width
    actions: dict[str, Tensor] = {
        a.name: torch.randint(len(a.choices), (size,), generator=generator) for a in policy.spec.actions.choices
    }
    for a in policy.spec.actions.continuous:
        low, high = torch.tensor(a.low), torch.tensor(a.high)
        actions[a.name] = low + (high - low) * torch.rand(size, len(a.low), generator=generator)
    marks = {name: torch.arange(size) % 2 == 0 for name in actions} if taught else {}
    return Batch(
        seen(torch.randn(size, width, generator=generator)),
        seen(torch.randn(size, width, generator=generator)),
        actions,
        torch.randn(size, generator=generator),
        torch.full((size,), policy.spec.gamma),
        taught=marks,
    )
