"""Raw readings of remembered ticks out of session recordings, found by the decision that used them.

Recordings are read once, in the order of ticks, beside the experience: a wall clock that is set back does no harm. Nothing but the
newest reading of each stream is held, and one tick of each recording.
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

Tick = tuple[str, int, dict[str, dict[str, Any]]]
"""Session, number, and the message of the reading of each stream that was used."""


@dataclass(slots=True)
class _Cursor:
    """A place in a recording, which is of one session and in the order of ticks."""

    path: Path
    ticks: Iterator[Tick]
    next: Tick | None

    def until(self, tick: int) -> Iterator[Tick]:
        """Yield the ticks up to this number, and go on after it at the next call."""
        while self.next is not None and self.next[1] <= tick:
            yield self.next
            self.next = next(self.ticks, None)


@dataclass(slots=True)
class RecordedReadings:
    """The pictures and texts in the recordings of a folder; see `learners.experience.episodes`."""

    folder: Path
    wanted: frozenset[str]
    _firsts: list[tuple[Path, Tick]] | None = None
    """Each recording with its first tick."""
    _open: list[_Cursor] = field(default_factory=list)
    """The recordings of the session that is read now."""
    _session: str = ""

    @property
    def streams(self) -> frozenset[str]:
        """Streams that a recording begins with: its first tick brings every reading in use."""
        return self.wanted & frozenset().union(*(first[2] for _, first in self._all()))

    def at(self, transitions: Sequence[Transition]) -> list[Seen]:
        """Return the recorded readings of these ticks."""
        found: dict[tuple[str, int], Seen] = {}
        last = {t.session: t.tick for t in transitions}
        wanted = {(t.session, t.tick) for t in transitions}
        for session, tick in last.items():
            for cursor in self._of(session):
                for _, number, used in cursor.until(tick):
                    if (session, number) in wanted:
                        found[session, number] = {
                            name: _plain(body) for name, body in used.items() if name in self.wanted
                        }
        return [found.get((t.session, t.tick), {}) for t in transitions]

    def _of(self, session: str) -> list[_Cursor]:
        """Return the recordings of a session; those of the session before are closed."""
        if session != self._session:
            firsts = sorted((first[1], path) for path, first in self._all() if first[0] == session)
            opened = [_Cursor(path, _ticks(path), None) for _, path in firsts]
            for cursor in opened:
                cursor.next = next(cursor.ticks, None)
            self._session, self._open = session, opened
        return self._open

    def _all(self) -> list[tuple[Path, Tick]]:
        if self._firsts is None:
            found = ((path, next(_ticks(path), None)) for path in sorted(self.folder.glob("*.mcap")))
            self._firsts = [(path, first) for path, first in found if first is not None]
        return self._firsts


def _ticks(path: Path) -> Iterator[Tick]:
    held: dict[str, dict[str, Any]] = {}
    for topic, schema, body in Recording(path).messages():
        if topic.startswith("/in/") and schema in ("foxglove.CompressedImage", "reflexd.Text"):
            held[topic.removeprefix("/in/")] = body
        elif topic == "/decision":
            used = {
                name: held[name]
                for name, seq in body.get("used", {}).items()
                if name in held and held[name]["seq"] == seq  # a reading that a gap swallowed is no older one
            }
            yield body["id"].rpartition("-")[0], body["tick"], used


def _plain(body: dict[str, Any]) -> bytes | str:
    return body["text"] if "text" in body else base64.b64decode(body["data"])
