"""A segment is read whole or refused with a reason."""

from __future__ import annotations

import numpy as np
import orjson
import pyarrow as pa
import pytest
import zstandard
from fleet_world import one_payload, ticks
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.experience.transition import checksum
from learners.fleet_data.row_limits import MAX_REASON
from learners.fleet_data.segment import MAX_RAW_BYTES, SCHEMA, Segment, SegmentRefused, transition_of, unpack


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return one_payload(tmp_path_factory.mktemp("segment"))


def written(segment: Segment, table: pa.Table, compression: str | None = None, **header: object) -> bytes:
    """Write a segment with other content."""
    about = orjson.dumps({**segment.header.model_dump(), **header})
    schema = table.schema.with_metadata({b"reflexd": about})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table.replace_schema_metadata(schema.metadata))
    return zstandard.compress(bytes(sink.getvalue()))


def changed(segment: Segment, column: str, value: object) -> pa.Table:
    """Return the rows with another value in the first one."""
    rows = segment.table.to_pylist()
    rows[0][column] = value
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_a_segment_has_the_rows_of_the_store(payload: bytes) -> None:
    segment = unpack(payload)
    assert (segment.header.first, segment.header.last, segment.day) == (1, 63, "2027-01-15")
    stored = list(ticks(1_000, 1_063))
    for fields, transition in zip(segment.table.to_pylist(), stored, strict=True):
        found = transition_of(fields)
        assert found.decision == transition.decision
        assert np.array_equal(found.tokens["joints"], transition.tokens["joints"])


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("crc", 1, "wrong checksum"),
        ("row", 99, "out of order"),
        ("row", 0, "out of order"),
        ("reward", float("nan"), "not finite"),
        ("value", float("inf"), "not finite"),
        ("stamp_s", 5.0, "set the device's clock"),
        ("sampling_probability", 0.0, "above 0"),
        ("sampling_probability", 2.0, "above 0"),
        ("probabilities", [("head", 0.5)], "differ"),
        ("policy", "p" * 129, "longer than 128"),
        ("body", b"", "wrong checksum"),
        ("tick", -1, "tick is below 0"),
        ("probabilities", [("head", 0.25)] * 65, "65 probabilities; at most 64"),
        ("probabilities", [("head", None)], "column probabilities has nulls"),
        *((name, None, f"column {name} has nulls") for name in SCHEMA.names),
    ],
)
def test_a_wrong_value_is_refused_with_its_row(payload: bytes, column: str, value: object, reason: str) -> None:
    segment = unpack(payload)
    with pytest.raises(SegmentRefused, match=reason):
        unpack(written(segment, changed(segment, column, value)))


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        ({"ages_s": {"joints": "abc"}}, "ages_s.joints"),
        ({"ages_s": {"joints": -5e300}}, "ages_s.joints"),
        ({"armed": ["x"]}, "armed"),
        ({"by": {"head": "evil"}}, "by.head"),
        ({"present": 5}, "present"),
        ({"actions": {"head": [1e13]}}, "actions.head"),
        ({"present": {"joints": "yes"}}, "present.joints"),
        ({"actions": {"head": {"a": 1}}}, "actions.head"),
        ({"allowed": {"head": "left"}}, "allowed.head"),
        ({"refused": {"head": 1}}, "refused.head"),
        ({"encoder_versions": {"joints": 1}}, "encoder_versions.joints"),
        ({"tokens": [["joints", "float32", [1, -4]]]}, "tokens.0.2.1"),
        ({"tokens": [["joints", "float32", [1, 5]]]}, "body ends within joints"),
        ({"tokens": [["joints", "float32", [1, 3]]]}, "bytes too many"),
        ({"tokens": [["joints", "object", [1, 4]]]}, "tokens.0.1"),
        ({"k" * 1_000_000: 1}, "Extra inputs"),
    ],
)
def test_a_head_with_another_type_or_range_is_refused_in_few_words(
    payload: bytes, patch: dict[str, object], reason: str
) -> None:
    segment = unpack(payload)
    rows = segment.table.to_pylist()
    rows[0]["head"] = orjson.dumps({**orjson.loads(rows[0]["head"]), **patch})
    rows[0]["crc"] = checksum(rows[0]["session"] + rows[0]["decision"], rows[0]["head"], rows[0]["body"])
    with pytest.raises(SegmentRefused, match=reason) as refusal:
        unpack(written(segment, pa.Table.from_pylist(rows, schema=SCHEMA)))
    assert len(str(refusal.value)) <= MAX_REASON


@pytest.mark.parametrize(
    ("probability", "by", "is_accepted"),
    [
        (1e-300, "policy", False),
        (1e-7, "policy", False),
        (1e-5, "policy", True),
        (0.0, "policy", True),
        (1e-7, "override", True),
    ],
)
def test_a_choice_that_the_policy_can_hardly_have_made_is_refused(
    payload: bytes, probability: float, by: str, *, is_accepted: bool
) -> None:
    segment = unpack(payload)
    rows = segment.table.to_pylist()
    patch = {"probabilities": {"head": probability}, "by": {"head": by}}
    rows[0]["head"] = orjson.dumps({**orjson.loads(rows[0]["head"]), **patch})
    rows[0]["probabilities"] = [("head", probability)]
    rows[0]["crc"] = checksum(rows[0]["session"] + rows[0]["decision"], rows[0]["head"], rows[0]["body"])
    sent = written(segment, pa.Table.from_pylist(rows, schema=SCHEMA))
    if is_accepted:
        assert unpack(sent).table.num_rows == len(rows)
        return
    with pytest.raises(SegmentRefused, match="the probability of a choice is below 1e-06"):
        unpack(sent)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"agent": "../robot"}, "header"),
        ({"first": 0}, "header"),
        ({"first": "1"}, "header"),
        ({"last": 10}, "outside of"),
        ({"encoder_versions": {}}, "encoder versions differ"),
        ({"format": 2}, "header"),
        ({"more": 1}, "header"),
        ({"spec": "x"}, "header"),
        ({"encoder_versions": {"joints": "v" * 257}}, "header: encoder_versions.joints"),
        ({"encoder_versions": {"joints": "v" * 1_000_000}}, "the header is longer"),
    ],
)
def test_a_wrong_header_is_refused(payload: bytes, header: dict[str, object], reason: str) -> None:
    segment = unpack(payload)
    with pytest.raises(SegmentRefused, match=reason):
        unpack(written(segment, segment.table, **header))


def test_sizes_are_bounded_before_anything_is_allocated(payload: bytes) -> None:
    segment = unpack(payload)
    with pytest.raises(SegmentRefused, match="compressed"):
        unpack(written(segment, segment.table, compression="zstd"))
    with pytest.raises(SegmentRefused, match="after decompression"):
        unpack(zstandard.compress(b"\0" * (MAX_RAW_BYTES + 1)))
    with pytest.raises(SegmentRefused, match="bytes; at most"):
        unpack(bytes(300_000))
    with pytest.raises(SegmentRefused, match="columns"):
        unpack(written(segment, segment.table.drop_columns(["crc"])))
    with pytest.raises(SegmentRefused, match="more than 64 record batches"):
        unpack(written(segment, pa.concat_tables([segment.table.slice(0, 1)] * 65)))


def test_a_bit_that_flips_on_the_way_is_found_in_every_column(payload: bytes) -> None:
    assert zstandard.get_frame_parameters(payload).has_checksum


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8), st.booleans())
def test_changed_bytes_are_refused_or_decode_to_valid_rows(
    payload: bytes, place: int, change: bytes, inside: bool
) -> None:
    content = bytearray(zstandard.decompress(payload) if inside else payload)
    place %= len(content)
    content[place : place + len(change)] = change
    try:
        segment = unpack(zstandard.compress(bytes(content)) if inside else bytes(content))
    except SegmentRefused:
        return
    assert all(transition_of(fields).session == "s" for fields in segment.table.select(SCHEMA.names).to_pylist()[1:2])
