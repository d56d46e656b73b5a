"""Devices beyond the broker that are not there: what every simulated plant is, and the device rules they all obey.

A plant knows topics and payloads and nothing of connections; `runtime/plant.py` carries its messages. `receive` and `step`
may be called from different threads.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from actuators.actions import Value
from actuators.device import Command, DeviceInbox
from actuators.wire import Outgoing, state_payload

JPEG_QUALITY = 85


@runtime_checkable
class Plant(Protocol):
    """A simulated device or world behind the broker. Times are Unix seconds."""

    period_s: float
    """How often `step` wants to be called."""

    def subscriptions(self) -> Sequence[str]:
        """Topics whose messages `receive` wants."""

    def receive(self, topic: str, payload: bytes, *, retained: bool, now_s: float) -> list[Outgoing]:
        """One message, and what is to be published at once because of it."""

    def step(self, now_s: float) -> list[Outgoing]:
        """Time has passed; what is to be published."""


class Device:
    """The device end of one actuator: takes commands as a device must, and reports what it does, retained."""

    def __init__(self, base: str, name: str, understood: Callable[[Value], Value | None]) -> None:
        self.topic = f"{base}/act/{name}/set"
        self.state_topic = f"{base}/act/{name}/state"
        self.inbox = DeviceInbox()
        self.command: Command | None = None
        """The last one taken."""
        self._understood = understood

    def take(self, payload: bytes, *, retained: bool, now_s: float) -> Value | None:
        """The value to carry out, or None; what the device cannot do counts as `not_understood`."""
        command = self.inbox.accept(payload, retained=retained, now_s=now_s)
        if command is None:
            return None
        value = self._understood(command.value)
        if value is None:
            self.inbox.drops["not_understood"] += 1
            return None
        self.command = command
        return value

    def report(self, value: Value | None) -> Outgoing:
        """What the device does, and the command it answers."""
        seq, boot = (self.command.seq, self.command.boot) if self.command is not None else (None, None)
        return Outgoing(self.state_topic, state_payload(value, seq, boot), qos=1, retain=True)


def message(topic: str, body: dict[str, Any], *, qos: int = 0) -> Outgoing:
    """A JSON message; numpy scalars are taken."""
    return Outgoing(topic, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), qos=qos)


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """uint8 height x width x 3 (RGB) or height x width as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
