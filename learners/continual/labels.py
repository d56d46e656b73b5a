"""Turn published labels into examples of their task, and select those that never train.

A label names a text, or a decision; the reading of that decision is then the example. The store copied it beside the label. A label
that came when the raw reading was already deleted, or that no model of the kind could learn from, is counted and skipped. Whether an example is for validation depends on its content
alone, or on the time of its picture or sound. The selection is therefore the same in every run. No sentence is in both parts, and no
two moments of one scene.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from learners.class_names import class_name
from learners.config.tasks import TaskSettings
from learners.data_error import DataError
from learners.experience.reader import Reader
from learners.experience.reading_of_tick import raw_reading
from learners.experience.records import Label, Raw
from learners.finetune.labelled_files.conll import TAG, as_iob2
from learners.finetune.labelled_files.equal_content import normalized_text
from learners.finetune.labelled_files.example_fields import check
from learners.model.encoders.bundled_weights import resolve
from learners.task_kinds import KINDS, Output
from learners.task_serving.reading_inputs import inputs_of_text
from learners.tasks.base import EncodedMedia, names_several_labels
from learners.tasks.relation_extraction import mark
from learners.tasks.task_classes import task_class

WIDTH = 16
"""Hex digits of a key."""
BLOCK_S = 5.0
"""Pictures and sounds of one stream within such a block are either all validation or all training."""
LEAST_BLOCKS = 20
"""Fewer blocks cannot be shared out: each example is then selected by its own content."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """One usable example; `key` is a digest of what it is about."""

    id: int
    key: str
    example: dict[str, Any]
    source: str = "default"
    block: str = ""
    """Digest of the stream and the block of time of a picture or sound; empty for texts."""
    text: str = ""
    """Digest of the text without differences in spacing and case; empty for pictures and sounds."""

    @property
    def part(self) -> str:
        """What decides on which side of a split an example is: equal contents are on one side."""
        return self.text or self.key

    def held(self, share: float, *, by_block: bool = False) -> bool:
        """Return whether an example belongs to the validation part, which never trains; `by_block`: with its whole block."""
        return int((by_block and self.block) or self.part, 16) < share * float(16**WIDTH)


@dataclass
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
        """Return every usable label that may train, oldest first; a newer label of the same subject replaces the older one."""
        self.skipped.clear()
        return self._usable(self.reader.labels(self.task))

    def held_out(self) -> list[Labelled]:
        """Return every usable label that an operator's labels put aside as the held-out file, oldest first."""
        return self._usable(self.reader.labels(self.task, held_out=True))

    def _usable(self, labels: Sequence[Label]) -> list[Labelled]:
        found: dict[str, Labelled] = {}
        for label in labels:
            one = self._one(label)
            if one is not None:
                found.pop(one.key, None)
                found[one.key] = one
        return list(found.values())

    def _one(self, label: Label) -> Labelled | None:
        label = replace(label, label=_as_in_files(label.label))
        given = (label.label,) if isinstance(label.label, str) else label.label
        if (
            KINDS[self.settings.kind].target == "label"
            and self.settings.labels
            and set(given) - set(self.settings.labels)
        ):
            self.skipped["unknown_label"] += 1
            return None
        subject: dict[str, Any] | None = {"text": label.text} if label.text is not None else self._recorded(label)
        if subject is None:
            return None
        raw = subject.get("raw")
        body = raw.data if raw is not None else "\0".join(subject.values()).encode()
        block = _digest(f"{raw.stream} {raw.stamp_s // BLOCK_S:.0f}".encode()) if raw is not None else ""
        _ = (
            KINDS[self.settings.kind].target == "label" and self._several
        )  # a model that is not there is no fault of the label
        try:
            example = self._example(subject, label)
            check([example], task_class(self.settings.kind))
        except (ValueError, KeyError):
            self.skipped["unusable"] += 1
            return None
        text = normalized_text(example)
        return Labelled(
            label.id,
            _digest(body),
            example,
            label.source,
            block,
            _digest(text.encode(errors="replace")) if text else "",
        )

    def _recorded(self, label: Label) -> dict[str, Any] | None:
        """Return the reading of the task's stream that the decision used, and that of its context stream."""
        stream, context = self.settings.stream, self.settings.context
        copied = self.reader.labelled(label.id)
        if stream in copied and (context is None or context in copied):
            return _subject(copied[stream], copied.get(context or ""))
        row = self.reader.decision(label.decision) if label.decision and stream else None
        if row is None or stream is None:
            self.skipped["unknown_decision"] += 1
            return None
        raw = raw_reading(self.reader, row.transition, stream)
        around = raw_reading(self.reader, row.transition, context) if context is not None else None
        if raw is None or (context is not None and around is None):
            self.skipped["reading_gone"] += 1
            return None
        return _subject(raw, around)

    def _example(self, subject: dict[str, Any], label: Label) -> dict[str, Any]:
        """Return the fields of the task's example.

        Raises:
            DataError: no model of the task's kind could learn from it.
        """
        kind, given = self.settings.kind, label.label
        modality, target = KINDS[kind].modality, KINDS[kind].target
        if "raw" in subject:
            media = EncodedMedia(subject["raw"].encoding, subject["raw"].data)
            if modality not in media.decode():
                raise DataError(f"a label for {kind} is about a {modality}, not about {sorted(media.decode())}")
            return {modality: media, target: self._classes(given) if target == "label" else _one_text(given)}
        if modality != "text":
            raise DataError(f"a label for {kind} is about a {modality}, not about a text")
        inputs = inputs_of_text(kind, subject["text"], subject.get("context"))
        if kind == "relation-extraction":
            mark(inputs["text"])
        if target == "label":
            return inputs | {"label": self._classes(given)}
        return _TARGETS[KINDS[kind].output](inputs, given)

    def _classes(self, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Return the label of an example, one class or several.

        Raises:
            DataError: there are several, and the task takes one.
        """
        if isinstance(given, str) or self._several:
            return given
        if len(given) != 1:
            raise DataError(f"{len(given)} labels for one example; the task takes one")
        return given[0]

    @cached_property
    def _several(self) -> bool:
        """Whether an example can have several labels, by the settings or by the model's folder."""
        return self.settings.multi_label or names_several_labels(resolve(self.settings.model))


def _one_text(given: str | tuple[str, ...]) -> str:
    if not isinstance(given, str):
        raise DataError("one text is wanted as the label")
    return given


def _tags(inputs: dict[str, Any], given: str | tuple[str, ...]) -> dict[str, Any]:
    words = inputs["text"].split()
    if isinstance(given, str) or len(words) != len(given):
        raise DataError("one tag for each word is wanted")
    if odd := [tag for tag in given if tag != "O" and TAG.fullmatch(tag) is None]:
        raise DataError(f"tags like O, B-x and I-x are wanted, not {odd[0]!r}")
    return {"tokens": words, "tags": as_iob2(given)}


def _span(inputs: dict[str, Any], given: str | tuple[str, ...]) -> dict[str, Any]:
    """Return the answer, or none for an empty text, with the inputs."""
    answer = _one_text(given)
    if answer not in inputs["context"]:
        raise DataError("an answer that is a part of its context is wanted, or none")
    return inputs | {"answers": [{"text": answer}] if answer else []}


def _text(inputs: dict[str, Any], given: str | tuple[str, ...]) -> dict[str, Any]:
    return inputs | {"target": _one_text(given)}


def _turn(inputs: dict[str, Any], given: str | tuple[str, ...]) -> dict[str, Any]:
    return {"messages": [*inputs["messages"], {"role": "assistant", "content": _one_text(given)}]}


_TARGETS: dict[Output, Callable[[dict[str, Any], str | tuple[str, ...]], dict[str, Any]]] = {
    "tags": _tags, "span": _span, "text": _text, "turn": _turn,
}  # fmt: skip
"""What a label makes of the inputs of a text, by what the kind of task predicts."""


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:WIDTH]


def _subject(raw: Raw, context: Raw | None) -> dict[str, Any]:
    """Return a reading as the subject of a label: `raw` of pictures and sounds, else `text` with its `context`."""
    if raw.encoding != "utf-8":
        return {"raw": raw}
    texts = {"text": raw} if context is None else {"text": raw, "context": context}
    return {name: one.data.decode(errors="replace") for name, one in texts.items()}


def _as_in_files(given: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Return a label as files of labels are read: what people see alike is one class."""
    if isinstance(given, str):
        return class_name(given)
    return tuple(map(class_name, given))
