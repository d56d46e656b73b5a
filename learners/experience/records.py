"""Define what is stored besides ticks: rewards, marks and labels that arrive later, and raw readings."""

from __future__ import annotations

from dataclasses import dataclass

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
