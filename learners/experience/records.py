"""Define what is stored besides ticks: rewards, marks and labels that arrive later, and raw readings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from learners.experience.transition import Outcome


@dataclass(frozen=True, slots=True)
class Credit:
    """A reward for the named decision, else for the tick in force at `stamp_s` (Unix)."""

    value: float
    decision: str | None = None
    stamp_s: float | None = None
    done: bool = False
    source: str = "default"
    truncated: bool = False
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """Flags set on a remembered decision; None leaves one as it is."""

    decision: str
    done: bool | None = None
    intervention: bool | None = None
    demonstration: bool | None = None
    failure: bool | None = None
    truncated: bool | None = None
    success: bool | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """One labelled example: of a text, or of what a decision saw."""

    task: str
    label: str | tuple[str, ...]
    text: str | None = None
    decision: str | None = None
    source: str = "default"
    stamp_s: float = 0.0
    id: int = 0
    streams: tuple[str, ...] = ()
    """The streams of the task: their readings at `decision` are copied beside the label."""


@dataclass(frozen=True, slots=True)
class StoredLabel:
    """A label with its history, for people who correct it."""

    label: Label
    held_out: bool
    """It is part of the held-out file and never trains."""
    replaces: int | None
    """The label that it corrects."""
    removed_s: float | None
    """Unix seconds of its correction or removal."""
    removed_by: str | None

    @property
    def counts(self) -> bool:
        """Whether it was neither corrected nor removed."""
        return self.removed_s is None


Part = Literal["train", "held_out"]
"""What becomes of a label of an operator."""


@dataclass(frozen=True, slots=True)
class ReadingLabels:
    """One class for several stored readings of a stream, given by an operator.

    Args:
        readings: names of the readings (`reading_name`).
        hold_out: whether some of the labels of each class become the held-out file.
        outcome: filled when the labels are stored: the part of each reading; readings that are deleted are left out.
    """

    task: str
    label: str
    stream: str
    readings: tuple[str, ...]
    source: str
    stamp_s: float
    hold_out: bool
    outcome: dict[str, Part] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelCorrection:
    """Another class for some labels of a task, or their removal (`label` is None), by an operator.

    Args:
        labels: numbers of the labels.
        outcome: filled when the change is stored: the number of the new label, or None for a removal. Labels that do not exist
            or were removed before are left out.
    """

    task: str
    labels: tuple[int, ...]
    label: str | None
    source: str
    stamp_s: float
    outcome: dict[int, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Raw:
    """An encoded reading: `encoding` says how (`jpeg`, `flac`, `utf-8`, ...). `stamp_s` is Unix seconds."""

    stream: str
    stamp_s: float
    encoding: str
    data: bytes


@dataclass(frozen=True, slots=True)
class SourceExclusion:
    """The exclusion of a source's rewards from training, or the end of it."""

    source: str
    on: bool
