"""Names of classes as people mean them, whichever file, folder, setting or message they come from: one spelling for one class.

A Mac writes an accent of a folder's name as a character of its own, an editor leaves a mark without width at the end of a cell.
Such names look alike and compare as different. Case and white space inside a name stay: they may be meant.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

INVISIBLE = "\u00ad\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
"""Characters without width, and marks of direction, that editors and web pages leave at the ends of words."""


def visible(name: str) -> str:
    """Return a name without white space and invisible characters at its ends."""
    stripped = name.strip()
    while stripped != (shorter := stripped.strip(INVISIBLE).strip()):
        stripped = shorter
    return stripped


def class_name(written: str) -> str:
    """Return the name of a class without invisible characters at its ends, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", visible(written))


def alike(names: Iterable[str]) -> list[str]:
    """Return a note for each group of names that differ only in case, white space or form: seldom are they meant as different."""
    spellings: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        plain = unicodedata.normalize("NFKC", name)
        shown = "".join(character for character in plain if unicodedata.category(character) != "Cf")
        spellings.setdefault(re.sub(r"\s+", " ", shown).casefold(), []).append(name)
    return [
        f"the labels {', '.join(map(repr, found))} differ only in case, white space or invisible characters"
        for found in spellings.values()
        if len(found) > 1
    ]
