"""Recognise examples of equal content: they belong to one part, and a selection counts them once."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learners.tasks.base import EncodedMedia, Example

MEDIA = ("picture", "sound")


def normalized_text(example: Example) -> str:
    """Return the text of an example without differences in spacing, case and Unicode's form; empty for images and sounds."""
    words = [str(example.get(name, "")) for name in ("text", "text_pair", "source", "question", "context")]
    words += map(str, example.get("tokens", ()))
    words += [str(turn.get("content", "")) for turn in example.get("messages", ()) if turn.get("role") == "user"]
    return unicodedata.normalize("NFC", " ".join(" ".join(words).split()).casefold())


def content_key(example: Example) -> str:
    """Return a digest of what an example is about: its normalized text, or the bytes of its picture or sound; no target.

    Raises:
        OSError: the file of a picture or sound cannot be read.
    """
    if text := normalized_text(example):
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()
    digest = hashlib.sha256()
    for name in MEDIA:
        if name in example:
            digest.update(name.encode() + b"\0" + _bytes(example[name]))
    return digest.hexdigest()


def _bytes(media: Any) -> bytes:
    if isinstance(media, EncodedMedia):
        return media.encoding.encode() + b"\0" + media.data
    return Path(media).read_bytes() if isinstance(media, str | Path) else np.asarray(media).tobytes()


def distinct(examples: Sequence[Example], without: Collection[str] = ()) -> tuple[list[Example], list[float]]:
    """Return the first example of each content, and how often its content is there.

    Args:
        examples: may repeat.
        without: keys of contents that are left out.
    """
    found: dict[str, Example] = {}
    times: dict[str, float] = {}
    for example in examples:
        key = content_key(example)
        if key not in without:
            found.setdefault(key, example)
            times[key] = times.get(key, 0.0) + 1.0
    return list(found.values()), list(times.values())
