"""Telemetry: all fields, all finite, or a refusal with its cause."""

from __future__ import annotations

import json
import random

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sensing import outcome

from runtime.recording.codec import ReadingCodec
from sensors.base import PayloadRefused, TopicSensor
from sensors.codecs.json_payload import MAX_DEPTH, parse_json
from sensors.codecs.telemetry_features import policy_numbers
from sensors.config import AngleField, EnumField, RangeField, TelemetrySettings, policy_fields_of
from sensors.streams.telemetry import TopicTelemetry

FIELDS = ("q1", "on", "/imu/yaw", "/arm/joints/1", "/a~1b")


def sensor() -> TopicTelemetry:
    return TopicTelemetry("joints", "robot/joints", FIELDS)


def test_keys_and_pointers_are_picked_in_order() -> None:
    telemetry = sensor()
    assert isinstance(telemetry, TopicSensor)
    payload = {"q1": 1, "on": True, "imu": {"yaw": -2.5}, "arm": {"joints": [0, 7.25]}, "a/b": 3, "more": "text"}
    reading = telemetry.decode(json.dumps(payload).encode(), 4.0)
    assert (reading.stream, reading.stamp_s, reading.seq, reading.fields) == ("joints", 4.0, 1, FIELDS)
    assert reading.values.dtype == np.float64
    assert reading.values.tolist() == [1.0, 1.0, -2.5, 7.25, 3.0]


GOOD = b'{"q1":1,"on":false,"imu":{"yaw":0},"arm":{"joints":[0,1]},"a/b":0}'


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        (b"", "not_json"),
        (b"\xff\xfe", "not_json"),
        (GOOD.replace(b":1,", b":NaN,"), "not_finite"),
        (GOOD.replace(b":1,", b":Infinity,"), "not_finite"),
        (GOOD.replace(b":1,", b":1e999,"), "not_finite"),
        (GOOD.replace(b":1,", b":1e300,"), "not_finite"),
        (GOOD.replace(b":1,", b':"1,5",'), "not_a_number"),
        (GOOD.replace(b":1,", b':"0x10",'), "not_a_number"),
        (GOOD.replace(b":1,", b':"1_000",'), "not_a_number"),
        (GOOD.replace(b":1,", b':"1e999",'), "not_finite"),
        (GOOD.replace(b":1,", b':"inf",'), "not_finite"),
        (GOOD.replace(b":1,", b':"NaN",'), "unavailable"),
        (GOOD.replace(b":1,", b':"unavailable",'), "unavailable"),
        (GOOD.replace(b":1,", b":null,"), "unavailable"),
        (GOOD.replace(b":1,", b":[1],"), "not_a_number"),
        (GOOD.replace(b"yaw", b"yow"), "missing_field"),
        (GOOD.replace(b"[0,1]", b"[0]"), "missing_field"),
        (GOOD.replace(b"[0,1]", b"5"), "missing_field"),
        (b"[1,2]", "not_an_object"),
        (b"3", "not_an_object"),
        (b"ON", "not_json"),
        (b'{"q1":' + b"[" * 40 + b"]" * 40 + b"}", "too_deep"),
        (b'{"q1":' + b"[" * 100_000, "not_json"),
        (b" " * 300_000, "too_large"),
        (GOOD.replace(b"{", b'{"q1":2,', 1), "duplicate_key"),
        (GOOD.replace(b'"yaw":0', b'"yaw":0,"y\\u0061w":1'), "duplicate_key"),
    ],
)
def test_bad_payloads_are_refused_and_counted(payload: bytes, cause: str) -> None:
    telemetry = sensor()
    with pytest.raises(PayloadRefused) as refusal:
        telemetry.decode(payload, 1.0)
    assert refusal.value.cause == cause
    assert telemetry.drops == {cause: 1}


def test_a_bad_pointer_is_a_bad_setting() -> None:
    with pytest.raises(ValueError, match="JSON pointer"):
        TopicTelemetry("joints", None, ("/a~2b",))


def test_the_deepest_allowed_json_is_taken() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(PayloadRefused, match="deeper"):
        parse_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(10**25), 10**25) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {"q1": json_values, "on": json_values, "imu": json_values, "arm": json_values, "a/b": json_values}
    )
)
def test_any_object_gives_finite_numbers_or_a_refusal(document: dict[str, object]) -> None:
    telemetry = sensor()
    reading, cause = outcome(lambda: telemetry.decode(json.dumps(document).encode(), 1.0))
    assert telemetry.drops == {cause: 1} if reading is None else np.isfinite(reading.values).all()


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_give_one_finite_number_or_a_refusal(payload: bytes) -> None:
    telemetry = TopicTelemetry("t", None, ("value",))
    reading, cause = outcome(lambda: telemetry.decode(payload, 1.0))
    assert telemetry.drops == {cause: 1} if reading is None else np.isfinite(reading.values).all()


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(payload: bytes) -> None:
    value, cause = outcome(lambda: parse_json(payload))
    assert cause in {None, "not_json", "not_finite", "too_deep", "duplicate_key"}
    assert orjson.loads(orjson.dumps(value)) == value


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_numbers_arrive_as_sent(values: list[float]) -> None:
    fields = tuple(f"f{n}" for n in range(len(values)))
    reading = TopicTelemetry("t", None, fields).decode(orjson.dumps(dict(zip(fields, values, strict=True))), 0.0)
    assert reading.values.tolist() == values


KINDS = {
    "yaw": AngleField(kind="angle"),
    "mode": EnumField(kind="enum", words=("off", "heat", "cool")),
    "steer": AngleField(kind="angle", unit="radians"),
}


def test_numbers_keep_their_digits_until_the_policy_scales_them() -> None:
    reading = TopicTelemetry("gps", None, ("t", "lat")).decode(b'{"t": 1750000000.125, "lat": 52.123456789}', 0.0)
    assert reading.values.tolist() == [1750000000.125, 52.123456789]
    body = ReadingCodec().encode(reading)
    again = ReadingCodec().decode("gps", "reflexd.Telemetry", orjson.loads(orjson.dumps(body)))
    assert again.values.tolist() == reading.values.tolist()  # type: ignore[union-attr]


def test_angles_and_words_become_what_a_policy_can_compare() -> None:
    fields = ("yaw", "mode", "steer", "speed")
    telemetry = TopicTelemetry("car", None, fields, KINDS)
    payload = {"yaw": 370.0, "mode": "heat", "steer": -np.pi / 2, "speed": 3.5}
    reading = telemetry.decode(orjson.dumps(payload), 0.0)
    assert reading.values.tolist() == [370.0, 1.0, -np.pi / 2, 3.5], "expressions and recordings see the numbers"
    settings = TelemetrySettings(kind="telemetry", fields=fields, field_kinds=KINDS)
    assert policy_fields_of(settings) == (
        *("yaw.sin", "yaw.cos", "mode.off", "mode.heat", "mode.cool", "steer.sin", "steer.cos", "speed"),
    )
    numbers = policy_numbers(fields, reading.values, KINDS)
    expected = [np.sin(np.pi / 18), np.cos(np.pi / 18), 0, 1, 0, -1, 0, 3.5]
    np.testing.assert_allclose(numbers, expected, atol=1e-7)
    far = policy_numbers(("yaw",), np.array([360.0 * 1e6 + 1]), KINDS) - policy_numbers(
        ("yaw",), np.array([-1.0]), KINDS
    )
    assert np.abs(far).max() < 0.04, "a direction has no seam, however often it has turned"
    with pytest.raises(PayloadRefused) as refused:
        telemetry.decode(orjson.dumps(payload | {"mode": "on"}), 0.0)
    assert refused.value.cause == "unknown_word"
    assert "mode" in str(refused.value)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_a_number_beyond_the_range_of_its_field_is_a_failure_of_the_sensor(
    number: float, low: float, span: float
) -> None:
    limits = RangeField(kind="range", min=low, max=low + span)
    settings = TelemetrySettings(kind="telemetry", fields=("t", "other"), field_kinds={"t": limits})
    assert policy_fields_of(settings) == ("t", "other")
    telemetry = TopicTelemetry("room", None, settings.fields, settings.field_kinds)
    payload = orjson.dumps({"t": number, "other": 7.0})
    if low <= number <= low + span:
        assert telemetry.decode(payload, 1.0).values.tolist() == [number, 7.0]
        return
    with pytest.raises(PayloadRefused) as refused:
        telemetry.decode(payload, 1.0)
    assert (refused.value.cause, dict(telemetry.drops)) == ("out_of_range", {"out_of_range": 1})


def test_a_null_keeps_the_last_number_within_the_range_and_limits_are_ordered() -> None:
    telemetry = TopicTelemetry("room", None, ("t",), {"t": RangeField(kind="range", min=-40, max=85)}, max_age_s=60.0)
    assert telemetry.decode(b"85", 0.0).values.tolist() == [85.0]
    with pytest.raises(PayloadRefused, match="t: -127 is not within -40 and 85"):
        telemetry.decode(b"-127", 1.0)
    assert telemetry.decode(b'{"t": null}', 2.0).values.tolist() == [85.0]
    with pytest.raises(ValidationError, match="is not below max"):
        RangeField(kind="range", min=1, max=1)
    with pytest.raises(ValidationError, match="finite"):
        RangeField(kind="range", min=0, max=float("inf"))


def test_kinds_of_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="is not under fields"):
        TelemetrySettings(kind="telemetry", fields=("a",), field_kinds={"b": AngleField(kind="angle")})
    with pytest.raises(ValidationError, match="listed twice"):
        EnumField(kind="enum", words=("a", "a"))


@pytest.mark.parametrize(
    ("payload", "number"),
    [
        (b"21.5", 21.5), (b" -3 ", -3.0), (b'"21.5"', 21.5), (b"1e3", 1000.0), (b"+.5", 0.5), (b"true", 1.0),
        (b"ON", 1.0), (b"off", 0.0), (b'"Open"', 1.0), (b"closed", 0.0), (b"not_home", 0.0), (b'{"value": "7"}', 7.0),
    ],
)  # fmt: skip
def test_with_one_field_a_message_may_be_the_bare_value(payload: bytes, number: float) -> None:
    assert TopicTelemetry("t", None, ("value",)).decode(payload, 0.0).values.tolist() == [number]


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        (b"21,5", "not_a_number"), (b"21.5 C", "not_a_number"), (b"perhaps", "not_a_number"), (b"", "unavailable"), (b"unknown", "unavailable"),
        (b"null", "unavailable"), (b"[1]", "not_an_object"), (b"{", "not_json"), (b"\xff\xfe", "not_json"), (b"9" * 300, "not_finite"),
        (b"nan", "unavailable"), (b"Infinity", "not_finite"), (b"1e999", "not_finite"), ("\uff11\uff12".encode(), "not_a_number"),
    ],
)  # fmt: skip
def test_a_bare_value_that_is_no_number_is_refused(payload: bytes, cause: str) -> None:
    with pytest.raises(PayloadRefused) as refused:
        TopicTelemetry("t", None, ("value",)).decode(payload, 0.0)
    assert refused.value.cause == cause
    if payload == b"21,5":
        assert "decimal point" in str(refused.value)


def test_a_bare_word_is_one_of_the_words_of_its_field() -> None:
    telemetry = TopicTelemetry("t", None, ("mode",), {"mode": KINDS["mode"]})
    assert telemetry.decode(b"heat", 0.0).values.tolist() == [1.0]
    with pytest.raises(PayloadRefused, match="is not one of"):
        telemetry.decode(b"on", 0.0)


def test_a_field_that_is_null_keeps_its_value_for_max_age_s() -> None:
    telemetry = TopicTelemetry("hall", None, ("occupancy", "illuminance"), max_age_s=60.0)
    assert telemetry.decode(b'{"occupancy": true, "illuminance": 12}', 100.0).values.tolist() == [1.0, 12.0]
    assert telemetry.decode(b'{"occupancy": false, "illuminance": null}', 159.0).values.tolist() == [0.0, 12.0]
    with pytest.raises(PayloadRefused, match="illuminance is null"):
        telemetry.decode(b'{"occupancy": true, "illuminance": null}', 161.0)
    with pytest.raises(PayloadRefused, match="dark"):
        telemetry.decode(b'{"occupancy": true, "illuminance": "dark"}', 162.0)
    assert telemetry.decode(b'{"occupancy": null, "illuminance": 3}', 163.0).values.tolist() == [0.0, 3.0]


def test_a_field_has_a_name_of_its_own_and_a_path() -> None:
    paths = {"power": "/ENERGY/Power", "outside": "Temp (C)"}
    telemetry = TopicTelemetry("plug", None, ("power", "outside", "on"), paths=paths)
    payload = {"ENERGY": {"Power": 60}, "Temp (C)": -4.5, "on": "ON"}
    reading = telemetry.decode(orjson.dumps(payload), 0.0)
    assert reading.fields == ("power", "outside", "on")
    assert reading.values.tolist() == [60.0, -4.5, 1.0]
    with pytest.raises(ValidationError, match="is not under fields"):
        TelemetrySettings(kind="telemetry", fields=("a",), paths={"b": "/c"})


def test_numbers_among_the_words_of_a_field_are_words() -> None:
    """Zigbee buttons send `1`, or `"1"`, for the first of the words 1, 2, 3."""
    words = EnumField(kind="enum", words=("1", "2", "hold"))
    telemetry = TopicTelemetry("t", None, ("button",), {"button": words})
    for payload, place in ((b"2", 1.0), (b'{"button": 2}', 1.0), (b'{"button": "2"}', 1.0), (b"hold", 2.0)):
        assert telemetry.decode(payload, 0.0).values.tolist() == [place]
    for payload in (b"3", b"true", b"1.0"):
        with pytest.raises(PayloadRefused, match="is not one of"):
            telemetry.decode(payload, 0.0)


def test_a_repeated_key_is_found_wherever_it_is_and_however_many_colons_there_are() -> None:
    """Random objects with colons inside texts and keys: the verdict is that of a parser that looks at every pair."""
    chance, refused = random.Random(0), 0

    def value(depth: int) -> str:
        if depth > 4 or chance.random() < 0.3:
            return chance.choice(("1", '"a:b"', '":"', '"\\u003a"', "[]", "{}"))
        if chance.random() < 0.2:
            return f"[{value(depth + 1)},{value(depth + 1)}]"
        keys = (chance.choice(('"a"', '"b"', '"c:"', '"\\u0061"')) for _ in range(chance.randrange(4)))
        return "{" + ",".join(f"{key}: {value(depth + 1)}" for key in keys) + "}"

    def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) < len(pairs):
            raise KeyError
        return dict(pairs)

    for _ in range(3_000):
        text = value(0)
        try:
            expected: object = json.loads(text, object_pairs_hook=distinct)
        except KeyError:
            refused += 1
            with pytest.raises(PayloadRefused, match="twice"):
                parse_json(text.encode())
        else:
            assert parse_json(text.encode()) == expected
    assert refused > 300


def test_truth_values_of_json_are_the_words_true_and_false() -> None:
    made = TopicTelemetry("it", None, ("m",), {"m": EnumField(kind="enum", words=("false", "true"))})
    assert [made.decode(payload, 1.0).values.tolist() for payload in (b'{"m": true}', b"false")] == [[1.0], [0.0]]
    with pytest.raises(PayloadRefused, match="is not one of"):
        made.decode(b"1", 1.0)
