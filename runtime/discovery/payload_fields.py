"""Read numbers and words out of sample payloads: which fields an object always has, and where they lie."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

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
    objects = [each for each in documents(samples) if isinstance(each, dict)]
    if not objects or len(objects) != len(samples):
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
        name = _NAME.sub("_", "_".join(place).lower()).strip("_")[:MAX_NAME] or "value"
        while name in found:
            name += "_"
        found[name] = place[0] if len(place) == 1 and not place[0].startswith("/") else pointer(place)
    return found


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
