"""Read numbers and words out of sample payloads: which fields an object always has, and where they lie."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import orjson

from runtime.discovery.proposals import is_diagnostic, is_growing

MAX_FIELDS = 24
MAX_DEPTH = 3
MAX_NAME = 64
_NAME = re.compile(r"[^a-z0-9_]+")


def documents(samples: Sequence[bytes]) -> list[object]:
    """Return the samples as JSON; what is no JSON is left out."""
    found = []
    for sample in samples:
        try:
            found.append(orjson.loads(sample))
        except orjson.JSONDecodeError:
            continue
    return found


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def numeric_fields(samples: Sequence[bytes]) -> dict[str, str]:
    """Return the fields that are numbers (or truth values) in every sample: name -> key or JSON pointer.

    Fields about the device itself, such as its battery, and counters that only grow are left out.
    """
    objects = _objects(samples)
    if not objects or several_devices(samples):
        return {}
    places: dict[tuple[str, ...], int] = {}
    for each in objects:
        for place in _numbers(each):
            places[place] = places.get(place, 0) + 1
    always = [place for place, count in places.items() if count == len(objects)]
    found: dict[str, str] = {}
    for place in always[:MAX_FIELDS]:
        if any(is_diagnostic(part) for part in place) or is_growing(place[-1]):
            continue
        if all(is_date(_at(each, place)) for each in objects) or _is_fahrenheit(place, always):
            continue
        name = _NAME.sub("_", "_".join(place).lower()).strip("_")[:MAX_NAME] or "value"
        while name in found:
            name += "_"
        found[name] = place[0] if len(place) == 1 and not place[0].startswith("/") else pointer(place)
    return found


def several_devices(samples: Sequence[bytes]) -> bool:
    """Return whether objects name different devices: their numbers are then no course of one.

    An `id` that grows with every message counts them, and names no device.
    """
    objects = _objects(samples)
    for key in _IDENTITY:
        named = [each[key] for each in objects if isinstance(each.get(key), str | int)]
        grows = all(isinstance(a, int) and isinstance(b, int) and a < b for a, b in pairwise(named))
        if len(set(named)) > 1 and not grows:
            return True
    return False


_IDENTITY = (
    "id", "mac", "device", "device_id", "deviceId", "model", "sensor", "sensor_id", "ieee", "ieeeAddr", "address", "addr", "node",
    "node_id", "nodeId", "serial",
)  # fmt: skip
"""Keys that say which device a message is from."""


def is_date(value: object) -> bool:
    """Return whether a number can only be a time: seconds or milliseconds since 1970, of the years 2011 to 2049."""
    return is_number(value) and any(1.3e9 <= float(str(value)) / scale < 2.5e9 for scale in (1, 1_000))


def _objects(samples: Sequence[bytes]) -> list[dict[str, object]]:
    """Return the samples as objects; none where one of them is no object."""
    objects = [each for each in documents(samples) if isinstance(each, dict)]
    return objects if len(objects) == len(samples) else []


def _at(document: object, place: Sequence[str]) -> object:
    for key in place:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def values_at(samples: Sequence[bytes], place: str) -> list[str]:
    """Return the texts at a key or JSON pointer of every sample; none where one of them has no text there."""
    keys = tuple(place[1:].split("/")) if place.startswith("/") else (place,)
    found = [_at(each, keys) for each in _objects(samples)]
    texts = [each for each in found if isinstance(each, str)]
    return texts if len(texts) == len(samples) else []


def _is_fahrenheit(place: tuple[str, ...], always: Sequence[tuple[str, ...]]) -> bool:
    """Return whether a temperature is there in Celsius too."""
    stem = next((place[-1].removesuffix(end) for end in ("_f", "_F", "f", "F") if place[-1].endswith(end)), "")
    if not stem.lower().endswith(("temp", "temperature", "t")):
        return False
    return any((*place[:-1], stem + end) in always for end in ("_c", "_C", "c", "C"))


def pointer(place: Sequence[str]) -> str:
    """Return a JSON pointer (RFC 6901)."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in place)


def bare_numbers(samples: Sequence[bytes]) -> bool:
    """Return whether every sample is one plain number."""
    found = documents(samples)
    return bool(samples) and len(found) == len(samples) and all(is_number(each) for each in found)


def bare_words(samples: Sequence[bytes], words: Sequence[str]) -> bool:
    """Return whether every sample is one of the words."""
    return bool(samples) and all(sample.decode(errors="replace").strip() in words for sample in samples)


def _numbers(document: dict[str, object], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in document.items():
        place = (*above, str(key))
        if is_number(value) or isinstance(value, bool):
            yield place
        elif isinstance(value, dict) and len(place) < MAX_DEPTH:
            yield from _numbers(value, place)
