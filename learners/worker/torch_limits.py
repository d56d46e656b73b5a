"""Limit what a background process takes from the agent: torch's threads, and a GPU's memory and priority.

The process's scheduling priority is set by who starts it (`runtime.process.child`) and inherited from there.
"""

from __future__ import annotations

import torch


def limit_torch(threads: int) -> None:
    """Let torch use `threads` CPU threads, and flush denormals, which made one model 14 times slower."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def background_stream(device: torch.device, memory_fraction: float) -> torch.cuda.Stream | None:
    """Create a stream of the lowest priority and cap this process's memory on a GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index  # the limit needs a number
    torch.cuda.set_per_process_memory_fraction(memory_fraction, index)
    lowest, _highest = 0, -1  # CUDA: larger numbers yield
    stream = torch.cuda.Stream(index, priority=lowest)  # type: ignore[no-untyped-call] # torch ships it so
    stream.wait_stream(torch.cuda.current_stream(index))  # what was made until now was made on another stream
    return stream
