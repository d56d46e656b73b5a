"""Define the readings, one immutable value for each kind of stream, and the observation of a tick.

Stamps are seconds on the monotonic clock (`time.monotonic`), which all processes of a machine share. A stamp is the time of
capture, or of arrival if the source does not report the capture. This module knows no device and no tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

StampSource = Literal["arrival", "sender", "device", "unknown"]
"""Where a stamp is from: the arrival at this machine, the sender's stamp, or the driver of a device.

`unknown` is the arrival of a message that the broker had stored.
"""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture: `image` is uint8, height x width x 3, RGB.

    `encoded` is the JPEG or PNG in which it arrived, if any: recordings store that instead of the larger pixels.
    """

    stream: str
    stamp_s: float
    seq: int
    image: NDArray[np.uint8]
    encoded: bytes | None = None
    stamp_source: StampSource = "arrival"


@dataclass(frozen=True, slots=True)
class Sound:
    """The last window of sound: `samples` is float32 mono in [-1, 1] at `rate_hz`, oldest first."""

    stream: str
    stamp_s: float
    seq: int
    samples: NDArray[np.float32]
    rate_hz: int = 16_000
    stamp_source: StampSource = "arrival"
    new: int | None = None
    """Samples at the end that the window before did not hold; None where the source does not say."""


@dataclass(frozen=True, slots=True)
class Text:
    """One utterance or line."""

    stream: str
    stamp_s: float
    seq: int
    text: str
    stamp_source: StampSource = "arrival"
    start_s: float | None = None
    """When an utterance that was transcribed began; `stamp_s` is its end."""
    confidence: float | None = None
    """Of a transcript, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Numbers by name, in the order of the stream's `fields`: `values` is float64 (float32 from some plug-ins).

    All are finite.
    """

    stream: str
    stamp_s: float
    seq: int
    fields: tuple[str, ...]
    values: NDArray[np.floating[Any]]
    stamp_source: StampSource = "arrival"


Reading = Frame | Sound | Text | Telemetry


@dataclass(frozen=True, slots=True)
class Observation:
    """The newest reading of every stream at one tick.

    `readings` contains only usable readings; a stream without a reading, or with one older than its `max_age_s`, is in
    `missing`. `fresh` contains the streams with a newer reading than at the previous tick. `ages_s` covers every stream
    that has delivered a reading, stale ones included. `unknown_age` contains usable streams with a reading that the broker had stored:
    they count as old as is allowed, and not as present where the gate requires them. `allowed` contains, by choice actuator, the
    choices that the gate would let pass; an actuator is absent where these are all.
    """

    tick: int
    stamp_s: float
    readings: Mapping[str, Reading]
    ages_s: Mapping[str, float]
    missing: frozenset[str] = frozenset()
    fresh: frozenset[str] = field(default=frozenset())
    unknown_age: frozenset[str] = frozenset()
    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def without(self, streams: Collection[str]) -> Observation:
        """Return the observation in which these streams are missing."""
        if not streams:
            return self
        readings = {name: reading for name, reading in self.readings.items() if name not in streams}
        return replace(
            self,
            readings=readings,
            missing=self.missing | (self.readings.keys() - readings.keys()),
            fresh=self.fresh - frozenset(streams),
            unknown_age=self.unknown_age - frozenset(streams),
        )

    @property
    def skew_s(self) -> float:
        """Return how far apart the readings were captured: the largest age minus the smallest, texts aside; 0 for fewer than two."""
        ages = [self.ages_s[name] for name, reading in self.readings.items() if not isinstance(reading, Text)]
        return max(ages) - min(ages) if len(ages) > 1 else 0.0
