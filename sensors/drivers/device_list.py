"""List the cameras and microphones that settings can name; `reflexd devices` prints them.

It reads a camera's capabilities (V4L2, VIDIOC_QUERYCAP), because most cameras have further nodes without pictures. It
opens no stream, so it does not know whether another program uses the device.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from sensors.base import SensorLost
from sensors.drivers import portaudio

_VIDIOC_QUERYCAP = 0x80685600
_CAPABILITY = struct.Struct("16s32s32sIII3I")
_VIDEO_CAPTURE = 0x1 | 0x1000
"""V4L2_CAP_VIDEO_CAPTURE, or the same with several planes."""


@dataclass(frozen=True, slots=True)
class CameraDevice:
    """One camera; `number` is what `source:` takes."""

    number: int
    name: str
    path: str
    usable: bool
    """False when this user may not open it."""


@dataclass(frozen=True, slots=True)
class MicrophoneDevice:
    """One microphone; `number` or `name` is what `source:` takes."""

    number: int
    name: str
    channels: int
    rate_hz: float


@dataclass(frozen=True, slots=True)
class Devices:
    """All devices found, and the problems that prevented a complete search."""

    cameras: tuple[CameraDevice, ...]
    microphones: tuple[MicrophoneDevice, ...]
    problems: tuple[str, ...]


def devices(nodes: Path = Path("/dev"), names: Path = Path("/sys/class/video4linux")) -> Devices:
    """Find cameras and microphones; takes up to a second, because PortAudio queries every sound driver."""
    try:
        microphones = tuple(
            MicrophoneDevice(found.number, found.name, found.channels, found.rate_hz) for found in portaudio.inputs()
        )
        problems: tuple[str, ...] = ()
    except SensorLost as error:
        microphones, problems = (), (str(error),)
    return Devices(_cameras(nodes, names), microphones, problems)


def _cameras(nodes: Path, names: Path) -> tuple[CameraDevice, ...]:
    numbered = {
        int(path.name.removeprefix("video")): path
        for path in nodes.glob("video*")
        if path.name.removeprefix("video").isdecimal()
    }
    found = []
    for number, path in sorted(numbered.items()):
        captures = _captures(path)
        if captures is not False:
            label = names / path.name / "name"
            name = label.read_text(errors="replace").strip() if label.is_file() else path.name
            found.append(CameraDevice(number, name, str(path), usable=captures is True))
    return tuple(found)


def _captures(path: Path) -> bool | None:
    """Return whether the node delivers pictures; None when this user may not open it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        answer = fcntl.ioctl(descriptor, _VIDIOC_QUERYCAP, bytes(_CAPABILITY.size))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    capabilities: int = _CAPABILITY.unpack(answer)[5]  # device_caps: of this node, not of the whole device
    return bool(capabilities & _VIDEO_CAPTURE)
