"""Small looks at what a stream perceives, published on `preview/<stream>` only while someone watches.

A watcher sends `watch` (`{"streams": [...]}`, never retained) every 2 s; without one for 5 s nothing is published. A
camera's preview is a JPEG of at most 320 pixels' width, every other stream's a JSON object: `level_db` and `peak_db`
(dBFS) for sound, `text` for text, `values` for telemetry. At most 4 a second of each stream, QoS 0: looking costs the tick
nothing, because the caller encodes off the loop. JPEG is made by a function given from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from runtime.topics import Payload, decode, encode
from sensors.readings import Frame, Reading, Sound, Text

KEEPALIVE_S = 5.0
PERIOD_S = 0.25
WIDTH = 320

Jpeg = Callable[[NDArray[np.uint8]], bytes]
"""An image, height x width x 3 RGB, as JPEG bytes."""


class Watch(Payload):
    """`watch`: which streams someone is looking at."""

    streams: list[str] = Field(max_length=64)


@dataclass(slots=True)
class Previews:
    """Decides which previews are due, and makes them."""

    jpeg: Jpeg
    _until_s: dict[str, float] = field(default_factory=dict)
    _next_s: dict[str, float] = field(default_factory=dict)

    def watch(self, payload: bytes, now_s: float) -> None:
        """Take one `watch` message.

        Raises:
            Refused: not of the declared shape.
        """
        for stream in decode(Watch, payload).streams:
            self._until_s[stream] = now_s + KEEPALIVE_S
        self._until_s = {stream: until for stream, until in self._until_s.items() if until > now_s}

    def due(self, stream: str, now_s: float) -> bool:
        """Whether a preview of this stream should be made now; asking counts as making it."""
        if self._until_s.get(stream, -math.inf) <= now_s or self._next_s.get(stream, -math.inf) > now_s:
            return False
        self._next_s[stream] = now_s + PERIOD_S
        return True

    def make(self, reading: Reading) -> bytes:
        """The payload for `preview/<stream>`; takes a few milliseconds for a picture."""
        if isinstance(reading, Frame):
            step = max(1, math.ceil(reading.image.shape[1] / WIDTH))
            return self.jpeg(np.ascontiguousarray(reading.image[::step, ::step]))
        return encode(facts(reading))


def facts(reading: Sound | Text | Any) -> dict[str, Any]:
    """What a reading that is no picture says."""
    if isinstance(reading, Sound):
        return levels(reading.samples[-reading.rate_hz // 4 :])
    if isinstance(reading, Text):
        return {"text": reading.text}
    return {"values": dict(zip(reading.fields, map(float, reading.values), strict=True))}


def levels(samples: NDArray[np.float32]) -> dict[str, float]:
    """Root mean square and peak of samples in [-1, 1], in dBFS, never below -90."""
    if not samples.size:
        return {"level_db": -90.0, "peak_db": -90.0}
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    peak = float(np.max(np.abs(samples)))
    return {"level_db": round(_db(rms), 1), "peak_db": round(_db(peak), 1)}


def _db(amplitude: float) -> float:
    return 20 * math.log10(max(amplitude, 10 ** (-90 / 20)))
