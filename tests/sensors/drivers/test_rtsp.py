"""A real RTSP server, frozen, killed and restarted: noticed by frame age, recovered in time, nothing leaked."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import canaries
import pytest
from sensing import Running, Start, children, descriptors, eventually

from fakes import Contention
from sensors.config import CameraSettings
from sensors.streams.camera import CameraSensor

FPS = 15
RATE_HZ = 10
SERVER = Path(__file__).with_name("rtsp_server.py")
PYTHON = "/usr/bin/python3"


def can_serve() -> bool:
    check = (
        "import gi; gi.require_version('GstRtspServer','1.0'); from gi.repository import Gst, GstRtspServer;"
        "Gst.init(None); raise SystemExit(Gst.ElementFactory.find('x264enc') is None)"
    )
    return subprocess.run([PYTHON, "-c", check], check=False, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not can_serve(), reason="apt-get install gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-ugly"),
]


@pytest.fixture
def sensor(port: int) -> CameraSensor:
    return CameraSensor(
        "front",
        CameraSettings(kind="camera", source=f"rtsp://cam:{canaries.RTSP}@127.0.0.1:{port}/test", rate_hz=RATE_HZ),
    )


async def rounds(count: int, sensor: CameraSensor, port: int, start: Start, running: Running) -> list[list[float]]:
    """SIGSTOP, SIGKILL, a new server, `count` times; rows of noticed ms, recovered s, descriptors, driver processes; without waits for a core."""
    server = start(PYTHON, SERVER, str(port), str(FPS))
    others = children()
    rows: list[list[float]] = []
    async with running(sensor) as witness:
        await witness.until(lambda: len(witness.readings) >= 5, 60.0)
        for number in range(1, count + 1):
            enough = len(witness.readings) + 10
            await witness.until(lambda enough=enough: len(witness.readings) >= enough and witness.well)
            rows.append([0.0, 0.0, descriptors(), len(children() - others)])
            contention = Contention()
            server.send_signal(signal.SIGSTOP)
            await witness.until(lambda: not witness.well)
            rows[-1][0] = (witness.lost[-1][0] - witness.readings[-1].stamp_s - contention.s) * 1_000
            finish(server)
            others.discard(server.pid)
            server = start(PYTHON, SERVER, str(port), str(FPS))
            others.add(server.pid)
            up_s, contention = time.monotonic(), Contention()
            await witness.until(lambda up_s=up_s: witness.well and witness.recovered[-1] > up_s, 60.0)
            rows[-1][1] = witness.recovered[-1] - up_s - contention.s
            print("round {}: noticed {:.0f} ms, recovered {:.2f} s, {} descriptors".format(number, *rows[-1][:3]))
    return rows


def finish(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()
    assert server.stdout is not None
    server.stdout.close()


def faults_of(rows: list[list[float]]) -> list[str]:
    """What the rounds have shown to be wrong."""
    held = {
        "the loss is noticed within a period and 250 ms": max(row[0] for row in rows) <= 1_000 / RATE_HZ + 250,
        "it recovers within 5 s": max(row[1] for row in rows) <= 5.0,
        "no round leaves a descriptor open": rows[-1][2] - rows[0][2] < len(rows) - 1,
        "there is one driver process, always": {row[3] for row in rows} == {1},
    }
    return [what for what, so in held.items() if not so]


async def test_frozen_killed_and_restarted_three_times(
    sensor: CameraSensor, port: int, start: Start, running: Running
) -> None:
    assert faults_of(await rounds(3, sensor, port, start, running)) == []


@pytest.mark.slow
async def test_frozen_killed_and_restarted_twenty_times(
    sensor: CameraSensor, port: int, start: Start, running: Running
) -> None:
    assert faults_of(await rounds(20, sensor, port, start, running)) == []


async def test_a_long_freeze_is_survived(sensor: CameraSensor, port: int, start: Start, running: Running) -> None:
    """The server is stopped for so long that its connection is replaced by one that hangs while it opens."""
    server = start(PYTHON, SERVER, str(port), str(FPS))
    async with running(sensor) as witness:
        await witness.until(lambda: len(witness.readings) >= 5, 60.0)
        server.send_signal(signal.SIGSTOP)
        await eventually(lambda: sensor.counts["connections"] == 2)
        server.send_signal(signal.SIGCONT)
        resumed_s, contention = time.monotonic(), Contention()
        await witness.until(lambda: len(witness.recovered) == 1, 60.0)
        assert witness.recovered[0] - resumed_s <= 5.0 + contention.s
    assert len([at_s for at_s, _ in witness.lost if at_s < witness.recovered[0]]) == 1, "reported once"


async def test_a_camera_that_wants_a_password_gets_it_and_no_one_else_does(
    sensor: CameraSensor, port: int, start: Start, running: Running
) -> None:
    """That neither the log of FFmpeg nor the reasons tell it, `canary_watch.py` hears."""
    start(PYTHON, SERVER, str(port), str(FPS), canaries.RTSP)
    async with running(sensor) as witness:
        await witness.until(lambda: len(witness.readings) >= 3, 60.0)
    wrong = f"rtsp://cam:{canaries.INLINE}@127.0.0.1:{port}/test"
    async with running(CameraSensor("front", CameraSettings(kind="camera", source=wrong, rate_hz=RATE_HZ))) as witness:
        await witness.until(lambda: bool(witness.lost), 60.0)
    assert not witness.readings
    assert f"rtsp://127.0.0.1:{port}/test" in witness.lost[0][1]
    assert canaries.received(repr(witness.lost)) is None
