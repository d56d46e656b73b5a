"""A service manager's end of NOTIFY_SOCKET: whatever keeps ticks from completing lets its watchdog starve within the limit."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from faults.harness import Daemon, Device, agent_row, device_on, end_daemon, start_daemon, write_config
from wire_helpers import Manager

from fakes import Contention, Mosquitto, eventually

LIMIT_S = 1.5
"""WatchdogSec= of the unit in this test: food comes every fifth of it."""
ON_ITS_WAY_S = 0.5
"""A tick that was under way at the fault may still bring food; wide, for a busy machine."""


class Meals:
    """When the watchdog was fed, as the manager sees it."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self.reported: list[str] = []
        self.last_s = float("-inf")

    def take(self) -> float:
        """Look at what has come; gives the moment of the last food."""
        new = [line for message in self._manager.got() for line in message.split("\n")]
        self.reported += new
        if "WATCHDOG=1" in new:
            self.last_s = time.monotonic()
        return self.last_s

    async def fed(self) -> None:
        """Until food has come after now."""
        since_s = time.monotonic()
        await eventually(lambda: self.take() > since_s, "food for the watchdog", 60.0)

    async def starved(self) -> None:
        """Until the manager would end the service."""
        await eventually(lambda: time.monotonic() - self.take() > LIMIT_S, "the watchdog starving", 10 * LIMIT_S)


@asynccontextmanager
async def watched(tmp_path: Path, broker: Mosquitto) -> AsyncIterator[tuple[Daemon, Device, Meals]]:
    config = write_config(tmp_path, broker.url)
    config.write_text(config.read_text().replace("max_age_s: 0.5}", "max_age_s: 0.5, required: true}"))
    manager = Manager(str(tmp_path / "notify"))
    with closing(manager.socket):
        async with device_on(broker.port) as device:
            limit = str(int(LIMIT_S * 1e6))
            daemon = start_daemon(tmp_path, config, [agent_row()], NOTIFY_SOCKET=manager.address, WATCHDOG_USEC=limit)
            try:
                yield daemon, device, Meals(manager)
            finally:
                await asyncio.to_thread(end_daemon, daemon)


FAULTS: dict[str, tuple[Callable[[Daemon], None], Callable[[Daemon], None]]] = {
    "the tick stalls": (
        lambda daemon: daemon.agent().send_signal(signal.SIGSTOP),
        lambda daemon: daemon.agent().send_signal(signal.SIGCONT),
    ),
    "the gate hangs": (
        lambda daemon: daemon.process.send_signal(signal.SIGSTOP),
        lambda daemon: daemon.process.send_signal(signal.SIGCONT),
    ),
}


@pytest.mark.parametrize("what", FAULTS)
async def test_the_watchdog_starves_within_its_limit_and_is_fed_again(
    what: str, tmp_path: Path, broker: Mosquitto
) -> None:
    begin, end = FAULTS[what]
    async with watched(tmp_path, broker) as (daemon, device, meals):
        await device.moving()
        await meals.fed()
        await meals.fed()
        begun_s, contention = time.monotonic(), Contention()
        begin(daemon)
        await meals.starved()
        assert meals.last_s - begun_s < ON_ITS_WAY_S + contention.s
        end(daemon)
        await meals.fed()
        await device.moving()
    assert meals.reported.index("READY=1") < meals.reported.index("WATCHDOG=1")
    assert meals.reported.count("READY=1") == 1


async def test_a_missing_required_stream_is_degraded_and_no_reason_to_restart(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with watched(tmp_path, broker) as (daemon, device, meals):
        await device.moving()
        await meals.fed()
        daemon.agent().send_signal(signal.SIGUSR2)  # the stream dies
        await eventually(lambda: device.statuses[-1]["state"] == "degraded", "degraded")
        since_s = time.monotonic()
        while time.monotonic() - since_s < 2 * LIMIT_S:
            await meals.fed()
        assert "joints: no recent data" in device.statuses[-1]["reasons"]


async def test_ready_does_not_wait_for_a_stream_that_is_missing(tmp_path: Path, broker: Mosquitto) -> None:
    config = write_config(tmp_path, broker.url)
    config.write_text(config.read_text().replace("max_age_s: 0.5}", "max_age_s: 0.5, required: true}"))
    manager = Manager(str(tmp_path / "notify"))
    with closing(manager.socket):
        async with device_on(broker.port) as device:
            row, limit = agent_row("--stale", "joints"), str(int(LIMIT_S * 1e6))
            daemon = start_daemon(tmp_path, config, [row], NOTIFY_SOCKET=manager.address, WATCHDOG_USEC=limit)
            try:
                meals = Meals(manager)
                await meals.fed()
                assert "READY=1" in meals.reported
                assert "STATUS=degraded: no recent data from joints" in meals.reported
                await eventually(
                    lambda: "joints: no recent data" in device.statuses[-1]["reasons"], "the reason in the status", 30
                )
            finally:
                await asyncio.to_thread(end_daemon, daemon)
