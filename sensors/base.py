"""Define the two interfaces of a sensor, and its errors.

A `Sensor` runs until cancelled (camera, microphone, file). A `TopicSensor` decodes MQTT payloads that the agent passes to it.
Neither knows the tick: each delivers readings, and the inbox stores the newest.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Protocol, TypeVarTuple, Unpack, runtime_checkable

from sensors.readings import Reading

Publish = Callable[[Reading], None]
"""Accepts a reading from any thread, never blocks."""


class SensorLost(Exception):  # noqa: N818 - the design's name
    """A source has stopped delivering; `str` names the source, the reason, and what the sensor does about it."""


class PayloadRefused(ValueError):  # noqa: N818 - reads as what happened
    """An untrusted payload was refused; `cause` is a short counter key such as `too_large`."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@runtime_checkable
class Sensor(Protocol):
    """A source that runs until cancelled and reconnects with back-off."""

    name: str
    drops: Counter[str]

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Publish readings until cancelled; end within a second of that, even if the driver blocks.

        Args:
            publish: called with each reading.
            lost: called with the reason, once when the source stops delivering.
            recovered: called once when the source delivers again.
        """


@runtime_checkable
class TopicSensor(Protocol):
    """A source that decodes MQTT payloads."""

    name: str
    topic: str | None
    """A full topic to subscribe to, or None for the agent's own `in/<stream>`."""
    drops: Counter[str]

    def decode(self, payload: bytes, stamp_s: float) -> Reading | None:
        """Turn one untrusted payload into a reading; None when more payloads are needed.

        May be slow (JPEG): it is called off the event loop.

        Raises:
            PayloadRefused: with the cause; the sensor has counted the drop already.
        """


Arguments = TypeVarTuple("Arguments")


def call_threadsafe(
    loop: asyncio.AbstractEventLoop, callback: Callable[[Unpack[Arguments]], object], *arguments: *Arguments
) -> bool:
    """Call `callback` in the loop, from any thread; False when the loop is closed already."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        return False
    return True
