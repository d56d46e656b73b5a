"""Transcribe one utterance, and refuse what the model invents: sound in, words with their confidence out.

The guards are those of Whisper's paper (Radford et al. 2022, section 4.5). They check the probability of no speech, the mean
log-probability of the tokens, and the compression ratio of the text. A high ratio means repetition. Names of sounds in brackets are no
words. A `Transcriber` knows neither streams nor threads, so that it runs wherever models run.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.model.encoders.bundled_weights import resolve
from learners.speech.transcripts import Transcript
from learners.tasks.task_classes import open_task

KIND = "automatic-speech-recognition"
LEAST_LOG = -1.0
"""Mean log-probability of a token below which a transcript is invented."""
MOST_COMPRESSION = 2.4
"""Bytes of a transcript for each byte of its compressed form above which it repeats itself."""
_SOUNDS = re.compile(r"\[[^\]]*\]|\([^)]*\)|\*[^*]*\*|♪[^♪]*♪?")
"""Names of sounds, as `[Music]`, `(applause)`, `*sigh*`, `♪ la la ♪`."""


class Transcriber:
    """One speech model.

    Args:
        model: `bundled:NAME`, a transformers id, or a folder of transformers or `reflexd finetune`.
        language: that is spoken, as `en`; None for models of one language, or to detect it.
        no_speech_threshold: probability of no speech from which an utterance is no speech.
        max_new_tokens: of one transcript.
    """

    def __init__(
        self, model: str, *, language: str | None = None, no_speech_threshold: float = 0.6, max_new_tokens: int = 192
    ) -> None:
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
        if language is not None:
            options["language"] = language
        self.task = open_task(KIND, resolve(model), **options)
        self._no_speech_threshold = no_speech_threshold

    def transcribe(self, samples_N: NDArray[np.float32]) -> Transcript:
        """Return the words of samples at 16 kHz."""
        one = self.task.predict([{"sound": samples_N}])[0]
        text, confidence = str(one.value), float(one.confidence or 0.0)
        no_speech = float(one.details["no_speech"])
        reason = self._refusal(text, confidence, no_speech)
        if reason is not None:
            return Transcript("", confidence, no_speech, refused=reason)
        spoken = " ".join(_SOUNDS.sub(" ", text).split())
        return Transcript(spoken, confidence, no_speech, _spoken_words(one.details["words"]))

    def _refusal(self, text: str, confidence: float, no_speech: float) -> str | None:
        spoken = _SOUNDS.sub(" ", text)
        if not any(letter.isalnum() for letter in spoken):
            return "no_words"
        if no_speech > self._no_speech_threshold:
            return "no_speech"
        if confidence < math.exp(LEAST_LOG):
            return "improbable"
        data = text.encode()
        return "repeats" if len(data) / len(zlib.compress(data)) > MOST_COMPRESSION else None


def _spoken_words(words: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return the words that are none of the name of a sound, with their confidence."""
    text = " ".join(str(one["word"]) for one in words)
    named = [found.span() for found in _SOUNDS.finditer(text)]
    found, at = [], 0
    for one in words:
        word = str(one["word"])
        left = "".join(
            sign for place, sign in enumerate(word, at) if not any(first <= place < end for first, end in named)
        )
        found += [{**one, "word": left}] if left else []
        at += len(word) + 1
    return tuple(found)
