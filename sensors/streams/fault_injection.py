"""Inject faults: wrap a sensor to test how everything behind it reacts to a failing source.

`front=stuck@10s` makes stream `front` stuck from 10 s after the start. The whole form is
`STREAM=KIND[:AMOUNT][@START[+DURATION]]`, with times in seconds, with or without an `s`. The kinds are:

- off: nothing is delivered.
- stuck: the same content is repeated with fresh stamps, like a frozen source that seems alive.
- garbage: random content of the right shape.
- wrong: plausible but false content: images mirrored, sound reversed, words in reverse order, numbers negated.
- slow: one reading in AMOUNT seconds (default 1); the others are dropped.
- delayed: every reading AMOUNT seconds late (default 0.5), with its true stamp.
- intermittent: alternately on for AMOUNT seconds (default 1) and off for as long.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np

from sensors.base import Publish, Sensor, TopicSensor
from sensors.readings import Frame, Reading, Sound, Telemetry, Text

Kind = Literal["off", "stuck", "garbage", "wrong", "slow", "delayed", "intermittent"]
KINDS: tuple[Kind, ...] = ("off", "stuck", "garbage", "wrong", "slow", "delayed", "intermittent")
DEFAULT_AMOUNTS: dict[Kind, float] = {"slow": 1.0, "delayed": 0.5, "intermittent": 1.0}
MAX_DELAYED = 64
"""Most readings that `delayed` holds; beyond it the oldest are dropped."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz "
_NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,6})?"
_SPEC = re.compile(
    rf"(?P<stream>[a-z0-9_-]{{1,64}})=(?P<kind>[a-z]+)(?::(?P<amount>{_NUMBER})s?)?"
    rf"(?:@(?P<start>{_NUMBER})s?(?:\+(?P<duration>{_NUMBER})s?)?)?"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one stream; times in seconds since the wrapped sensor was made."""

    stream: str
    kind: Kind
    amount: float = 0.0
    start_s: float = 0.0
    duration_s: float = float("inf")

    def active(self, elapsed_s: float) -> bool:
        """Return whether the fault is on, `elapsed_s` after the start."""
        return self.start_s <= elapsed_s < self.start_s + self.duration_s


def parse_fault(text: str) -> Fault:
    """Parse the specification of a fault.

    Raises:
        ValueError: with the form that is required.
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a fault; write STREAM=KIND[:AMOUNT][@START[+DURATION]], as front=stuck@10s")
    if match["kind"] not in KINDS:
        raise ValueError(f"{text!r}: unknown fault {match['kind']!r}; write one of {', '.join(KINDS)}")
    kind = cast("Kind", match["kind"])
    if match["amount"] is not None and kind not in DEFAULT_AMOUNTS:
        raise ValueError(f"{text!r}: {kind} takes no amount; {', '.join(DEFAULT_AMOUNTS)} do")
    amount = DEFAULT_AMOUNTS.get(kind, 0.0) if match["amount"] is None else float(match["amount"])
    if kind in DEFAULT_AMOUNTS and amount <= 0:
        raise ValueError(f"{text!r}: the amount must be above 0 s")
    duration_s = float("inf") if match["duration"] is None else float(match["duration"])
    return Fault(match["stream"], kind, amount, float(match["start"] or 0.0), duration_s)


class Injector:
    """Apply one fault to successive readings; both wrappers use it. Not safe for two threads at once."""

    def __init__(self, fault: Fault, clock: Callable[[], float], generator: np.random.Generator) -> None:
        self.fault = fault
        self.drops: Counter[str] = Counter()
        self._clock = clock
        self._generator = generator
        self._start_s = clock()
        self._frozen: Reading | None = None
        self._last_s = float("-inf")

    @property
    def active(self) -> bool:
        """Whether the fault is on now."""
        return self.fault.active(self._clock() - self._start_s)

    def change(self, reading: Reading) -> Reading | None:
        """Return the changed reading, None when the fault drops it; the wrapper handles `delayed`."""
        if not self.active:
            self._frozen = None
            return reading
        if self._swallows():
            self.drops[f"fault_{self.fault.kind}"] += 1
            return None
        if self.fault.kind == "stuck":
            self._frozen = self._frozen or reading
            return replace(self._frozen, stamp_s=reading.stamp_s, seq=reading.seq)
        if self.fault.kind == "garbage":
            return garbage(reading, self._generator)
        return wrong(reading) if self.fault.kind == "wrong" else reading

    def _swallows(self) -> bool:
        kind, amount, now_s = self.fault.kind, self.fault.amount, self._clock()
        if kind == "intermittent":
            return int((now_s - self._start_s - self.fault.start_s) / amount) % 2 == 1
        if kind == "slow" and now_s - self._last_s >= amount:
            self._last_s = now_s
            return False
        return kind in {"off", "slow"}


def garbage(reading: Reading, generator: np.random.Generator) -> Reading:
    """Replace the content by random content of the same shape."""
    match reading:
        case Frame(image=image):
            return replace(reading, image=generator.integers(0, 256, image.shape, np.uint8), encoded=None)
        case Sound(samples=samples):
            return replace(reading, samples=generator.uniform(-1, 1, samples.shape).astype(np.float32))
        case Text(text=text):
            return replace(reading, text="".join(generator.choice(list(_LETTERS), max(1, len(text)))))
        case Telemetry(values=values):
            return replace(reading, values=generator.normal(0, 1e3, values.shape))


def wrong(reading: Reading) -> Reading:
    """Replace the content by plausible but false content."""
    match reading:
        case Frame(image=image):
            return replace(reading, image=np.ascontiguousarray(image[:, ::-1]), encoded=None)
        case Sound(samples=samples):
            return replace(reading, samples=np.ascontiguousarray(samples[::-1]))
        case Text(text=text):
            return replace(reading, text=" ".join(reversed(text.split())))
        case Telemetry(values=values):
            return replace(reading, values=-values)


class FaultySensor:
    """A `Sensor` with a fault."""

    def __init__(
        self,
        sensor: Sensor,
        fault: Fault,
        *,
        clock: Callable[[], float] = time.monotonic,
        generator: np.random.Generator | None = None,
    ) -> None:
        self.name = sensor.name
        self.drops = sensor.drops
        self._sensor = sensor
        self._injector = Injector(fault, clock, generator or np.random.default_rng(0))
        self._injector.drops = self.drops

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Publish the changed readings until cancelled."""
        loop = asyncio.get_running_loop()
        fault = self._injector.fault
        held = 0

        def release(reading: Reading) -> None:
            nonlocal held
            held -= 1
            publish(reading)

        def hold(reading: Reading) -> None:
            nonlocal held
            if held >= MAX_DELAYED:
                self.drops["fault_delayed"] += 1
                return
            held += 1
            loop.call_later(fault.amount, release, reading)

        def pass_on(reading: Reading) -> None:
            changed = self._injector.change(reading)
            if changed is None:
                return
            if fault.kind == "delayed" and self._injector.active:
                loop.call_soon_threadsafe(hold, changed)
            else:
                publish(changed)

        await self._sensor.run(pass_on, lost, recovered)


class FaultyTopicSensor:
    """A `TopicSensor` with a fault; a delayed reading is returned when a later payload arrives."""

    def __init__(
        self,
        sensor: TopicSensor,
        fault: Fault,
        *,
        clock: Callable[[], float] = time.monotonic,
        generator: np.random.Generator | None = None,
    ) -> None:
        self.name = sensor.name
        self.topic = sensor.topic
        self.drops = sensor.drops
        self._sensor = sensor
        self._clock = clock
        self._injector = Injector(fault, clock, generator or np.random.default_rng(0))
        self._injector.drops = self.drops
        self._held: deque[tuple[float, Reading]] = deque()

    def decode(self, payload: bytes, stamp_s: float) -> Reading | None:
        """Decode with the wrapped sensor and apply the fault.

        Raises:
            PayloadRefused: as the wrapped sensor.
        """
        reading = self._sensor.decode(payload, stamp_s)
        changed = None if reading is None else self._injector.change(reading)
        fault = self._injector.fault
        if fault.kind != "delayed" or not self._injector.active:
            self._held.clear()
            return changed
        now_s = self._clock()
        if changed is not None:
            self._held.append((now_s + fault.amount, changed))
        due: Reading | None = None
        while self._held and (self._held[0][0] <= now_s or len(self._held) > MAX_DELAYED):
            if due is not None:
                self.drops["fault_delayed"] += 1
            due = self._held.popleft()[1]
        return due


def apply_fault(
    sensor: Sensor | TopicSensor,
    fault: Fault,
    *,
    clock: Callable[[], float] = time.monotonic,
    generator: np.random.Generator | None = None,
) -> FaultySensor | FaultyTopicSensor:
    """Wrap a sensor with a fault; a wrapped sensor can be wrapped again.

    Raises:
        ValueError: the fault is of another stream.
    """
    if sensor.name != fault.stream:
        raise ValueError(f"the fault is for stream {fault.stream!r}, not {sensor.name!r}")
    if isinstance(sensor, Sensor):
        return FaultySensor(sensor, fault, clock=clock, generator=generator)
    return FaultyTopicSensor(sensor, fault, clock=clock, generator=generator)
