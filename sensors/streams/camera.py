"""Cameras: a USB number, a video file, rtsp://, http:// (MJPEG), or JPEG and PNG bytes on a topic.

OpenCV captures everything but topics in a driver process (`sensors.drivers.process`), which is read by a thread and
watched by frame age (`sensors.drivers.watchdog`). The newest frame wins; every other is counted by cause. A file plays at
its own speed; `rate_hz` limits how many of its frames per second are delivered.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np

from sensors.base import PayloadRefused
from sensors.codecs.images import decode_image
from sensors.config import CameraSettings, public_source, split_address
from sensors.drivers.messages import DriverMessage
from sensors.drivers.opencv import CaptureJob
from sensors.drivers.sensor import DriverSensor
from sensors.drivers.watchdog import Absent, Limits
from sensors.readings import Frame

DEFAULT_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "rtmp": 1_935}
_PROBE_S = 1.0


class CameraSensor(DriverSensor):
    """Deliver the frames of a device, a file or a URL."""

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
            public_source(settings.source),
            CaptureJob(source, settings.rate_hz, settings.loop, settings.width, settings.height, settings.max_pixels),
            limits or Limits(period_s=1.0 / settings.rate_hz),
            probe=lambda: probe(source),
            clock=clock,
        )

    def reading_of(self, message: DriverMessage) -> Frame:
        """Make a frame of a message: its body is RGB uint8 (height, width, 3)."""
        image = np.frombuffer(message.body, np.uint8).reshape(message.first, message.second, 3)
        return Frame(self.name, message.stamp_s, self._next(), image, stamp_source="device")


class TopicCamera:
    """Decode pictures that arrive over MQTT as JPEG or PNG bytes."""

    def __init__(self, name: str, topic: str | None, max_pixels: int) -> None:
        self.name = name
        self.topic = topic
        self.drops: Counter[str] = Counter()
        self._max_pixels = max_pixels
        self._seq = 0

    def decode(self, payload: bytes, stamp_s: float) -> Frame:
        """Decode one payload to a frame captured at `stamp_s`.

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
        return Frame(self.name, stamp_s, self._seq, image, payload)


def probe(source: int | str) -> None:
    """See cheaply whether the source exists, so that an absent one costs no driver process.

    No text of an exception is repeated for a URL: it could hold a part of a password.

    Raises:
        Absent: no such device or file, a URL without a usable host and port, or no answer within a second.
    """
    if isinstance(source, int):
        if not os.access(f"/dev/video{source}", os.R_OK | os.W_OK):
            raise Absent(f"/dev/video{source} is absent or may not be read; `reflexd devices` lists the cameras")
    elif "://" not in source:
        _find_file(Path(source))
    else:
        try:
            socket.create_connection(_host_and_port(source), _PROBE_S).close()
        except OSError as error:
            raise Absent(f"no server answers: {error.strerror or 'timed out'}") from None
        except UnicodeError:  # of the codec of host names
            raise Absent("the host of the address is not a name; a part of it is empty, too long or not text") from None


def _find_file(path: Path) -> None:
    """Raise Absent with the reason if there is no file, or this user may not see it."""
    try:
        found = path.is_file()
    except OSError as error:
        raise Absent(f"{path}: {error.strerror}") from None
    if not found:
        raise Absent(f"{path}: no such file")


def connectable(source: str) -> str:
    """Escape the user and password of a URL, so that a password of any characters reaches the camera as written.

    `%` with two hexadecimal digits counts as escaped already. An `http://` URL with an `@` in its path is left as it is.
    """
    parts = split_address(source)
    if parts is None or not parts[1] or not _has_login(source):
        return source
    scheme, login, rest = parts
    user, colon, password = login.partition(":")
    return f"{scheme}://{_escaped(user)}{colon}{_escaped(password)}@{rest}"


def _has_login(source: str) -> bool:
    """Return whether the last `@` ends a login: it does in the host part, in rtsp, and after a port that is no number."""
    scheme, _, after = source.partition("://")
    host = re.split("[/?#]", after, maxsplit=1)[0]
    port = host.rpartition(":")[2] if ":" in host else ""
    return "@" in host or scheme.lower().startswith("rtsp") or not (port.isdecimal() or not port)


def _escaped(text: str) -> str:
    return re.sub(r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9._~%-]", lambda found: quote(found[0], safe=""), text)


def address_problem(source: int | str) -> str | None:
    """Return why no server can have the address of a camera; None for any other source. Repeats no part of the address."""
    opened = _source(source)
    try:
        if isinstance(opened, str) and "://" in opened and not opened.startswith("file:"):
            _host_and_port(opened)
    except Absent as absent:
        return str(absent)
    return None


def _host_and_port(source: str) -> tuple[str, int]:
    try:
        parts = urlsplit(source)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Absent(
            "the address has no valid host and port; write SCHEME://HOST:PORT/PATH, PORT from 1 to 65535"
        ) from None
    if not host:
        raise Absent("the address names no host; write SCHEME://HOST/PATH")
    return host, port or DEFAULT_PORTS.get(parts.scheme, 0)


def _source(source: int | str) -> int | str:
    """Return what to open: a number written as text is a device number, `file:PATH` is PATH, a URL is escaped."""
    if isinstance(source, int):
        return source
    source = source.strip() if "://" in source else source
    return int(source) if source.isdecimal() else connectable(source.removeprefix("file:"))
