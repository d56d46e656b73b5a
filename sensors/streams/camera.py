"""Cameras: a USB number, a video file, rtsp://, http:// (MJPEG), or JPEG and PNG bytes on a topic.

Everything but topics is captured by OpenCV in a process of its own (`sensors.drivers.process`), read by a thread of its own and
watched by frame age (`sensors.drivers.watchdog`). The newest frame wins; every other is counted by cause. A file keeps its own
speed; `rate_hz` says how many of its frames a second are seen.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from sensors.base import PayloadRefused
from sensors.codecs.images import decode_image
from sensors.config import CameraSettings, public_source
from sensors.drivers.opencv import CaptureJob
from sensors.drivers.process import Message
from sensors.drivers.sensor import DriverSensor
from sensors.drivers.watchdog import Absent, Limits
from sensors.readings import Frame

DEFAULT_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_PROBE_S = 1.0


class CameraSensor(DriverSensor):
    """A camera that runs by itself."""

    def __init__(
        self,
        name: str,
        settings: CameraSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
    ) -> None:
        source = _source(settings.source)
        super().__init__(
            name,
            public_source(source),
            CaptureJob(source, settings.rate_hz, settings.loop, settings.width, settings.height, settings.max_pixels),
            limits or Limits(period_s=1.0 / settings.rate_hz),
            probe=lambda: probe(source),
            clock=clock,
        )

    def _take(self, message: Message) -> bool:
        if message.kind != "F":
            return False
        image = np.frombuffer(message.body, np.uint8).reshape(message.first, message.second, 3)
        self._publish(Frame(self.name, message.stamp_s, self._next(), image))
        return True


class TopicCamera:
    """Pictures over MQTT: JPEG or PNG bytes."""

    def __init__(self, name: str, topic: str | None, max_pixels: int) -> None:
        self.name = name
        self.topic = topic
        self.drops: Counter[str] = Counter()
        self._max_pixels = max_pixels
        self._seq = 0

    def decode(self, payload: bytes, stamp_s: float) -> Frame:
        """One payload as a frame.

        Raises:
            PayloadRefused: as `sensors.codecs.images.decode_image`.
            SensorLost: OpenCV cannot be loaded.
        """
        try:
            image = decode_image(payload, self._max_pixels)
        except PayloadRefused as refusal:
            self.drops[refusal.cause] += 1
            raise
        self._seq += 1
        return Frame(self.name, stamp_s, self._seq, image)


def probe(source: int | str) -> None:
    """See cheaply whether the source is there at all, so that an absent one costs no driver process.

    Raises:
        Absent: no such device or file, or nothing answers at its host and port within a second.
    """
    if isinstance(source, int):
        if not os.access(f"/dev/video{source}", os.R_OK | os.W_OK):
            raise Absent(f"/dev/video{source} is not there or may not be read; `reflexd devices` lists what is")
    elif "://" not in source:
        if not Path(source).is_file():
            raise Absent(f"{source}: no such file")
    else:
        parts = urlsplit(source)
        address = (parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 0))
        try:
            socket.create_connection(address, _PROBE_S).close()
        except OSError as error:
            raise Absent(f"nothing answers at {address[0]}:{address[1]}: {error}") from None


def _source(source: int | str) -> int | str:
    """A number written as text is a device number too; `file:PATH` is PATH."""
    if isinstance(source, str) and source.isdecimal():
        return int(source)
    return source.removeprefix("file:") if isinstance(source, str) else source
