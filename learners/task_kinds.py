"""Declare the kinds of supervised tasks: what each reads, what it is trained on, and what it publishes.

This is the only declaration. `reflexd check`, the verbs, the tasks of `learners/tasks`, the live worker, labels over MQTT, the
page and the table in docs/fine-tuning.md read it. Imports no torch, so settings can be checked in less than a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TaskKind = Literal[
    "text-classification",
    "text-pair-classification",
    "image-classification",
    "audio-classification",
    "token-classification",
    "relation-extraction",
    "question-answering",
    "translation",
    "summarization",
    "text-generation",
    "automatic-speech-recognition",
]
"""The task names of the Hugging Face hub, `text-pair-classification` and `relation-extraction`."""
Modality = Literal["text", "picture", "sound"]
Augmentation = Literal[
    "token_dropout",
    "synonyms",
    "crops",
    "brightness",
    "colour",
    "rand_augment",
    "speed",
    "noise",
    "spec_augment",
    "mixup",
]
"""How training examples are changed, so that few of them go further."""
OF_TEXTS: tuple[Augmentation, ...] = ("token_dropout", "synonyms", "mixup")
OF_PICTURES: tuple[Augmentation, ...] = ("crops", "brightness", "colour", "rand_augment", "mixup")
OF_SOUNDS: tuple[Augmentation, ...] = ("speed", "noise", "spec_augment")
Output = Literal["label", "tags", "span", "text", "turn"]
STREAMS: dict[Modality, str] = {"text": "text", "picture": "camera", "sound": "microphone"}
"""Modality -> the kind of stream that delivers it."""


@dataclass(frozen=True, slots=True)
class KindDeclaration:
    """What one kind of task takes and makes."""

    modality: Modality
    inputs: tuple[str, ...]
    """Fields of an example that prediction reads; `a|b` where either will do."""
    target: str
    """Field of an example that holds what is right."""
    output: Output
    """What a prediction is: one label or several, a tag for each word, a span of the context, a text, or a turn of a dialogue."""
    published: tuple[str, ...] = ("value", "confidence")
    """Fields of `task/<name>` besides stream, version, decision and time."""
    reading: str = ""
    """How a text stream's reading becomes the inputs; empty where the reading is the input."""
    pretrained: bool = False
    """Whether the pretrained model answers before it is fine-tuned, because it needs no new head."""
    augmentations: tuple[Augmentation, ...] = ()
    """What can change its training examples."""
    augmented: tuple[Augmentation, ...] = ()
    """Those that are on by default."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of an example that is trained on or measured with."""
        return tuple(dict.fromkeys((*self.inputs, self.target)))

    @property
    def stream(self) -> str:
        """The kind of stream that a task of this kind reads."""
        return STREAMS[self.modality]

    @property
    def written(self) -> bool:
        """Whether the model writes a text freely, so that settings can control it; a transcript follows the sound."""
        return self.modality == "text" and self.output in ("text", "turn")

    @property
    def classifies(self) -> bool:
        """Whether a whole reading gets labels: such a task can feed the policy and fine-tune a stream's encoder."""
        return self.target == "label" and self.inputs in (("text",), ("picture",), ("sound",)) and not self.reading


_LABELS = ("value", "confidence", "probabilities")
KINDS: dict[TaskKind, KindDeclaration] = {
    "text-classification": KindDeclaration("text", ("text",), "label", "label", _LABELS, augmentations=OF_TEXTS),
    "text-pair-classification": KindDeclaration(
        "text",
        ("text", "text_pair"),
        "label",
        "label",
        _LABELS,
        reading='`{"text": "...", "text_pair": "..."}`, or the text alone with `tasks.X.context`',
        augmentations=OF_TEXTS,
    ),
    "image-classification": KindDeclaration(
        "picture", ("picture",), "label", "label", _LABELS, augmentations=OF_PICTURES, augmented=("crops", "brightness")
    ),
    "audio-classification": KindDeclaration(
        "sound",
        ("sound",),
        "label",
        "label",
        _LABELS,
        augmentations=(*OF_SOUNDS, "mixup"),
        augmented=("speed", "noise"),
    ),
    "token-classification": KindDeclaration("text", ("tokens|text",), "tags", "tags", ("value", "confidence", "spans")),
    "relation-extraction": KindDeclaration(
        "text", ("text",), "label", "label", _LABELS, reading="a text that marks its spans with `<e1>` and `<e2>`"
    ),
    "question-answering": KindDeclaration(
        "text",
        ("question", "context"),
        "answers",
        "span",
        ("value", "confidence", "start", "end"),
        reading='`{"question": "...", "context": "..."}`, or the question alone with `tasks.X.context`',
    ),
    "translation": KindDeclaration("text", ("source",), "target", "text", ("value",), pretrained=True),
    "summarization": KindDeclaration("text", ("source",), "target", "text", ("value",), pretrained=True),
    "text-generation": KindDeclaration(
        "text", ("messages",), "messages", "turn", (), reading="the user's turn", pretrained=True
    ),
    "automatic-speech-recognition": KindDeclaration(
        "sound",
        ("sound",),
        "target",
        "text",
        ("value", "confidence", "words", "no_speech"),
        pretrained=True,
        augmentations=OF_SOUNDS,
    ),
}
"""Kind -> its declaration."""
FORMER_KINDS: dict[str, tuple[TaskKind, ...]] = {
    "classify": ("text-classification", "image-classification", "audio-classification"),
    "tag": ("token-classification",),
    "relate": ("relation-extraction",),
    "answer": ("question-answering",),
    "translate": ("translation",),
    "summarize": ("summarization",),
    "chat": ("text-generation",),
}
"""Names of task kinds before 0.1.0; `classify` was one name for the classification kinds of all modalities."""


def reading(stream: str) -> list[TaskKind]:
    """Return the kinds that read a kind of stream."""
    return [kind for kind, declared in KINDS.items() if declared.stream == stream]


@dataclass(frozen=True, slots=True)
class PredictionOfExample:
    """The prediction of one example: `value` is compared by metrics, `confidence` is in [0, 1], or None."""

    value: Any
    confidence: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the published result (spans, positions)."""
