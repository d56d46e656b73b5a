"""Readings: one immutable value per kind of stream, and the observation of a tick.

Stamps are seconds on the monotonic clock (`time.monotonic`, the same for every process of one machine), taken when
the datum was captured or, where the source does not say, when it arrived. This module knows no device and no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture: `image` is uint8, height x width x 3, RGB.

    `encoded` is the JPEG or PNG it arrived as, where it did: recordings keep that instead of the larger pixels.
    """

    stream: str
    stamp_s: float
    seq: int
    image: NDArray[np.uint8]
    encoded: bytes | None = None


@dataclass(frozen=True, slots=True)
class Sound:
    """The last window of sound: `samples` is float32 mono in [-1, 1] at `rate_hz`, oldest first."""

    stream: str
    stamp_s: float
    seq: int
    samples: NDArray[np.float32]
    rate_hz: int = 16_000


@dataclass(frozen=True, slots=True)
class Text:
    """One utterance or line."""

    stream: str
    stamp_s: float
    seq: int
    text: str


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Numbers by name, in the order of the stream's `fields`: `values` is float32; all are finite."""

    stream: str
    stamp_s: float
    seq: int
    fields: tuple[str, ...]
    values: NDArray[np.float32]


Reading = Frame | Sound | Text | Telemetry


@dataclass(frozen=True, slots=True)
class Observation:
    """The newest reading of every stream at one tick.

    `readings` holds only what is usable; a stream that never spoke or is older than its `max_age_s` is in `missing`
    instead. `fresh` are the streams whose reading is newer than at the previous tick. `ages_s` covers every stream
    that ever spoke, stale ones too.
    """

    tick: int
    stamp_s: float
    readings: Mapping[str, Reading]
    ages_s: Mapping[str, float]
    missing: frozenset[str] = frozenset()
    fresh: frozenset[str] = field(default=frozenset())
