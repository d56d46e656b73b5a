"""Train several seeds at once, each in a process with one thread (`reflexd train --seeds 0-9`)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PART = re.compile(r"(\d+)(?:-(\d+))?")
MOST = 1_000
"""Seeds of one call."""
HIGHEST = 2**31 - 1
"""The highest seed that numpy, torch and gymnasium all accept."""
POLL_S = 0.05
GRACE_S = 5.0
"""Time between SIGTERM and SIGKILL of a process."""
TAIL_BYTES = 4_096
CANNOT_START = 127
"""Exit code, as of a shell, of a process that did not start."""


def parse(text: str) -> list[int]:
    """Return the seeds of a text such as `0-4,7`, in order and each once.

    Raises:
        ValueError: the text is not a list of seeds, or has more than `MOST`.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = PART.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"{text!r} is not a list of seeds; write 0-9 or 0,3,7")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or last - first >= MOST:
            raise ValueError(f"{part.strip()!r} is not a range of at most {MOST} seeds; write the lower seed first")
        if last > HIGHEST:
            raise ValueError(f"seeds: {last} is more than {HIGHEST}")
        seeds += range(first, last + 1)
    if len(set(seeds)) > MOST:
        raise ValueError(f"{len(set(seeds))} seeds are more than {MOST}")
    return sorted(set(seeds))


def train_seeds(
    seeds: Sequence[int],
    command: Callable[[int], list[str]],
    log: Callable[[int], Path],
    report: Callable[[int, int, str], None],
    workers: int | None = None,
) -> list[int]:
    """Run one process for each seed, at most one on each core; return the seeds that failed.

    SIGTERM and SIGINT end all processes first. Only the main thread may call this, because it handles these signals.

    Args:
        seeds: to train.
        command: the arguments of a seed's process.
        log: the file for the output of a seed's process; replaced.
        report: called after each with the seed, its exit code and the last line of its output.
        workers: processes at once; default: the cores that this process may use.

    Raises:
        SystemExit: SIGTERM arrived.
        KeyboardInterrupt: SIGINT arrived.
    """
    waiting, running, failed = list(seeds), dict[int, subprocess.Popen[bytes]](), list[int]()
    most = workers or len(os.sched_getaffinity(0))

    def ended(seed: int, code: int, line: str) -> None:
        failed.extend([seed] if code else [])
        report(seed, code, line)

    def collect() -> None:
        for seed, process in list(running.items()):
            if (code := process.poll()) is not None:
                del running[seed]
                ended(seed, code, last_line(log(seed)))

    with stop_signals() as received:
        try:
            while (waiting or running) and not received:
                while waiting and len(running) < most:
                    seed = waiting.pop(0)
                    try:
                        running[seed] = _start(command(seed), log(seed))
                    except OSError as error:
                        ended(seed, CANNOT_START, f"{error.filename or command(seed)[0]}: {error.strerror}")
                collect()
                time.sleep(POLL_S if running else 0)
        finally:
            _end(list(running.values()))
        collect()
    end_by(received)
    return sorted(failed)


def end_by(received: Sequence[int]) -> None:
    """End this process as the signals ask that it received; without one, return.

    Raises:
        SystemExit: SIGTERM arrived.
        KeyboardInterrupt: SIGINT arrived.
    """
    if signal.SIGTERM in received:
        raise SystemExit(128 + signal.SIGTERM)
    if received:
        raise KeyboardInterrupt


def last_line(path: Path) -> str:
    """Return the last line of a file, or of its last `TAIL_BYTES`; what is not UTF-8 is replaced.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        text = file.read(TAIL_BYTES).decode(errors="replace")
    return (text.strip().splitlines() or [""])[-1]


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Give a list that contains SIGTERM and SIGINT once they arrive; they have no other effect meanwhile."""
    received: list[int] = []
    former = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603 - our own program
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=output, stderr=subprocess.STDOUT
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Terminate the processes; kill those that still run after `GRACE_S`."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
