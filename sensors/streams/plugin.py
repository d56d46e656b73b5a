"""Check the readings of third parties' sensors before the policy sees them.

A reading that is malformed, not finite, from the future or of another stream is dropped and counted by cause. The stream
then goes stale, and its loss is reported with the reason. Knows nothing of what the sensor measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from sensors.base import PayloadRefused, Publish, Sensor, TopicSensor
from sensors.readings import Frame, Reading, Sound, Telemetry, Text

AHEAD_S = 0.1
"""A stamp may be this far in the future. One that is further ahead has another clock, and would keep newer readings out until then."""


def check_reading(reading: object, stream: str, fields: tuple[str, ...], now_s: float) -> Reading:
    """Return the reading when it is what its type promises.

    Args:
        reading: what a plug-in delivered.
        stream: the name it must have.
        fields: the fields of a telemetry stream, from the settings.
        now_s: monotonic seconds.

    Raises:
        PayloadRefused: `no_reading`, `wrong_stream`, `bad_stamp`, `bad_shape`, `wrong_fields` or `not_finite`.
    """
    if not isinstance(reading, Reading):
        raise PayloadRefused("no_reading", f"expected a Frame, Sound, Text or Telemetry, got {type(reading).__name__}")
    if reading.stream != stream:
        raise PayloadRefused("wrong_stream", f"the reading is of stream {reading.stream!r}; name it {stream!r}")
    if not -np.inf < reading.stamp_s <= now_s + AHEAD_S:
        raise PayloadRefused(
            "bad_stamp", f"the stamp {reading.stamp_s} is not in the past of the monotonic clock ({now_s:.3f})"
        )
    match reading:
        case Frame(image=image):
            _shape(image, np.uint8, 3)
            if image.shape[2] != 3 or not image.size:
                raise PayloadRefused("bad_shape", f"expected a picture (height, width, 3), got {image.shape}")
        case Sound(samples=samples):
            _shape(samples, np.float32, 1)
        case Telemetry(values=values):
            _shape(values, np.float64 if getattr(values, "dtype", None) == np.float64 else np.float32, 1)
            if reading.fields != fields or len(values) != len(fields):
                raise PayloadRefused(
                    "wrong_fields", f"expected the fields {fields} of the settings, got {reading.fields}"
                )
        case Text():
            pass
    return reading


def _shape(array: object, dtype: type, dimensions: int) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != dimensions:
        shown = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise PayloadRefused("bad_shape", f"expected {dtype.__name__} with {dimensions} dimensions, got {shown}")
    if not np.isfinite(array).all():
        raise PayloadRefused("not_finite", "the reading holds numbers that are not finite")


class CheckedSensor:
    """A plug-in's `Sensor` behind the check."""

    def __init__(self, sensor: Sensor, fields: tuple[str, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self.name = sensor.name
        self.drops = sensor.drops
        self._sensor, self._fields, self._clock = sensor, fields, clock
        self._refused = False

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Publish the checked readings until cancelled; report a refused one as a loss, once."""

        def check(reading: Reading) -> None:
            try:
                checked = check_reading(reading, self.name, self._fields, self._clock())
            except PayloadRefused as refusal:
                self.drops[refusal.cause] += 1
                if not self._refused:
                    self._refused = True
                    lost(f"{self.name}: the plug-in's readings cannot be used: {refusal}")
                return
            if self._refused:
                self._refused = False
                recovered()
            publish(checked)

        await self._sensor.run(check, lost, recovered)


class CheckedTopicSensor:
    """A plug-in's `TopicSensor` behind the check."""

    def __init__(
        self, sensor: TopicSensor, fields: tuple[str, ...], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = sensor.name
        self.topic = sensor.topic
        self.drops = sensor.drops
        self._sensor, self._fields, self._clock = sensor, fields, clock

    def decode(self, payload: bytes, stamp_s: float) -> Reading | None:
        """Decode with the plug-in and check the reading.

        Raises:
            PayloadRefused: as the plug-in, or as `check_reading`.
        """
        reading = self._sensor.decode(payload, stamp_s)
        if reading is None:
            return None
        try:
            return check_reading(reading, self.name, self._fields, self._clock())
        except PayloadRefused as refusal:
            self.drops[refusal.cause] += 1
            raise
