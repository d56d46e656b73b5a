"""Telemetry: numbers out of a JSON object, all of them or none.

A field is a key, or with a leading `/` a JSON pointer (RFC 6901). A payload is refused when a field is missing or not a
finite float32, because a policy must not see half of a state. Readings hold float64; the policy scales the numbers. A field may be
one of some words (`EnumField`): its number is the place of the word.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from jsonpointer import JsonPointer
from numpy.typing import NDArray

from sensors.base import PayloadRefused
from sensors.codecs.json_payload import MISSING, look_up, parse_json, pointer_of
from sensors.config import AngleField, EnumField
from sensors.readings import Telemetry


class TopicTelemetry:
    """Decode one JSON object a message."""

    def __init__(
        self,
        name: str,
        topic: str | None,
        fields: tuple[str, ...],
        kinds: Mapping[str, AngleField | EnumField] | None = None,
    ) -> None:
        self.name = name
        self.topic = topic
        self.drops: Counter[str] = Counter()
        self._fields = fields
        self._pointers = tuple(_pointer(name, text) for text in fields)
        self._seq = 0
        self._words = {name: kind.words for name, kind in (kinds or {}).items() if isinstance(kind, EnumField)}

    def decode(self, payload: bytes, stamp_s: float) -> Telemetry:
        """Decode one payload to float64 numbers in the order of the fields; true and false are 1 and 0.

        Raises:
            PayloadRefused: `too_large`, `not_json`, `too_deep`, `not_an_object`, `missing_field`, `not_a_number`, `not_finite` or
                `unknown_word`.
        """
        try:
            values = self._read(payload)
        except PayloadRefused as refusal:
            self.drops[refusal.cause] += 1
            raise
        self._seq += 1
        return Telemetry(self.name, stamp_s, self._seq, self._fields, values)

    def _read(self, payload: bytes) -> NDArray[np.float64]:
        document = parse_json(payload)
        if not isinstance(document, dict):
            raise PayloadRefused("not_an_object", f"expected a JSON object, got {type(document).__name__}")
        pairs = zip(self._fields, self._pointers, strict=True)
        numbers = [_number(text, _find(document, text, pointer), self._words.get(text, ())) for text, pointer in pairs]
        values = np.asarray(numbers, np.float64)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        if not np.isfinite(narrow).all():
            field = self._fields[int(np.flatnonzero(~np.isfinite(narrow))[0])]
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


def _number(field: str, value: object, words: tuple[str, ...]) -> float:
    if words:
        if value not in words:
            raise PayloadRefused("unknown_word", f"{field}: {str(value)[:64]!r} is none of {list(words)}")
        return float(words.index(str(value)))
    if not isinstance(value, int | float):
        raise PayloadRefused("not_a_number", f"{field}: expected a number, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise PayloadRefused("not_finite", f"{field} is not finite")
    return number
