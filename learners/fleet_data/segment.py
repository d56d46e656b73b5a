"""Encode and decode a segment: a closed range of experience rows, as Arrow IPC in one zstd frame.

The uplink encodes; the ingest decodes and validates every byte. It checks the size before and after decompression, the schema, and
every row as the experience store does. It also checks what the store trusts: nulls, types in heads, entries of maps. No pickle. Knows neither MQTT nor files.

Specification: Arrow columnar format 1.x, encapsulated messages; RFC 8878 (zstd).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import zstandard
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from learners.experience.reader import Row
from learners.experience.transition import Malformed, Transition, checksum, decode_body, decode_head, encode
from learners.fleet_data.row_limits import MAX_ACTUATORS, MAX_REASON, EncoderVersions, head_problem, validation_reason

MAX_BYTES = 262_144
"""Of a segment on the wire."""
MAX_RAW_BYTES = 8_388_608
"""Of a segment after decompression."""
MAX_ROWS = 65_536
MAX_BATCHES = 64
"""Record batches of a segment; `pack` writes one."""
MAX_SCHEMA_BYTES = 524_288
"""Of the message with the columns and the header."""
MAX_TEXT = 128
"""Characters of session, decision and policy version."""
Lane = Literal["urgent", "rest", "amendments"]
LANES: tuple[Lane, ...] = ("urgent", "rest")
"""`urgent`: blocks of rows with a correction, a demonstration, an outcome or an end of an episode. `rest`: all others."""
AMENDMENTS: Lane = "amendments"
"""The lane of late rewards and corrections of rows that were sent. Its row numbers are those of the device's log of changes."""
STAMPS_S = (1_577_836_800.0, 4_102_444_800.0)
"""Unix seconds of the years 2020 and 2100; a row outside of them is refused."""
MAX_REWARD = 1e6
"""Largest magnitude of a reward, unless the settings of the server have another one."""
MAX_NUMBER = 1e12
"""Largest magnitude of a value or token: its square is finite in float32."""
LEAST_PROBABILITY = 1e-6
"""Of a choice that the policy made, unless it is 0, which no estimate uses: the inverse is an importance weight."""
AHEAD_S = 86_400.0
"""A row with a stamp so far ahead of the server's clock is refused."""
FLAGS = ("done", "intervention", "demonstration", "failure", "truncated", "success")
NAME = r"^[a-z0-9_-]{1,64}$"
_KEY = b"reflexd"
_MESSAGE_HEADER, _BATCH_COMPRESSION = 2, 3
"""Numbers of fields in Arrow's flatbuffers `Message` and `RecordBatch`."""

SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            *(("row", pa.int64()), ("session", pa.string()), ("tick", pa.int64()), ("decision", pa.string())),
            *(("stamp_s", pa.float64()), ("policy", pa.string()), ("reward", pa.float64()), ("value", pa.float64())),
            *((flag, pa.bool_()) for flag in FLAGS),
            ("probabilities", pa.map_(pa.string(), pa.float64())),
            ("sampling_probability", pa.float64()),
            *(("crc", pa.int64()), ("head", pa.binary()), ("body", pa.binary())),
        )
    ]
)
"""Columns of a segment and of the Parquet log. `sampling_probability` is that with which the uplink chose the row."""


class SegmentRefused(ValueError):  # noqa: N818 - reads as what happened
    """A segment that is not accepted; `str` is the reason, at most `MAX_REASON` characters."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason[:MAX_REASON])


class SegmentHeader(BaseModel):
    """What is known of a segment without its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    group: str = Field(pattern=NAME)
    agent: str = Field(pattern=NAME)
    boot: str = Field(pattern=r"^[0-9a-f]{16}$")
    """Identity of the device's experience store; rows of two boots have nothing to do with each other."""
    lane: Lane
    first: int = Field(ge=1, le=1 << 62)
    last: int = Field(ge=1, le=1 << 62)
    """The closed range of row numbers that the segment covers; rows of it that are absent were deleted, thinned or are in the other lane."""
    spec: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the policy spec."""
    encoder_versions: EncoderVersions
    """By stream; equal in all rows of a segment."""
    daemon: str = Field(max_length=64)
    """Version of reflexd that wrote the segment."""


@dataclass(frozen=True, slots=True)
class RowLimits:
    """Limits of the values of a row that depend on the server."""

    max_reward: float = MAX_REWARD
    newest_s: float = STAMPS_S[1]
    """Unix seconds; later stamps are refused."""


ROW_LIMITS = RowLimits()


@dataclass(frozen=True, slots=True)
class SentRow:
    """A row and the probability with which the uplink chose it."""

    row: Row
    sampling_probability: float = 1.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A validated segment."""

    header: SegmentHeader
    table: pa.Table

    @property
    def day(self) -> str:
        """The UTC day of the first row, as `2026-11-29`."""
        return datetime.fromtimestamp(self.table.column("stamp_s")[0].as_py(), UTC).strftime("%Y-%m-%d")


def pack(header: SegmentHeader, rows: Sequence[SentRow]) -> bytes:
    """Encode rows of one range and one set of encoder versions.

    Raises:
        learners.experience.transition.Malformed: a row is not finite or not of a storable shape.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for sent in rows:
        t = sent.row.transition
        head, body = encode(t)
        values = (
            *(sent.row.row, t.session, t.tick, t.decision, t.stamp_s, t.policy, t.reward, t.value),
            *(getattr(t, flag) for flag in FLAGS),
            *(list(t.probabilities.items()), sent.sampling_probability),
            *(checksum(t.session + t.decision, head, body), head, body),
        )
        for name, value in zip(SCHEMA.names, values, strict=True):
            columns[name].append(value)
    schema = SCHEMA.with_metadata({_KEY: orjson.dumps(header.model_dump())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pydict(columns, schema=schema))
    content = bytes(sink.getvalue())
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(content)


def amendment(transition: Transition) -> Transition:
    """Return what an amendment has of a row: its names, stamp, value, reward and flags. These replace what was sent before."""
    return Transition(
        **{
            name: getattr(transition, name)
            for name in ("session", "tick", "decision", "stamp_s", "policy", "reward", "value")
        },
        **{flag: getattr(transition, flag) for flag in FLAGS},
        encoder_versions=transition.encoder_versions,
    )


def segment_digest(payload: bytes) -> str:
    """Return the name by which an answer names a segment."""
    return hashlib.sha256(payload).hexdigest()[:32]


def read_header(payload: bytes) -> SegmentHeader:
    """Return the header of a segment without reading its rows.

    Raises:
        SegmentRefused: with the reason.
    """
    with _reader(_decompressed(payload)) as reader:
        return _header(reader.schema)


def unpack(payload: bytes, limits: RowLimits = ROW_LIMITS) -> Segment:
    """Decode a segment and validate all of it.

    Args:
        payload: as `pack` encodes it.
        limits: of each row.

    Raises:
        SegmentRefused: with the reason.
    """
    content = _decompressed(payload)
    _refuse_compressed_batches(content)
    with _reader(content) as reader:
        header = _header(reader.schema)
        try:
            table = reader.read_all()
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise SegmentRefused(f"Arrow data: {error}") from None
    if header.first > header.last:
        raise SegmentRefused(f"rows {header.first} to {header.last} are not a range")
    if not 0 < table.num_rows <= MAX_ROWS:
        raise SegmentRefused(f"{table.num_rows} rows; 1 to {MAX_ROWS} are accepted")
    _refuse_nulls_and_long_maps(table)
    previous = header.first - 1
    for fields in table.to_pylist():
        if not previous < fields["row"] <= header.last:
            raise SegmentRefused(f"row {fields['row']} is out of order or outside of {header.first} to {header.last}")
        previous = fields["row"]
        transition = transition_of(fields, limits)
        if dict(transition.encoder_versions) != header.encoder_versions:
            raise SegmentRefused(f"row {previous}: encoder versions differ from those of the header")
    return Segment(header, table.replace_schema_metadata(None))


def transition_of(fields: dict[str, Any], limits: RowLimits = ROW_LIMITS) -> Transition:
    """Return the transition of one row of a segment, validated.

    Args:
        fields: the row's columns by name.
        limits: of its values.

    Raises:
        SegmentRefused: with the reason.
    """
    row = fields["row"]
    try:
        _require_head(fields)
        values = decode_head(fields["head"])
        values["tokens"] = decode_body(values["tokens"], fields["body"])
        transition = Transition(
            **{name: fields[name] for name in ("session", "tick", "decision", "stamp_s", "policy", "reward", "value")},
            **{flag: fields[flag] for flag in FLAGS},
            **values,
        )
        problem = _problem(transition, fields, limits)
    except SegmentRefused:
        raise
    except (Malformed, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SegmentRefused(f"row {row}: {type(error).__name__}: {error}") from None
    if problem:
        raise SegmentRefused(f"row {row}: {problem}")
    return transition


def _require_head(fields: dict[str, Any]) -> None:
    """Refuse a head that is not the one of the row, or has another form.

    Raises:
        SegmentRefused: with the reason.
    """
    crc = checksum(fields["session"] + fields["decision"], fields["head"], fields["body"])
    problem = "wrong checksum" if crc != fields["crc"] else head_problem(fields["head"])
    if problem:
        raise SegmentRefused(f"row {fields['row']}: {problem}")


def _problem(t: Transition, fields: dict[str, Any], limits: RowLimits) -> str:
    """Return what is wrong with the values of a row; empty if nothing is."""
    checks = (
        (t.tick >= 0, "the tick is below 0"),
        (all(map(math.isfinite, (t.reward, t.value, t.stamp_s))), "reward, value or stamp is not finite"),
        (
            abs(t.reward) <= limits.max_reward,
            f"the reward {t.reward:g} is outside of -{limits.max_reward:g} to {limits.max_reward:g}; scale the reward",
        ),
        (abs(t.value) <= MAX_NUMBER, f"the value is outside of -{MAX_NUMBER:g} to {MAX_NUMBER:g}"),
        (
            STAMPS_S[0] <= t.stamp_s < STAMPS_S[1],
            "the stamp is outside of the years 2020 to 2100; set the device's clock",
        ),
        (
            t.stamp_s < limits.newest_s,
            f"the stamp is {t.stamp_s - limits.newest_s:.0f} s later than is accepted; set the device's clock",
        ),
        (0 < fields["sampling_probability"] <= 1, "the sampling probability is not above 0 and at most 1"),
        (
            all(len(text) <= MAX_TEXT for text in (t.session, t.decision, t.policy)),
            f"session, decision or policy is longer than {MAX_TEXT} characters",
        ),
        (
            dict(fields["probabilities"]) == dict(t.probabilities),
            "the probabilities of the columns and of the head differ",
        ),
        (
            all(
                probability == 0 or probability >= LEAST_PROBABILITY
                for name, probability in t.probabilities.items()
                if isinstance(t.actions.get(name), str) and t.by.get(name, "policy") == "policy"
            ),
            f"the probability of a choice is below {LEAST_PROBABILITY:g}",
        ),
        (all(np.isfinite(a).all() for a in t.tokens.values()), "tokens are not finite"),
        (
            all(np.abs(a).max(initial=0) <= MAX_NUMBER for a in t.tokens.values()),
            f"tokens are outside of -{MAX_NUMBER:g} to {MAX_NUMBER:g}",
        ),
    )
    return next((problem for holds, problem in checks if not holds), "")


def _refuse_nulls_and_long_maps(table: pa.Table) -> None:
    """Refuse what the schema does not exclude, before any row becomes an object: Arrow reads nulls in columns that have none.

    Raises:
        SegmentRefused: a column has a null, or a row names more probabilities than actuators are possible.
    """
    for name in table.column_names:
        if table.column(name).null_count:
            raise SegmentRefused(f"column {name} has nulls")
    for chunk in table.column("probabilities").chunks:
        if chunk.items.null_count:
            raise SegmentRefused("column probabilities has nulls")
        entries = np.diff(chunk.offsets.to_numpy())
        if entries.size and entries.max() > MAX_ACTUATORS:
            raise SegmentRefused(f"a row has {entries.max()} probabilities; at most {MAX_ACTUATORS} are accepted")


def _decompressed(payload: bytes) -> bytes:
    if len(payload) > MAX_BYTES:
        raise SegmentRefused(f"{len(payload)} bytes; at most {MAX_BYTES} are accepted")
    try:
        declared = zstandard.frame_content_size(payload)
        if not 0 < declared <= MAX_RAW_BYTES:
            raise SegmentRefused(f"{declared} bytes after decompression; 1 to {MAX_RAW_BYTES} are accepted")
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=MAX_RAW_BYTES, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise SegmentRefused(f"no zstd frame: {error}") from None


def _reader(content: bytes) -> Any:
    if len(content) < 8 or struct.unpack_from("<I", content, 4)[0] > MAX_SCHEMA_BYTES:
        raise SegmentRefused(f"the header is longer than {MAX_SCHEMA_BYTES} bytes")
    try:
        reader = pa.ipc.open_stream(content)
    except (pa.ArrowException, OSError) as error:
        raise SegmentRefused(f"no Arrow stream: {error}") from None
    if not reader.schema.equals(SCHEMA, check_metadata=False):
        raise SegmentRefused("the columns are not those of a segment")
    return reader


def _header(schema: pa.Schema) -> SegmentHeader:
    try:
        return SegmentHeader.model_validate(orjson.loads((schema.metadata or {})[_KEY]))
    except ValidationError as error:
        raise SegmentRefused(f"header: {validation_reason(error)}") from None
    except (KeyError, orjson.JSONDecodeError) as error:
        raise SegmentRefused(f"header: {error}") from None


def _refuse_compressed_batches(content: bytes) -> None:
    """Refuse compression inside Arrow: its buffers name their own sizes, which the limit of the frame does not cover.

    Raises:
        SegmentRefused: a record batch is compressed, there are too many, or a message cannot be read.
    """
    stream, messages = pa.BufferReader(content), 0
    try:
        while True:
            message = pa.ipc.read_message(stream)
            messages += 1
            if messages > 1 + MAX_BATCHES:
                raise SegmentRefused(f"more than {MAX_BATCHES} record batches")
            if message.type == "record batch" and _has_compression(message.metadata.to_pybytes()):
                raise SegmentRefused("the record batch is compressed; only the whole segment may be")
            if message.type == "dictionary":
                raise SegmentRefused("a segment has no dictionaries")
    except EOFError:
        return
    except (pa.ArrowException, OSError, struct.error) as error:
        raise SegmentRefused(f"Arrow message: {error}") from None


def _has_compression(flatbuffer: bytes) -> bool:
    """Return whether the flatbuffer of a record batch has the field `compression`."""
    (root,) = struct.unpack_from("<I", flatbuffer, 0)
    header = _field(flatbuffer, root, _MESSAGE_HEADER)
    if header is None:
        return False
    (offset,) = struct.unpack_from("<I", flatbuffer, header)
    return _field(flatbuffer, header + offset, _BATCH_COMPRESSION) is not None


def _field(flatbuffer: bytes, table: int, number: int) -> int | None:
    """Return the position of a field of a flatbuffer's table; None if it is absent."""
    (back,) = struct.unpack_from("<i", flatbuffer, table)
    vtable = table - back
    if vtable < 0:
        raise struct.error("a vtable lies before the buffer")
    (size,) = struct.unpack_from("<H", flatbuffer, vtable)
    slot = 4 + 2 * number
    if slot + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", flatbuffer, vtable + slot)
    return table + offset if offset else None
