"""Processor time of the machine and of a benchmark with its children: what is left over is what other programs took."""

from __future__ import annotations

import contextlib

import psutil


def busy_s() -> float:
    """Return the processor seconds that the machine spent on anything."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def ours_s() -> float:
    """Return the processor seconds of this program, its broker and the daemon, with their ended children."""
    total = sum(psutil.Process().cpu_times()[:4])
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return float(total)
