"""Run the agent process, which `build.py` builds from the settings, until SIGTERM.

`python -m runtime.agent CONFIG --gate-fd N`, started by the supervisor. It has no right to write an actuator topic: it
proposes, the gate acts. SIGTERM cancels the tasks first and then closes everything, so that nothing acknowledged is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from learners.checkpoints.signing import REFUSED_EXIT, KeyRefused
from runtime.config.loader import LoadedConfig, load
from runtime.deploy.pointer_follower import NoVersionLeft
from runtime.gate.client import GateGone
from runtime.process import child, log

_LOG = structlog.get_logger(__name__)
M_ARENA_MAX = -8
"""As malloc.h of glibc names it."""
DECODERS = 2
"""Threads that decode pictures and resample sound."""


def main(arguments: list[str] | None = None) -> int:
    """Run the process; return its exit code."""
    parser = argparse.ArgumentParser(prog="runtime.agent", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--gate-fd", type=int, required=True)
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args(arguments)
    child.set_process_title("agent")
    _limit_heaps()
    gc.disable()  # until everything is built: it costs a fifth of the imports and finds no garbage
    loaded = load(given.config)
    log.configure(verbose=given.verbose, secrets=loaded.secrets)
    end = socket.socket(fileno=given.gate_fd)
    end.setblocking(False)
    end.set_inheritable(False)  # a copy in any other process would hide the end-of-file
    code = 0
    try:
        asyncio.run(run(loaded, end, given.fault))
    except* GateGone as gone:
        _LOG.error("agent.gate_lost", reason=str(gone.exceptions[0]))
        code = 1
    except* NoVersionLeft as left:
        _LOG.error("agent.no_version_left", version=str(left.exceptions[0]), next="untrained weights after a restart")
        code = 1
    except* KeyRefused as refused:
        _LOG.error("agent.cannot_start", reason=str(refused.exceptions[0]))
        code = REFUSED_EXIT
    return code


async def run(loaded: LoadedConfig, end: socket.socket, faults: list[str]) -> None:
    """Build the agent, run its tasks until SIGTERM, and close everything in order."""
    from runtime.agent.build import build  # noqa: PLC0415 - torch and the models' code: seconds, without the collector
    from runtime.agent.jobs import jobs  # noqa: PLC0415 - imports every component

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as decoders:
        parts = await build(loaded, end, faults, decoders)
        _settle_memory()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(job, name=name) for name, job in jobs(parts).items()]
                group.create_task(_cancel_when(stopping, tasks), name="stop")
        finally:
            await asyncio.to_thread(parts.close, clean=stopping.is_set())


async def _cancel_when(stopping: asyncio.Event, tasks: list[asyncio.Task[Any]]) -> None:
    await stopping.wait()
    for task in tasks:
        task.cancel()


def _limit_heaps() -> None:
    """Share two heaps of the C library among all threads; else each thread has one, with all that it freed (9 MB in the demo)."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def _settle_memory() -> None:
    """Exclude what was built from garbage collection: it lives as long as the process (30 ms a full pass with torch).

    There is no pass before either: it would take half a second of the start and find next to nothing.
    """
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    sys.exit(main())
