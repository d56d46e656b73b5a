"""The newest look at every stream: pictures as they came, loudness, texts and numbers.

Prefers what the agent previews; for streams that are MQTT topics the raw payload serves where no preview comes. It decodes
no picture: a browser does that.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import orjson

from runtime.mqtt.topics import parse

TEXTS = 8
MAX_PICTURE = 4_194_304
PICTURE_EVERY_S = 0.2
"""At most five pictures a second of each camera go to the browsers."""


@dataclass(slots=True)
class StreamViews:
    """Facts by stream, and the newest picture of every camera."""

    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    picture_counts: dict[str, int] = field(default_factory=dict)
    _texts: dict[str, deque[dict[str, Any]]] = field(default_factory=dict)
    _picture_s: dict[str, float] = field(default_factory=dict)
    _preview_s: dict[str, float] = field(default_factory=dict)

    def take(self, kind: str, stream: str, payload: bytes, now_s: float) -> bool:
        """One payload of `in/<stream>` or `preview/<stream>`; True when the facts changed."""
        about = self.streams.get(stream)
        if about is None:
            return False
        if kind == "preview":
            self._preview_s[stream] = now_s
        elif now_s - self._preview_s.get(stream, -math.inf) < 2.0 and about["kind"] != "text":
            return False
        if about["kind"] == "camera":
            self._picture(stream, payload, now_s)
            return False
        facts = _read(about, kind, payload)
        if "text" in facts and not self._new_text(stream, facts["text"], now_s):
            return False
        self.facts[stream] = {**self.facts.get(stream, {}), **facts, "at": now_s}
        if stream in self._texts:
            self.facts[stream]["texts"] = list(self._texts[stream])
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
        told = parse(payload)
        return {key: told[key] for key in ("level_db", "peak_db", "words", "text", "values") if key in told}
    if about["kind"] == "microphone":
        return loudness(payload)
    if about["kind"] == "text":
        return {"text": _text(payload)}
    values = parse(payload)
    return {"values": {name: _pick(values, name) for name in about.get("fields", [])[:32]}}


def _text(payload: bytes) -> str:
    if payload[:1] == b"{":
        try:
            return str(orjson.loads(payload)["text"])[:2_000]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            pass  # a text may start with a brace
    return payload[:2_000].decode()


def _pick(values: Any, name: str) -> float | None:
    """A number by key or JSON pointer (RFC 6901), None where it is not."""
    steps = [s.replace("~1", "/").replace("~0", "~") for s in name[1:].split("/")] if name.startswith("/") else [name]
    for step in steps:
        if isinstance(values, dict):
            values = values.get(step)
        elif isinstance(values, list) and step.isdigit() and int(step) < len(values):
            values = values[int(step)]
        else:
            return None
    return float(values) if isinstance(values, int | float) else None


def loudness(payload: bytes) -> dict[str, float]:
    """Level and peak in dBFS of 16-bit little-endian mono sound, never below -90."""
    samples = array("h", payload[: len(payload) // 2 * 2][-16_000:])
    if not samples:
        return {}
    rms = math.sqrt(sum(s * s for s in samples) / len(samples)) / 32_768
    peak = max(abs(s) for s in samples) / 32_768
    return {"level_db": _db(rms), "peak_db": _db(peak)}


def _db(amplitude: float) -> float:
    return round(20 * math.log10(max(amplitude, 10 ** (-90 / 20))), 1)
