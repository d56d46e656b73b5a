"""Adam (Kingma and Ba 2015) in one fused call, with a state of flat tensors.

The mathematics and the kernel are those of torch (`torch.optim.Adam(fused=True)`). Hooks, profiling and graph guards are
omitted, because they took longer than the step of such small networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EPS = 1e-8


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that are trained alike."""

    parameters: Sequence[nn.Parameter]
    rate: float
    beta1: float = 0.9


class Adam:
    """Steps every parameter of its groups that has a gradient; the second moment decays with 0.999."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = [group for group in groups if group.parameters]
        self._first = [[torch.zeros_like(p) for p in group.parameters] for group in self.groups]
        self._second = [[torch.zeros_like(p) for p in group.parameters] for group in self.groups]
        self._steps = [[torch.zeros((), device=p.device) for p in group.parameters] for group in self.groups]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for group, *lists in zip(self.groups, self._first, self._second, self._steps, strict=True):
            gradients = [p.grad for p in group.parameters if p.grad is not None]
            if not gradients:
                continue
            used = [i for i, p in enumerate(group.parameters) if p.grad is not None]
            parameters: list[Tensor] = [group.parameters[i] for i in used]
            first, second, steps = ([tensors[i] for i in used] for tensors in lists)
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                parameters,
                gradients,
                first,
                second,
                [],
                steps,
                lr=group.rate,
                beta1=group.beta1,
                beta2=0.999,
                weight_decay=0.0,
                eps=EPS,
                amsgrad=False,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Return moments and step counts, as `kind.group.index`."""
        kinds = {"first": self._first, "second": self._second, "step": self._steps}
        return {
            f"{kind}.{g}.{i}": tensor
            for kind, groups in kinds.items()
            for g, tensors in enumerate(groups)
            for i, tensor in enumerate(tensors)
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave, for the same parameters.

        Raises:
            KeyError: a tensor is missing.
        """
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
