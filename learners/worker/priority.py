"""Makes a process give way: the lowest CPU priority, few threads, a name, and an end with its parent. Linux only.

SCHED_IDLE runs only when nobody else wants the core; where the kernel refuses it, nice 19 is the next best.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Literal

import setproctitle
import torch

_PR_SET_PDEATHSIG = 1


Priority = Literal["idle", "nice", "normal"]


def lower_priority(title: str, threads: int, priority: Priority = "idle") -> Priority:
    """Take a name, a priority and `threads` threads for torch; returns which priority it became."""
    setproctitle.setproctitle(title)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # denormals made one model 14 times slower
    if priority == "idle":
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except PermissionError:
            priority = "nice"
    if priority == "nice":
        os.setpriority(os.PRIO_PROCESS, 0, 19)  # whatever it was started with
    return priority


def die_with_parent(parent: int) -> bool:
    """Be killed when the parent ends; False when it has already ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


def background_stream(device: torch.device, memory_fraction: float) -> torch.cuda.Stream | None:
    """On a GPU, a stream of the lowest priority, and at most a share of its memory; nothing on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.set_per_process_memory_fraction(memory_fraction, device)
    lowest, _highest = 0, -1  # CUDA: larger numbers give way
    return torch.cuda.Stream(device, priority=lowest)  # type: ignore[no-untyped-call] # torch ships it so
