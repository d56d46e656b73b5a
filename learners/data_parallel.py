"""Divide the batches of a training among workers that hold the same weights (data-parallel training).

`WorkerGroup` is the group of one process, which divides nothing. `TorchWorkers` uses the process group of `torch.distributed`, which
`ray.train` sets up: gloo on processors, NCCL on GPUs. Each worker calls the same methods in the same order.

The gradients of the shares are added, and each share is weighted before by its number of targets over that of the whole batch. So a
share may be smaller than the others, or empty, and the sum is the gradient of the whole batch. The mean of
`DistributedDataParallel` would not be: it gives each share the same weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


class WorkerGroup:
    """The group of one process."""

    rank = 0
    """Number of this worker; the first one decides and writes."""
    size = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this worker: every `size`-th, so that the shares of a sorted batch are alike."""
        return items

    def joined(self, own: list[T]) -> list[T]:
        """Return the results of all items in their order; `own` are those of `share`."""
        return own

    def total(self, value: float) -> float:
        """Return the sum of the values of all workers, in float64."""
        return value

    def of_first(self, value: T) -> T:
        """Return the value of the first worker."""
        return value

    def equalize(self, model: nn.Module) -> None:
        """Give all workers the parameters and buffers of the first one."""

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by the sum over all workers; None remains only where no worker has one."""


class TorchWorkers(WorkerGroup):
    """The workers of the process group that `torch.distributed` has in this process."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        on_gpu = "nccl" in distributed.get_backend()
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this worker: every `size`-th, so that the shares of a sorted batch are alike."""
        return [items[at] for at in range(self.rank, len(items), self.size)]

    def joined(self, own: list[T]) -> list[T]:
        """Return the results of all items in their order; `own` are those of `share`."""
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, own)
        found: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            found[rank :: self.size] = part
        return found

    def total(self, value: float) -> float:
        """Return the sum of the values of all workers, in float64."""
        summed = torch.tensor([value], dtype=torch.float64, device=self._device)
        distributed.all_reduce(summed)
        return float(summed)

    def of_first(self, value: T) -> T:
        """Return the value of the first worker."""
        values: list[Any] = [value if self.rank == 0 else None]
        distributed.broadcast_object_list(values, src=0)
        found: T = values[0]
        return found

    @torch.no_grad()
    def equalize(self, model: nn.Module) -> None:
        """Give all workers the parameters and buffers of the first one."""
        for tensor in (each for each in (*model.parameters(), *model.buffers()) if each.numel()):
            moved = tensor.detach().to(self._device).contiguous()
            distributed.broadcast(moved, src=0)
            tensor.copy_(moved)

    @torch.no_grad()
    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by the sum over all workers; None remains only where no worker has one."""
        has = [parameter.grad is not None for parameter in parameters]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([part.flatten().to(self._device, torch.float32) for part in parts] + [self._flags(has)])
        distributed.all_reduce(flat)
        sums = torch.split(flat[: -len(has)], [part.numel() for part in parts]) if has else ()
        for parameter, part, summed, found in zip(parameters, parts, sums, flat[-len(has) :].tolist(), strict=True):
            parameter.grad = part.copy_(summed.view_as(part)) if found else None

    def _flags(self, has: Sequence[bool]) -> Tensor:
        return torch.tensor(has, dtype=torch.float32, device=self._device)
