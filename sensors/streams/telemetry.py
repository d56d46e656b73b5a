"""Telemetry: the numbers of one message, all of them or none.

A message is a JSON object, or the bare value where the stream has one field: `21.5`, `"21.5"` or `ON`. A field is a key, or a JSON
pointer (RFC 6901). A payload is refused when a field is missing or not a finite float32, because a policy must not see half of a
state. A field that is null keeps its last value for `max_age_s`. Readings hold float64; the policy scales the numbers. A field may
be one of some words (`EnumField`): its number is the place of the word. One beyond its range (`RangeField`) is a failure of the sensor.
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
from sensors.codecs.field_values import MOST_CHARACTERS, number_of
from sensors.codecs.json_payload import MISSING, look_up, parse_json, pointer_of
from sensors.config import EnumField, FieldKind, RangeField
from sensors.readings import Telemetry


class TopicTelemetry:
    """Decode one message to a reading.

    Args:
        name: of the stream.
        topic: to which it listens, or None for its own.
        fields: names of the numbers.
        kinds: fields that are angles or words, or have a range.
        paths: where a field lies in the object, if not at the key of its name.
        max_age_s: how long a field that is null keeps its last value.
    """

    def __init__(
        self,
        name: str,
        topic: str | None,
        fields: tuple[str, ...],
        kinds: Mapping[str, FieldKind] | None = None,
        paths: Mapping[str, str] | None = None,
        max_age_s: float = math.inf,
    ) -> None:
        self.name = name
        self.topic = topic
        self.drops: Counter[str] = Counter()
        self._fields = fields
        self._paths = tuple((paths or {}).get(field, field) for field in fields)
        self._pointers = tuple(_pointer(name, path) for path in self._paths)
        self._max_age_s = max_age_s
        self._known: dict[str, tuple[float, float]] = {}
        """The last number of each field with its stamp."""
        self._seq = 0
        self._words = {name: kind.words for name, kind in (kinds or {}).items() if isinstance(kind, EnumField)}
        self._ranges = {name: kind for name, kind in (kinds or {}).items() if isinstance(kind, RangeField)}

    def decode(self, payload: bytes, stamp_s: float) -> Telemetry:
        """Decode one payload to float64 numbers in the order of the fields; true and false are 1 and 0.

        Raises:
            PayloadRefused: `too_large`, `not_json`, `too_deep`, `not_an_object`, `missing_field`, `not_a_number`, `not_finite`,
                `unavailable`, `unknown_word` or `out_of_range`.
        """
        try:
            values = self._read(payload, stamp_s)
        except PayloadRefused as refusal:
            self.drops[refusal.cause] += 1
            raise
        self._seq += 1
        return Telemetry(self.name, stamp_s, self._seq, self._fields, values)

    def _read(self, payload: bytes, stamp_s: float) -> NDArray[np.float64]:
        found = self._found(payload)
        values = np.asarray([self._number(name, value, stamp_s) for name, value in found.items()], np.float64)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        if not np.isfinite(narrow).all():
            field = self._fields[int(np.flatnonzero(~np.isfinite(narrow))[0])]
            raise PayloadRefused("not_finite", f"{field} is beyond a 32-bit float")
        for name, number in zip(self._fields, values.tolist(), strict=True):
            limits = self._ranges.get(name)
            if limits is not None and not limits.min <= number <= limits.max:
                raise PayloadRefused(
                    "out_of_range", f"{name}: {number:g} is not within {limits.min:g} and {limits.max:g}"
                )
        for number, (name, value) in zip(values, found.items(), strict=True):
            if value is not None:
                self._known[name] = (float(number), stamp_s)
        return values

    def _found(self, payload: bytes) -> dict[str, object]:
        """Return the value of every field."""
        document = _bare_or_json(payload) if len(self._fields) == 1 else parse_json(payload)
        if isinstance(document, dict):
            places = zip(self._fields, self._paths, self._pointers, strict=True)
            return {name: _find(document, path, pointer) for name, path, pointer in places}
        if len(self._fields) == 1 and not isinstance(document, list):
            return {self._fields[0]: document}
        got = type(document).__name__
        raise PayloadRefused("not_an_object", f"expected a JSON object with {list(self._fields)[:4]}, got {got}")

    def _number(self, name: str, value: object, stamp_s: float) -> float:
        if value is not None:
            return number_of(name, value, self._words.get(name, ()))
        number, known_s = self._known.get(name, (0.0, -math.inf))
        if stamp_s - known_s > self._max_age_s or known_s == -math.inf:
            raise PayloadRefused("unavailable", f"{name} is null, and there is no value of the last max_age_s")
        return number


def _bare_or_json(payload: bytes) -> object:
    """Parse JSON, or return a bare word such as `ON` as text."""
    try:
        return parse_json(payload)
    except PayloadRefused as refusal:
        if refusal.cause != "not_json" or len(payload) > MOST_CHARACTERS or payload.lstrip()[:1] in (b"{", b"[", b'"'):
            raise
        try:
            return payload.decode()
        except UnicodeDecodeError:
            raise refusal from None


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
