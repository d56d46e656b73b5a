"""Accept or drop commands on the device's side. The simulated devices use it; a real device can copy it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from actuators.wire import WireError, parse_json

MAX_BOOTS = 16
"""Runs of the gate with a stored last `seq`; beyond it the oldest is dropped."""


@dataclass(frozen=True, slots=True)
class Command:
    """A parsed command; `value` is a word, or numbers that the device must still check."""

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
    """Accept each command once and in time; drop it when retained, malformed, repeated, reordered, replayed or too old."""

    drops: Counter[str] = field(default_factory=Counter)
    """By cause: `retained malformed seq expired`."""
    _last: dict[str, int] = field(default_factory=dict)

    def accept(self, payload: bytes, *, retained: bool, now_s: float) -> Command | None:
        """Parse a command; None when the device must not execute it. `now_s` is Unix time in seconds.

        A stamp further in the future than its time to live counts as expired, because it would never age.
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
        self._last.pop(command.boot, None)  # reinserted as the newest
        self._last[command.boot] = command.seq
        if len(self._last) > MAX_BOOTS:
            del self._last[next(iter(self._last))]
        return None, command


def parse_command(payload: bytes) -> Command:
    """Parse an untrusted command.

    Raises:
        WireError: malformed JSON, or a field is missing or of another type.
    """
    body = parse_json(payload)
    if not isinstance(body, dict):
        raise WireError(f"expected a JSON object, got {type(body).__name__}")
    value, decision = body.get("value"), body.get("decision")
    boot, seq, policy = body.get("boot"), body.get("seq"), body.get("policy")
    if not isinstance(boot, str) or not isinstance(policy, str) or not isinstance(decision, str | None):
        raise WireError("boot and policy must be strings, decision a string or null")
    if isinstance(seq, bool) or not isinstance(seq, int) or seq < 0:
        raise WireError("seq must be a whole number, 0 or more")
    if isinstance(value, list):
        value = tuple(_number(item) for item in value)
    if not isinstance(value, str | tuple):
        raise WireError("value must be a string or a list of numbers")
    return Command(value, decision, boot, seq, _number(body.get("stamp")), _number(body.get("ttl_ms")), policy)


def _number(item: Any) -> float:
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise WireError(f"expected a number, got {type(item).__name__}")
    number = float(item)
    if not math.isfinite(number):
        raise WireError("expected a finite number")
    return number
