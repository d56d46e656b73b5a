"""Find when a reading that came over MQTT was captured: from the sender's stamp if that is plausible, else from its arrival.

The stamp is a field of the payload or a user property of MQTT 5, in seconds, milliseconds or nanoseconds since 1970, or as ISO 8601.
With a shared clock (NTP, PTP) the stamp itself counts, within bounds. Otherwise the offset and drift of the sender's clock are
estimated. The least delay of each 10 s counts as no delay. A robust line through these is the drift (Theil 1950, Sen 1968).
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

from runtime.control.inbox import age_limit_s
from runtime.mqtt import Message
from runtime.process.emit import Emit
from sensors.base import PayloadRefused
from sensors.codecs.json_payload import MISSING, look_up, parse_json, pointer_of
from sensors.config import PROPERTY, AnyStream
from sensors.readings import StampSource

MAX_DELAY_S = 60.0
"""A stamp that is older than this at its arrival is not believed."""
AHEAD_S = 0.1
"""A stamp further ahead of its arrival is not believed; clocks that are synchronised differ by less."""
AGREE, AGREE_S, SILENT_S = 5, 10.0, 60.0
"""Readings in a row that must agree that the sender's clock is off; one alone may be late."""
BIN_S = 10.0
BINS = 60
JUMP_S = 1.0
"""The sender's clock was set if a stamp is this much later than its clock allows."""


@dataclass(slots=True)
class SenderClock:
    """Estimates the offset and drift of a sender's clock against the arrival clock."""

    _bins: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=BINS))
    """Stamp and least difference (arrival minus stamp) of each 10 s."""
    _least: tuple[float, float] | None = None
    """The same of the present 10 s."""
    _began_s: float = 0.0
    _slope: float = 0.0
    _intercept: float = math.inf
    """Of the line through the bins."""

    def captured_s(self, stamp_s: float, arrival_s: float) -> float:
        """Return the capture time on the arrival clock of a reading that its sender stamped `stamp_s`."""
        difference = arrival_s - stamp_s
        expected = self._offset_s(stamp_s)
        if difference < expected - JUMP_S or difference > expected + MAX_DELAY_S:
            self._bins.clear()
            self._least, self._slope, self._intercept = None, 0.0, math.inf
        if self._least is None:
            self._began_s, self._least = stamp_s, (stamp_s, difference)
        elif difference - self._slope * stamp_s < self._least[1] - self._slope * self._least[0]:
            self._least = (stamp_s, difference)
        captured_s = stamp_s + min(self._offset_s(stamp_s), difference)
        if not 0 <= stamp_s - self._began_s < BIN_S:
            self._bins.append(self._least)
            self._least = None
            self._fit()
        return min(captured_s, arrival_s)

    def figures(self) -> dict[str, float]:
        """Return the drift in parts per million: positive where the sender's clock is slow."""
        return {"drift_ppm": round(self._slope * 1e6, 1)} if len(self._bins) > 2 else {}

    def _offset_s(self, stamp_s: float) -> float:
        """Return arrival minus stamp of a reading without delay, by all that is known."""
        line = self._intercept + self._slope * stamp_s
        if self._least is None:
            return line
        return min(line, self._least[1] + self._slope * (stamp_s - self._least[0]))

    def _fit(self) -> None:
        if len(self._bins) > 2:
            self._slope = statistics.median(
                (late[1] - early[1]) / (late[0] - early[0])
                for early, late in combinations(self._bins, 2)
                if late[0] > early[0]
            )
        self._intercept = min(each - self._slope * stamp_s for stamp_s, each in self._bins)


class SenderStamps:
    """The stamps of one stream's messages.

    Args:
        settings: of the stream.
        wall: Unix seconds.
        clock: monotonic seconds.
    """

    def __init__(
        self, settings: AnyStream, wall: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic
    ) -> None:
        setting = settings.stamp
        self._property = setting.removeprefix(PROPERTY) if setting.startswith(PROPERTY) else None
        self._field = None if setting == "arrival" or self._property is not None else setting
        self._pointer = None if self._field is None else pointer_of(self._field)
        self._wall, self._clock = wall, clock
        self._sender = SenderClock() if settings.stamp_clock == "own" else None
        self._limit_s = age_limit_s(settings)
        self._off = _Off()
        self.missing = self.implausible = 0
        """Messages without a readable stamp, and with one that is not believed."""

    def of(self, message: Message) -> tuple[float, StampSource]:
        """Return the capture time of a message in monotonic seconds, and where it is from."""
        if self._property is None and self._field is None:
            return message.stamp_s, "arrival"
        stamp_s = unix_seconds(self._stated(message))
        if stamp_s is None:
            self.missing += 1
            return message.stamp_s, "arrival"
        if self._sender is not None:
            return self._sender.captured_s(stamp_s, message.stamp_s), "sender"
        age_s = self._wall() - (self._clock() - message.stamp_s) - stamp_s
        self._off.note(age_s, min(self._limit_s, MAX_DELAY_S), self._clock())
        if not -AHEAD_S <= age_s <= MAX_DELAY_S:
            self.implausible += 1
            return message.stamp_s, "arrival"
        return message.stamp_s - max(0.0, age_s), "sender"

    def figures(self) -> dict[str, Any]:
        """Return what `health` shows of a stream's stamps; empty while everything is as it should be."""
        found: dict[str, Any] = {} if self._sender is None else dict(self._sender.figures())
        if (offset_s := self.offset_s()) is not None:
            found["clock_offset_s"] = round(offset_s, 3)
        counts = {"stamps_missing": self.missing, "stamps_implausible": self.implausible}
        return found | {name: count for name, count in counts.items() if count}

    def offset_s(self) -> float | None:
        """Return how far the sender's clock is ahead, by readings in a row that agree; None while its stamps can be used."""
        return None if self._sender is not None else self._off.offset_s(self._clock())

    def _stated(self, message: Message) -> object:
        if self._property is not None:
            return next((value for name, value in message.properties if name == self._property), None)
        assert self._field is not None
        try:
            document = parse_json(message.payload)
        except PayloadRefused:
            return None
        found = look_up(document, self._field, self._pointer) if isinstance(document, dict) else MISSING
        return None if found is MISSING else found


@dataclass(slots=True)
class _Off:
    """Since when the newest readings agree that the sender's clock is off."""

    side: int = 0
    """1 where readings are older than their limit, -1 where they are from the future, 0 where the stamps can be used."""
    since_s: float = 0.0
    last_s: float = 0.0
    count: int = 0
    least_s: float = 0.0
    """The least of their ages, without its sign."""

    def note(self, age_s: float, limit_s: float, now_s: float) -> None:
        """Note the age of a reading at its arrival."""
        side = 1 if age_s > limit_s else -1 if age_s < -AHEAD_S else 0
        if side != self.side:
            self.side, self.since_s, self.count, self.least_s = side, now_s, 0, abs(age_s)
        self.last_s, self.count, self.least_s = now_s, self.count + 1, min(self.least_s, abs(age_s))

    def offset_s(self, now_s: float) -> float | None:
        """Return how far the sender's clock is ahead; None while that is not sure, or the sender is silent."""
        is_sure = self.count >= AGREE and self.last_s - self.since_s >= AGREE_S and now_s - self.last_s < SILENT_S
        return -self.side * self.least_s if self.side and is_sure else None


@dataclass(slots=True)
class ClockReporter:
    """Listens to ticks; publishes `clock_offset` and `clock_offset_ended`, and adds to the status what makes readings stale.

    Args:
        stamps: by stream.
        emit: publishes an event.
        degraded: the agent's reasons for a degraded status; the keys `streams.NAME` belong to this component.
    """

    stamps: Mapping[str, SenderStamps]
    emit: Emit
    degraded: dict[str, str]
    _off: set[str] = field(default_factory=set)

    def ticked(self, _result: object) -> None:
        """Publish what has changed since the tick before."""
        for name, stamps in self.stamps.items():
            offset_s = stamps.offset_s()
            if offset_s is None and name in self._off:
                self._off.discard(name)
                self.degraded.pop(f"streams.{name}", None)
                self.emit("clock_offset_ended", {"of": f"streams.{name}"})
            elif offset_s is not None:
                makes_stale = -MAX_DELAY_S <= offset_s < 0
                words = f"{abs(offset_s):.1f} s {'ahead' if offset_s > 0 else 'behind'}"
                effect = "every reading is stale" if makes_stale else "readings count as of their arrival"
                if makes_stale:
                    self.degraded[f"streams.{name}"] = f"the sender's clock is {words}, or its readings are that late"
                else:
                    self.degraded.pop(f"streams.{name}", None)
                if name not in self._off:
                    self._off.add(name)
                    reason = f"{effect}; synchronise the clock with NTP, or set stamp_clock: own"
                    data = {"of": f"streams.{name}", "offset_s": round(offset_s, 3), "reason": reason}
                    self.emit("clock_offset", data)


def unix_seconds(stated: object) -> float | None:
    """Read a stamp: seconds, milliseconds or nanoseconds since 1970, also as text, or ISO 8601; None if it is none."""
    if isinstance(stated, str):
        try:
            stated = float(stated)
        except ValueError:
            return _iso_seconds(str(stated))
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not math.isfinite(stated) or stated <= 0:
        return None
    seconds = float(stated)
    for factor in (1e3, 1e3, 1e3):  # 1e11 s is the year 5138
        if seconds < 1e11:
            break
        seconds /= factor
    return seconds if seconds < 1e11 else None


def _iso_seconds(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
