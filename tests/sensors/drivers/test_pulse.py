"""A real PortAudio device without hardware: the monitor of a PulseAudio null sink, through ALSA's pulse plug-in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sensing import Running, Start, Witness, eventually

from fakes import Contention, wait_for
from sensors.codecs.resampling import RATE_HZ
from sensors.config import MicrophoneSettings
from sensors.readings import Sound
from sensors.streams.microphone import MicrophoneSensor

TOOLS = ("pulseaudio", "pactl", "paplay")
pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS))
        or not list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")),
        reason="apt-get install pulseaudio pulseaudio-utils libasound2-plugins",
    ),
]
ALSA = "</usr/share/alsa/alsa.conf>\npcm.!default { type pulse }\nctl.!default { type pulse }\n"


@dataclass
class Room:
    """A sound server of the test's own; its null sink is what the microphone hears."""

    folder: Path
    start: Start
    server: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        self.server = self.start(
            *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--disallow-exit", "--use-pid-file=no"),
            *("--log-level=0", "-L", "module-null-sink sink_name=room rate=48000", "-L", "module-native-protocol-unix"),
            ready=False,
        )

    @property
    def listening(self) -> bool:
        return subprocess.run(["pactl", "info"], check=False, capture_output=True).returncode == 0

    def close(self) -> None:
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def play(self, hz: float) -> subprocess.Popen[bytes]:
        path = self.folder / f"{hz:.0f}.wav"
        samples = 0.5 * np.sin(2 * np.pi * hz * np.arange(20 * 48_000) / 48_000)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(48_000)
            file.writeframes((samples * 32_767).astype("<i2").tobytes())
        return self.start("paplay", "--device=room", path, ready=False)


@pytest.fixture
def room(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    for name in ("PULSE_RUNTIME_PATH", "PULSE_STATE_PATH", "XDG_RUNTIME_DIR", "HOME"):
        folder = tmp_path / name.lower()
        folder.mkdir(mode=0o700)
        monkeypatch.setenv(name, str(folder))
    (tmp_path / "asound.conf").write_text(ALSA)
    monkeypatch.setenv("ALSA_CONFIG_PATH", str(tmp_path / "asound.conf"))
    monkeypatch.setenv("PULSE_SOURCE", "room.monitor")
    room = Room(tmp_path, start)
    room.open()
    return room


def microphone(source: str, **more: object) -> MicrophoneSensor:
    return MicrophoneSensor(
        "room",
        MicrophoneSettings.model_validate(
            {"kind": "microphone", "source": source, "window_s": 0.5, "hop_s": 0.1, **more}
        ),
    )


def receives(witness: Witness, hz: float) -> bool:
    """Whether the newest window is a tone of `hz`."""
    newest = witness.readings[-1] if witness.readings else None
    if not isinstance(newest, Sound) or newest.samples.std() < 0.1:
        return False
    spectrum = np.abs(np.fft.rfft(newest.samples * np.hanning(len(newest.samples))))
    return abs(spectrum.argmax() * RATE_HZ / len(newest.samples) - hz) <= 2.0


@pytest.mark.parametrize(("source", "rate_hz"), [("default", 16_000), ("pulse", 48_000)])
async def test_a_tone_is_captured_and_recognised_by_frequency(
    source: str, rate_hz: int, room: Room, running: Running
) -> None:
    await eventually(lambda: room.listening)
    room.play(440.0)
    async with running(microphone(source, rate_hz=rate_hz)) as witness:
        await witness.until(lambda: receives(witness, 440.0), 60.0)
        seen, contention = len(witness.readings), Contention()
        await witness.until(lambda: len(witness.readings) >= seen + 10)
        stamps = [reading.stamp_s for reading in witness.readings[-10:]]
        assert np.diff(stamps).mean() == pytest.approx(0.1, abs=0.03 + contention.s / 9)


async def test_a_sound_server_that_dies_is_noticed_and_found_again(room: Room, running: Running) -> None:
    await eventually(lambda: room.listening)
    room.play(440.0)
    async with running(microphone("default")) as witness:
        await witness.until(lambda: receives(witness, 440.0) and witness.well, 60.0)
        newest_s = witness.readings[-1].stamp_s
        contention = Contention()
        room.close()
        await witness.until(lambda: not witness.well)
        assert witness.lost[-1][0] - newest_s < 1.0 + contention.s
        room.open()
        await eventually(lambda: room.listening)
        room.play(660.0)
        await witness.until(lambda: receives(witness, 660.0) and witness.well, 60.0)


async def test_a_device_that_does_not_exist_is_reported(room: Room, running: Running) -> None:
    async with running(microphone("no such microphone")) as witness:
        await witness.until(lambda: bool(witness.lost))
        assert "cannot be used" in witness.lost[0][1]


def test_devices_lists_it(room: Room) -> None:
    wait_for(lambda: room.listening, "PulseAudio does not listen")
    look = "from sensors.drivers.device_list import devices; print([m.name for m in devices().microphones])"
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, cwd=root, env=os.environ)
    assert b"'pulse'" in found.stdout
