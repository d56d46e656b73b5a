"""Define the interface of a simulated plant, and the device rules that every plant obeys.

A plant knows topics and payloads, not connections: `runtime/plant.py` carries its messages. `receive` and `step` may be
called from different threads.
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
from actuators.wire import DeviceMessage, state_payload

JPEG_QUALITY = 85
REFUSAL_EVERY_S = 1.0
"""Between two reports of a device that drops commands as too old."""


class PlantFault(ValueError):  # noqa: N818 - reads as what happened
    """A simulated device failed; `str` says where, what, and what would be right."""


@runtime_checkable
class Plant(Protocol):
    """A simulated device or world behind the broker; times are Unix seconds."""

    period_s: float
    """Seconds between two calls of `step`."""

    def subscriptions(self) -> Sequence[str]:
        """List the topics that `receive` needs."""

    def receive(self, topic: str, payload: bytes, *, retained: bool, now_s: float) -> list[DeviceMessage]:
        """Handle one message; return what to publish at once."""

    def step(self, now_s: float) -> list[DeviceMessage]:
        """Advance to `now_s`; return what to publish."""


class Device:
    """The device's end of one actuator: accept commands by the rules of a device, and report its state, retained.

    Args:
        base: `reflexd/<agent>`.
        name: the actuator's.
        understood: returns the value that the device executes for a command's, None when it cannot.
    """

    def __init__(self, base: str, name: str, understood: Callable[[Value], Value | None]) -> None:
        self.topic = f"{base}/act/{name}/set"
        self.state_topic = f"{base}/act/{name}/state"
        self.inbox = DeviceInbox()
        self.command: Command | None = None
        """The last command accepted."""
        self._understood = understood
        self._expired, self._refused_s = 0, float("-inf")

    def take(self, payload: bytes, *, retained: bool, now_s: float) -> Value | None:
        """Return the value to execute, or None; a value the device cannot execute counts as `not_understood`."""
        command = self.inbox.accept(payload, retained=retained, now_s=now_s)
        if command is None:
            return None
        value = self._understood(command.value)
        if value is None:
            self.inbox.drops["not_understood"] += 1
            return None
        self.command = command
        return value

    def refusal(self, value: Value | None, now_s: float) -> list[DeviceMessage]:
        """Report the state again, once a second, while commands come too late by this device's clock: the gate then sees its time."""
        expired = self.inbox.drops["expired"]
        if expired == self._expired or 0 <= now_s - self._refused_s < REFUSAL_EVERY_S:
            return []
        self._expired, self._refused_s = expired, now_s
        return [self.report(value, now_s)]

    def report(self, value: Value | None, now_s: float | None = None) -> DeviceMessage:
        """Build the report of the device's state, of the command it answers and, with `now_s`, of its clock (Unix seconds)."""
        seq, boot = (self.command.seq, self.command.boot) if self.command is not None else (None, None)
        return DeviceMessage(self.state_topic, state_payload(value, seq, boot, now_s), qos=1, retain=True)


def message(topic: str, body: dict[str, Any], *, qos: int = 0) -> DeviceMessage:
    """Build a JSON message; numpy scalars are allowed."""
    return DeviceMessage(topic, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), qos=qos)


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode uint8 (height, width, 3) RGB or (height, width) as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
