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
from runtime.recording.reader import Recording, RecordingError
from sensors.codecs.images import read_header

Held = tuple[int, bytes | str]
"""Number of a reading, and the encoded picture or the text."""
Tick = tuple[str, int, dict[str, bytes | str]]
"""Session, number, and the reading of each stream that was used."""


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
    damage: dict[str, str] = field(default_factory=dict)
    """By file, why its readings could not be read to its end, or at all."""
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
                            name: reading for name, reading in used.items() if name in self.wanted
                        }
        return [found.get((t.session, t.tick), {}) for t in transitions]

    def _of(self, session: str) -> list[_Cursor]:
        """Return the recordings of a session; those of the session before are closed."""
        if session != self._session:
            firsts = sorted((first[1], path) for path, first in self._all() if first[0] == session)
            opened = [_Cursor(path, self._ticks_of(path), None) for _, path in firsts]
            for cursor in opened:
                cursor.next = next(cursor.ticks, None)
            self._session, self._open = session, opened
        return self._open

    def _all(self) -> list[tuple[Path, Tick]]:
        if self._firsts is None:
            found = ((path, next(self._ticks_of(path), None)) for path in sorted(self.folder.glob("*.mcap")))
            self._firsts = [(path, first) for path, first in found if first is not None]
        return self._firsts

    def _ticks_of(self, path: Path) -> Iterator[Tick]:
        """Yield the ticks of one file, up to its end or its damage, which is remembered."""
        recording, last = Recording(path), "its begin"
        try:
            recording.metadata()
            for tick in _ticks(recording):
                yield tick
                last = f"{tick[0]}-{tick[1]}"
            if (ending := recording.ending(last)) is not None:
                self.damage[path.name] = ending
        except RecordingError as error:
            self.damage[path.name] = str(error).removeprefix(f"{path}: ")


def _ticks(recording: Recording) -> Iterator[Tick]:
    """Yield the ticks of a recording.

    Raises:
        RecordingError: a message is none of ours.
    """
    held: dict[str, Held] = {}
    for topic, schema, body in recording.messages():
        if topic.startswith("/in/") and schema in ("foxglove.CompressedImage", "reflexd.Text"):
            stream = topic.removeprefix("/in/")
            held[stream] = _held(recording, stream, body)
        elif topic == "/decision":
            used = {
                name: held[name][1]
                for name, seq in recording.used(body).items()
                if name in held and held[name][0] == seq  # a reading that a gap swallowed is no older one
            }
            name, tick = body.get("id"), body.get("tick")
            if not isinstance(name, str) or type(tick) is not int:
                raise RecordingError(
                    f"{recording.path}: a decision with the id {str(name)[:60]!r} and the tick {str(tick)[:60]!r}; reflexd did not"
                    " write it"
                )
            yield name.rpartition("-")[0], tick, used


def _held(recording: Recording, stream: str, body: dict[str, Any]) -> Held:
    """Return number and content of a text or a picture.

    Raises:
        RecordingError: it is none.
    """
    try:
        if "text" in body:
            return body["seq"], str(body["text"])
        data = base64.b64decode(body["data"], validate=True)
        read_header(data)
        seq: int = body["seq"]
    except (LookupError, TypeError, ValueError) as error:
        raise RecordingError(
            f"{recording.path}: {stream}: a damaged reading ({type(error).__name__}: {error})"
        ) from None
    return seq, data
