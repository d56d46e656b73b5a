"""Recorded pictures and sounds are messages of Foxglove's own schemas, where its package is installed."""

from __future__ import annotations

import base64
import json
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from runtime.recording.codec import SCHEMAS, ReadingCodec
from sensors.readings import Frame, Reading, Sound

OWN = {"seq", "stamp_s", "stamp_source", "window", "float32"}
"""Fields beside Foxglove's: it ignores them."""
SOUND = Sound("room", 1.0, 1, np.arange(-100, 100, dtype=np.float32) / 256)
READINGS: list[tuple[str, Reading]] = [
    ("CompressedImage", Frame("front", 1.0, 1, np.full((4, 6, 3), 90, np.uint8))),
    ("RawAudio", SOUND),
]


@pytest.mark.parametrize(("name", "reading"), READINGS)
def test_the_message_fills_every_field_of_foxgloves_schema(name: str, reading: Reading) -> None:
    pytest.importorskip("foxglove_schemas_protobuf")
    json_format = import_module("google.protobuf.json_format")
    kind: Any = getattr(import_module(f"foxglove_schemas_protobuf.{name}_pb2"), name)
    body = {key: value for key, value in ReadingCodec().encode(reading).items() if key not in OWN}
    message = json_format.ParseDict(body, kind())  # refuses unknown fields and wrong types
    assert {field.name for field in kind.DESCRIPTOR.fields} - {"timestamp"} == set(body)
    assert message.data == base64.b64decode(body["data"])
    assert set(json.loads(SCHEMAS[f"foxglove.{name}"])["properties"]) >= {f.name for f in kind.DESCRIPTOR.fields}


def test_foxglove_hears_what_the_policy_heard() -> None:
    """`pcm-s16` is Foxglove's one format: interleaved, signed, little-endian."""
    body = ReadingCodec().encode(SOUND)
    assert (body["format"], body["sample_rate"], body["number_of_channels"]) == ("pcm-s16", SOUND.rate_hz, 1)
    received = np.frombuffer(base64.b64decode(body["data"]), "<i2") / 32_768
    assert np.abs(received - SOUND.samples).max() <= 0.5 / 32_768
