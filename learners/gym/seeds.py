"""Train several seeds at once, each in a process of its own with one thread (`reflexd train --seeds 0-9`)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

PART = re.compile(r"(\d+)(?:-(\d+))?")
MOST = 1_000
"""Seeds of one call."""


def parse(text: str) -> list[int]:
    """Return the seeds of a text such as `0-4,7`, in order and each once.

    Raises:
        ValueError: the text is no list of seeds, or has more than `MOST`.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = PART.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"{text!r} is no list of seeds; write 0-9 or 0,3,7")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or last - first >= MOST:
            raise ValueError(f"{part.strip()!r} is no range of at most {MOST} seeds; write the lower seed first")
        seeds += range(first, last + 1)
    if len(set(seeds)) > MOST:
        raise ValueError(f"{len(set(seeds))} seeds are more than {MOST}")
    return sorted(set(seeds))


def train_seeds(
    seeds: Sequence[int],
    command: Callable[[int], list[str]],
    report: Callable[[int, int, str], None],
    workers: int | None = None,
) -> list[int]:
    """Run one process for each seed, at most one on each core; return the seeds that failed.

    Args:
        seeds: to train.
        command: the arguments of a seed's process.
        report: called after each with the seed, its exit code and the last line of its output.
        workers: processes at once; default: the cores that this process may use.
    """
    environment, failed = os.environ | {"OMP_NUM_THREADS": "1"}, list[int]()

    def run(seed: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - our own program
            command(seed), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )

    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        started = {pool.submit(run, seed): seed for seed in seeds}
        try:
            for done in as_completed(started):
                seed, code = started[done], done.result().returncode
                failed += [seed] if code else []
                report(seed, code, (done.result().stdout.strip().splitlines() or [""])[-1])
        except KeyboardInterrupt:  # the processes of the same terminal end by themselves
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(failed)
