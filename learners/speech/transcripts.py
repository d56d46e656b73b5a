"""Define what speech to text takes and produces. Imports no torch: the agent uses it, and another process runs the models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sensors.readings import Sound


@dataclass(frozen=True, slots=True)
class Transcript:
    """The transcript of an utterance.

    `words` have `word` and `confidence`; `refused` states why the text is empty, if a guard refused it.
    """

    text: str
    confidence: float
    no_speech: float
    words: tuple[dict[str, Any], ...] = ()
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class TranscribedUtterance:
    """One transcribed utterance of a text stream; stamps are monotonic seconds."""

    stream: str
    source: str
    model: str
    transcript: Transcript
    start_s: float
    end_s: float
    took_s: float


@dataclass(slots=True)
class SpeechCallbacks:
    """Receivers of what speech to text makes; all are called on the event loop."""

    transcribed: Callable[[TranscribedUtterance], None]
    """Words of an utterance."""
    refused: Callable[[str, str], None]
    """A stream, and why a guard refused an utterance of it."""
    failed: Callable[[str, str], None]
    """A stream, and why its model cannot be used."""


def count_new_samples(sound: Sound, last_s: float | None) -> int:
    """Return how many samples at the end of a window are new.

    Args:
        sound: a window of sound.
        last_s: the stamp of the window before, monotonic seconds; None for the first window.
    """
    if sound.new is not None:
        return min(sound.new, len(sound.samples))
    if last_s is None:
        return len(sound.samples)
    return min(len(sound.samples), max(0, round((sound.stamp_s - last_s) * sound.rate_hz)))
