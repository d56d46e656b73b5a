"""Text from speech: a model transcribes the sound of a microphone stream.

It has no topic, so no MQTT client can write it. The runtime connects it to its microphone and its model.
"""

from __future__ import annotations

from sensors.readings import Text
from sensors.streams.internal_source import InternalSource


class SpeechText(InternalSource):
    """Publish transcribed utterances; the stamp of a text is the end of its utterance."""

    def __init__(self, name: str, max_chars: int) -> None:
        super().__init__(name)
        self._max_chars = max_chars

    def take(self, text: str, start_s: float, end_s: float, confidence: float) -> None:
        """Publish the words of an utterance; outside `run`, and above `max_chars`, they are dropped and counted."""
        if self._publish is None:
            self.drops["not_running"] += 1
        elif len(text) > self._max_chars:
            self.drops["too_long"] += 1
        else:
            self._seq += 1
            self._publish(Text(self.name, end_s, self._seq, text, start_s=start_s, confidence=confidence))
