"""Session recordings: an MCAP file of readings, decisions, outcomes, rewards and events, and reading it back.

The tick hands over what it has; a thread encodes and writes. A full queue drops the newcomer and counts it, and a recording
with a gap says so at its end. The file opens in Foxglove and with the `mcap` package; one that was cut off by a crash is
read up to its last whole chunk. The only importer of `mcap`.
"""

from __future__ import annotations

import contextlib
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import structlog
from mcap.exceptions import McapError
from mcap.reader import NonSeekingReader, make_reader
from mcap.writer import Writer
from zstandard import ZstdError

from runtime.recording.codec import SCHEMA_OF, SCHEMAS, ReadingCodec
from sensors.readings import Reading

_LOG = structlog.get_logger()
FORMAT = "1"
"""Of what is recorded: topics, schemas of `messages.py`, metadata and attachments."""
QUEUE = 256
CHUNK = 1 << 17
"""Bytes of a chunk: what a crash may cost at the end of a recording."""


@dataclass(frozen=True, slots=True)
class TickRecord:
    """What one tick adds to a recording."""

    stamp_ns: int
    fresh: tuple[Reading, ...]
    decision: dict[str, Any]
    """The `decision` message, with `tick`, `stamp_s` (monotonic), `explore`, `encoders` (versions by name), `used` ({stream: seq})
    and `outcomes`."""


@dataclass(frozen=True, slots=True)
class Note:
    """A reward, an event or another message worth keeping, as it was on its topic."""

    stamp_ns: int
    topic: str
    body: dict[str, Any]


@dataclass(slots=True)
class Recorder:
    """Writes one recording from a thread of its own."""

    path: Path
    metadata: dict[str, str]
    attachments: dict[str, bytes]
    max_bytes: int
    dropped: int = 0
    written: int = 0
    begun: bool = False
    """The first tick was handed over: it brings every reading in use, later ones only what is new."""
    full: bool = False
    """The size limit was reached and the file closed."""
    _queue: queue.Queue[TickRecord | Note | None] = field(default_factory=lambda: queue.Queue(QUEUE))
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Create the file and begin."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, item: TickRecord | Note) -> bool:
        """Take one record; False when it was dropped."""
        if self.full:
            return False
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1
            return False
        return True

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is queued and end the file properly; a thread that has ended already is not waited for."""
        deadline_s = time.monotonic() + timeout_s
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline_s:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=0.1)
                self._thread.join(max(0.0, deadline_s - time.monotonic()))

    def _run(self) -> None:
        codec = ReadingCodec()
        with written(self.path, codec, "reflexd", self.metadata, self.attachments) as channels:
            while (item := self._queue.get()) is not None and not self.full:
                channels.write(item)
                self.written += 1
                self.full = channels.bytes > self.max_bytes
            channels.note("end", {"written": str(self.written), "dropped": str(self.dropped)})


@contextmanager
def written(
    path: Path, codec: ReadingCodec, name: str, metadata: dict[str, str], attachments: dict[str, bytes]
) -> Iterator[Channels]:
    """A new MCAP file to write to; whole once the context is left without an exception.

    Args:
        path: of the file.
        codec: turns readings into messages.
        name: of the metadata: `reflexd` for what can be replayed.
        metadata: noted at its start.
        attachments: by name.
    """
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=CHUNK)
        writer.start(profile="reflexd", library="reflexd")
        channels = Channels(writer, codec, file.tell)
        channels.note(name, metadata)
        for title, data in attachments.items():
            writer.add_attachment(time.time_ns(), time.time_ns(), title, "application/octet-stream", data)
        yield channels
        writer.finish()  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class Channels:
    """The open channels of a file, made as they are first needed."""

    writer: Writer
    codec: ReadingCodec
    _tell: Callable[[], int]
    _schemas: dict[str, int] = field(default_factory=dict)
    _channels: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of the file so far, without the chunk that is being filled."""
        return self._tell()

    def note(self, name: str, metadata: dict[str, str]) -> None:
        """Metadata at this place."""
        self.writer.add_metadata(name, metadata)

    def write(self, item: TickRecord | Note) -> None:
        """One record of a session."""
        if isinstance(item, Note):
            self.add(f"/{item.topic}", "reflexd.Message", item.stamp_ns, item.body)
            return
        for reading in item.fresh:
            self.read(reading, item.stamp_ns)
        self.add("/decision", "reflexd.Decision", item.stamp_ns, item.decision)

    def read(self, reading: Reading, stamp_ns: int) -> None:
        """One reading."""
        self.add(f"/in/{reading.stream}", SCHEMA_OF[type(reading)], stamp_ns, self.codec.encode(reading))

    def add(self, topic: str, schema: str, stamp_ns: int, body: dict[str, Any]) -> None:
        """One message."""
        if topic not in self._channels:
            if schema not in self._schemas:
                self._schemas[schema] = self.writer.register_schema(schema, "jsonschema", SCHEMAS[schema])
            self._channels[topic] = self.writer.register_channel(topic, "json", self._schemas[schema])
        body = {"timestamp": {"sec": stamp_ns // 10**9, "nsec": stamp_ns % 10**9}} | body
        data = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        self.writer.add_message(self._channels[topic], stamp_ns, data, stamp_ns)


DAMAGED = (
    McapError,
    ZstdError,
    struct.error,
    ValueError,
    LookupError,
    RuntimeError,
    EOFError,
    ArithmeticError,
    MemoryError,
)
"""What the MCAP reader and the decompressors raise for a damaged file."""


class RecordingError(ValueError):
    """A file that is no recording of ours, or not whole; `str` says what is wrong."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording being read."""

    path: Path

    def metadata(self) -> dict[str, str]:
        """What was noted at its start.

        Raises:
            RecordingError: not one of ours.
        """
        with self.path.open("rb") as file:
            try:
                for entry in NonSeekingReader(file).iter_metadata():
                    if entry.name == "reflexd":
                        return self._readable(dict(entry.metadata))
            except RecordingError:
                raise
            except DAMAGED as error:
                raise RecordingError(f"{self.path}: not an MCAP file: {error or type(error).__name__}") from None
        raise RecordingError(f"{self.path}: an MCAP file, but not one that reflexd recorded")

    def _readable(self, metadata: dict[str, str]) -> dict[str, str]:
        version = metadata.get("format", FORMAT)  # the first ones did not say theirs
        if version != FORMAT:
            raise RecordingError(
                f"{self.path}: a recording of format {version}; this program reads {FORMAT}: upgrade it"
            )
        return metadata

    def attachments(self) -> dict[str, bytes]:
        """The attached files by name."""
        with self.path.open("rb") as file:
            try:
                return {entry.name: entry.data for entry in make_reader(file).iter_attachments()}
            except DAMAGED as error:
                raise RecordingError(
                    f"{self.path}: its attachments cannot be read: {error or type(error).__name__}"
                ) from None

    def ticks(self) -> Iterator[tuple[list[Reading], dict[str, Any]]]:
        """Each tick in order: the readings that were new, and the decision as recorded."""
        codec = ReadingCodec()
        fresh: list[Reading] = []
        for topic, schema, body in self.messages():
            if topic.startswith("/in/"):
                fresh.append(codec.decode(topic.removeprefix("/in/"), schema, body))
            elif topic == "/decision":
                yield fresh, body
                fresh = []

    def messages(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Topic, schema and body of every message in the order it was written, up to the last whole one."""
        with self.path.open("rb") as file:
            try:
                for schema, channel, message in NonSeekingReader(file).iter_messages(log_time_order=False):
                    if channel.message_encoding == "json" and schema is not None:
                        yield channel.topic, schema.name, orjson.loads(message.data)
            except DAMAGED as error:
                _LOG.warning("recording_cut_off", path=str(self.path), reason=str(error))
