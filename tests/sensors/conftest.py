"""Fixtures of the sensor tests: running sensors, free ports, servers that end with the test."""

from __future__ import annotations

import asyncio
import contextlib
import select
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from free_ports import free_port
from sensing import Running, Start, Witness

from sensors.base import Sensor


@pytest.fixture
def running() -> Running:
    """`async with running(sensor) as witness`: the sensor runs; leaving cancels it, which must take under a second."""

    @contextlib.asynccontextmanager
    async def run(sensor: Sensor) -> AsyncIterator[Witness]:
        witness = Witness()
        task = asyncio.create_task(sensor.run(witness.publish, witness.on_lost, witness.on_recovered), name="sensor")
        try:
            yield witness
        finally:
            start_s = time.monotonic()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert time.monotonic() - start_s < 1.0

    return run


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program and waits for its line `ready`; all are killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*command: str | Path, ready: bool = True, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE if ready else subprocess.DEVNULL, env=env
        )
        started.append(process)
        if ready:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 20.0)[0], f"{command} did not get ready"
            assert process.stdout.readline() == b"ready\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
