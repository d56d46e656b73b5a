"""The agent process: runs what `assembly.py` built from the settings, until told to stop.

`python -m runtime.agent CONFIG --gate-fd N`, started by the supervisor. It has no right to write an actuator topic: it
proposes, the gate acts. SIGTERM ends the tick first and then puts everything away, so that nothing acknowledged is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from runtime.config.loader import Loaded, load
from runtime.gate.client import GateGone
from runtime.process import child, log
from sensors.base import Sensor

if TYPE_CHECKING:
    from runtime.agent.components import Components

_LOG = structlog.get_logger(__name__)
DECODERS = 2
"""Threads that decode pictures and resample sound."""
OUTBOX_POLL_S = 0.5


def main(arguments: list[str] | None = None) -> int:
    """The process's entry; returns its exit code."""
    parser = argparse.ArgumentParser(prog="runtime.agent", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--gate-fd", type=int, required=True)
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args(arguments)
    child.set_process_title("agent")
    gc.disable()  # until everything is built: nothing of it is garbage, and looking costs a fifth of the imports
    loaded = load(given.config)
    log.configure(verbose=given.verbose, secrets=loaded.secrets)
    end = socket.socket(fileno=given.gate_fd)
    end.setblocking(False)
    end.set_inheritable(False)  # a copy in any other process would hide the end-of-file
    code = 0
    try:
        asyncio.run(run(loaded, end, given.fault))
    except* GateGone as gone:
        _LOG.error("agent.gate_gone", reason=str(gone.exceptions[0]))
        code = 1
    return code


async def run(loaded: Loaded, end: socket.socket, faults: list[str]) -> None:
    """Build everything, run until SIGTERM, and put everything away in order."""
    from runtime.agent.build import assemble  # noqa: PLC0415 - torch and the models' code: seconds, without the collector

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as decoders:
        parts = await assemble(loaded, end, faults, decoders)
        _settle_memory()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(job, name=name) for name, job in jobs(parts).items()]
                group.create_task(_end_when(stopping, tasks, parts), name="stop")
        finally:
            await asyncio.to_thread(parts.put_away)


def jobs(parts: Components) -> dict[str, Coroutine[Any, Any, None]]:
    """Every task of the agent by name."""
    running: dict[str, Coroutine[Any, Any, None]] = {
        "control mqtt": parts.control.run(),
        "media mqtt": parts.media.run(),
        "gate": parts.ticker.gate.listen(),
        "intake": parts.intake.run(),
        "tick": parts.ticker.run(),
        "swap": parts.swap.run(),
        "requests": parts.requests.run(),
        "health": parts.reporter.health(parts.health),
        "outbox": _forward(parts),
    }
    for name, sensor in parts.sensors.items():
        if isinstance(sensor, Sensor):
            running[f"sensor {name}"] = _sense(parts, sensor)
    return running | parts.jobs


async def _sense(parts: Components, sensor: Sensor) -> None:
    """One sensor that runs by itself; its losses and recoveries are events."""

    def lost(reason: str) -> None:
        parts.reporter.event("sensor_lost", {"stream": sensor.name, "reason": reason})

    def recovered() -> None:
        parts.reporter.event("sensor_recovered", {"stream": sensor.name})

    await sensor.run(parts.inbox.put, lost, recovered)


async def _forward(parts: Components) -> None:
    """Events of the learner, which has no connection of its own."""
    while True:
        for event in await asyncio.to_thread(parts.outbox.collect):
            if event.kind == "source_quarantined":
                parts.sources.report(event.fields)  # carries it out, and says so
            else:
                parts.reporter.event(event.kind, event.fields)
            event.acknowledge()
        await asyncio.sleep(OUTBOX_POLL_S)


async def _end_when(stopping: asyncio.Event, tasks: list[asyncio.Task[Any]], parts: Components) -> None:
    await stopping.wait()
    parts.watch.ending = True
    for task in tasks:
        task.cancel()


def _settle_memory() -> None:
    """What was built lives as long as the process: the collector need not walk it at every full pass (30 ms with torch).

    Nor once before: that takes half a second of the start, and finds next to nothing.
    """
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    sys.exit(main())
