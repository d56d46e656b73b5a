"""Hold the newest reading of each stream, and compose what a tick observes.

Nothing is queued: the latest reading wins, and a reading that no tick used is counted as dropped. `put` may be called from any
thread; it is one assignment under the interpreter's lock. Knows nothing of tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from runtime.control.alignment import HeldReadings, common_moment_s
from runtime.control.frozen_streams import FrozenStreams
from runtime.process.machine_sleep import slept_s
from sensors.config import AnyStream
from sensors.readings import Observation, Reading, Text

LEAST_SLEEP_S = 0.01
"""A shorter sleep of the machine is noise of two clocks that are not read at once."""
AHEAD_S = 0.5
"""A reading that is stamped later than this after now has a wrong stamp."""

Encode = Callable[[Reading, Callable[[Reading], None]], bool]
"""Takes a reading and where to pass it on; returns whether an older one waited and is dropped."""


@dataclass(slots=True)
class _Slot:
    limit_s: float
    reading: Reading | None = None
    seen: Reading | None = None
    """The reading that the last tick used; any other is fresh."""
    slept_s: float = 0.0
    """How long the machine had slept when the reading came."""
    drops: Counter[str] = field(default_factory=Counter)
    held: HeldReadings = field(default_factory=HeldReadings)
    """To choose from where readings are aligned."""

    def asleep_s(self, slept_s: float) -> float:
        """Return how long the machine has slept since the reading came, given how long it has slept in all."""
        asleep_s = slept_s - self.slept_s
        return asleep_s if asleep_s > LEAST_SLEEP_S else 0.0


class Inbox:
    """One slot for every stream.

    Args:
        streams: the settings.
        align: `newest`: observe the newest reading of each stream; `common`: readings of about the same moment, texts aside.
        slept: returns the seconds that the machine has slept, which the monotonic clock leaves out and ages count.
    """

    def __init__(
        self,
        streams: Mapping[str, AnyStream],
        *,
        align: Literal["newest", "common"] = "newest",
        slept: Callable[[], float] = slept_s,
    ) -> None:
        self._align, self._slept = align, slept
        self._slots = {name: _Slot(limit_s=age_limit_s(settings)) for name, settings in streams.items()}
        self.frozen = FrozenStreams(streams)
        self._listeners: dict[str, Callable[[Reading], None]] = {}
        self._encoders: dict[str, Encode] = {}
        """By stream, what a reading passes before it is stored."""
        self._required = frozenset(name for name, settings in streams.items() if settings.required)

    def listen(self, stream: str, listener: Callable[[Reading], None]) -> None:
        """Call `listener` with every reading of a stream, those too that no tick uses; it must not block."""
        self._listeners[stream] = listener

    def encode_first(self, stream: str, encode: Encode) -> None:
        """Store the readings of a stream when `encode` passes them on, with their tokens ready."""
        self._encoders[stream] = encode

    def put(self, reading: Reading) -> None:
        """Store a reading; an older one that no tick used is dropped and counted as `superseded`."""
        self.frozen.put(reading)
        if (listener := self._listeners.get(reading.stream)) is not None:
            listener(reading)
        if (encode := self._encoders.get(reading.stream)) is None:
            self._store(reading)
        elif encode(reading, self._store):
            self._slots[reading.stream].drops["superseded"] += 1

    def _store(self, reading: Reading) -> None:
        slot = self._slots[reading.stream]
        current = slot.reading
        if current is not None:
            if reading.stamp_source == "unknown":
                slot.drops["retained"] += 1  # a reading of known age is there, or was
                return
            if reading.stamp_s < current.stamp_s:
                slot.drops["out_of_order"] += 1
                return
            if current is not slot.seen:
                slot.drops["superseded"] += 1
        slot.reading, slot.slept_s = reading, self._slept()
        if self._align == "common" and not isinstance(reading, Text):
            slot.held.add(reading)

    def observe(self, tick: int, now_s: float) -> Observation:
        """Compose the observation of a tick at `now_s` (monotonic seconds), and mark its readings as used."""
        readings: dict[str, Reading] = {}
        ages: dict[str, float] = {}
        fresh: list[str] = []
        slept_s = self._slept()
        common_s = self._common_s(now_s) if self._align == "common" else None
        for name, slot in self._slots.items():
            reading = slot.reading
            if reading is None:
                continue
            asleep_s = slot.asleep_s(slept_s)
            if asleep_s:
                slot.held.clear()
            elif reading.stamp_s > now_s + AHEAD_S:
                slot.drops["future"] += 1  # else it would be fresh for ever, and newer readings out of order
                slot.reading = None
                slot.held.clear()
                continue
            if common_s is not None:
                reading = slot.held.captured_at(common_s, now_s, slot.limit_s) or reading
            ages[name] = max(0.0, now_s - reading.stamp_s) + asleep_s
            if reading.stamp_source == "unknown":
                ages[name] = max(ages[name], slot.limit_s)
            if now_s - reading.stamp_s + asleep_s > slot.limit_s or self.frozen.is_missing(name):
                continue
            readings[name] = reading
            if reading is not slot.seen:
                fresh.append(name)
                slot.seen = reading
        missing = frozenset(self._slots.keys() - readings.keys())
        unknown = frozenset(name for name, reading in readings.items() if reading.stamp_source == "unknown")
        return Observation(tick, now_s, readings, ages, missing, frozenset(fresh), unknown)

    def _common_s(self, now_s: float) -> float | None:
        """Return the newest moment of which every stream that is not stale has a reading; None if there is no such stream."""
        slept_s = self._slept()
        return common_moment_s(
            slot.reading.stamp_s
            for slot in self._slots.values()
            if slot.held
            and slot.reading is not None
            and now_s - slot.reading.stamp_s + slot.asleep_s(slept_s) <= slot.limit_s
        )

    def stale(self, now_s: float) -> dict[str, float | None]:
        """Return the streams that are missing now, with their age in seconds (None: no reading yet)."""
        slept_s = self._slept()
        ages_s = {
            name: None if slot.reading is None else now_s - slot.reading.stamp_s + slot.asleep_s(slept_s)
            for name, slot in self._slots.items()
        }
        return {
            name: age_s
            for name, age_s in ages_s.items()
            if age_s is None or age_s > self._slots[name].limit_s or self._is_unusable(name)
        }

    def _is_unusable(self, stream: str) -> bool:
        """Return whether a stream with a reading is missing whatever its age."""
        reading = self._slots[stream].reading
        is_unknown = reading is not None and reading.stamp_source == "unknown"
        return (is_unknown and stream in self._required) or self.frozen.is_missing(stream)

    def latest(self, stream: str) -> Reading | None:
        """Return the newest reading of a stream, stale or not."""
        return self._slots[stream].reading

    @property
    def required(self) -> frozenset[str]:
        """The streams without which the gate commands the safe action."""
        return self._required

    @property
    def drops(self) -> dict[str, Counter[str]]:
        """The readings dropped here, by stream and cause."""
        return {name: slot.drops for name, slot in self._slots.items()}


def age_limit_s(settings: AnyStream) -> float:
    """Return the seconds after which a reading counts as missing: `ttl_s` for text, else `max_age_s`."""
    return settings.ttl_s if settings.kind == "text" else settings.max_age_s
