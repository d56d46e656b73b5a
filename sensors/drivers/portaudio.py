"""Capture sound from a PortAudio device, or play a sound file in real time. The only importer of sounddevice.

Runs under `sensors.drivers.process`. PortAudio's callback writes into a ring without locks, and a loop empties it. PortAudio
lists devices once per process, so the next driver process finds a microphone that was plugged in later. Samples have the time at which
PortAudio's clock says that they were converted, so that neither its buffers nor a busy machine make them younger.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.base import SensorLost
from sensors.drivers.messages import MessageSender

BLOCK_S = 0.02
"""Length of one message of samples."""
MAX_LATENCY_S = 2.0
"""Samples that PortAudio gives as older than this, or as from the future, count as of their arrival: not every driver knows the time."""
IN_MEMORY = 67_108_864
"""Bytes of a sound file up to which it is read at once, so that a header that lies can be corrected."""


@dataclass(frozen=True, slots=True)
class RecordJob:
    """Record from a PortAudio device by number or name, None for the default, at `rate_hz` where it can."""

    device: int | str | None
    rate_hz: int


@dataclass(frozen=True, slots=True)
class PlayJob:
    """Play a sound file in real time."""

    path: str
    loop: bool


class SampleRing:
    """A ring of samples for one producer and one consumer, without a lock: each end owns one counter.

    When the consumer is a whole ring behind, the oldest samples are overwritten and counted as lost.

    Args:
        capacity: samples.
        rate_hz: samples a second.
    """

    def __init__(self, capacity: int, rate_hz: int) -> None:
        self._samples = np.zeros(capacity, np.float32)
        self._rate_hz = rate_hz
        self._written = 0
        self._read = 0
        self._captured = (0, 0.0)
        """A count of samples written, and when the last of these was captured; one value, so that both are of one write."""
        self.lost = 0

    def write(self, samples: NDArray[np.float32], captured_s: float) -> None:
        """Append float32 mono samples, the last of them captured at `captured_s` in monotonic seconds (producer only)."""
        size = len(self._samples)
        samples = samples[-size:]
        at = self._written % size
        head = min(len(samples), size - at)
        self._samples[at : at + head] = samples[:head]
        self._samples[: len(samples) - head] = samples[head:]
        self._written += len(samples)
        self._captured = (self._written, captured_s)

    @property
    def captured_s(self) -> float:
        """When the last sample that was taken was captured, in monotonic seconds (consumer only)."""
        count, captured_s = self._captured
        return captured_s + (self._read - count) / self._rate_hz

    def take(self) -> NDArray[np.float32]:
        """Return all samples not yet taken, oldest first (consumer only)."""
        size = len(self._samples)
        end = self._written
        start = max(self._read, end - size)
        self.lost += start - self._read
        self._read = end
        return self._samples[np.arange(start, end) % size]


def load() -> ModuleType:
    """Import sounddevice, which loads PortAudio.

    Raises:
        SensorLost: it or PortAudio is missing; the message says what to install.
    """
    try:
        import sounddevice  # noqa: PLC0415 - it loads PortAudio, which only a microphone needs
    except ImportError as error:
        raise SensorLost(f"sounddevice is not installed ({error}); pip install 'reflexd[microphone]'") from error
    except OSError as error:
        raise SensorLost(f"PortAudio cannot be loaded ({error}); on Debian: apt-get install libportaudio2") from error
    module: ModuleType = sounddevice
    return module


def record(job: RecordJob, outbox: MessageSender, stop: threading.Event) -> None:
    """Deliver the samples of the device until `stop` is set.

    Raises:
        SensorLost: no such device, it cannot be opened, or the stream stopped.
    """
    sounddevice = load()
    troubles: list[str] = []
    try:
        rate_hz = _rate(sounddevice, job)
        ring = SampleRing(4 * max(rate_hz, 192_000), rate_hz)

        def on_samples(data: Any, frames: int, times: Any, status: Any) -> None:
            age_s = times.currentTime - (times.inputBufferAdcTime + frames / rate_hz)
            ring.write(data[:, 0], time.monotonic() - (age_s if 0.0 < age_s <= MAX_LATENCY_S else 0.0))
            if status and len(troubles) < 100:
                troubles.append("device_overflow")

        stream = sounddevice.InputStream(
            device=job.device, channels=1, samplerate=rate_hz, dtype="float32", latency=0.05, callback=on_samples
        )
        with stream:
            _empty(stream, ring, rate_hz, outbox, troubles, stop)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise SensorLost(f"the sound device cannot be used: {error}") from error


def _rate(sounddevice: ModuleType, job: RecordJob) -> int:
    """Return the requested rate in Hz where the device supports it, else the device's own."""
    try:
        sounddevice.check_input_settings(device=job.device, channels=1, samplerate=job.rate_hz)
    except sounddevice.PortAudioError:
        return int(sounddevice.query_devices(job.device, "input")["default_samplerate"])
    return job.rate_hz


def _empty(
    stream: Any, ring: SampleRing, rate_hz: int, outbox: MessageSender, troubles: list[str], stop: threading.Event
) -> None:
    while not stop.wait(BLOCK_S / 2):
        samples = ring.take()
        if len(samples):
            outbox.sound(ring.captured_s, rate_hz, samples)
        elif not stream.active:
            raise SensorLost("the sound device stopped")
        while troubles:
            outbox.drop(troubles.pop())
        if ring.lost:
            ring.lost = 0
            outbox.drop("ring_overflow")


def play(job: PlayJob, outbox: MessageSender, stop: threading.Event) -> None:
    """Deliver a file's sound in real time, its channels averaged; return at its end.

    Raises:
        SensorLost: it cannot be read.
    """
    import soundfile  # noqa: PLC0415 - only a sound file needs it

    from sensors.drivers.sound_files import open_sound, sound_error  # noqa: PLC0415 - as above

    path = Path(job.path)
    if not path.is_file():
        raise SensorLost(f"{job.path}: no such file")
    try:
        is_small = path.stat().st_size <= IN_MEMORY  # a larger one is read as its header says
        with open_sound(path.read_bytes()) if is_small else soundfile.SoundFile(job.path) as file:
            _play(file, job, outbox, stop)
    except soundfile.SoundFileError as error:
        raise SensorLost(f"{job.path} cannot be read as sound: {sound_error(error)}") from error
    except OSError as error:
        raise SensorLost(f"{job.path} cannot be read: {error.strerror}") from error


def _play(file: Any, job: PlayJob, outbox: MessageSender, stop: threading.Event) -> None:
    from sensors.drivers.mono_mix import ChannelMixer  # noqa: PLC0415 - only a sound file needs it

    rate_hz, mixer = int(file.samplerate), ChannelMixer(int(file.channels))
    block = max(1, round(rate_hz * BLOCK_S))
    start_s, sent = time.monotonic(), 0
    while not stop.is_set():
        samples = mixer.mix(file.read(block, dtype="float32", always_2d=True))
        if not len(samples):
            if not job.loop or sent == 0:
                return
            file.seek(0)
            continue
        sent += len(samples)
        due_s = start_s + sent / rate_hz  # a microphone delivers a block after its last sample
        stop.wait(max(0.0, due_s - time.monotonic()))
        outbox.sound(time.monotonic(), rate_hz, samples)


@dataclass(frozen=True, slots=True)
class InputDevice:
    """One microphone as PortAudio lists it."""

    number: int
    name: str
    channels: int
    rate_hz: float


def inputs() -> list[InputDevice]:
    """List the devices that can record.

    Raises:
        SensorLost: sounddevice or PortAudio is missing.
    """
    return [
        InputDevice(number, entry["name"], entry["max_input_channels"], entry["default_samplerate"])
        for number, entry in enumerate(load().query_devices())
        if entry["max_input_channels"] > 0
    ]
