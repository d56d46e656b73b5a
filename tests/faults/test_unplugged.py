"""A camera that is unplugged and plugged in again, and a file of the gate that is damaged while nothing runs."""

from __future__ import annotations

import asyncio
import contextlib
import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from faults.harness import under_test
from free_ports import free_port
from sensing import Witness

from fakes import Contention, Mosquitto, eventually
from sensors.config import CameraSettings
from sensors.drivers import opencv
from sensors.streams.camera import CameraSensor

SERVER = Path(__file__).parent.parent / "sensors" / "streams" / "mjpeg_server.py"


def plugged(port: int, picture: Path) -> subprocess.Popen[bytes]:
    """A network camera that is switched on."""
    server = subprocess.Popen([sys.executable, str(SERVER), str(port), "20", str(picture)], stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert select.select([server.stdout], [], [], 60.0)[0]
    assert server.stdout.readline() == b"ready\n"
    return server


def unplug(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()
    assert server.stdout is not None
    server.stdout.close()


async def test_an_unplugged_camera_is_lost_at_once_and_found_again(tmp_path: Path) -> None:
    picture = tmp_path / "grey.jpg"
    picture.write_bytes(opencv.encode(np.full((48, 64, 3), 128, np.uint8)))
    port, witness = free_port(), Witness()
    sensor = CameraSensor("front", CameraSettings(kind="camera", source=f"http://127.0.0.1:{port}/", rate_hz=20))
    server = plugged(port, picture)
    task = asyncio.create_task(sensor.run(witness.publish, witness.on_lost, witness.on_recovered))
    try:
        await witness.until(lambda: len(witness.readings) >= 10 and witness.well)
        before, contention = len(witness.lost), Contention()  # a busy machine may report a slow start
        out_s = time.monotonic()
        unplug(server)
        await witness.until(lambda: len(witness.lost) > before)
        (lost_at_s, reason), waited_s = witness.lost[before], contention.s
        server = plugged(port, picture)
        in_s = time.monotonic()
        await witness.until(lambda: len(witness.recovered) > before)
        lost_s, back_s = lost_at_s - out_s, witness.recovered[before] - in_s
        print(f"camera unplugged: {reason!r} after {lost_s:.2f} s; back {back_s:.2f} s after it was plugged in")
        assert lost_s <= 1.0 + waited_s
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        unplug(server)


@pytest.mark.parametrize("content", [b"{", b'{"stopped": "perhaps"}'])
async def test_a_damaged_latch_counts_as_stopped(tmp_path: Path, broker: Mosquitto, content: bytes) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/latches.json").write_bytes(content)
    begun_s = time.monotonic()
    async with under_test(tmp_path, broker) as (_, device):
        await eventually(lambda: bool(device.statuses) and device.statuses[-1]["state"] == "stopped", "stopped", 60)
        safe_s = await device.safe_after(begun_s)
        print(f"damaged latches.json: safe {safe_s:.1f} s after the start; status {device.statuses[-1]}")
        assert device.moves() == 0
