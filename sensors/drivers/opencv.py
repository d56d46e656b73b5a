"""Decode still pictures in this process, capture video in a driver process. The only importer of cv2.

`capture` may block for any time and trusts no driver's time-out. It runs under `sensors.drivers.process`, in a process
that its owner kills when frames grow too old. Colour is RGB. Knows neither streams nor settings.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sensors.base import PayloadRefused, SensorLost
from sensors.drivers.messages import MessageSender

MAX_PIXELS = 2**27
"""OpenCV's own last line of defence; each stream's `max_pixels` is checked before it."""
LIVE_OPTIONS = "rtsp_transport;tcp|fflags;nobuffer|analyzeduration;1000000|probesize;500000"
"""FFmpeg's options for network sources: TCP, no buffering, at most one second of looking before the first picture."""
FILE_OPTIONS = "probesize;5000000"
"""FFmpeg's own default, for files: with the options of live sources it finds no picture in some of them."""
_FFMPEG_ERRORS = "16"
"""FFmpeg's level of errors: `_why` finds the status of a refusal in them."""
_STATUS = re.compile(rb"(?:failed: |HTTP error )([45][0-9]{2})\b")
_STATUS_REASONS = {
    401: "the camera refuses the login (401); check user and password",
    403: "the camera refuses this user (403); give the user access to the stream",
    404: "the camera has no such path (404); check the path of the address",
    461: "the camera offers no transport over TCP (461); enable RTP over TCP in its settings",
}
SANE_FPS = (0.1, 240.0)


@dataclass(frozen=True, slots=True)
class CaptureJob:
    """What to capture: `source` is a device number, a path, or an rtsp:// or http:// URL."""

    source: int | str
    rate_hz: float
    loop: bool
    width: int | None
    height: int | None
    max_pixels: int

    @property
    def file(self) -> bool:
        """Whether it is a recording, which plays at its own pace, and not a live source."""
        return isinstance(self.source, str) and "://" not in self.source


def load() -> ModuleType:
    """Import cv2 after its limits are set in the environment.

    Raises:
        SensorLost: it cannot be loaded; the message names the Debian packages it may need.
    """
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", _FFMPEG_ERRORS)
    try:
        import cv2  # noqa: PLC0415 - loaded when a camera is used, after its limits are set
    except ImportError as error:
        raise SensorLost(
            f"OpenCV cannot be loaded ({error}); on Debian: apt-get install libgl1 libglib2.0-0"
        ) from error
    module: ModuleType = cv2
    return module


def decode(payload: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG to RGB uint8 (height, width, 3), EXIF orientation applied; check its header before.

    Raises:
        PayloadRefused: `undecodable`.
        SensorLost: cv2 cannot be loaded.
    """
    cv2 = load()
    try:
        image = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise PayloadRefused("undecodable", f"OpenCV cannot decode it: {error}") from None
    if image is None:
        raise PayloadRefused("undecodable", "OpenCV cannot decode it")
    result: NDArray[np.uint8] = image
    return result


def encode(image: NDArray[np.uint8], suffix: Literal[".jpg", ".png"] = ".jpg", quality: int = 90) -> bytes:
    """Encode RGB uint8 (height, width, 3) as JPEG or PNG."""
    cv2 = load()
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    taken, data = cv2.imencode(suffix, cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR), options)
    assert taken, f"OpenCV cannot write {suffix}"
    return bytes(data)


class FrameRateLimit:
    """Choose the frames of a live source that `rate_hz` needs, with a tolerance of a quarter period."""

    def __init__(self, rate_hz: float) -> None:
        self._period_s = 1.0 / rate_hz
        self._next_s = float("-inf")

    def due(self, now_s: float) -> bool:
        """Return whether the frame captured at `now_s` is needed."""
        if now_s < self._next_s - 0.25 * self._period_s:
            return False
        self._next_s = max(self._next_s + self._period_s, now_s)
        return True


class SourceClock:
    """Estimate when a live picture was taken, from the source's own time stamps.

    The arrival time is not enough: after a stall, old pictures arrive in a burst, and a link slower than the video
    delivers ever older ones. The shortest transit seen maps the source's clock to ours (Cristian 1989, one way). It may
    rise by 1,200 ppm: clocks drift, and cameras of 29.97 frames a second stamp them as of 30. A source that seems slower is
    taken for a link that falls behind, and its pictures grow old. The constant part of the transit stays unknown.
    """

    DRIFT = 1.2e-3

    def __init__(self) -> None:
        self._offset_s = float("inf")
        self._source_s = 0.0
        self._now_s = 0.0

    def stamp_s(self, source_s: float, now_s: float) -> float:
        """Return our monotonic time of a picture that the source stamped `source_s` and that arrived at `now_s`."""
        if source_s <= self._source_s:  # no stamps, or the source restarted
            self._offset_s = float("inf")
        self._offset_s = min(self._offset_s + self.DRIFT * (now_s - self._now_s), now_s - source_s)
        self._source_s, self._now_s = source_s, now_s
        return source_s + self._offset_s


def capture(job: CaptureJob, outbox: MessageSender, stop: threading.Event) -> None:
    """Deliver frames until the source ends (returns) or fails.

    Raises:
        SensorLost: it cannot be opened, stopped delivering, or its pictures are too large.
    """
    cv2 = load()
    cv2.setNumThreads(1)
    pace = FrameRateLimit(job.rate_hz)
    while True:
        source = _open(cv2, job)
        try:
            fps = source.get(cv2.CAP_PROP_FPS)
            fps = fps if SANE_FPS[0] < fps < SANE_FPS[1] else 0.0
            codec = _codec(source.get(cv2.CAP_PROP_FOURCC))
            outbox.opened(fps)
            delivered = _play(source, job, outbox, stop, pace, fps)
        finally:
            source.release()
        if stop.is_set() or not job.file:
            return
        if delivered == 0:
            raise SensorLost(
                f"the file holds no picture that can be decoded{codec}; convert it, for instance to H.264 in MP4"
            )
        if not job.loop:
            return


def _open(cv2: ModuleType, job: CaptureJob) -> Any:
    backend = cv2.CAP_V4L2 if isinstance(job.source, int) else cv2.CAP_FFMPEG
    options = [] if isinstance(job.source, int) else [cv2.CAP_PROP_N_THREADS, 1]  # frame threads add frames of delay
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = FILE_OPTIONS if job.file else LIVE_OPTIONS
    with _output() as output:
        source = cv2.VideoCapture(job.source, backend, options)
    if not source.isOpened():
        source.release()
        raise SensorLost(f"it cannot be opened: {_why(output[0])}")
    if isinstance(job.source, int):
        source.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        for key, value in ((cv2.CAP_PROP_FRAME_WIDTH, job.width), (cv2.CAP_PROP_FRAME_HEIGHT, job.height)):
            if value is not None:
                source.set(key, value)
    pixels = source.get(cv2.CAP_PROP_FRAME_WIDTH) * source.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if pixels > job.max_pixels:
        source.release()
        raise SensorLost(f"its pictures have {pixels:.0f} pixels; max_pixels allows {job.max_pixels}")
    return source


def _codec(number: float) -> str:
    """Name the codec by the four characters of its code, if they are printable."""
    name = int(number).to_bytes(4, "little", signed=True).decode("latin-1").strip() if math.isfinite(number) else ""
    return f" (codec {name})" if name and name.isascii() and name.isprintable() else ""


@contextmanager
def _output() -> Iterator[list[bytes]]:
    """Collect what C libraries print; the list holds it when the context has ended."""
    found = [b""]
    libc = ctypes.CDLL(None)
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield found
        finally:
            libc.fflush(None)
            for number, own in zip((1, 2), saved, strict=True):
                os.dup2(own, number)
                os.close(own)
            found[0] = _head(file)


def _head(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(65_536)


def _why(output: bytes) -> str:
    """Explain by the status that the server answered; the output itself may hold a password and is not repeated."""
    for status in map(int, _STATUS.findall(output)):
        return _STATUS_REASONS.get(status, f"the server answers with status {status}")
    return "the driver found no video at the source"


def _play(
    source: Any, job: CaptureJob, outbox: MessageSender, stop: threading.Event, pace: FrameRateLimit, fps: float
) -> int:
    """Grab until the end and return the number of frames. A file plays in real time: frame n is due at n / fps."""
    start_s = time.monotonic()
    step_s = 1.0 / (fps or job.rate_hz)
    clock = SourceClock() if str(job.source).lower().startswith("rtsp") else None
    position = load().CAP_PROP_POS_MSEC
    grabbed = 0
    while not stop.is_set() and source.grab():
        if job.file:
            stop.wait(max(0.0, start_s + grabbed * step_s - time.monotonic()))
        stamp_s = time.monotonic()
        if clock is not None:
            stamp_s = clock.stamp_s(source.get(position) / 1_000, stamp_s)
        grabbed += 1
        if pace.due(stamp_s):
            _offer(source, job, outbox, stamp_s)
    if not job.file and not stop.is_set():
        raise SensorLost("it stopped delivering")
    return grabbed


def _offer(source: Any, job: CaptureJob, outbox: MessageSender, stamp_s: float) -> None:
    taken, image = source.retrieve()
    if not taken or image is None or image.size == 0:
        outbox.drop("undecodable")
    elif image.shape[0] * image.shape[1] > job.max_pixels:
        outbox.drop("too_many_pixels")
    else:
        outbox.frame(stamp_s, _rgb(image))


def _rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    cv2 = load()
    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 or image.shape[2] == 1 else cv2.COLOR_BGR2RGB
    result: NDArray[np.uint8] = cv2.cvtColor(image, code)
    return result


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode RGB uint8 (height, width, 3) without loss, for pictures that did not arrive encoded."""
    return encode(image, ".png")
