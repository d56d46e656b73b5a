"""Write a few texts that the regular expressions of a grammar suggest; a search for a permitted end tries them first.

llguidance tells which tokens may follow, not which of them lead to an end: after `.*` they are equal everywhere. The texts are guesses
by the order of an expression's parts, without its groups. The caller checks each of them.
"""

from __future__ import annotations

import json
import re

MOST_REPEATED = 64
"""Times that a part is repeated in a sample."""
_EXPRESSION = re.compile(r"/((?:\\.|[^/\\\n])+)/|\"pattern\": (\"(?:\\.|[^\"\\])*\")")
_PART = re.compile(
    r"(?P<group>\(\?[a-zA-Z-]*:|\((?:\?P?<\w+>)?|\)(?:[*+?]|\{[\d,]*\})?\??|[\^$])"
    r"|(?P<or>\|)"
    r"|(?:(?P<code>\\x\{[0-9a-fA-F]+\}|\\x[0-9a-fA-F]{2})|(?P<kind>\\[pP](?:\{[^}]*\}|\w)|\\[a-zA-Z])|\\(?P<literal>.)"
    r"|\[(?P<but>\^?)(?P<first>\\?[^\\])(?:\\.|[^\]\\])*\]|(?P<plain>.))"
    r"(?P<times>[*+?]|\{(?P<least>\d*),?\d*\})?\??",
    re.DOTALL,
)
_KINDS = {
    "d": "0",
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "s": " ",
    "b": "",
    "B": "",
    "A": "",
    "z": "",
    "pN": "0",
    "p{N}": "0",
    "p{Nd}": "0",
}


def sample_texts(grammar: str) -> tuple[str, ...]:
    """Return texts for the regular expressions of a grammar in llguidance's form, at most one for each alternative."""
    expressions = [
        found[1] if found[1] is not None else str(json.loads(found[2])) for found in _EXPRESSION.finditer(grammar)
    ]
    return tuple(dict.fromkeys(text for one in expressions for text in _samples(one) if text))


def _samples(expression: str) -> list[str]:
    """Return a text for each part of an expression between its `|`."""
    texts = [""]
    for part in _PART.finditer(expression):
        if part["or"]:
            texts.append("")
        elif not part["group"]:
            texts[-1] += _character(part) * _times(part)
    return texts


def _times(part: re.Match[str]) -> int:
    """Return how often a part must come at the least."""
    if not (times := part["times"]):
        return 1
    return 1 if times == "+" else 0 if times in "*?" else min(int(part["least"] or 0), MOST_REPEATED)


def _character(part: re.Match[str]) -> str:
    """Return a character that a part permits, by a guess."""
    if part["code"]:
        value = int(part["code"][2:].strip("{}"), 16)
        return chr(value) if value < 0x110000 else ""
    if part["kind"]:
        return _KINDS.get(part["kind"][1:], "a")
    if part["but"] or part["plain"] == ".":
        return "a"
    return str(part["literal"] or part["plain"] or part["first"].lstrip("\\") or "\\")
