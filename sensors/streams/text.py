"""Text from a topic, from standard input, or from a file that is followed like `tail -F`.

Half an order is another order, so a text over `max_chars` is refused and never cut. A file is followed from its end; a
file that appears later, or replaces the first, is read from its beginning. A file that is truncated and grows past the
old position within 0.1 s is not noticed.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sensors.base import PayloadRefused, Publish, call_threadsafe
from sensors.codecs.json_payload import parse_json
from sensors.readings import Text

_CHUNK = 65_536
_TAIL = 64
"""Bytes by which a file that was overwritten is recognised."""
_BYTES_PER_CHAR = 4


def clean(payload: bytes, max_chars: int) -> str:
    """Decode UTF-8 and strip white space.

    Raises:
        PayloadRefused: `not_utf8`, `empty` or `too_long`.
    """
    try:
        text = payload.decode().strip()
    except UnicodeDecodeError as error:
        raise PayloadRefused("not_utf8", f"not UTF-8 at byte {error.start}") from None
    if not text:
        raise PayloadRefused("empty", "no text")
    if len(text) > max_chars:
        raise PayloadRefused("too_long", f"{len(text)} characters; max_chars allows {max_chars}")
    return text


class TopicText:
    """Decode UTF-8, or a JSON object with `text`: a payload that begins with `{` must be such an object."""

    def __init__(self, name: str, topic: str | None, max_chars: int) -> None:
        self.name = name
        self.topic = topic
        self.drops: Counter[str] = Counter()
        self._max_chars = max_chars
        self._seq = 0

    def decode(self, payload: bytes, stamp_s: float) -> Text:
        """Decode one payload to a text.

        Raises:
            PayloadRefused: `too_large`, `not_json`, `too_deep`, `no_text`, `not_utf8`, `empty` or `too_long`.
        """
        try:
            text = self._read(payload)
        except PayloadRefused as refusal:
            self.drops[refusal.cause] += 1
            raise
        self._seq += 1
        return Text(self.name, stamp_s, self._seq, text)

    def _read(self, payload: bytes) -> str:
        limit = 6 * self._max_chars + 4_096  # JSON may spell a character in six bytes, and carry other keys
        if len(payload) > limit:
            raise PayloadRefused("too_large", f"{len(payload)} bytes; the limit is {limit} bytes")
        if not payload.lstrip().startswith(b"{"):
            return clean(payload, self._max_chars)
        text = parse_json(payload, limit).get("text")
        if not isinstance(text, str):
            raise PayloadRefused("no_text", 'a JSON text needs the form {"text": "..."}')
        return clean(text.encode(), self._max_chars)


class Lines:
    """Split a stream of bytes into complete lines; a line over `limit` bytes is dropped and never held in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._part = bytearray()
        self._overflowing = self._inside = False
        self.overlong = self.cut = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without their ends."""
        *ends, rest = data.split(b"\n")
        lines = [line for end in ends if (line := self._finish(end)) is not None]
        self._extend(rest)
        return lines

    def flush(self) -> list[bytes]:
        """Return the incomplete last line, because the source has ended."""
        line = self._finish(b"")
        return [line] if line else []

    def begin_inside(self) -> None:
        """Leave out the rest of a line of which the begin was not read: "do not move" must not become "move"."""
        self._inside = True

    def _extend(self, data: bytes) -> None:
        if self._inside:
            return
        if self._overflowing or len(self._part) + len(data) > self._limit:
            self._overflowing = True
            self._part.clear()
        else:
            self._part += data

    def _finish(self, end: bytes) -> bytes | None:
        self._extend(end)
        line, overlong = bytes(self._part), self._overflowing
        self._part.clear()
        self._overflowing = False
        if self._inside:
            self._inside, self.cut = False, self.cut + 1
            return None
        if overlong:
            self.overlong += 1
            return None
        return line


class _LineSensor:
    """The base of standard input and a followed file: make readings of lines."""

    def __init__(self, name: str, max_chars: int, clock: Callable[[], float]) -> None:
        self.name = name
        self.drops: Counter[str] = Counter()
        self._max_chars = max_chars
        self._clock = clock
        self._lines = Lines(_BYTES_PER_CHAR * max_chars + 2)
        self._seq = 0

    def _take(self, lines: list[bytes], publish: Publish) -> None:
        if self._lines.overlong:
            self.drops["too_long"] += self._lines.overlong
            self._lines.overlong = 0
        if self._lines.cut:
            self.drops["cut_line"] += self._lines.cut
            self._lines.cut = 0
        for line in lines:
            if not line.strip():
                continue
            try:
                text = clean(line, self._max_chars)
            except PayloadRefused as refusal:
                self.drops[refusal.cause] += 1
                continue
            self._seq += 1
            publish(Text(self.name, self._clock(), self._seq, text))


class StdinText(_LineSensor):
    """Read lines from standard input; after its end the source stays lost."""

    def __init__(
        self, name: str, max_chars: int, *, descriptor: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(name, max_chars, clock)
        self._descriptor = descriptor

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:  # noqa: ARG002 - an ended input does not come back
        """Publish lines until cancelled."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        wake_read, wake_write = os.pipe()

        def read() -> None:
            try:
                while wake_read not in (ready := select.select([self._descriptor, wake_read], [], [])[0]) and ready:
                    data = os.read(self._descriptor, _CHUNK)
                    self._take(self._lines.feed(data) if data else self._lines.flush(), publish)
                    if not data:
                        call_threadsafe(loop, ended.set)
                        return
            except OSError:
                call_threadsafe(loop, ended.set)
            finally:
                os.close(wake_read)

        thread = threading.Thread(target=read, name=f"text {self.name}", daemon=True)
        thread.start()
        try:
            await ended.wait()
            lost(f"{self.name}: standard input has ended; restart the daemon to read text again")
            await asyncio.Event().wait()
        finally:
            os.close(wake_write)  # wakes the reader: end-of-file on its pipe


class FollowedText(_LineSensor):
    """Read the lines appended to a file, over rotation and truncation."""

    def __init__(
        self,
        name: str,
        path: Path,
        max_chars: int,
        *,
        poll_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name, max_chars, clock)
        self._path = path
        self._poll_s = poll_s
        self._file: int | None = None
        self._place = 0
        """Bytes of the file that were read."""
        self._tail = b""
        """The last bytes that were read: where the file has others, it was overwritten."""
        self._skip = True
        """True until the first look: lines already in the file are not read."""

    @property
    def following(self) -> bool:
        """Whether the file is open."""
        return self._file is not None

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Publish appended lines until cancelled."""
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        def report(reason: str | None) -> None:
            if not stop.is_set():
                call_threadsafe(loop, recovered) if reason is None else call_threadsafe(loop, lost, reason)

        thread = threading.Thread(
            target=self._follow, args=(publish, report, stop), name=f"text {self.name}", daemon=True
        )
        thread.start()
        try:
            await asyncio.Event().wait()
        finally:
            stop.set()

    def _follow(self, publish: Publish, report: Callable[[str | None], None], stop: threading.Event) -> None:
        missing = False
        while not stop.is_set():
            reason = self._look(publish)
            if (reason is not None) != missing:
                missing = reason is not None
                report(reason)
            stop.wait(self._poll_s)
        self._close()

    def _look(self, publish: Publish) -> str | None:
        """Read new bytes; return the reason when the file cannot be read."""
        try:
            if self._file is not None and self._replaced():
                self._drain(publish)
                self._take(self._lines.flush(), publish)
                self._close()
            if self._file is None:
                self._file = self._opened()
            self._drain(publish)
        except OSError as error:
            self._skip = False
            return f"{self.name}: {self._path}: {error.strerror}; waiting for the file"
        self._skip = False
        return None

    def _drain(self, publish: Publish) -> None:
        assert self._file is not None
        while True:
            # known and new bytes by one call: what is overwritten between a check and a read would begin inside a line
            data = os.pread(self._file, len(self._tail) + _CHUNK, self._place - len(self._tail))
            if not data.startswith(self._tail):
                self._lines.flush()
                self._tail, self._place = b"", 0
            elif new := data[len(self._tail) :]:
                self._tail, self._place = data[-_TAIL:], self._place + len(new)
                self._take(self._lines.feed(new), publish)
            else:
                return

    def _opened(self) -> int:
        """Open the file; at the first look, at its end.

        Raises:
            OSError: it cannot be read.
        """
        file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._tail, self._place = b"", 0
        try:
            if self._skip:
                self._go_to_end(file)
        except OSError:
            os.close(file)
            raise
        return file

    def _go_to_end(self, file: int) -> None:
        """Go to the end of what is there, which may be inside a line."""
        end = os.lseek(file, 0, os.SEEK_END)
        self._place, self._tail = end, os.pread(file, min(end, _TAIL), max(0, end - _TAIL))
        if self._tail and not self._tail.endswith(b"\n"):
            self._lines.begin_inside()

    def _replaced(self) -> bool:
        assert self._file is not None
        mine = os.fstat(self._file)
        try:
            theirs = self._path.stat()
        except FileNotFoundError:
            return True
        return (mine.st_ino, mine.st_dev) != (theirs.st_ino, theirs.st_dev)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
