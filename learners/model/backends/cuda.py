"""Run a module as one CUDA graph, and on a stream of its own. GPUs only."""

# torch.cuda is typed in parts only
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class CudaGraphRun:
    """A module as one CUDA graph for inputs of fixed shapes (torch.cuda.CUDAGraph): one launch a call."""

    def __init__(self, module: nn.Module, example: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(x.clone() for x in example)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.inference_mode():  # warm up away from the capture, as documented
            for _ in range(3):
                module(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), torch.inference_mode():
            self._output = module(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Copy the inputs in, replay the graph, return a copy of the output."""
        for held, fresh in zip(self._inputs, inputs, strict=True):
            held.copy_(fresh, non_blocking=True)
        self._graph.replay()
        out: Tensor = self._output.clone()
        return out


def stream_of(device: torch.device) -> Any:
    """Return a context that runs work on a separate stream of a GPU; on a CPU it does nothing."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
