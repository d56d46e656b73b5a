"""Telemetry: numbers out of a JSON object, all of them or none.

A field is a key, or with a leading `/` a JSON pointer (RFC 6901). A payload is refused when a field is missing or not a
finite float32, because a policy must not see half of a state. The policy scales the numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from jsonpointer import JsonPointer

from sensors.base import PayloadRefused
from sensors.codecs.json_payload import MISSING, look_up, parse_json, pointer_of
from sensors.readings import Telemetry


class TopicTelemetry:
    """Decode one JSON object a message."""

    def __init__(self, name: str, topic: str | None, fields: tuple[str, ...]) -> None:
        self.name = name
        self.topic = topic
        self.drops: Counter[str] = Counter()
        self._fields = fields
        self._pointers = tuple(_pointer(name, text) for text in fields)
        self._seq = 0

    def decode(self, payload: bytes, stamp_s: float) -> Telemetry:
        """Decode one payload to float32 numbers in the order of the fields; true and false are 1 and 0.

        Raises:
            PayloadRefused: `too_large`, `not_json`, `too_deep`, `not_an_object`, `missing_field`, `not_a_number` or
                `not_finite`.
        """
        try:
            values = self._read(payload)
        except PayloadRefused as refusal:
            self.drops[refusal.cause] += 1
            raise
        self._seq += 1
        return Telemetry(self.name, stamp_s, self._seq, self._fields, values)

    def _read(self, payload: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
        document = parse_json(payload)
        if not isinstance(document, dict):
            raise PayloadRefused("not_an_object", f"expected a JSON object, got {type(document).__name__}")
        pairs = zip(self._fields, self._pointers, strict=True)
        numbers = [_number(text, _find(document, text, pointer)) for text, pointer in pairs]
        with np.errstate(over="ignore"):
            values = np.asarray(numbers, np.float64).astype(np.float32)
        if not np.isfinite(values).all():
            field = self._fields[int(np.flatnonzero(~np.isfinite(values))[0])]
            raise PayloadRefused("not_finite", f"{field} is beyond a 32-bit float")
        return values


def _pointer(stream: str, field: str) -> JsonPointer | None:
    try:
        return pointer_of(field)
    except ValueError as error:
        raise ValueError(f"streams.{stream}.fields: {error}") from None


def _find(document: dict[str, Any], field: str, pointer: JsonPointer | None) -> object:
    value = look_up(document, field, pointer)
    if value is MISSING:
        raise PayloadRefused("missing_field", f"the field {field} is missing")
    return value


def _number(field: str, value: object) -> float:
    if not isinstance(value, int | float):
        raise PayloadRefused("not_a_number", f"{field}: expected a number, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise PayloadRefused("not_finite", f"{field} is not finite")
    return number
