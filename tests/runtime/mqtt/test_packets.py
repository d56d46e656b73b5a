"""Packets that do not go through paho's queues: their bytes, their order, their acknowledgements, and reading in pieces."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import aiomqtt
import pytest
from paho.mqtt.client import MQTTMessageInfo
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fakes import eventually
from runtime.mqtt.connection_types import PublishMessage, properties, variable_length
from runtime.mqtt.packets import (
    AT_ONCE,
    CHUNK,
    LATE_S,
    MAX_LENGTH,
    MAX_TOPIC,
    MOST_LATE_LOOKS,
    MOST_UNANSWERED,
    PacketReader,
    PacketWriter,
    PublishRefused,
    TooLarge,
    Unsent,
    publish_packet,
    reason_of,
)

NONE = properties(None, None, None)


def of_paho(out: PublishMessage, made: Properties | None) -> bytes:
    """What paho would have written."""
    inner: Any = aiomqtt.Client("h", protocol=aiomqtt.ProtocolVersion.V5)._client
    inner._packet_queue = lambda _command, packet, *_: bytes(packet)
    inner._sock = object()
    topic = out.topic.encode()
    packet = inner._send_publish(7, topic, out.payload, out.qos, out.retain, False, MQTTMessageInfo(7), made)
    inner._sock = None
    assert isinstance(packet, bytes)
    return packet


@pytest.mark.parametrize("length", [0, 1, 100, 127 - 5, 128, 16_383, 16_384, 2_097_151, 2_097_152])
async def test_packets_have_the_bytes_that_paho_writes(length: int) -> None:
    for qos in (0, 1):
        for retain in (False, True):
            for expiry_s, topic, correlation in [(None, None, None), (1.2, None, None), (70_000.0, "r/é", b"\0\1")]:
                made = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
                if expiry_s is not None:
                    made.MessageExpiryInterval = int(-(-expiry_s // 1))
                if topic is not None:
                    made.ResponseTopic, made.CorrelationData = topic, correlation
                out = PublishMessage("a/ü", b"x" * length, qos, retain, properties(expiry_s, topic, correlation))
                assert publish_packet(out, 7) == of_paho(out, made)


def test_a_length_takes_as_many_bytes_as_the_specification_says() -> None:
    """MQTT 5.0, table 1-1."""
    limits = {0: 1, 127: 1, 128: 2, 16_383: 2, 16_384: 3, 2_097_151: 3, 2_097_152: 4, 268_435_455: 4}
    assert {number: len(variable_length(number)) for number in limits} == limits
    assert variable_length(321) == bytes((65 | 128, 2))


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0b", "t" * 65_536, "\ud800"])
def test_a_topic_that_no_packet_may_contain(topic: str) -> None:
    with pytest.raises(ValueError, match=r"topic|surrogates"):
        publish_packet(PublishMessage(topic, b"", 1, False, NONE), 1)


class Long(bytes):
    """A payload with a length of its own choice."""

    length = 0

    def __len__(self) -> int:
        return self.length


def test_limits_of_a_packet_itself() -> None:
    """MQTT 5.0, 1.5.4 and 2.1.4: a topic of 65,535 bytes, and 268,435,455 bytes after the first ones."""
    assert publish_packet(PublishMessage("t" * MAX_TOPIC, b"", 0, False, NONE), 0).endswith(b"t\0")
    payload = Long()
    Long.length = MAX_LENGTH - 2 - 1 - len(NONE)
    assert publish_packet(PublishMessage("t", payload, 0, False, NONE), 0).startswith(b"\x30\xff\xff\xff\x7f")
    Long.length += 1
    with pytest.raises(ValueError, match=r"^a message of 268435456 bytes; at most 268435455$"):
        publish_packet(PublishMessage("t", payload, 0, False, NONE), 0)
    with pytest.raises(
        ValueError, match=r"^a topic to publish on is not empty and has no wildcard and no null character$"
    ):
        publish_packet(PublishMessage("", b"", 0, False, NONE), 0)


def test_the_reason_of_a_refusal() -> None:
    assert reason_of(0x87) == "Not authorized"
    assert reason_of(0xEE) == "reason code 238"


class Socket:
    """Takes these numbers of bytes, one a call; nothing where a number is -1."""

    def __init__(self, *takes: int) -> None:
        self.takes, self.taken = list(takes), b""
        self.ends = socket.socketpair()

    def send(self, data: bytes) -> int:
        count = self.takes.pop(0) if self.takes else len(data)
        if count < 0:
            raise BlockingIOError
        self.taken += bytes(data[:count])
        return min(count, len(data))

    def fileno(self) -> int:
        return self.ends[0].fileno()

    def close(self) -> None:
        for end in self.ends:
            end.close()


class FullSocket(Socket):
    """Takes nothing."""

    def send(self, data: bytes) -> int:
        raise BlockingIOError


@asynccontextmanager
async def writing(sock: Socket) -> AsyncIterator[tuple[PacketWriter, Any]]:
    """A writer on a client with a fake socket; paho's own queue is the real one."""
    client = aiomqtt.Client("h", protocol=aiomqtt.ProtocolVersion.V5)
    inner: Any = client._client
    inner.on_connect = lambda *_: None
    writer = PacketWriter(client, 60.0)
    inner._sock = sock
    try:
        yield writer, inner
    finally:
        writer.close()
        inner._sock = None
        client._disconnected.cancel()
        sock.close()


def acknowledge(inner: Any, identifier: int, code: int | None = None, rest: bytes = b"\0") -> None:
    """A PUBACK arrives; after its code come the properties, which may be left out."""
    inner._in_packet["command"] = 0x40
    inner._in_packet["packet"] = identifier.to_bytes(2, "big") + (b"" if code is None else bytes((code,)) + rest)
    inner._handle_pubackcomp("PUBACK")


def connected(inner: Any, **limits: int) -> None:
    """The broker has accepted the session and states these limits."""
    inner.on_connect(inner, "data", "flags", "code", SimpleNamespace(**limits))


def send_on(
    writer: PacketWriter, *, qos: int = 1, urgent: bool = False, payload: bytes = b""
) -> list[Exception | None]:
    """Publish a message; return what it is settled with."""
    results: list[Exception | None] = []
    writer.publish(PublishMessage("t", payload, qos, False, NONE), results.append, urgent=urgent)
    return results


@pytest.mark.parametrize("takes", [(), (0,), (1,), (5, 1, 1), (-1, 4, -1, 2)])
async def test_what_the_socket_does_not_take_leaves_in_order(takes: tuple[int, ...]) -> None:
    messages = [PublishMessage("t", bytes([65 + n]) * 9, qos, False, NONE) for n, qos in enumerate((1, 0, 1, 0))]
    results: list[tuple[int, Exception | None]] = []
    async with writing(Socket(*takes)) as (writer, inner):
        for number, out in enumerate(messages):
            writer.publish(out, lambda error, number=number: results.append((number, error)))  # type: ignore[misc]
        for _ in range(10):
            inner.loop_write()
        assert inner._sock.taken == b"".join(publish_packet(out, number + 1) for number, out in enumerate(messages))
        assert sorted(results) == [(1, None), (3, None)], "QoS 0 is settled once the socket has it"
        for identifier in (3, 1):
            acknowledge(inner, identifier)
        assert results[-2:] == [(2, None), (0, None)]


async def test_each_message_is_settled_once_by_what_comes_first() -> None:
    results: list[Exception | None] = []
    out = PublishMessage("t", b"x", 1, False, NONE)
    async with writing(Socket()) as (writer, inner):
        writer.publish(out, results.append)
        assert writer.answer == (0.0, float("-inf"))
        acknowledge(inner, 1, 0x10)
        acknowledge(inner, 1, 0x10)
        assert results == [None]
        assert 0 < writer.answer[0] <= writer.answer[1]
        writer.publish(out, results.append)
        acknowledge(inner, 2, 0x87)
        assert isinstance(results[1], PublishRefused)
        assert (str(results[1]), results[1].code) == ("Not authorized", 0x87)
        writer.publish(out, results.append, timeout_s=0.02)
        await eventually(lambda: len(results) == 3)
        assert str(results[2]) == "Operation timed out"
        acknowledge(inner, 3)
        writer.publish(out, results.append)
        writer.close()
        assert str(results[3]) == "the session ended before the acknowledgement"
        assert len(results) == 4


async def test_a_loop_that_stood_still_reads_what_arrived_before_a_message_times_out() -> None:
    """Hundreds of acknowledgements wait behind a pause of this process: the broker was not late."""
    results: list[Exception | None] = []
    async with writing(Socket()) as (writer, inner):
        for _ in range(3):
            writer.publish(PublishMessage("t", b"x", 1, False, NONE), results.append, timeout_s=0.01)
        until_s = time.monotonic() + 0.01 + 1.5 * LATE_S
        while time.monotonic() < until_s:
            pass  # no turn of the loop
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert results == []
        acknowledge(inner, 1)
        acknowledge(inner, 2)
        await eventually(lambda: len(results) == 3)
        assert results[:2] == [None, None]
        assert str(results[2]) == "Operation timed out"


async def test_a_loop_that_is_always_late_gives_messages_up_all_the_same() -> None:
    settled: list[Exception | None] = []
    async with writing(Socket()) as (writer, _):
        writer.publish(PublishMessage("a", b"", 1, False, NONE), settled.append, 0.01)
        until_s = time.monotonic() + 40 * LATE_S
        while not settled and time.monotonic() < until_s:
            busy_s = time.monotonic() + 1.6 * LATE_S
            while time.monotonic() < busy_s:
                pass
            await asyncio.sleep(0)
    assert [str(error) for error in settled] == ["Operation timed out"]


@pytest.mark.parametrize("ends", ["time", "session"])
async def test_a_callback_may_withdraw_another_message_that_ends_in_the_same_turn(ends: str) -> None:
    """As an urgent message does, which a lost one calls for: it withdraws the commands of its actuator that wait."""
    settled: list[str] = []
    async with writing(FullSocket()) as (writer, _):
        given: list[int | None] = []

        def lost(name: str) -> Callable[[Exception | None], None]:
            def note(error: Exception | None) -> None:
                settled.append(f"{name}: {type(error).__name__}")
                for identifier in given[2:]:
                    assert identifier is not None
                    writer.withdraw(identifier)

            return note

        message = PublishMessage("a", b"", 1, False, NONE)
        given += [writer.publish(message, lost(name), 0.01) for name in ("first", "second", "third")]
        if ends == "session":
            writer.close()
        else:
            due_s = time.monotonic() + LATE_S / 2
            while time.monotonic() < due_s:
                pass  # all are due in one turn of the loop
            await eventually(lambda: len(settled) >= 2)
            later: list[Exception | None] = []
            writer.publish(PublishMessage("a", b"", 1, False, NONE), later.append, 0.01)
            await eventually(lambda: bool(later))
    assert sorted(each.partition(":")[0] for each in settled) == ["first", "second"]


async def test_a_broken_connection_settles_the_message_and_ends_the_session() -> None:
    results: list[Exception | None] = []
    async with writing(Socket()) as (writer, inner):

        def broken(_data: bytes) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        inner._sock.send = broken
        assert writer.publish(PublishMessage("t", b"x", 1, False, NONE), results.append) is None, "nothing waits"
        assert "Broken pipe" in str(results[0])
        assert isinstance(writer._client._disconnected.exception(), BrokenPipeError)
        inner._sock.close()
        inner._sock = None
        writer.publish(PublishMessage("t", b"x", 0, False, NONE), results.append)
        assert str(results[1]) == "no connection"


async def test_an_identifier_under_way_is_not_used_again() -> None:
    out = PublishMessage("t", b"x", 1, False, NONE)
    results: list[Exception | None] = []
    async with writing(Socket()) as (writer, inner):
        writer.publish(out, results.append)
        inner._last_mid = 65_535
        writer.publish(out, results.append)
        assert sorted(writer._under_way) == [1, 2]
        assert inner._sock.taken.endswith(publish_packet(out, 2))


async def test_what_was_given_up_counts_until_the_broker_acknowledges_it() -> None:
    """The broker counts by its own acknowledgements; and an identifier that it still knows is not used again."""
    results: list[tuple[str, Exception | None]] = []
    async with writing(Socket()) as (writer, inner):
        connected(inner, ReceiveMaximum=2)
        for name, urgent in (("first", False), ("held", False), ("urgent", True), ("urgent 2", True)):
            out = PublishMessage(name, b"", 1, False, NONE)
            writer.publish(out, lambda error, name=name: results.append((name, error)), 0.02, urgent=urgent)  # type: ignore[misc]
        await eventually(lambda: len(results) == 4)
        assert [(name, type(error)) for name, error in results] == [
            ("first", aiomqtt.MqttError),
            ("held", Unsent),
            ("urgent", aiomqtt.MqttError),
            ("urgent 2", Unsent),
        ]
        waits = writer.publish(
            PublishMessage("late", b"", 1, False, NONE), lambda error: results.append(("late", error))
        )
        assert waits is not None
        acknowledge(inner, waits)
        assert len(results) == 4, "an acknowledgement of what has not left is none"
        inner._last_mid = 0
        other = writer.publish(PublishMessage("other", b"", 1, False, NONE), lambda _error: None)
        assert other == 2, "1 and 3 are with the broker still"
        assert writer.withdraw(other)
        assert not writer.withdraw(other)
        acknowledge(inner, 1)
        assert not inner._sock.taken.endswith(b"late\0\5\0")
        acknowledge(inner, 3, 0x87)
        assert inner._sock.taken.count(b"late") == 1
        acknowledge(inner, waits)
        assert results[4:] == [("late", None)]
        assert not writer._unanswered


async def test_an_urgent_message_overtakes_what_the_socket_has_not_begun_to_take() -> None:
    """paho's packets too; urgent ones keep their order, and what an urgent one replaces can be withdrawn."""
    async with writing(Socket(4, -1, -1, -1, -1, -1, -1, -1, -1)) as (writer, inner):
        waits = {
            name: writer.publish(
                PublishMessage(name, b"", 1, False, NONE), lambda _error: None, urgent=name.startswith("u")
            )
            for name in ("begun", "command", "u1", "u2", "event", "u3")
        }
        assert None not in waits.values()
        inner._send_pingreq()
        assert not writer.withdraw(waits["begun"] or 0)
        assert writer.withdraw(waits["command"] or 0)
        assert not writer.withdraw(waits["command"] or 0)
        for _ in range(9):
            inner.loop_write()
        want = [PublishMessage(name, b"", 1, False, NONE) for name in ("begun", "u1", "u2", "u3", "event")]
        assert inner._sock.taken == b"".join(publish_packet(out, waits[out.topic] or 0) for out in want) + b"\xc0\0"
        assert not writer.withdraw(waits["u3"] or 0)
        assert len(writer._unanswered) == 5


async def test_what_waits_too_long_for_the_socket_never_leaves() -> None:
    """A broker that reads again later must not get what was given up, and memory stays bounded."""
    results: list[tuple[int, Exception | None]] = []
    async with writing(Socket(4, *[-1] * 10_000)) as (writer, inner):
        for number in range(8):
            out = PublishMessage("t", bytes([number]), number % 2, False, NONE)
            writer.publish(out, lambda error, number=number: results.append((number, error)), 0.02)  # type: ignore[misc]
        await eventually(lambda: len(results) == 8)
        assert [type(error) for _, error in sorted(results, key=lambda each: each[0])] == [aiomqtt.MqttError] + [
            Unsent
        ] * 7
        assert len(inner._out_packet) == 1
        assert not writer._unanswered
        writer.publish(PublishMessage("t", b"", 1, False, NONE), lambda _error: None)
        inner._sock.takes.clear()
        inner.loop_write()
        first, last = (
            publish_packet(PublishMessage("t", b"\0", 0, False, NONE), 0),
            PublishMessage("t", b"", 1, False, NONE),
        )
        assert inner._sock.taken == first + publish_packet(last, 9)


async def test_a_session_that_ends_says_what_did_not_leave() -> None:
    results: list[Exception | None] = []
    async with writing(Socket()) as (writer, inner):
        connected(inner, ReceiveMaximum=1)
        for _ in range(2):
            writer.publish(PublishMessage("t", b"", 1, False, NONE), results.append)
        writer.close()
    assert [type(error) for error in results] == [aiomqtt.MqttError, Unsent]


async def test_limits_of_the_broker_are_taken_from_its_answer_to_the_connect() -> None:
    """Receive Maximum is 65,535 where it is missing; less than one message, which no broker may state, would stop everything."""
    for limits, leave in (
        ({"ReceiveMaximum": 3}, 3),
        ({"ReceiveMaximum": 1}, 1),
        ({"ReceiveMaximum": 0}, 1),
        ({}, MOST_UNANSWERED),
    ):
        async with writing(Socket()) as (writer, inner):
            connected(inner, ReceiveMaximum=7)
            connected(inner, **limits)
            for _ in range(MOST_UNANSWERED + 1):
                send_on(writer, urgent=True)
            assert len(writer._unanswered) == leave
    async with writing(Socket()) as (writer, inner):
        size = len(publish_packet(PublishMessage("t", b"1234", 1, False, NONE), 1))
        connected(inner, MaximumPacketSize=size)
        assert send_on(writer, payload=b"1234") == []
        (error,) = send_on(writer, payload=b"12345")
        assert str(error) == f"a packet of {size + 1} bytes; the broker takes {size}"
        assert isinstance(error, TooLarge)
        connected(inner)
        assert send_on(writer, payload=b"12345") == [], "the limit was of the session before"


async def test_calls_of_paho_that_are_not_ours_are_passed_on_whole() -> None:
    calls: list[tuple[Any, ...]] = []
    client = aiomqtt.Client("h", protocol=aiomqtt.ProtocolVersion.V5)
    inner: Any = client._client
    inner.on_connect = inner.on_publish = lambda *arguments: calls.append(arguments)
    inner._handle_pubackcomp = lambda command: calls.append((command,)) or 0
    writer = PacketWriter(client, 60.0)
    inner.on_connect("client", "data", "flags", "code", "properties")
    inner.on_publish("client", "data", 41, "code", "properties")
    inner._in_packet["packet"] = (41).to_bytes(2, "big")
    inner._handle_pubackcomp("PUBACK")
    writer._unanswered.add(41)
    inner._handle_pubackcomp("PUBCOMP")
    inner._in_packet["packet"] = b"\x29"
    inner._handle_pubackcomp("PUBACK")
    assert calls == [
        ("client", "data", "flags", "code", "properties"),
        ("client", "data", 41, "code", "properties"),
        ("PUBACK",),
        ("PUBCOMP",),
        ("PUBACK",),
    ]
    assert writer._unanswered == {41}
    client._disconnected.cancel()


@pytest.mark.parametrize(
    ("code", "is_refused"), [(None, False), (0, False), (0x10, False), (0x7F, False), (0x80, True)]
)
@pytest.mark.parametrize("rest", [b"", b"\0"])
async def test_codes_from_80_on_are_failures(code: int | None, is_refused: bool, rest: bytes) -> None:
    async with writing(Socket()) as (writer, inner):
        results = send_on(writer)
        acknowledge(inner, 1, code, rest)
        assert [isinstance(error, PublishRefused) for error in results] == [is_refused]


async def test_the_order_in_front_of_a_full_socket() -> None:
    """Urgent ones follow the packet that has begun to leave and older urgent ones, also where nothing or one packet waits."""
    for count in range(4):
        async with writing(Socket(*[-1] * 9)) as (writer, inner):
            for _ in range(count):
                send_on(writer, qos=0)
            for _ in range(3):
                send_on(writer, urgent=True)
            ordinary, urgent = [*range(1, count + 1)], [count + 1, count + 2, count + 3]
            assert [packet["mid"] for packet in inner._out_packet] == ordinary[:1] + urgent + ordinary[1:]


async def test_a_message_that_waits_behind_an_acknowledgement_of_the_same_identifier_is_the_one_withdrawn() -> None:
    """An identifier of the broker's messages is independent of ours: its PUBACK in the queue stays."""
    async with writing(Socket(*[-1] * 9)) as (writer, inner):
        send_on(writer, qos=0)
        inner._send_puback(2)
        waits = writer.publish(PublishMessage("t", b"", 1, False, NONE), lambda _error: None)
        assert waits == 2
        assert writer.withdraw(2)
        assert [(packet["command"], packet["mid"]) for packet in inner._out_packet] == [(0x30, 1), (0x40, 2)]


async def test_what_waits_for_room_keeps_its_order() -> None:
    """Room may grow while a message waits; a later one does not overtake it, and urgent ones go first."""
    for waits_urgent, later_urgent in (False, False), (True, False), (True, True):
        async with writing(Socket()) as (writer, inner):
            connected(inner, ReceiveMaximum=1)
            send_on(writer)
            send_on(writer, urgent=waits_urgent, payload=b"waits")
            connected(inner, ReceiveMaximum=10)
            send_on(writer, urgent=later_urgent, payload=b"later")
            assert b"later" not in inner._sock.taken
            acknowledge(inner, 1)
            assert inner._sock.taken.index(b"waits") < inner._sock.taken.index(b"later")
            assert writer._unanswered == {2, 3}
    async with writing(Socket()) as (writer, inner):
        connected(inner, ReceiveMaximum=2)
        names = ("first", "held", "urgent 1", "urgent 2")
        sent = [writer.publish(PublishMessage(n, b"", 1, False, NONE), lambda _: None, urgent="u" in n) for n in names]
        assert sent == [None, 2, None, 4], "an identifier comes back where the message waits"
        for acknowledged, leaves in (1, b"urgent 2"), (3, None), (4, b"held"):
            before = len(inner._sock.taken)
            acknowledge(inner, acknowledged)
            assert (leaves or b"") in inner._sock.taken[before:]
            assert bool(leaves) == bool(inner._sock.taken[before:])


@pytest.mark.parametrize(("room", "ordinary"), [(1, 1), (2, 1), (3, 2), (4, 3), (8, 6), (10, 8), (1_000, 750)])
async def test_a_quarter_of_the_room_is_for_urgent_messages(room: int, ordinary: int) -> None:
    async with writing(Socket()) as (writer, inner):
        connected(inner, ReceiveMaximum=room)
        for _ in range(room + 1):
            send_on(writer)
        assert len(writer._unanswered) == ordinary
        for _ in range(room + 1):
            send_on(writer, urgent=True)
        assert len(writer._unanswered) == room


async def test_an_urgent_message_that_waited_for_room_goes_to_the_front_of_a_full_socket() -> None:
    async with writing(Socket(*[-1] * 20)) as (writer, inner):
        connected(inner, ReceiveMaximum=2)
        send_on(writer, qos=0)
        assert not writer._urgent_queued
        send_on(writer, qos=0)
        send_on(writer)
        send_on(writer, urgent=True)
        send_on(writer, urgent=True)
        acknowledge(inner, 3)
        assert [(packet["mid"], packet["qos"], packet["info"].mid) for packet in inner._out_packet] == [
            (1, 0, 1), (4, 1, 4), (5, 1, 5), (2, 0, 2), (3, 1, 3)]  # fmt: skip
        assert writer._urgent_queued == {4, 5}
        acknowledge(inner, 4)
        assert writer._urgent_queued == {5}
        assert writer.withdraw(5)
        assert writer._urgent_queued == set()
        assert inner._last_msg_out == pytest.approx(time.monotonic(), abs=5)
    async with writing(Socket(*[-1] * 20)) as (writer, inner):
        send_on(writer, urgent=True)
        assert writer._urgent_queued == set(), "alone it is at the front"


async def test_a_retained_message_can_be_withdrawn() -> None:
    async with writing(Socket(*[-1] * 9)) as (writer, inner):
        send_on(writer, qos=0)
        waits = writer.publish(PublishMessage("t", b"", 1, True, NONE), lambda _error: None)
        assert waits == 2
        assert writer.withdraw(2)
        assert len(inner._out_packet) == 1


@pytest.mark.parametrize("ends", ["time", "session"])
async def test_all_others_are_settled_where_a_callback_withdraws_one(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[tuple[int, str]] = []
    now_s = 1_000.0
    monkeypatch.setattr("runtime.mqtt.packets.time", SimpleNamespace(monotonic=lambda: now_s))
    async with writing(FullSocket()) as (writer, _):

        def note(error: Exception | None, number: int) -> None:
            settled.append((number, str(error)))
            if number == 0:
                writer.withdraw(2)

        for number in range(4):
            writer.publish(
                PublishMessage("a", b"", 1, False, NONE),
                lambda error, number=number: note(error, number),
                1.0,  # type: ignore[misc]
            )
        if ends == "time":
            now_s = 1_001.0
            writer._expire(now_s)
        else:
            writer.close()
        rest = (
            "the broker took or acknowledged too little of what was sent before"
            if ends == "time"
            else "the session ended before the acknowledgement"
        )
        assert settled[1:] == [(2, rest), (3, rest)]
        assert settled[0] == (0, "Operation timed out" if ends == "time" else rest)


async def test_late_looks_and_what_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that is late by more than `LATE_S` looks again half of it later, `MOST_LATE_LOOKS` times in succession."""
    now_s, calls = 1_000.0, []
    monkeypatch.setattr("runtime.mqtt.packets.time", SimpleNamespace(monotonic=lambda: now_s))
    async with writing(Socket()) as (writer, _):
        writer._loop = SimpleNamespace(  # type: ignore[assignment]
            call_at=lambda *arguments: (
                calls.append(arguments) or SimpleNamespace(when=lambda: arguments[0], cancel=list)
            )
        )
        writer._timeout_s = 1.0
        exact, later = send_on(writer), []
        assert calls.pop() == (1_001.0, writer._expire, 1_001.0)
        also = send_on(writer)
        assert calls == [], "the same look finds both"
        now_s = 1_000.25
        later = send_on(writer)
        assert calls == [], "the look that is due first finds the next one"
        for turn in range(MOST_LATE_LOOKS):
            now_s = 1_002.0 + turn
            writer._expire(now_s - LATE_S - 0.001)
            again_s = now_s + LATE_S / 2
            assert calls.pop() == (again_s, writer._expire, again_s)
            assert exact == later == []
        now_s = 1_001.0
        writer._expire(1_000.0)
        assert [str(error) for error in exact + also] == ["Operation timed out"] * 2
        assert later == []
        assert calls.pop() == (1_001.25, writer._expire, 1_001.25)
        for _ in range(MOST_LATE_LOOKS):
            writer._expire(now_s - 2 * LATE_S)
        assert later == [], "they are counted again after a look"
        assert [at_s for at_s, *_ in calls] == [now_s + LATE_S / 2] * MOST_LATE_LOOKS
        now_s = 1_001.25
        writer._expire(now_s)
        assert len(later) == 1
        now_s = LATE_S
        early = send_on(writer)
        writer._under_way = {name: (done, 0.0, 0.0) for name, (done, _, _) in writer._under_way.items()}
        writer._expire(0.0)
        assert len(early) == 1, "a look that is late by exactly `LATE_S` is none of the late ones"
        writer._timer = None


async def test_a_callback_that_fails_ends_no_session() -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))

    def fail(_error: Exception | None) -> None:
        raise KeyError("mine")

    async with writing(Socket()) as (writer, inner):
        writer.publish(PublishMessage("t", b"x", 1, False, NONE), fail)
        acknowledge(inner, 1)
        assert not writer._client._disconnected.done()
    ((failure),) = failures
    assert type(failure.pop("exception")) is KeyError
    assert failure == {"message": "a publish was settled"}


@asynccontextmanager
async def reading() -> AsyncIterator[tuple[socket.socket, Any, list[bytes], list[int]]]:
    """The broker's end of a socket, paho's client with a reader on the other end, what it got, and what it asked the kernel for."""
    left, right = socket.socketpair()
    right.setblocking(False)
    client = aiomqtt.Client("h", protocol=aiomqtt.ProtocolVersion.V5)
    inner: Any = client._client
    asked: list[int] = []
    got: list[bytes] = []

    def receive(size: int) -> bytes:
        asked.append(size)
        return right.recv(size)

    inner._sock, inner._sock_recv = right, receive
    reads: list[Any] = []
    PacketReader(client, reads.append)
    inner.on_message = lambda _client, _data, message: got.append(message.payload)
    try:
        yield left, inner, got, asked
    finally:
        inner._sock = None
        left.close()
        right.close()
        client._disconnected.cancel()
        assert all(each is inner for each in reads)
        assert bool(reads) == bool(asked)


def packets(count: int) -> list[bytes]:
    return [publish_packet(PublishMessage("t", bytes([n]) * n, 0, False, NONE), 0) for n in range(count)]


async def test_reading_asks_the_kernel_once_for_many_packets() -> None:
    stream = b"".join(packets(20))
    async with reading() as (left, inner, got, asked):
        left.send(stream[:-3])
        assert inner.loop_read() == 0
        assert (len(got), len(asked)) == (19, 1)
        left.send(stream[-3:])
        assert inner.loop_read() == 0
        assert [len(payload) for payload in got] == list(range(20))
        assert inner.loop_read() == 0, "nothing has arrived"
        left.close()
        inner.loop_read()
        assert inner._sock is None, "the end of the stream is the end of the connection"


async def test_packets_that_arrive_byte_by_byte() -> None:
    async with reading() as (left, inner, got, _):
        for byte in b"".join(packets(4)):
            left.send(bytes((byte,)))
            assert inner.loop_read() == 0
        assert [len(payload) for payload in got] == [0, 1, 2, 3]


async def test_a_flood_is_handled_in_turns() -> None:
    """After `AT_ONCE` packets other callbacks of the loop run, and nothing stays behind although the socket is silent."""
    async with reading() as (left, inner, got, _):
        left.send(b"".join(packets(100)))
        assert inner.loop_read() == 0
        counts = [len(got)]
        for _ in range(4):
            await asyncio.sleep(0)
            counts.append(len(got))
        assert counts == [AT_ONCE, 2 * AT_ONCE, 3 * AT_ONCE, 100, 100]


async def test_a_flood_that_goes_on_is_handled_once_a_turn() -> None:
    """The socket is readable meanwhile, too: its reads do not each add another turn."""
    async with reading() as (left, inner, got, _):
        left.send(b"".join(packets(100)) * 3)
        counts = [0]
        for _ in range(3):
            inner.loop_read()
            await asyncio.sleep(0)
            counts.append(len(got))
        assert [after - before for before, after in pairwise(counts)] == [AT_ONCE * 2] * 3


async def test_what_was_read_of_a_closed_connection_is_dropped() -> None:
    async with reading() as (left, inner, got, _):
        left.send(b"".join(packets(100)))
        inner.loop_read()
        sock, inner._sock = inner._sock, None
        await asyncio.sleep(0)
        assert len(got) == AT_ONCE
        inner._sock = sock


async def test_the_kernel_is_asked_once_a_read_and_for_a_long_rest_at_once() -> None:
    async with reading() as (left, inner, got, asked):
        long = publish_packet(PublishMessage("t", b"x" * 3 * CHUNK, 0, False, NONE), 0)
        left.send(long)
        inner.loop_read()
        while not got:
            inner.loop_read()
        assert got == [b"x" * 3 * CHUNK]
        assert asked[:2] == [CHUNK, len(long) - CHUNK]


async def test_between_two_reads_the_kernel_is_asked_for_long_parts_alone() -> None:
    async with reading() as (left, inner, _, asked):
        left.send(b"abc")
        assert inner._sock_recv(2) == b"ab"
        assert inner._sock_recv(2) == b"c"
        assert asked == [CHUNK]
        with pytest.raises(BlockingIOError):
            inner._sock_recv(CHUNK - 1)
        assert asked == [CHUNK]
        with pytest.raises(BlockingIOError):
            inner._sock_recv(CHUNK)
        assert asked == [CHUNK, CHUNK], "a part as long as the buffer is always asked for"
        left.send(b"\xd0\0")
        assert inner.loop_read() == 0


async def test_a_read_takes_the_number_of_packets_on_to_paho() -> None:
    client = aiomqtt.Client("h", protocol=aiomqtt.ProtocolVersion.V5)
    inner: Any = client._client
    asked: list[int] = []

    def read(most: int) -> int:
        asked.append(most)
        inner._sock_recv(1)
        return 7 if len(asked) == 4 else 0

    inner.loop_read, inner._sock_recv = read, lambda _size: b"12345678"
    PacketReader(client, lambda _client: None)
    assert inner.loop_read() == 7
    assert asked == [1, 1, 1, 1], "a failure ends the turn"
    asked.clear()
    inner.loop_read(5)
    assert asked == [5, 5, 5, 5]
    client._disconnected.cancel()


async def test_nothing_more_is_read_where_everything_was_handled() -> None:
    client = aiomqtt.Client("h", protocol=aiomqtt.ProtocolVersion.V5)
    inner: Any = client._client
    asked: list[int] = []

    def read(_most: int) -> int:
        asked.append(size)
        inner._sock_recv(size)
        return 0

    inner.loop_read, inner._sock_recv, inner._sock = read, lambda _size: bytes(100), object()
    PacketReader(client, lambda _client: None)
    size = 100
    inner.loop_read()
    assert asked == [100]
    size = 1
    inner.loop_read()
    assert len(asked) == 1 + AT_ONCE
    size = 100 - AT_ONCE
    inner.loop_read()
    assert len(asked) == 2 + AT_ONCE
    await asyncio.sleep(0)
    assert len(asked) == 2 + AT_ONCE, "the rest was handled before its turn"
    inner._sock = None
    client._disconnected.cancel()


@pytest.mark.parametrize("has_ended", [False, True])
async def test_a_rest_that_cannot_be_read_ends_the_session_once(has_ended: bool) -> None:
    client = aiomqtt.Client("h", protocol=aiomqtt.ProtocolVersion.V5)
    inner: Any = client._client
    counts: list[int] = []

    def read(_most: int) -> int:
        counts.append(1)
        inner._sock_recv(1)
        if len(counts) > AT_ONCE:
            raise OSError(5, "Input/output error")
        return 0

    inner.loop_read, inner._sock_recv, inner._sock = read, lambda _size: bytes(100), object()
    PacketReader(client, lambda _client: None)
    assert inner.loop_read() == 0
    if has_ended:
        client._disconnected.set_exception(KeyError("before"))
    await asyncio.sleep(0)
    assert len(counts) == AT_ONCE + 1
    assert type(client._disconnected.exception()) is (KeyError if has_ended else OSError)
    inner._sock = None


async def test_a_rest_of_another_connection_is_not_read() -> None:
    async with reading() as (left, inner, got, _):
        left.send(b"".join(packets(100)))
        inner.loop_read()
        sock, inner._sock = inner._sock, SimpleNamespace(close=list)
        await asyncio.sleep(0)
        assert len(got) == AT_ONCE
        inner._sock = sock
