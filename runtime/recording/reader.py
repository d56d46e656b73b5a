"""Read session recordings: metadata, attachments, ticks and messages, also of a file that a crash cut off.

A file that was cut off is read to its last whole chunk. `recorder.py` writes what this reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import structlog
from mcap.exceptions import McapError
from mcap.reader import NonSeekingReader
from mcap.records import Attachment, Chunk, Metadata
from mcap.stream_reader import StreamReader
from zstandard import ZstdError

from runtime.recording.codec import ReadingCodec
from runtime.recording.recorder import DIGEST, FORMAT, MAIN, digest_of
from sensors.readings import Reading

_LOG = structlog.get_logger(__name__)
MAGIC = b"\x89MCAP0\r\n"
"""First and last bytes of a file that was closed."""
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
        for record in self._head():
            if isinstance(record, Metadata) and record.name == MAIN:
                return self._readable(dict(record.metadata))
        raise RecordingError(f"{self.path}: an MCAP file, but not one that reflexd recorded")

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
        found = {record.name: record.data for record in self._head() if isinstance(record, Attachment)}
        stated = self.metadata()
        for name, data in found.items():
            if stated.get(f"{DIGEST}{name}", digest_of(data)) != digest_of(data):
                raise RecordingError(f"{self.path}: its snapshot is damaged ({name}): no decision can be replayed")
        return found

    def _head(self) -> Iterator[Any]:
        """Yield what comes before the first chunk of messages.

        Raises:
            RecordingError: not an MCAP file.
        """
        began = False
        with self.path.open("rb") as file:
            try:
                reader = StreamReader(file, emit_chunks=True, validate_crcs=True, record_size_limit=MAX_RECORD_BYTES)
                for record in reader.records:
                    if isinstance(record, Chunk):
                        return
                    began = True
                    yield record
            except DAMAGED as error:
                if not began:
                    what = str(error) or type(error).__name__
                    raise RecordingError(f"{self.path}: not an MCAP file: {what}") from None

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

    def _body(self, topic: str, data: bytes) -> dict[str, Any]:
        body = orjson.loads(data)
        if not isinstance(body, dict):
            raise RecordingError(f"{self.path}: a message on {topic} is not a JSON object")
        return body

    def messages(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield topic, schema and body of every message in the order it was written, up to the last whole chunk.

        Raises:
            RecordingError: a message is not a JSON object.
        """
        with self.path.open("rb") as file:
            try:
                reader = NonSeekingReader(file, validate_crcs=True, record_size_limit=MAX_RECORD_BYTES)
                for schema, channel, message in reader.iter_messages(log_time_order=False):
                    if channel.message_encoding == "json" and schema is not None:
                        yield channel.topic, schema.name, self._body(channel.topic, message.data)
            except RecordingError:
                raise
            except DAMAGED as error:
                self.damage.append(str(error) or type(error).__name__)
                _LOG.warning("recording.cut_off", path=str(self.path), reason=self.damage[0])
