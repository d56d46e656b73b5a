"""Let the models process transcribe what microphones hear: the agent's part of it. It imports no torch.

`take` accepts the windows of a microphone from any thread and sends their new samples to the process that is connected. Sound is
lost while none is, and dropped where the process reads more slowly than the microphones deliver. `ModelsClient` owns the connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from learners.speech.transcripts import SpeechCallbacks, TranscribedUtterance, Transcript, count_new_samples
from runtime.models.messages import BadMessage, Header, sound_message
from sensors.config import TextSettings
from sensors.readings import Reading, Sound

MOST_WAITING = 4_000_000
"""Bytes that wait in the socket's buffer before sound is dropped: a minute of one microphone."""
MOST_REASON = 500
CAUSES = frozenset({
    "done", "dropped", "failed", "no_model", "too_short", "no_words", "no_speech", "improbable", "repeats",
})  # fmt: skip


class SpeechClient:
    """Sends the sound of microphones to the models process and passes on what it hears.

    Args:
        streams: the settings of the text streams that have a microphone as their source, by name.
        callbacks: receive transcripts, refusals and failures.
    """

    title = "streams from speech"
    answers = frozenset({"transcript", "speech_refused", "speech_failed", "speech_counts"})
    """Kinds of answers that belong here."""

    def __init__(self, streams: Mapping[str, TextSettings], callbacks: SpeechCallbacks) -> None:
        self.streams, self.callbacks = dict(streams), callbacks
        self.counts: Counter[str] = Counter()
        """As those of `SpeechRunner`; `dropped` are also pieces of sound that the process did not read in time, `lost` those
        without a process."""
        self.sources = tuple(dict.fromkeys(settings.microphone for settings in self.streams.values()))
        self._last_s: dict[str, float] = {}
        """By microphone stream, the stamp of its newest window."""
        self._writer: asyncio.StreamWriter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def connect(self, writer: asyncio.StreamWriter) -> None:
        """Send sound to this process from now on; call it on the event loop."""
        self._loop, self._writer = asyncio.get_running_loop(), writer

    def disconnect(self) -> None:
        """Send no more sound."""
        self._loop, self._writer = None, None

    def take(self, reading: Reading) -> None:
        """Send the new samples of a window; called from any thread."""
        if not isinstance(reading, Sound) or reading.stream not in self.sources:
            return
        new = count_new_samples(reading, self._last_s.get(reading.stream))
        self._last_s[reading.stream] = reading.stamp_s
        loop = self._loop
        if loop is None:
            self.counts["lost"] += 1
        elif new:
            samples = reading.samples[len(reading.samples) - new :].copy()  # a view would hold the whole window
            loop.call_soon_threadsafe(self._send, replace(reading, samples=samples, new=new))

    def _send(self, piece: Sound) -> None:
        if self._writer is None:
            self.counts["lost"] += 1
        elif self._writer.transport.get_write_buffer_size() > MOST_WAITING:
            self.counts["dropped"] += 1
        else:
            self._writer.write(sound_message(piece))

    def receive(self, header: Header) -> None:
        """Pass on one answer of the process.

        Raises:
            LookupError, TypeError, ValueError, AttributeError, OverflowError: it is not one of ours.
        """
        if header["is"] == "speech_counts":
            for cause, count in dict(header["counts"]).items():
                self.counts[str(cause) if cause in CAUSES else "garbage"] += int(count)
            return
        stream = str(header["stream"])
        if stream not in self.streams:
            raise BadMessage(f"no text stream {stream[:64]!r} has a microphone as its source")
        if header["is"] == "transcript":
            self.callbacks.transcribed(_transcript(stream, header))
        elif header["is"] == "speech_refused":
            self.callbacks.refused(stream, str(header["reason"])[:MOST_REASON])
        else:
            self.callbacks.failed(stream, str(header["reason"])[:MOST_REASON])


def _transcript(stream: str, header: Header) -> TranscribedUtterance:
    given: Header = dict(header["transcript"])
    words = tuple({"word": str(one["word"]), "confidence": float(one["confidence"])} for one in given["words"])
    transcript = Transcript(str(given["text"]), float(given["confidence"]), float(given["no_speech"]), words)
    start_s, end_s, took_s = (float(header[name]) for name in ("start_s", "end_s", "took_s"))
    return TranscribedUtterance(stream, str(header["source"]), str(header["model"]), transcript, start_s, end_s, took_s)
