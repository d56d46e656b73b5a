"""Store the newest content of every stream for the page: images as they arrived, loudness, texts and numbers.

It prefers the agent's previews. Where no preview comes, it reads the raw payload of streams that are MQTT topics. It decodes
no picture: the browser does.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from runtime.mqtt.topics import parse
from sensors.codecs.json_payload import look_up, pointer_of
from sensors.codecs.loudness import levels

TEXTS = 8
MAX_TEXT = 2_000
"""Characters of a text that the page shows."""
MAX_FIELDS = 32
MAX_PICTURE = 4_194_304
PICTURE_EVERY_S = 0.2
"""The browsers get at most five pictures a second of each camera."""
PREVIEW_S = 2.0
"""A raw payload counts only where no preview came for so long."""
RECENT_SAMPLES = 16_000


@dataclass(slots=True)
class StreamViews:
    """Content of each stream by name, and the newest picture of every camera."""

    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of each stream, from `info`."""
    contents: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    picture_counts: dict[str, int] = field(default_factory=dict)
    _texts: dict[str, deque[dict[str, Any]]] = field(default_factory=dict)
    _picture_s: dict[str, float] = field(default_factory=dict)
    _preview_s: dict[str, float] = field(default_factory=dict)

    def take(self, kind: str, stream: str, payload: bytes, now_s: float) -> bool:
        """Store one payload of `in/<stream>` or `preview/<stream>`; return whether the content changed.

        Raises:
            Refused, KeyError, TypeError, ValueError: the payload is not of the stream's kind.
        """
        about = self.streams.get(stream)
        if about is None:
            return False
        if kind == "preview":
            self._preview_s[stream] = now_s
        elif now_s - self._preview_s.get(stream, -math.inf) < PREVIEW_S and about["kind"] != "text":
            return False
        if about["kind"] == "camera":
            self._picture(stream, payload, now_s)
            return False
        content = _read(about, kind, payload)
        if "text" in content and not self._new_text(stream, content["text"], now_s):
            return False
        self.contents[stream] = {**self.contents.get(stream, {}), **content, "at": now_s}
        if stream in self._texts:
            self.contents[stream]["texts"] = list(self._texts[stream])
        return True

    def _picture(self, stream: str, payload: bytes, now_s: float) -> None:
        picture = payload.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n"))
        if not picture or len(payload) > MAX_PICTURE:
            return
        if now_s - self._picture_s.get(stream, -math.inf) >= PICTURE_EVERY_S:
            self._picture_s[stream] = now_s
            self.pictures[stream] = payload
            self.picture_counts[stream] = self.picture_counts.get(stream, 0) + 1

    def _new_text(self, stream: str, text: str, now_s: float) -> bool:
        texts = self._texts.setdefault(stream, deque(maxlen=TEXTS))
        if texts and texts[-1]["text"] == text and now_s - texts[-1]["at"] < 1.0:
            return False  # the same line on `in` and `preview`
        texts.append({"text": text, "at": now_s})
        return True


def _read(about: dict[str, Any], kind: str, payload: bytes) -> dict[str, Any]:
    if kind == "preview":
        return _preview(parse(payload))
    if about["kind"] == "microphone":
        return _loudness(payload)
    if about["kind"] == "text":
        return {"text": _text(payload)}
    document = parse(payload)
    return {"values": {name: _number(document, name) for name in about["fields"][:MAX_FIELDS]}}


def _preview(body: dict[str, Any]) -> dict[str, Any]:
    """Loudness, text and numbers of a preview; everything else is left out.

    Raises:
        TypeError, ValueError, AttributeError: a value is not of its key's type.
    """
    content: dict[str, Any] = {key: float(body[key]) for key in ("level_db", "peak_db") if key in body}
    if "text" in body:
        content["text"] = str(body["text"])[:MAX_TEXT]
    if "values" in body:
        pairs = list(body["values"].items())[:MAX_FIELDS]
        content["values"] = {str(name): _finite(value) for name, value in pairs}
    return content


def _text(payload: bytes) -> str:
    if payload[:1] == b"{":
        try:
            return str(orjson.loads(payload)["text"])[:MAX_TEXT]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            pass  # a text may start with a brace
    return payload[:MAX_TEXT].decode()


def _number(document: Any, name: str) -> float | None:
    """Return a number by key or JSON pointer (RFC 6901), None if there is none."""
    try:
        return _finite(look_up(document, name, pointer_of(name)))
    except ValueError:
        return None


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _loudness(payload: bytes) -> dict[str, float]:
    """Loudness of 16-bit little-endian mono sound, from its last samples."""
    samples = np.frombuffer(payload[: len(payload) // 2 * 2], "<i2")[-RECENT_SAMPLES:]
    return levels(samples.astype(np.float32) / np.float32(32_768)) if samples.size else {}
