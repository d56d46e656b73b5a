"""PUBLISH packets that arrive are read as paho reads them, and without its tables being built for each."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paho.mqtt import _packet
from paho.mqtt.client import MQTTv5
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from runtime.mqtt.connection_types import PublishMessage, properties
from runtime.mqtt.packets import decoded_publish, publish_packet


def of_paho(command: int, packet: bytes) -> tuple[Any, ...] | None:
    try:
        read = _packet.decode_publish(command, packet, MQTTv5)
    except MalformedPacket:
        return None
    return read.topic, read.payload, read.qos, read.retain, read.dup, read.mid, read.properties.json()


def ours(command: int, packet: bytes) -> tuple[Any, ...] | None:
    read = decoded_publish(command, packet)
    if read is None:
        return None
    assert read.properties is not None
    return read._topic, read.payload, read.qos, read.retain, read.dup, read.mid, read.properties.json()


def body(out: PublishMessage, cut: int = 0) -> tuple[int, bytes]:
    """First byte of a packet, and what comes behind its length."""
    packet = publish_packet(out, 7)
    at = next(at for at in range(1, 5) if packet[at] < 128) + 1
    return packet[0], packet[at : len(packet) - cut]


MADE = properties(70.0, "answer/ü", b"\0\1")


@given(
    topic=st.text("ab/ü", min_size=1, max_size=8), payload=st.binary(max_size=40), qos=st.sampled_from([0, 1]),
    retain=st.booleans(), has_properties=st.booleans(), cut=st.integers(0, 60), wrong=st.tuples(st.integers(0, 80), st.integers(0, 255)),
    damaged=st.booleans(),
)  # fmt: skip
def test_whatever_arrives_is_read_as_paho_reads_it(
    topic: str,
    payload: bytes,
    qos: int,
    retain: bool,
    has_properties: bool,
    cut: int,
    wrong: tuple[int, int],
    damaged: bool,
) -> None:
    out = PublishMessage(topic, payload, qos, retain, MADE if has_properties else properties(None, None, None))
    command, packet = body(out, cut if damaged else 0)
    if damaged and wrong[0] < len(packet):
        packet = packet[: wrong[0]] + bytes([wrong[1]]) + packet[wrong[0] + 1 :]
    read = ours(command, packet)
    assert read is not None or damaged
    assert read in (None, of_paho(command, packet))


@given(command=st.integers(0x30, 0x3F), packet=st.binary(max_size=30))
@example(0x32, b"\0\1a\0")  # half an identifier
@example(0x30, b"\0\5a")  # a topic that is cut
@example(0x30, b"\0\1a\xff\xff\xff\xff\x01")  # a length of properties without an end
@example(0x30, b"\0\1a\2\x7f\0")  # a property that does not exist
def test_bytes_that_are_no_packet_are_left_to_paho(command: int, packet: bytes) -> None:
    read = ours(command, packet)
    assert read in (None, of_paho(command, packet))


def test_paho_builds_no_tables_for_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    monkeypatch.setattr(Properties, "__init__", lambda *_: built.append(1))
    for made in (MADE, properties(None, None, None)):
        assert ours(*body(PublishMessage("t", b"x", 1, False, made))) is not None
    with suppress(AttributeError):
        Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    assert built == [1], "the last one is this test's own"


def test_properties_that_repeat_are_read_as_paho_reads_them() -> None:
    repeated = b"\x26\0\1a\0\1b\x26\0\1a\0\1c"
    packet = b"\0\1t" + bytes([len(repeated)]) + repeated + b"payload"
    read = ours(0x30, packet)
    assert read is not None
    assert read == of_paho(0x30, packet)
    assert read[-1] == {"UserProperty": [("a", "b"), ("a", "c")]}
