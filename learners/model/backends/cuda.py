"""Run a module as one CUDA graph, and on a stream of its own. GPUs only."""

# torch.cuda is typed in parts only
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class CudaGraphRun:
    """A module as one CUDA graph for inputs of fixed shapes (torch.cuda.CUDAGraph): one launch a call.

    Another thread may use the GPU during the capture: a version is loaded while the acting one decides.
    """

    def __init__(self, module: nn.Module, example: tuple[Tensor, ...]) -> None:
        device = example[0].device
        self._module = module
        """The graph reads its weights and buffers where they are in memory, so they must live as long as it."""
        self._inputs = tuple(x.clone() for x in example)
        self._graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(side), torch.inference_mode():
            for _ in range(3):  # warm up away from the capture, as documented
                module(*self._inputs)
            side.synchronize()
            # `torch.cuda.graph` would wait for the whole device, empty its caches and refuse calls of other threads
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._output = module(*self._inputs)
            finally:
                self._graph.capture_end()
        side.synchronize()

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


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all work that it was given: calls return before their work ends. A CPU has none to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
