"""The device's side of the wire: which commands it takes. The simulated devices here use it; a real one can copy it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from actuators.wire import WireError, parse_json

MAX_BOOTS = 16
"""Runs of the gate whose last `seq` is remembered; the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command as read; `value` is a word, or numbers the device must still judge."""

    value: str | tuple[float, ...]
    decision: str | None
    boot: str
    seq: int
    stamp_s: float
    """Unix seconds."""
    ttl_ms: float
    policy: str


@dataclass(slots=True)
class DeviceInbox:
    """Takes each command once and in time: drops what is retained, malformed, repeated, reordered, replayed or too old."""

    drops: Counter[str] = field(default_factory=Counter)
    """By cause: `retained malformed seq expired`."""
    _last: dict[str, int] = field(default_factory=dict)

    def accept(self, payload: bytes, *, retained: bool, now_s: float) -> Command | None:
        """The command, or None when it must not be carried out. `now_s` is Unix time.

        A stamp further in the future than its time to live counts as expired: it would otherwise never age.
        """
        cause, command = self._judge(payload, retained=retained, now_s=now_s)
        if cause is not None:
            self.drops[cause] += 1
            return None
        return command

    def _judge(self, payload: bytes, *, retained: bool, now_s: float) -> tuple[str | None, Command | None]:
        if retained:
            return "retained", None
        try:
            command = parse_command(payload)
        except WireError:
            return "malformed", None
        if command.seq <= self._last.get(command.boot, -1):
            return "seq", None
        if not abs(now_s - command.stamp_s) * 1_000 <= command.ttl_ms:
            return "expired", None
        self._last.pop(command.boot, None)  # put back as the newest
        self._last[command.boot] = command.seq
        if len(self._last) > MAX_BOOTS:
            del self._last[next(iter(self._last))]
        return None, command


def parse_command(payload: bytes) -> Command:
    """An untrusted command.

    Raises:
        WireError: not of the declared shape.
    """
    body = parse_json(payload)
    if not isinstance(body, dict):
        raise WireError("an object is wanted")
    value, decision = body.get("value"), body.get("decision")
    boot, seq, policy = body.get("boot"), body.get("seq"), body.get("policy")
    if not isinstance(boot, str) or not isinstance(policy, str) or not isinstance(decision, str | None):
        raise WireError("boot and policy must be words, decision a word or null")
    if isinstance(seq, bool) or not isinstance(seq, int) or seq < 0:
        raise WireError("seq must be a whole number from 0")
    if isinstance(value, list):
        value = tuple(_number(item) for item in value)
    if not isinstance(value, str | tuple):
        raise WireError("value must be a word or a list of numbers")
    return Command(value, decision, boot, seq, _number(body.get("stamp")), _number(body.get("ttl_ms")), policy)


def _number(item: Any) -> float:
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise WireError("a number is wanted")
    number = float(item)
    if not math.isfinite(number):
        raise WireError("a finite number is wanted")
    return number
