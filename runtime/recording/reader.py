"""Read session recordings: metadata, attachments, ticks and messages, also of a file that a crash cut off.

A file that was cut off is read to its last whole chunk. `recorder.py` writes what this reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import orjson
import structlog
from lz4.frame import LZ4FrameDecompressor
from mcap.exceptions import McapError
from mcap.records import Attachment, Channel, Chunk, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from zstandard import ZstdDecompressor, ZstdError

from runtime.recording.codec import ReadingCodec
from runtime.recording.recorder import DIGEST, FORMAT, MAIN, digest_of
from sensors.readings import Reading

_LOG = structlog.get_logger(__name__)
MAGIC = b"\x89MCAP0\r\n"
"""First and last bytes of a file that was closed."""
MAX_STAMP_NS = 2**63 - 1
"""In the year 2262."""
MAX_CHUNK_BYTES = 1 << 27
"""Of a chunk when it is decompressed: the recorder's have 128 kB and one message, of which a picture is the largest."""
BLOCK = 1 << 20
"""Bytes that are decompressed at once."""
MAX_RECORD_BYTES = 1 << 30
"""A longer record is not read: a damaged length must not exhaust the memory."""


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
    """A file that is no recording of ours, or not complete; `str` says what is wrong."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording being read."""

    path: Path
    damage: list[str] = field(default_factory=list)
    """Why the last reading of messages ended before the end of the file."""

    def metadata(self) -> dict[str, str]:
        """Return what was noted at its start.

        Raises:
            RecordingError: not one of ours.
        """
        return self._notes()[0]

    def _readable(self, metadata: dict[str, str]) -> dict[str, str]:
        version = metadata.get("format", FORMAT)  # the first ones have no format
        if version != FORMAT:
            raise RecordingError(
                f"{self.path}: a recording of format {version}; this program reads {FORMAT}: upgrade it"
            )
        return metadata

    def attachments(self) -> dict[str, bytes]:
        """Return the attached files by name.

        Raises:
            RecordingError: one is not what was recorded.
        """
        stated, found = self._notes()
        for name, data in found.items():
            if stated.get(f"{DIGEST}{name}", digest_of(data)) != digest_of(data):
                raise RecordingError(f"{self.path}: its snapshot is damaged ({name}): no decision can be replayed")
        return found

    def _notes(self) -> tuple[dict[str, str], dict[str, bytes]]:
        """Return what was noted and attached at its start; another program that copied the file may have put them behind the messages.

        Raises:
            RecordingError: not one of ours.
        """
        noted: dict[str, str] | None = None
        attached: dict[str, bytes] = {}
        for record in self._outside_chunks():
            match record:
                case Metadata(name=name, metadata=metadata) if name == MAIN and noted is None:
                    noted = self._readable(dict(metadata))
                case Attachment():
                    attached[record.name] = record.data
                case Chunk() if noted is not None and {*_stated(noted)} <= attached.keys():
                    break
        if noted is None:
            raise RecordingError(f"{self.path}: an MCAP file, but not one that reflexd recorded")
        return noted, attached

    def _outside_chunks(self) -> Iterator[McapRecord]:
        """Yield the records of the file; those of messages remain in their chunks.

        Raises:
            RecordingError: not an MCAP file.
        """
        began = False
        with self.path.open("rb") as file:
            try:
                for record in _reader(file).records:
                    began = True
                    yield record
            except DAMAGED as error:
                if not began:
                    what = str(error) or type(error).__name__
                    raise RecordingError(f"{self.path}: not an MCAP file: {what}") from None

    def ending(self, last: str) -> str | None:
        """Return in words where the messages ended that were read, if that is not the end of the recording.

        Args:
            last: the last decision that was read.
        """
        if self.whole and self.damage:
            return f"damaged after {last}: later decisions cannot be read ({self.damage[0]})"
        if self.whole:
            return None
        return f"cut off after {last}: the daemon was killed, the disk was full, or it is still being recorded"

    @property
    def whole(self) -> bool:
        """Whether the file was closed; one that was not is cut off at some moment."""
        with self.path.open("rb") as file:
            file.seek(-min(len(MAGIC), self.path.stat().st_size), 2)
            return file.read() == MAGIC

    def ticks(self) -> Iterator[tuple[list[Reading], dict[str, Any]]]:
        """Yield each tick in order: the readings that were new, and the decision as recorded.

        Raises:
            RecordingError: a message is none of ours.
        """
        codec = ReadingCodec()
        fresh: list[Reading] = []
        for topic, schema, body in self.messages():
            if topic.startswith("/in/"):
                try:
                    fresh.append(codec.decode(topic.removeprefix("/in/"), schema, body))
                except ValueError as error:
                    raise RecordingError(f"{self.path}: {error}") from None
            elif topic == "/decision":
                yield fresh, body
                fresh = []

    def stamp_ns(self, topic: str, body: Mapping[str, Any]) -> int:
        """Return the time of a message in Unix nanoseconds, as MCAP counts them.

        Raises:
            RecordingError: it has none.
        """
        stamp = body.get("timestamp")
        sec, nsec = (stamp.get("sec"), stamp.get("nsec")) if isinstance(stamp, dict) else (None, None)
        if type(sec) is int and type(nsec) is int and sec >= 0 <= nsec:
            stamp_ns = sec * 10**9 + nsec
            if stamp_ns <= MAX_STAMP_NS:
                return stamp_ns
        raise RecordingError(f"{self.path}: a message on {topic} with the timestamp {str(stamp)[:100]}, which is none")

    def used(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the number of the reading that a decision used, by stream.

        Raises:
            RecordingError: they are not named.
        """
        used = body.get("used", {})
        if not isinstance(used, dict):
            raise RecordingError(
                f"{self.path}: a decision with the readings {str(used)[:100]}; reflexd did not write it"
            )
        return used

    def _body(self, topic: str, encoding: str, data: bytes) -> dict[str, Any]:
        if encoding != "json":
            raise RecordingError(
                f"{self.path}: a message on {topic} in {encoding[:40]!r}, not in JSON; reflexd did not write it"
            )
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise RecordingError(f"{self.path}: a message on {topic} is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise RecordingError(f"{self.path}: a message on {topic} is not a JSON object")
        return body

    def messages(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield topic, schema and body of every message in the order it was written, up to the last whole chunk.

        Messages that another program added in another encoding are left out, except on the topics of readings and decisions.

        Raises:
            RecordingError: a message is not a JSON object.
        """
        with self.path.open("rb") as file:
            try:
                for schema, channel, message in _stored(file):
                    is_json, topic = channel.message_encoding == "json", channel.topic
                    if is_json or topic == "/decision" or topic.startswith("/in/"):
                        body = self._body(topic, channel.message_encoding, message.data)
                        yield topic, schema.name if schema is not None else "", body
            except RecordingError:
                raise
            except DAMAGED as error:
                self.damage.append(str(error) or type(error).__name__)
                _LOG.warning("recording.cut_off", path=str(self.path), reason=self.damage[0])


def _stored(file: IO[bytes]) -> Iterator[tuple[Schema | None, Channel, Message]]:
    """Yield the messages of an MCAP file with their channels, in the order they were written.

    Raises:
        McapError: a chunk claims more than `MAX_CHUNK_BYTES`: a small file must not fill the memory.
    """
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    for record in _records(file):
        match record:
            case Schema():
                schemas[record.id] = record
            case Channel():
                channels[record.id] = record
            case Message():
                channel = channels[record.channel_id]
                yield schemas.get(channel.schema_id), channel, record


def _records(file: IO[bytes]) -> Iterator[McapRecord]:
    """Yield all records, those of chunks too."""
    for record in _reader(file).records:
        if isinstance(record, Chunk):
            yield from breakup_chunk(_decompressed(record), validate_crc=True)
        else:
            yield record


def _reader(file: IO[bytes]) -> StreamReader:
    return StreamReader(file, emit_chunks=True, validate_crcs=True, record_size_limit=MAX_RECORD_BYTES)


def _stated(metadata: Mapping[str, str]) -> Iterator[str]:
    """Yield the names of the attachments that have a digest in the metadata."""
    return (name.removeprefix(DIGEST) for name in metadata if name.startswith(DIGEST))


def _decompressed(chunk: Chunk) -> Chunk:
    """Return a chunk without compression. What its data claim themselves is not believed: memory is taken as bytes come.

    Raises:
        McapError: it claims more than `MAX_CHUNK_BYTES`, or has another size than it claims.
    """
    size = chunk.uncompressed_size
    if size > MAX_CHUNK_BYTES:
        raise McapError(f"a chunk claims {size} bytes; at most {MAX_CHUNK_BYTES} are read")
    match chunk.compression:
        case "zstd":
            data = _at_most(ZstdDecompressor().stream_reader(chunk.data), size + 1)
        case "lz4":
            data = LZ4FrameDecompressor().decompress(chunk.data, max_length=size + 1)
        case "":
            data = chunk.data
        case other:
            raise McapError(f"a chunk in the compression {other[:40]!r}; zstd, lz4 and none are read")
    if len(data) != size:
        raise McapError(f"a chunk claims {size} bytes and has {'more' if len(data) > size else len(data)}")
    return replace(chunk, compression="", data=data)


def _at_most(stream: IO[bytes], size: int) -> bytes:
    """Read in blocks: a read of the whole size would take its memory at once."""
    data = bytearray()
    while len(data) < size and (block := stream.read(min(BLOCK, size - len(data)))):
        data += block
    return bytes(data)
