"""Turn the sound of microphone streams into text streams, in one worker thread. The models process runs it.

The worker opens the models first, then waits for sound. `take` accepts the windows of a microphone from any thread and stores their
new samples. The worker cuts utterances out of them, transcribes each, and passes the words to callbacks on the event loop. If the
worker falls behind, the oldest sound is dropped and counted. Knows neither MQTT nor the gate.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import torch

from learners.model.encoders.silero_vad import RATE_HZ
from learners.speech.transcription import Transcriber
from learners.speech.transcripts import SpeechCallbacks, TranscribedUtterance, count_new_samples
from learners.speech.utterance_cutting import (
    GAP_S,
    STALL_S,
    Samples,
    SpokenUtterance,
    UtteranceCutter,
    VoiceActivity,
)
from sensors.codecs.resampling import SoundWindow
from sensors.config import TextSettings
from sensors.readings import Reading, Sound

WAITING = 600
"""Pieces of sound that wait for the worker: a minute at ten a second."""
ENDED_S = 1.0
"""Without new sound for this much longer than its newest piece, the present utterance ends."""
MOST_REASONS = 64
"""Reasons of failures that are remembered, so that each is reported once."""
RETRY_S = 60.0
"""Between two tries to open a model that could not be opened."""
LONGEST_S = 30.0
"""Of a piece of sound at another rate than 16 kHz; the window that resamples it holds no more."""


@dataclass(slots=True)
class _Source:
    """The sound of one microphone stream that waits, and the utterance that it is in."""

    longest_s: float
    """Of an utterance."""
    waiting: deque[tuple[Samples, int, float, float]] = field(default_factory=lambda: deque(maxlen=WAITING))
    """Samples, their rate in Hz, the stamp of their end, and the shortest time without samples that ends an utterance."""
    cutter: UtteranceCutter | None = None
    last_s: float | None = None
    """The stamp of the newest window."""
    arrived_s: float = 0.0
    """When it arrived."""
    piece_s: float = 0.0
    """How long its new samples last."""
    at_16_khz: SoundWindow | None = None
    """Resamples sound of another rate, without clicks between its pieces."""

    def take(self, reading: Sound, now_s: float) -> None:
        """Store the new samples of a window."""
        new = count_new_samples(reading, self.last_s)
        self.last_s, self.arrived_s, self.piece_s = reading.stamp_s, now_s, new / reading.rate_hz
        piece = reading.samples[len(reading.samples) - new :].copy()  # a view would hold the whole window
        gap_s = STALL_S if reading.stamp_source == "arrival" else GAP_S
        self.waiting.append((piece, reading.rate_hz, reading.stamp_s, gap_s))

    def next(self) -> tuple[Samples, float, float]:
        """Return the oldest piece that waits, at 16 kHz, with the stamp of its end and the gap that ends an utterance."""
        samples, rate_hz, end_s, gap_s = self.waiting.popleft()
        if rate_hz == RATE_HZ:
            return samples, end_s, gap_s
        if self.at_16_khz is None:
            self.at_16_khz = SoundWindow(LONGEST_S, LONGEST_S)
        self.at_16_khz.add(samples, rate_hz)
        window = self.at_16_khz.take()
        return window[len(window) - self.at_16_khz.new :], end_s, gap_s


class SpeechRunner:
    """All text streams of an agent with the source `speech:STREAM`.

    Args:
        streams: their settings, by name.
        callbacks: where results go.
        threads: of torch in the worker thread; None leaves torch's number.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        streams: Mapping[str, TextSettings],
        callbacks: SpeechCallbacks,
        *,
        threads: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.streams, self.callbacks = dict(streams), callbacks
        self.counts: Counter[str] = Counter()
        """`done`, `dropped` (sound that the worker had no time for), `failed` (utterances, and models that could not be opened), and
        why utterances were refused."""
        self.failures: dict[str, str] = {}
        """By stream, why its model cannot be used now."""
        self._threads, self._clock = threads, clock
        self._sources = {
            (settings.microphone, settings.max_utterance_s): _Source(settings.max_utterance_s)
            for settings in streams.values()
        }
        self._models: dict[str, Transcriber] = {}
        self._tried_s: dict[str, float] = {}
        """By stream, when its model could not be opened."""
        self._reported: set[tuple[str, str]] = set()
        self._busy_since_s: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._stopping = False

    @property
    def sources(self) -> tuple[str, ...]:
        """The microphone streams that this runner listens to."""
        return tuple(dict.fromkeys(microphone for microphone, _ in self._sources))

    def take(self, reading: Reading) -> None:
        """Store the new samples of a window; called from any thread."""
        if not isinstance(reading, Sound) or self._loop is None:
            return
        for (microphone, _), source in self._sources.items():
            if microphone == reading.stream:
                self.counts["dropped"] += len(source.waiting) == WAITING
                source.take(reading, self._clock())
                self._loop.call_soon_threadsafe(self._wake.set)

    def busy_s(self) -> float:
        """Return for how long the worker has opened models or worked on one utterance, in seconds; 0 while it waits for sound."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else self._clock() - since_s

    async def run(self) -> None:
        """Open the models and work until cancelled."""
        self._loop = asyncio.get_running_loop()
        prepare = None if self._threads is None else partial(torch.set_num_threads, self._threads)
        pool = ThreadPoolExecutor(1, thread_name_prefix="speech", initializer=prepare)
        try:
            await self._loop.run_in_executor(pool, self._open, self._loop)
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), ENDED_S)
                self._wake.clear()
                await self._loop.run_in_executor(pool, self._work, self._loop)
        finally:
            self._loop, self._stopping = None, True
            pool.shutdown(wait=False, cancel_futures=True)  # the loop does not wait for an utterance

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open all models, in the worker thread, so that the first utterance does not wait for them."""
        for name, source in self._sources.items():
            for stream in self._streams_of(name):
                self._busy_since_s = self._clock()
                try:
                    source.cutter = source.cutter or UtteranceCutter(VoiceActivity(), source.longest_s)
                    self._model(stream, self.streams[stream])
                except Exception as error:  # noqa: BLE001 - a damaged model makes the libraries raise anything
                    self.counts["failed"] += 1
                    self._fail(loop, stream, error)
        self._busy_since_s = None

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cut and transcribe what waits, in the worker thread."""
        for name, source in self._sources.items():
            self._busy_since_s = self._clock()
            silent = self._clock() - source.arrived_s >= source.piece_s + ENDED_S
            try:
                found = self._cut(source, ended=silent)
            except Exception as error:  # noqa: BLE001 - a damaged model makes the libraries raise anything
                self.counts["dropped"] += len(source.waiting)
                source.waiting.clear()
                self.counts["failed"] += 1
                for stream in self._streams_of(name):
                    self._fail(loop, stream, error)
                continue
            for utterance in found:
                for stream in self._streams_of(name):
                    if self._stopping:
                        return
                    self._busy_since_s = self._clock()
                    self._transcribe(loop, stream, utterance)
        self._busy_since_s = None

    def _streams_of(self, source: tuple[str, float]) -> list[str]:
        return [stream for stream, one in self.streams.items() if (one.microphone, one.max_utterance_s) == source]

    def _cut(self, source: _Source, *, ended: bool) -> list[SpokenUtterance]:
        if source.cutter is None:
            if not source.waiting:
                return []
            source.cutter = UtteranceCutter(VoiceActivity(), source.longest_s)
        found: list[SpokenUtterance] = []
        while source.waiting:
            found += source.cutter.add(*source.next())
        if ended:
            found += source.cutter.flush()
        self.counts["too_short"] = sum(one.cutter.counts["too_short"] for one in self._sources.values() if one.cutter)
        return found

    def _transcribe(self, loop: asyncio.AbstractEventLoop, stream: str, utterance: SpokenUtterance) -> None:
        """Transcribe one utterance; whatever fails ends with it."""
        settings = self.streams[stream]
        start_s = self._clock()
        try:
            model = self._model(stream, settings)
            if model is None:
                self.counts["no_model"] += 1
                return
            transcript = model.transcribe(utterance.samples)
        except Exception as error:  # noqa: BLE001 - models raise anything; one utterance must not end the agent
            self.counts["failed"] += 1
            self._fail(loop, stream, error)
            return
        if transcript.refused is not None:
            self.counts[transcript.refused] += 1
            loop.call_soon_threadsafe(self.callbacks.refused, stream, transcript.refused)
            return
        self.counts["done"] += 1
        self.failures.pop(stream, None)
        took_s = self._clock() - start_s
        transcribed = TranscribedUtterance(
            stream, settings.microphone, settings.model, transcript, utterance.start_s, utterance.end_s, took_s
        )
        loop.call_soon_threadsafe(self.callbacks.transcribed, transcribed)

    def _model(self, stream: str, settings: TextSettings) -> Transcriber | None:
        """Return the stream's model, opened when it is first asked for; None for `RETRY_S` after it could not be opened."""
        if stream not in self._models:
            if self._clock() - self._tried_s.get(stream, float("-inf")) < RETRY_S:
                return None
            self._tried_s[stream] = self._clock()
            self._models[stream] = Transcriber(
                settings.model, language=settings.language, no_speech_threshold=settings.no_speech_threshold
            )
        return self._models[stream]

    def _fail(self, loop: asyncio.AbstractEventLoop, stream: str, error: Exception) -> None:
        """Report what failed, once for each reason."""
        reason = self.failures[stream] = str(error) or type(error).__name__
        if (stream, reason) not in self._reported:
            if len(self._reported) < MOST_REASONS:
                self._reported.add((stream, reason))
            loop.call_soon_threadsafe(self.callbacks.failed, stream, reason)
