"""Untrusted JSON: strict, bounded in size and depth, without repeated keys, and refused with a cause.

Sensors and the wire contract of the runtime read every payload here. The actuators have a copy of their own
(`actuators.wire`), because sensors and actuators may not import each other.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import orjson
from jsonpointer import JsonPointer, JsonPointerException

from sensors.base import PayloadRefused

MAX_JSON_BYTES = 262_144
MAX_DEPTH = 16
MISSING = object()
"""What `look_up` returns where the document has no such place."""


def parse_json(payload: bytes, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse a payload of at most `limit` bytes.

    orjson refuses NaN, Infinity, numbers beyond a double and half surrogates; it would keep the last of two equal keys.

    Raises:
        PayloadRefused: `too_large`, `not_json`, `not_finite`, `too_deep` or `duplicate_key`.
    """
    if len(payload) > limit:
        raise PayloadRefused("too_large", f"{len(payload)} bytes of JSON; the limit is {limit} bytes")
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        if (place := _not_finite(payload)) is not None:
            raise PayloadRefused("not_finite", f"{place}; JSON has no such number, send null") from None
        raise PayloadRefused("not_json", f"not JSON: {error}") from None
    keys = _count_keys(value, MAX_DEPTH)
    if keys is None:
        raise PayloadRefused("too_deep", f"nested deeper than {MAX_DEPTH} levels")
    # each pair has a colon, so as many colons as keys leave none for a repeated key; more of them may be inside texts
    if payload.count(b":") != keys:
        json.loads(payload, object_pairs_hook=_distinct)
    return value


def pointer_of(field: str) -> JsonPointer | None:
    """Return the JSON pointer (RFC 6901) that `field` spells; None for a plain key.

    Raises:
        ValueError: `field` begins with `/` and is not a pointer.
    """
    if not field.startswith("/"):
        return None
    try:
        return JsonPointer(field)
    except JsonPointerException as error:
        raise ValueError(f"{field!r} is not a JSON pointer: {error}") from None


def look_up(document: dict[str, Any], field: str, pointer: JsonPointer | None) -> object:
    """Return the value at the key `field`, or at `pointer` where it has one; `MISSING` where there is none."""
    if pointer is None:
        return document.get(field, MISSING)
    try:
        found: object = pointer.resolve(document, MISSING)
    except JsonPointerException:
        return MISSING
    return found


def _not_finite(payload: bytes) -> str | None:
    """Return which number of an object or a list is not finite, if the payload is JSON but for that; None for any other payload."""
    try:
        value = json.loads(payload.decode())  # Python's parser reads NaN and Infinity, as its writer writes them
    except (ValueError, RecursionError):
        return None
    level: list[tuple[str, object]] = [("", value)]
    for _ in range(MAX_DEPTH):
        for place, item in level:
            if place and isinstance(item, int | float) and not abs(item) <= sys.float_info.max:
                return f"{place[1:65]} is {'too large a number' if isinstance(item, int) else item}"
        level = [(f"{place}.{key}", child) for place, item in level for key, child in _named_children(item)]
    return None


def _named_children(item: object) -> list[tuple[object, object]]:
    if isinstance(item, dict):
        return list(item.items())
    return list(enumerate(item)) if isinstance(item, list) else []


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise PayloadRefused("duplicate_key", f"the key {key[:64]!r} appears twice in one object")
        seen.add(key)


def _count_keys(value: object, limit: int) -> int | None:
    """Return the number of keys of all objects; None for a value that is nested deeper than `limit`."""
    level, count = [value], 0
    for _ in range(limit):
        count += sum(len(item) for item in level if isinstance(item, dict))
        level = [child for item in level if isinstance(item, dict | list) for child in _children(item)]
        if not level:
            return count
    return None if any(isinstance(item, dict | list) for item in level) else count


def _children(item: object) -> list[object]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []
