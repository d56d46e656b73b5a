"""Untrusted JSON for the sensors: strict, bounded in size and depth, refused with a cause."""

from __future__ import annotations

from typing import Any

import orjson

from sensors.base import PayloadRefused

MAX_JSON_BYTES = 262_144
MAX_DEPTH = 16


def parse_json(payload: bytes, limit: int = MAX_JSON_BYTES) -> Any:
    """The value in `payload`; orjson itself refuses NaN, Infinity and numbers beyond a double.

    Raises:
        PayloadRefused: `too_large`, `not_json` or `too_deep`.
    """
    if len(payload) > limit:
        raise PayloadRefused("too_large", f"{len(payload)} bytes of JSON; at most {limit} are taken")
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise PayloadRefused("not_json", f"not JSON: {error}") from None
    if _deeper_than(value, MAX_DEPTH):
        raise PayloadRefused("too_deep", f"nested deeper than {MAX_DEPTH}")
    return value


def _deeper_than(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _children(item: object) -> list[object]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []
