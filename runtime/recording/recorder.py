"""Write session recordings: an MCAP file of readings, decisions, outcomes, rewards and events.

The tick hands over what it has; a thread encodes and writes. A full queue drops the newcomer and counts it. Every tick has a
number, so that a replay finds a gap. A chunk is written at least every `CHUNK_S`: a crash costs no more. At the size limit, or
when the disk refuses, the file ends with an event; `runtime/requests/record.py` continues in another file. The file opens in
Foxglove and with the `mcap` package; `reader.py` reads it back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
from mcap.writer import Writer

from learners.files import private_folder
from learners.write_failures import WriteFailures
from runtime.process.emit import Emit
from runtime.recording.codec import SCHEMA_OF, SCHEMAS, ReadingCodec
from sensors.readings import Reading

FORMAT = "1"
"""Of what is recorded: topics, schemas of `codec.py`, metadata and attachments."""
MAIN = "reflexd"
"""Name of the metadata of a recording that can be replayed."""
DIGEST = "sha256 "
"""Prefix of the metadata that hold the digest of an attachment: readers of MCAP check no other sum of it."""
QUEUE = 256
CHUNK = 1 << 17
"""Bytes of a chunk."""
CHUNK_S = 0.4
"""Seconds after which a chunk is written, however small: what a crash may cost at the end of a recording."""


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
    """Writes one recording from a thread of its own.

    Records may be put before `start`: they are queued.
    """

    path: Path
    metadata: dict[str, str]
    max_bytes: int
    emit: Emit = lambda _kind, _data: None
    """Publishes `recording_full`, `recording_failed`, `recording_gap` and `recording_recovered`."""
    before: Recorder | None = None
    """The recorder that this one follows; it takes every record too, until this one's file is open: no tick is in neither."""
    dropped: int = 0
    """Records that are not in the file, for whatever reason."""
    written: int = 0
    begun: bool = False
    """The last tick was handed over: later ones bring only what is new, the first one every reading in use."""
    size_bytes: int = 0
    """Size of the file, without the chunk that is being filled."""
    gap: bool = False
    """Whether a tick is missing between two that are in the file."""
    ended: str = ""
    """Why the recording ended before `close`: the size limit, or an error of the disk."""
    kind: str = ""
    """`recording_full` or `recording_failed` for a recording that ended before `close`."""
    disk_full: bool = False
    """Whether it ended because the disk has no space."""
    opened: threading.Event = field(default_factory=threading.Event)
    """Set once the snapshot is in the file, or the recording has ended."""
    _after_tick: int = -1
    _held: dict[str, Reading] | None = field(default_factory=dict)
    """The newest readings of ticks that are in the snapshot already; None once a later tick is written."""
    _numbers: int = 0
    _unflushed: int = 0
    """Records in the chunk that is being filled: lost where the disk refuses it."""
    _losses: WriteFailures = field(init=False)
    _queue: queue.Queue[TickRecord | Note | None] = field(default_factory=lambda: queue.Queue(QUEUE))
    _thread: threading.Thread | None = None
    _counting: threading.Lock = field(default_factory=threading.Lock)
    """Held while records are counted as dropped: by the loop that puts them, and by the thread that writes."""

    def __post_init__(self) -> None:
        self._losses = WriteFailures(self.emit, "recording_gap", "recording_recovered")

    def start(self, attachments: dict[str, bytes], after_tick: int = -1) -> None:
        """Create the file and begin.

        Args:
            attachments: the snapshot of the engine.
            after_tick: the last tick in the snapshot; it and earlier ones are left out.
        """
        private_folder(self.path.parent)
        self.metadata |= {f"{DIGEST}{name}": digest_of(data) for name, data in attachments.items()}
        self._after_tick = after_tick
        self._thread = threading.Thread(target=self._run, args=(attachments,), name="recorder", daemon=True)
        self._thread.start()

    @property
    def started(self) -> bool:
        """Whether the writer's thread was started."""
        return self._thread is not None

    def put(self, item: TickRecord | Note) -> bool:
        """Take one record; False when it was dropped."""
        if self.before is not None:
            self.before.put(replace(item, decision=dict(item.decision)) if isinstance(item, TickRecord) else item)
        if isinstance(item, TickRecord):
            item.decision["record"], self._numbers = self._numbers, self._numbers + 1
        with self._counting:  # nothing enters the queue after `_end` has emptied it
            has_ended, is_full = bool(self.ended), False
            try:
                if not has_ended:
                    self._queue.put_nowait(item)
            except queue.Full:
                is_full = True
            self.dropped += has_ended or is_full
        if has_ended:
            return False
        if is_full:
            if isinstance(item, TickRecord):
                self.begun, self.gap = False, True  # its new readings are missing: the next tick brings all in use
            self._losses.add("the disk is slower than the recording", 1)
            return False
        self._losses.succeeded()
        return True

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is queued and end the file properly; a thread that has ended already is not waited for."""
        deadline_s = time.monotonic() + timeout_s
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline_s:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=0.1)
                self._thread.join(max(0.0, deadline_s - time.monotonic()))

    def _run(self, attachments: dict[str, bytes]) -> None:
        try:
            with written(self.path, ReadingCodec(), MAIN, self.metadata, attachments) as channels:
                self._flush(channels)
                self.opened.set()
                self._write(channels)
                channels.note("end", {"written": str(self.written), "dropped": str(self.dropped)})
        except Exception as error:  # noqa: BLE001 - the disk, or the encoder: a recording never ends without an event
            with self._counting:
                self.written, self.dropped = self.written - self._unflushed, self.dropped + self._unflushed
            self.disk_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if self.written == 0:
                with contextlib.suppress(OSError):
                    self.path.unlink()
            named = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            self._end("recording_failed", f"the recording cannot be written: {named}")
        finally:
            self.opened.set()

    def _write(self, channels: Channels) -> None:
        """Write records until `close`, or until the file is as large as it may be.

        Raises:
            OSError: the disk refuses.
        """
        flushed_s = time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, flushed_s + CHUNK_S - time.monotonic()))
            except queue.Empty:
                self._flush(channels)
                flushed_s = time.monotonic()
                continue
            if item is None:
                return
            record = self._after_snapshot(item)
            if record is not None:
                self._encode(channels, record)
            if time.monotonic() - flushed_s >= CHUNK_S:
                self._flush(channels)
                flushed_s = time.monotonic()
            if channels.bytes > self.max_bytes:
                self._end("recording_full", f"the recording has reached its limit of {self.max_bytes / 1e9:g} GB")
                return

    def _encode(self, channels: Channels, item: TickRecord | Note) -> None:
        size = channels.bytes
        self.written += 1
        self._unflushed += 1
        try:
            channels.write(item)
        except (ValueError, TypeError) as error:  # of this record alone: it cannot be encoded
            with self._counting:
                self.written, self.dropped = self.written - 1, self.dropped + 1
            self._unflushed -= 1
            if isinstance(item, TickRecord):
                self.begun, self.gap = False, True
            self._losses.add(str(error), 1)
        if channels.bytes != size:  # the chunk was full
            self._unflushed = 0

    def _flush(self, channels: Channels) -> None:
        channels.flush()
        self._unflushed, self.size_bytes = 0, channels.bytes

    def _after_snapshot(self, item: TickRecord | Note) -> TickRecord | Note | None:
        """Leave out ticks that are in the snapshot; their newest readings go with the first tick that is not."""
        if self._held is None or isinstance(item, Note):
            return item
        self._held |= {reading.stream: reading for reading in item.fresh}
        if item.decision.get("tick", 0) <= self._after_tick:
            return None
        used = item.decision.get("used", self._held)
        fresh = tuple(reading for name, reading in self._held.items() if name in used)
        self._held = None
        return replace(item, fresh=fresh)

    def _end(self, kind: str, reason: str) -> None:
        """End without a request; what is queued and what comes later is dropped and counted."""
        with self._counting:
            self.ended, self.kind = reason, kind
            with contextlib.suppress(queue.Empty):
                while True:
                    self.dropped += self._queue.get_nowait() is not None
        data = {"path": str(self.path), "reason": reason, "written": self.written, "dropped": self.dropped}
        self.emit(kind, data)


def digest_of(data: bytes) -> str:
    """Return the digest by which a damaged attachment is noticed."""
    return hashlib.sha256(data).hexdigest()


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

    def flush(self) -> None:
        """Write the chunk that is being filled."""
        self.writer.flush()  # type: ignore[no-untyped-call]

    def note(self, name: str, metadata: dict[str, str]) -> None:
        """Metadata at this place."""
        self.writer.add_metadata(name, metadata)

    def write(self, item: TickRecord | Note) -> None:
        """Write one record of a session."""
        if isinstance(item, Note):
            self.add(f"/{item.topic}", "reflexd.Message", item.stamp_ns, item.body)
            return
        observed_s = item.decision.get("stamp_s")
        for reading in item.fresh:
            age_s = 0.0 if observed_s is None else max(0.0, observed_s - reading.stamp_s)
            self.read(reading, item.stamp_ns, item.stamp_ns - int(age_s * 1e9))
        self.add("/decision", "reflexd.Decision", item.stamp_ns, item.decision)

    def read(self, reading: Reading, stamp_ns: int, captured_ns: int | None = None) -> None:
        """Write one reading."""
        captured_ns = stamp_ns if captured_ns is None else captured_ns
        self.add(f"/in/{reading.stream}", SCHEMA_OF[type(reading)], stamp_ns, self.codec.encode(reading), captured_ns)

    def add(self, topic: str, schema: str, stamp_ns: int, body: dict[str, Any], captured_ns: int | None = None) -> None:
        """Write one message."""
        own_ns = stamp_ns if captured_ns is None else captured_ns
        if topic not in self._channels:
            if schema not in self._schemas:
                self._schemas[schema] = self.writer.register_schema(schema, "jsonschema", SCHEMAS[schema])
            self._channels[topic] = self.writer.register_channel(topic, "json", self._schemas[schema])
        body = {"timestamp": {"sec": own_ns // 10**9, "nsec": own_ns % 10**9}} | body
        data = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        self.writer.add_message(self._channels[topic], stamp_ns, data, own_ns)
