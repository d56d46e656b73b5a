"""Raw readings of remembered ticks out of session recordings, found by the decision that used them.

Recordings are read once, in the order of time, beside the experience; nothing but the newest reading of each stream is held.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learners.experience.episodes import Seen
from learners.experience.transition import Transition
from runtime.recording.reader import Recording

Tick = tuple[str, float, dict[str, dict[str, Any]]]
"""Decision, Unix seconds, and the message of the reading of each stream that was used."""


@dataclass(slots=True)
class RecordedReadings:
    """The pictures and texts in the recordings of a folder; see `learners.experience.episodes`."""

    folder: Path
    wanted: frozenset[str]
    _ticks: Iterator[Tick] | None = None
    _next: Tick | None = None
    _streams: frozenset[str] | None = field(default=None)

    @property
    def paths(self) -> list[Path]:
        """The recordings, oldest first."""
        return sorted(self.folder.glob("*.mcap"))

    @property
    def streams(self) -> frozenset[str]:
        """Streams that a recording begins with: its first tick brings every reading in use."""
        if self._streams is None:
            firsts = (next(_ticks(path), None) for path in self.paths)
            self._streams = self.wanted & frozenset().union(*(tick[2] for tick in firsts if tick is not None))
        return self._streams

    def at(self, transitions: Sequence[Transition]) -> list[Seen]:
        """Return the recorded readings of these ticks."""
        wanted = {t.decision for t in transitions}
        found: dict[str, Seen] = {}
        while (tick := self._peek()) is not None and tick[1] <= transitions[-1].stamp_s + 1e-3:
            if tick[0] in wanted:
                found[tick[0]] = {name: _plain(body) for name, body in tick[2].items() if name in self.wanted}
            self._next = None
        return [found.get(t.decision, {}) for t in transitions]

    def _peek(self) -> Tick | None:
        if self._ticks is None:
            self._ticks = (tick for path in self.paths for tick in _ticks(path))
        if self._next is None:
            self._next = next(self._ticks, None)
        return self._next


def _ticks(path: Path) -> Iterator[Tick]:
    held: dict[str, dict[str, Any]] = {}
    for topic, schema, body in Recording(path).messages():
        if topic.startswith("/in/") and schema in ("foxglove.CompressedImage", "reflexd.Text"):
            held[topic.removeprefix("/in/")] = body
        elif topic == "/decision":
            stamp = body["timestamp"]
            used = {name: held[name] for name in body.get("used", ()) if name in held}
            yield body["id"], stamp["sec"] + stamp["nsec"] / 1e9, used


def _plain(body: dict[str, Any]) -> bytes | str:
    return body["text"] if "text" in body else base64.b64decode(body["data"])
