"""Convert the value of one telemetry field to a number: numbers, numbers as text, and the words that homes send for yes and no."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from sensors.base import PayloadRefused

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MOST_CHARACTERS = 256
"""Of a value that is text."""
TRUE = frozenset({"on", "true", "yes", "open", "detected", "online", "home"})
FALSE = frozenset({"off", "false", "no", "closed", "clear", "offline", "not_home"})
"""Words for 1 and 0, in any case: of Home Assistant, Zigbee2MQTT and Tasmota."""
UNKNOWN = frozenset({"", "unknown", "unavailable", "none", "null", "nan"})
"""Words of a source that has no value."""
INFINITE = frozenset({"inf", "infinity", "infinite", "nan", "1.#inf", "1.#qnan", "1.#ind"})
"""Words for numbers that are not finite, after a sign: of C, Python, JavaScript and Windows."""


def number_of(field: str, value: object, words: Sequence[str] = ()) -> float:
    """Return a finite number.

    Args:
        field: its name, for the reason of a refusal.
        value: as JSON gives it; true and false are 1 and 0.
        words: of a field that is one of some words; the number is the place of the word.

    Raises:
        PayloadRefused: `not_a_number`, `not_finite`, `unavailable` or `unknown_word`.
    """
    if words:
        word = (
            str(value).lower() if isinstance(value, int) else value
        )  # `1` of the words 1, 2, 3, or `true` of true and false
        if word not in words:
            raise PayloadRefused("unknown_word", f"{field}: {str(value)[:64]!r} is not one of {list(words)}")
        return float(words.index(str(word)))
    if isinstance(value, str):
        return _of_text(field, value)
    if not isinstance(value, int | float):
        raise PayloadRefused("not_a_number", f"{field}: expected a number, got {type(value).__name__}")
    return _finite(field, float(value))


def _of_text(field: str, text: str) -> float:
    word = text.strip()
    if len(text) <= MOST_CHARACTERS:
        if NUMBER.fullmatch(word):
            return _finite(field, float(word))
        if word.lower() in TRUE:
            return 1.0
        if word.lower() in FALSE:
            return 0.0
        if word.lower() in UNKNOWN:
            raise PayloadRefused("unavailable", f"{field}: the source has no value ({word!r})")
        if word.lower().lstrip("+-") in INFINITE:
            raise PayloadRefused("not_finite", f"{field} is {word!r}, which is not finite")
    remedy = "; write a decimal point, not a comma" if NUMBER.fullmatch(word.replace(",", ".", 1)) else ""
    raise PayloadRefused(
        "not_a_number", f"{field}: {text[:64]!r} is neither a number nor a word such as ON or OFF{remedy}"
    )


def _finite(field: str, number: float) -> float:
    if not math.isfinite(number):
        raise PayloadRefused("not_finite", f"{field} is not finite")
    return number
