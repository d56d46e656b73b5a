"""How well the time of a capture is known: `python tests/benchmarks/bench_capture_time.py [SECONDS] [--seed N]` (default 20).

A flash and a click each second, in a video and a sound file, over a topic, and (the flash) over RTSP. Prints the error of the age
that a tick would see: median and worst, in ms. A file has no absolute time: its error is relative to its first flash or click.
Topics have a simulated network: 3 ms, exponential 8 ms, and stalls of up to a second for 1 % of the messages. The last rows are
an hour in simulated time with clocks that are off by 200 ppm. The exit code is 1 where these exceed 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from free_ports import free_port  # noqa: E402 - after the path

from runtime.control.sender_stamps import SenderClock, SenderStamps  # noqa: E402
from runtime.mqtt import Message  # noqa: E402
from sensors.base import Sensor  # noqa: E402
from sensors.config import CameraSettings, MicrophoneSettings  # noqa: E402
from sensors.drivers.opencv import SourceClock  # noqa: E402
from sensors.readings import Frame, Reading, Sound  # noqa: E402
from sensors.streams.camera import CameraSensor, TopicCamera  # noqa: E402
from sensors.streams.microphone import MicrophoneSensor, TopicMicrophone  # noqa: E402

FPS, RATE_HZ, CHUNK = 30, 16_000, 1_600
LIMIT_MS = 20.0
UNIX_S = 1.7e9


def is_flash(reading: Frame) -> bool:
    """Whether the picture is white."""
    return float(reading.image.mean()) > 128


def click_s(reading: Sound, after_s: float) -> float | None:
    """Monotonic time of the first click later than `after_s` in a window."""
    loud = np.flatnonzero(np.abs(reading.samples) > 0.5)
    times = reading.stamp_s - (len(reading.samples) - loud) / reading.rate_hz
    later = times[times > after_s]
    return float(later[0]) if len(later) else None


async def readings_of(sensor: Sensor, seconds: float) -> list[Reading]:
    """Run a sensor for some seconds."""
    found: list[Reading] = []
    running = asyncio.create_task(sensor.run(found.append, lambda _reason: None, lambda: None))
    await asyncio.sleep(seconds)
    running.cancel()
    await asyncio.wait([running])
    return found


def onsets(found: list[Reading]) -> list[float]:
    """The times of flashes or clicks."""
    times: list[float] = []
    for reading in found:
        at_s = None
        if isinstance(reading, Frame) and is_flash(reading):
            at_s = reading.stamp_s
        elif isinstance(reading, Sound):
            at_s = click_s(reading, times[-1] + 0.5 if times else -np.inf)
        if at_s is not None and (not times or at_s > times[-1] + 0.5):
            times.append(at_s)
    return times


def relative_ms(times: list[float]) -> NDArray[np.float64]:
    """Errors against the first onset and whole seconds, in ms."""
    since_s = np.array(times) - (times[0] if times else 0.0)
    return 1e3 * (since_s - np.round(since_s))


def flash_file(folder: Path, seconds: int) -> Path:
    """A video with one white frame a second."""
    path = folder / "flash.mp4"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), float(FPS), (160, 120))
    for number in range(seconds * FPS):
        writer.write(np.full((120, 160, 3), 255 if number % FPS == 0 else 0, np.uint8))
    writer.release()
    return path


def clicks(seconds: int) -> NDArray[np.int16]:
    """Samples with one click a second."""
    samples = np.zeros(seconds * RATE_HZ, np.int16)
    samples[RATE_HZ // 2 :: RATE_HZ] = 30_000
    return samples


def click_file(folder: Path, seconds: int) -> Path:
    """The same as a file."""
    path = folder / "click.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(clicks(seconds).tobytes())
    return path


async def files(folder: Path, seconds: int) -> dict[str, NDArray[np.float64]]:
    """Play both files."""
    camera = CameraSettings(kind="camera", source=f"file:{flash_file(folder, seconds + 5)}", rate_hz=float(FPS))
    microphone = MicrophoneSettings(
        kind="microphone", source=f"file:{click_file(folder, seconds + 5)}", window_s=1.0, hop_s=0.1
    )
    seen, received = await asyncio.gather(
        readings_of(CameraSensor("front", camera), seconds), readings_of(MicrophoneSensor("room", microphone), seconds)
    )
    return {"file, flash": relative_ms(onsets(seen)), "file, click": relative_ms(onsets(received))}


def rtsp(port: int, seconds: int) -> NDArray[np.float64] | None:
    """Errors against the server's own times; None where it cannot serve."""
    script = Path(__file__).with_name("rtsp_flashes.py")
    with subprocess.Popen(["/usr/bin/python3", script, str(port)], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            if server.stdout.readline().strip() != "ready":
                return None
            settings = CameraSettings(kind="camera", source=f"rtsp://127.0.0.1:{port}/test", rate_hz=float(FPS))
            seen = onsets(asyncio.run(readings_of(CameraSensor("front", settings), seconds)))
        finally:
            server.kill()
        true_s = np.array([float(line) for line in server.stdout.read().split()])
    return np.array([1e3 * (at_s - true_s[np.abs(true_s - at_s).argmin()]) for at_s in seen[2:]])


def delays(count: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """Seconds on the network of each message."""
    stalled = np.where(chance.random(count) < 0.01, chance.uniform(0, 1, count), 0.0)
    return 0.003 + chance.exponential(0.008, count) + stalled


def topic(stamp: str, clock: str, seconds: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Flash and click over a topic, with the sender's stamps or without."""
    chance = np.random.default_rng(seed)
    settings = CameraSettings.model_validate(
        {"kind": "camera", "source": "topic", "stamp": stamp, "stamp_clock": clock}
    )
    now = [0.0]
    stamps = SenderStamps(settings, lambda: UNIX_S + now[0], lambda: now[0])
    camera = TopicCamera("front", None, 10**6)
    pictures = [cv2.imencode(".jpg", np.full((120, 160, 3), v, np.uint8))[1].tobytes() for v in (0, 255)]
    seen: list[float] = []
    arrived_s = 0.0
    for number, delay_s in enumerate(delays(seconds * 10, chance)):
        true_s = 1_000 + number / 10
        arrived_s = now[0] = max(arrived_s, true_s + delay_s)
        properties = (("captured", str(UNIX_S + true_s)),)
        message = Message("in/front", b"", 0, retain=False, stamp_s=arrived_s, properties=properties)
        reading = camera.decode(pictures[number % 10 == 0], stamps.of(message)[0])
        if is_flash(reading):
            seen.append(1e3 * (reading.stamp_s - true_s))
    microphone = TopicMicrophone("room", None, MicrophoneSettings(kind="microphone", source="topic", window_s=1.0))
    received: list[float] = []
    stamps, last_s, arrived_s, samples = (
        SenderStamps(settings, stamps._wall, stamps._clock),
        -np.inf,
        0.0,
        clicks(seconds),
    )
    for number, delay_s in enumerate(delays(seconds * 10, chance)):
        true_s = 1_000 + (number + 1) / 10
        arrived_s = now[0] = max(arrived_s, true_s + delay_s)
        properties = (("captured", str(UNIX_S + true_s)),)
        message = Message("in/room", b"", 0, retain=False, stamp_s=arrived_s, properties=properties)
        chunk = samples[number * CHUNK : (number + 1) * CHUNK]
        sound = microphone.decode(chunk.tobytes(), stamps.of(message)[0])
        if np.any(chunk) and sound is not None:
            at_s = click_s(sound, last_s + 0.5)
            if at_s is not None:
                last_s = at_s
                received.append(1e3 * (at_s - (1_000.5 + number // 10)))
    name = "arrival" if stamp == "arrival" else f"sender's stamp, {clock} clock"
    return {f"topic, {name}, flash": np.array(seen), f"topic, {name}, click": np.array(received)}


def hour(ppm: float, seed: int) -> dict[str, NDArray[np.float64]]:
    """An hour at 10 Hz with a clock that is off, over a topic and over RTSP; the first minute is not counted."""
    chance = np.random.default_rng(seed)
    sender, source = SenderClock(), SourceClock()
    topic_ms, rtsp_ms = [], []
    arrived_s = 0.0
    for number, delay_s in enumerate(delays(36_000, chance)):
        true_s = 1_000 + number / 10
        own_s = true_s * (1 + ppm * 1e-6)
        topic_ms.append(1e3 * (sender.captured_s(UNIX_S + own_s, true_s + delay_s) - true_s))
        arrived_s = max(arrived_s, true_s + delay_s)  # a stream arrives in order
        rtsp_ms.append(1e3 * (source.stamp_s(own_s, arrived_s) - true_s))
    return {
        f"hour, {ppm:+.0f} ppm, topic": np.array(topic_ms[600:]),
        f"hour, {ppm:+.0f} ppm, RTSP": np.array(rtsp_ms[600:]),
    }


def main() -> int:
    """Measure, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", nargs="?", type=int, default=20, help="flashes and clicks of each source")
    parser.add_argument("--seed", type=int, default=0, help="of the network's delays")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        errors = asyncio.run(files(Path(folder), given.seconds))
    served = rtsp(free_port(), given.seconds)
    if served is not None:
        errors["RTSP, flash"] = served
    for stamp, clock in (("arrival", "shared"), ("property:captured", "shared"), ("property:captured", "own")):
        errors |= topic(stamp, clock, max(given.seconds, 600), given.seed)
    for ppm in (200.0, -200.0):
        errors |= hour(ppm, given.seed)
    table = Table("source", "events", "median ms", "worst ms")
    for name, each_ms in errors.items():
        size_ms = np.abs(each_ms)
        numbers = (f"{np.median(size_ms):.1f}", f"{size_ms.max():.1f}") if len(size_ms) else ("-", "-")
        table.add_row(name, str(len(size_ms)), *numbers)
    Console().print(table)
    return int(any(np.abs(each).max() > LIMIT_MS for name, each in errors.items() if name.startswith("hour")))


if __name__ == "__main__":
    began_s = time.monotonic()
    code = main()
    print(f"{time.monotonic() - began_s:.0f} s")
    sys.exit(code)
