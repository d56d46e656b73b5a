"""The two shapes a sensor can have, and how one reports what it lost.

A `Sensor` runs by itself (camera, microphone, file); a `TopicSensor` is handed MQTT payloads by whoever owns the
connection. Neither knows the tick: they offer readings, and the newest wins elsewhere.
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
    """The source is gone for now; `str` says which, why, and what is being done about it."""


class PayloadRefused(ValueError):  # noqa: N818 - reads as what happened
    """An untrusted payload was not taken. `cause` is a short counter key such as `too_large`."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@runtime_checkable
class Sensor(Protocol):
    """A source that runs by itself until cancelled, reconnecting with back-off."""

    name: str
    drops: Counter[str]

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Deliver readings until cancelled.

        `lost(reason)` is called once when the source stops delivering, `recovered()` once when it is back.
        Drivers run in threads of their own; cancelling returns within a second whatever the driver does.
        """


@runtime_checkable
class TopicSensor(Protocol):
    """A source fed with MQTT payloads."""

    name: str
    topic: str | None
    """A full topic to subscribe to, or None for the agent's own `in/<stream>`."""
    drops: Counter[str]

    def decode(self, payload: bytes, stamp_s: float) -> Reading | None:
        """Turn one untrusted payload into a reading; None when more payloads are needed.

        May be slow (JPEG): it is called off the event loop.

        Raises:
            PayloadRefused: with the cause; the caller has nothing else to do, the drop is already counted.
        """


Arguments = TypeVarTuple("Arguments")


def call_threadsafe(
    loop: asyncio.AbstractEventLoop, callback: Callable[[Unpack[Arguments]], object], *arguments: *Arguments
) -> bool:
    """Have the loop call; False when the loop is closed already, which a thread that outlives it may find."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        return False
    return True
