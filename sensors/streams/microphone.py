"""Microphones: a PortAudio device, a sound file in real time, or 16-bit PCM on a topic; always 16 kHz mono windows.

A driver process reads devices and files (`sensors.drivers.portaudio`), and a watchdog judges them by age. Samples of any rate
become windows in `sensors/codecs/resampling.py`. Every `hop_s` the sensor publishes the last `window_s`, which begins
with silence until enough samples came. Does not distinguish speech from noise.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sensors.base import PayloadRefused
from sensors.codecs.resampling import RATE_HZ, SoundWindow, check_scale, pcm
from sensors.config import MicrophoneSettings
from sensors.drivers.messages import DriverMessage
from sensors.drivers.portaudio import BLOCK_S, PlayJob, RecordJob
from sensors.drivers.process import Job
from sensors.drivers.sensor import DriverSensor
from sensors.drivers.watchdog import Absent, Limits
from sensors.readings import Sound

LOST_S = 0.1
"""PCM payloads that stay later than this are late because samples were lost; the loss becomes silence."""
SETTLE_S = 0.5
"""How long payloads must stay late: after a stall, the network delivers everything in a burst."""
PAUSE_S = 2.0
"""A payload that is later than this follows a pause of its source."""
SLEW = 1e-3
"""Share by which the sender's clock may differ; lateness that grows at this pace is no loss."""
_FILE = re.compile(r"\.(wav|flac|ogg|oga|opus|mp3|aiff?|au|w64)$", re.IGNORECASE)


class MicrophoneSensor(DriverSensor):
    """Deliver the windows of a microphone or a sound file."""

    def __init__(
        self,
        name: str,
        settings: MicrophoneSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
    ) -> None:
        self._window = SoundWindow(settings.window_s, settings.hop_s)
        job = job_of(settings)
        super().__init__(
            name,
            settings.source,
            job,
            limits or Limits(period_s=max(settings.hop_s, 2 * BLOCK_S)),
            probe=lambda: _probe(job),
            clock=clock,
            begin=self._window.clear,
        )

    def reading_of(self, message: DriverMessage) -> Sound | None:
        """Append a message's float32 samples; return the window when a hop has passed.

        Raises:
            PayloadRefused: `not_finite`, after which the window starts again with silence, or `too_loud`.
        """
        samples = np.frombuffer(message.body, np.float32)
        if not np.isfinite(samples).all():
            self._window.clear()
            raise PayloadRefused("not_finite", "the source delivers samples that are not finite")
        check_scale(samples)
        if not self._window.add(samples, message.first):
            return None
        samples = self._window.take()
        return Sound(self.name, message.stamp_s, self._next(), samples, RATE_HZ, "device", self._window.new)


class LossEstimator:
    """Tell lost samples from late ones: how late payloads stay, compared with the samples that came before them.

    A stalled network delivers everything afterwards, and lateness falls again. After a loss it stays.
    """

    def __init__(self) -> None:
        self._due_s: float | None = None
        self._recent: deque[tuple[float, float, float]] = deque()
        """Arrival, lateness and duration of the payloads of the last `SETTLE_S`, and of one before."""

    def add(self, arrived_s: float, duration_s: float) -> tuple[float, float]:
        """Note a payload; return the seconds lost before it, and the seconds of earlier payloads that came after the loss."""
        due_s = arrived_s if self._due_s is None else self._due_s + duration_s
        late_s = arrived_s - due_s
        self._due_s = due_s
        if late_s < 0 or late_s > PAUSE_S:
            self._due_s = arrived_s
            self._recent.clear()
            return max(0.0, late_s), 0.0
        recent = self._recent
        recent.append((arrived_s, late_s, duration_s))
        while len(recent) > 3 and recent[1][0] <= arrived_s - SETTLE_S:
            recent.popleft()
        if len(recent) < 3 or arrived_s - recent[0][0] < SETTLE_S:
            return 0.0, 0.0
        lost_s = min(late for _, late, _ in recent)
        if lost_s <= LOST_S:
            self._due_s += min(lost_s, SLEW * duration_s)
            return 0.0, 0.0
        self._due_s += lost_s
        came_s = sum(duration for _, _, duration in recent) - duration_s
        recent.clear()
        return lost_s, came_s


class TopicMicrophone:
    """Decode 16-bit little-endian mono PCM over MQTT, payloads of up to 30 s."""

    def __init__(self, name: str, topic: str | None, settings: MicrophoneSettings) -> None:
        self.name = name
        self.topic = topic
        self.drops: Counter[str] = Counter()
        self._rate_hz = settings.rate_hz
        self._window = SoundWindow(settings.window_s, settings.hop_s)
        self._loss = LossEstimator()
        self._seq = 0

    def decode(self, payload: bytes, stamp_s: float) -> Sound | None:
        """Append one payload and return the window when a hop has passed; `stamp_s` is the time of its last sample.

        Raises:
            PayloadRefused: `empty`, `container`, `odd_length` or `too_large`.
        """
        try:
            samples = pcm(payload, self._rate_hz)
        except PayloadRefused as refusal:
            self.drops[refusal.cause] += 1
            raise
        lost_s, before_s = self._loss.add(stamp_s, len(samples) / self._rate_hz)
        if lost_s:
            self.drops["lost"] += 1
            self._window.silence(lost_s, before_s)
        if not self._window.add(samples, self._rate_hz):
            return None
        if self._window.exceeded:
            self.drops["beyond_window"] += 1  # the rest of the payload is heard
        self._seq += 1
        samples = self._window.take()
        return Sound(self.name, stamp_s, self._seq, samples, RATE_HZ, new=self._window.new)


def job_of(settings: MicrophoneSettings) -> Job:
    """Return the driver process's job: play a path or the name of a sound file, record from anything else."""
    source = settings.source
    if isinstance(source, str):
        if source.startswith("file:") or "/" in source or _FILE.search(source):
            return PlayJob(source.removeprefix("file:"), settings.loop)
        if source == "default":
            return RecordJob(None, settings.rate_hz)
        if source.isdecimal():
            return RecordJob(int(source), settings.rate_hz)
    return RecordJob(source, settings.rate_hz)


def cut_file(settings: MicrophoneSettings) -> Path | None:
    """Return the sound file that a microphone plays if the file's end is missing; None for any other source."""
    from sensors.drivers.sound_files import is_cut  # noqa: PLC0415 - libsndfile, which only a sound file needs

    job = job_of(settings)
    if not isinstance(job, PlayJob) or not (path := Path(job.path)).is_file():
        return None
    with path.open("rb") as file:
        return path if is_cut(file) else None


def _probe(job: Job) -> None:
    if isinstance(job, PlayJob) and not Path(job.path).is_file():
        raise Absent(f"{job.path}: no such file")
