"""The wall clock steps an hour forth and back under a running daemon: nothing stops, nothing moves late, and the device stays safe."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from faults.harness import ROOT, Daemon, Device, device_on, end_daemon, start_daemon, write_config

from fakes import Mosquitto, eventually

HOUR_S = 3_600.0
STEPPED = """
import os, time
from pathlib import Path
_file, _true_s, _true_ns = Path(os.environ["CLOCK_OFF_FILE"]), time.time, time.time_ns
time.time = lambda: _true_s() + float(_file.read_text())
time.time_ns = lambda: _true_ns() + int(float(_file.read_text()) * 1e9)
"""
"""Python imports a module of this name first: the daemon and its children read a clock that the test steps."""


@dataclass
class Stepped:
    """A daemon and a device of one machine, with one wall clock."""

    daemon: Daemon
    device: Device
    file: Path

    def step(self, off_s: float, *, device: bool = True) -> None:
        """Set how far the clock is ahead; the device's only if it is on the same machine."""
        draft = self.file.with_suffix(".new")
        draft.write_text(str(off_s))
        draft.replace(self.file)
        if device:
            self.device.clock_off_s = off_s

    async def safe_after_kill_s(self) -> float:
        """Kill the agent; return the seconds until the device has the safe action."""
        begun_s = time.monotonic()
        self.daemon.agent().kill()
        return await self.device.safe_after(begun_s)


@asynccontextmanager
async def stepped(folder: Path, broker: Mosquitto) -> AsyncIterator[Stepped]:
    modules, file = folder / "modules", folder / "off"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(STEPPED)
    file.write_text("0")
    path = os.pathsep.join((str(modules), str(ROOT)))
    async with device_on(broker.port) as device:
        config = write_config(folder, broker.url)
        daemon = start_daemon(folder, config, PYTHONPATH=path, CLOCK_OFF_FILE=str(file))
        try:
            yield Stepped(daemon, device, file)
        finally:
            await asyncio.to_thread(end_daemon, daemon)


def longest_gap_s(device: Device, since_s: float) -> float:
    """Return the longest time without a movement since `since_s`."""
    at = [since_s, *(stamp_s for stamp_s, command in device.done if stamp_s >= since_s and command.policy != "gate")]
    return max(after - before for before, after in itertools.pairwise(at))


async def test_a_clock_that_steps_an_hour_stops_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    async with stepped(tmp_path, broker) as run:
        await run.device.moving()
        begun_s = time.monotonic()
        for off_s in (HOUR_S, -HOUR_S, 0.0):
            run.step(off_s)
            await run.device.moving()
            assert abs(run.device.done[-1][1].stamp_s - time.time() - off_s) < 60, "the daemon's clock has stepped"
        gap_s = longest_gap_s(run.device, begun_s)
        assert not {"disarmed", "agent_lost", "child_restarted"} & {event["type"] for event in run.device.events}
        run.step(-HOUR_S)
        safe_s = await run.safe_after_kill_s()
        await run.device.moving()
    print(f"clock stepped: longest time without a movement {gap_s:.2f} s; killed agent to safe {safe_s * 1e3:.0f} ms")
    assert gap_s < 5
    assert safe_s < 5
    assert "Traceback" not in run.daemon.log.read_text()


async def test_a_hold_is_published_again_with_its_end_by_the_new_clock(tmp_path: Path, broker: Mosquitto) -> None:
    async with stepped(tmp_path, broker) as run:
        await run.device.moving()
        ends: list[float | None] = []
        run.device.connection.subscribe(
            "reflexd/tester/hold/head", lambda message: ends.append(orjson.loads(message.payload)["until"])
        )
        await run.device.connection.publish("reflexd/tester/override/head", b'{"value": "left", "hold_s": 300}')

        def near(off_s: float) -> bool:
            return any(end is not None and abs(end - time.time() - off_s - 300) < 60 for end in ends)

        await eventually(lambda: near(0.0), "the hold")
        run.step(HOUR_S)
        await eventually(lambda: near(HOUR_S), "its end by the new clock")


async def test_a_device_with_another_clock_carries_out_nothing_until_the_clocks_agree(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with stepped(tmp_path, broker) as run:
        await run.device.moving()
        run.step(HOUR_S, device=False)
        await eventually(lambda: run.device.inbox.drops["expired"] > 3, "commands that are dropped")
        moves = run.device.moves()
        await eventually(lambda: run.device.inbox.drops["expired"] > 10, "more of them")
        assert run.device.moves() == moves
        run.step(0.0)
        await run.device.moving()
