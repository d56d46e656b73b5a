"""Turn published labels into examples of their task, and select those that never train.

A label names a text, or a decision; the stored raw reading of that decision is then the example. Raw readings are stored for a
limited time: a label that arrives too late is counted and skipped. Whether an example is for validation depends on its content
alone. The selection is therefore the same in every run, and no sentence is in both parts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson

from learners.config import CLASSIFICATION, TaskSettings
from learners.experience.reader import Reader, raw_reading
from learners.experience.records import Label
from sensors.codecs.readings import decode_media

WIDTH = 16
"""Hex digits of a key."""
MEDIA = {"image-classification": "picture", "audio-classification": "sound"}
"""The field that an example of a kind has; all other kinds read `text`."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """One usable example; `key` is a digest of what it is about."""

    id: int
    key: str
    example: dict[str, Any]
    source: str = "default"

    def held(self, share: float) -> bool:
        """Return whether an example belongs to the validation part, which never trains."""
        return int(self.key, 16) < share * float(16**WIDTH)


@dataclass(slots=True)
class Labels:
    """Reads a task's labels."""

    task: str
    settings: TaskSettings
    reader: Reader
    skipped: Counter[str] = field(default_factory=Counter)

    def count(self, since: int) -> int:
        """Return the number of labels with an id above `since`."""
        return len(self.reader.labels(self.task, since))

    def all(self) -> list[Labelled]:
        """Return every usable label, oldest first; a newer label of the same subject replaces the older one."""
        self.skipped.clear()
        found: dict[str, Labelled] = {}
        for label in self.reader.labels(self.task):
            one = self._one(label)
            if one is not None:
                found.pop(one.key, None)
                found[one.key] = one
        return list(found.values())

    def _one(self, label: Label) -> Labelled | None:
        given = (label.label,) if isinstance(label.label, str) else label.label
        if self.settings.kind in CLASSIFICATION and self.settings.labels and set(given) - set(self.settings.labels):
            self.skipped["unknown_label"] += 1
            return None
        subject: dict[str, Any] | None = {"text": label.text} if label.text is not None else self._recorded(label)
        if subject is None:
            return None
        body = subject["raw"].data if "raw" in subject else subject["text"].encode()
        try:
            example = self._example(subject, label)
        except (ValueError, KeyError):
            self.skipped["unusable"] += 1
            return None
        return Labelled(label.id, hashlib.sha256(body).hexdigest()[:WIDTH], example, label.source)

    def _recorded(self, label: Label) -> dict[str, Any] | None:
        """Return the reading of the task's stream that the decision used."""
        stream = self.settings.stream
        row = self.reader.decision(label.decision) if label.decision and stream else None
        if row is None or stream is None:
            self.skipped["unknown_decision"] += 1
            return None
        raw = raw_reading(self.reader, row.transition, stream)
        if raw is None:
            self.skipped["reading_gone"] += 1
            return None
        return {"text": raw.data.decode(errors="replace")} if raw.encoding == "utf-8" else {"raw": raw}

    def _example(self, subject: dict[str, Any], label: Label) -> dict[str, Any]:
        """Return the fields of the task's example."""
        field = MEDIA.get(self.settings.kind, "text")
        media = decode_media(subject["raw"].encoding, subject["raw"].data) if "raw" in subject else subject
        if field not in media:
            raise ValueError(f"a label for {self.settings.kind} is about a {field}, not about {sorted(media)}")
        if field != "text":
            return media | {"label": label.label}
        text = subject["text"]
        match self.settings.kind:
            case "token-classification":
                words = text.split()
                if isinstance(label.label, str) or len(words) != len(label.label):
                    raise ValueError("one tag for each word is wanted")
                return {"tokens": words, "tags": list(label.label)}
            case "translation" | "summarization":
                return {"source": text, "target": str(label.label)}
            case "question-answering":
                body = orjson.loads(text)
                return {**body, "answers": [{"text": str(label.label)}]}
            case "text-generation":
                turns = [{"role": "user", "content": text}, {"role": "assistant", "content": str(label.label)}]
                return {"messages": turns}
        return {"text": text, "label": label.label}
