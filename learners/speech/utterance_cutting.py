"""Cut utterances out of a stream of sound, where a voice activity detector detects speech.

An utterance begins when a frame is speech with a probability of at least `BEGIN`, and ends after `SILENCE_S` of frames below `END`.
These are the rules of silero-vad's `VADIterator`. A little sound before and after belongs to it, so that no word loses its ends.

Shapes: N samples, F frames of 512 samples.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learners.model.encoders.bundled_weights import resolve
from learners.model.encoders.silero_vad import CONTEXT, FRAME, RATE_HZ, SileroVadModel

BEGIN, END = 0.5, 0.35
"""Probabilities of speech at which an utterance begins and may end."""
SILENCE_S, PAD_S, SHORTEST_S = 0.6, 0.256, 0.2
"""The pause that ends an utterance, the sound around it, and the least speech in it."""
GAP_S, STALL_S = 0.25, 1.0
"""Samples that are missing for longer than this end an utterance: by the clock of the device, and by their arrival over a network. A
network that stalls delivers them afterwards."""

Samples = NDArray[np.float32]
Detector = Callable[[Samples], list[float]]
"""Whole frames of sound -> the probability of speech of each."""


@dataclass(frozen=True, slots=True)
class SpokenUtterance:
    """One piece of speech: `samples` at 16 kHz; the stamps are seconds on the clock of the sound."""

    samples: Samples
    start_s: float
    end_s: float


class VoiceActivity:
    """A `Detector`: the bundled Silero network, which keeps its state between calls."""

    def __init__(self) -> None:
        self._model: Any = SileroVadModel.from_pretrained(resolve("bundled:silero-vad"))  # opens in evaluation mode
        self._before_N = torch.zeros(CONTEXT)
        self._state = self._model.silent(1)

    @torch.inference_mode()
    def __call__(self, samples: Samples) -> list[float]:
        """Return the probability of speech of each frame; `samples` is a whole number of frames."""
        sound_N = torch.cat((self._before_N, torch.from_numpy(samples)))
        self._before_N = sound_N[-CONTEXT:]
        speech_BF, self._state = self._model.step(sound_N.unfold(0, CONTEXT + FRAME, FRAME)[None], self._state)
        return [float(one) for one in speech_BF[0]]


class UtteranceCutter:
    """Collects one utterance at a time.

    Args:
        detect: returns speech probabilities; called with whole frames in their order.
        longest_s: a longer utterance is cut into pieces of this length.
    """

    def __init__(self, detect: Detector, longest_s: float) -> None:
        self.counts: Counter[str] = Counter()
        """`too_short` (less speech than a syllable), `interrupted` (samples were missing)."""
        self._detect, self._longest = detect, int(longest_s * RATE_HZ / FRAME)
        self._rest = np.zeros(0, np.float32)
        self._before: deque[Samples] = deque(maxlen=round(PAD_S * RATE_HZ / FRAME))
        self._frames: list[Samples] = []
        self._voiced = self._quiet = 0
        self._next_s: float | None = None
        """When the next sample is due."""

    def add(self, samples: Samples, end_s: float, gap_s: float = GAP_S) -> list[SpokenUtterance]:
        """Append samples, the last of which was captured at `end_s`; return the utterances that are complete now.

        Samples that are missing before them for longer than `gap_s` end an utterance.
        """
        found: list[SpokenUtterance] = []
        start_s = end_s - len(samples) / RATE_HZ
        if self._next_s is not None and start_s - self._next_s > gap_s:
            self.counts["interrupted"] += 1
            found += self.flush()
        self._next_s = end_s
        sound = np.concatenate((self._rest, samples))
        count = len(sound) // FRAME
        self._rest = sound[count * FRAME :]
        if not count:
            return found
        last_s = end_s - len(self._rest) / RATE_HZ
        frames = sound[: count * FRAME].reshape(count, FRAME)
        for at, speech in enumerate(self._detect(frames.reshape(-1))):
            done = self._frame(frames[at], speech, last_s - (count - 1 - at) * FRAME / RATE_HZ)
            found += [done] if done is not None else []
        return found

    def flush(self) -> list[SpokenUtterance]:
        """End the present utterance, because no more sound comes; return it if it is one."""
        end_s = (self._next_s or 0.0) - len(self._rest) / RATE_HZ
        self._rest = self._rest[:0]
        done = self._finish(end_s) if self._frames else None
        self._before.clear()
        return [done] if done is not None else []

    def _frame(self, frame: Samples, speech: float, end_s: float) -> SpokenUtterance | None:
        if not self._frames:
            if speech < BEGIN:
                self._before.append(frame)
                return None
            self._frames = [*self._before]
            self._before.clear()
        self._frames.append(frame)
        self._voiced += speech >= BEGIN
        if speech >= BEGIN:
            self._quiet = 0
        elif speech < END or self._quiet:
            self._quiet += 1
        if self._quiet * FRAME >= SILENCE_S * RATE_HZ or len(self._frames) >= self._longest:
            return self._finish(end_s)
        return None

    def _finish(self, end_s: float) -> SpokenUtterance | None:
        frames, voiced, quiet = self._frames, self._voiced, self._quiet
        spare = max(0, quiet - round(PAD_S * RATE_HZ / FRAME))
        self._frames, self._voiced, self._quiet = [], 0, 0
        self._before.extend(frames[len(frames) - spare :])
        spoken = frames[: len(frames) - spare]
        if voiced * FRAME < SHORTEST_S * RATE_HZ:
            self.counts["too_short"] += 1
            return None
        end_s -= spare * FRAME / RATE_HZ
        return SpokenUtterance(np.concatenate(spoken), end_s - len(spoken) * FRAME / RATE_HZ, end_s)
