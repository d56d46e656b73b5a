"""Connect microphone streams with the text streams that hear them, and publish each transcript on `task/<stream>`.

The models process transcribes. This module imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from learners.speech.transcripts import SpeechCallbacks, TranscribedUtterance
from runtime.config.schema import Config
from runtime.models.speech_client import SpeechClient
from runtime.mqtt import Connection
from runtime.mqtt.topics import Topics, encode
from runtime.process.emit import Emit
from sensors.config import transcribed
from sensors.streams.speech import SpeechText


@dataclass(slots=True)
class SpeechOutputs:
    """Passes each transcript to its stream and its topic."""

    config: Config
    link: Connection
    topics: Topics
    emit: Emit
    sensors: Mapping[str, SpeechText]
    """By text stream, what publishes its readings."""
    wall: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    client: SpeechClient = field(init=False)
    """Sends sound to the models process, over the socket of its `ModelsClient`."""

    def __post_init__(self) -> None:
        callbacks = SpeechCallbacks(self._publish_transcript, self._refused, self._failed)
        streams = {name: one for name, one in transcribed(self.config.streams).items() if name in self.sensors}
        self.client = SpeechClient(streams, callbacks)

    def _publish_transcript(self, utterance: TranscribedUtterance) -> None:
        transcript = utterance.transcript
        self.sensors[utterance.stream].take(transcript.text, utterance.start_s, utterance.end_s, transcript.confidence)
        unix_s = self.wall() - self.clock()
        body = {
            "value": transcript.text, "confidence": round(transcript.confidence, 4),
            "no_speech": round(transcript.no_speech, 4), "start": utterance.start_s + unix_s, "end": utterance.end_s + unix_s,
            "words": [
                {"word": one["word"], "confidence": round(one["confidence"], 4)} for one in transcript.words
            ],
            "stream": utterance.source, "version": utterance.model, "took_ms": round(utterance.took_s * 1e3, 1),
        }  # fmt: skip
        self.link.enqueue(self.topics("task", utterance.stream), encode(body), qos=1)

    def _refused(self, stream: str, reason: str) -> None:
        self.sensors[stream].drops[reason] += 1

    def _failed(self, stream: str, reason: str) -> None:
        self.emit("task_failed", {"task": stream, "reason": reason})
