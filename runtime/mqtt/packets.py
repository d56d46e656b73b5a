"""Write PUBLISH packets to the broker, match its acknowledgements to them, and read what it sends in pieces of many packets.

A publish at QoS 1 through aiomqtt takes a task, a timer, an event and three more turns of the loop, and paho adds locks and copies. In
a small daemon that was most of the processor time. Everything else is still paho's. Its queue takes what the socket does not take at
once, so that the order is the same. An urgent message goes to its front, and what waits too long there is taken out.

The broker limits the messages of QoS 1 that it has not acknowledged (Receive Maximum), and the bytes of a packet (Maximum Packet
Size). It ends the session of a client that sends more. A message beyond the first limit waits; a larger one is refused.

Specification: MQTT 5.0 (OASIS 2019), 3.2.2.3 CONNACK Properties, 3.3 PUBLISH, 3.4 PUBACK and 4.9 Flow Control. `client.py` installs
both classes in paho's client.
"""

from __future__ import annotations

import asyncio
import math
import struct
import time
from collections.abc import Callable
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.exception import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from runtime.mqtt.connection_types import PublishMessage, WithReasonCode, variable_length

FAILURE = 0x80
"""Reason codes from here on are failures."""
PUBLISH, DUP, RETAIN = 0x30, 0x08, 0x01
MAX_LENGTH, MAX_TOPIC = 268_435_455, 65_535
"""Bytes after the first ones of a packet (2.1.4), and of a topic."""
CHUNK = 16_384
"""Bytes read at once; a longer part of a packet is read alone."""
LATE_S = 0.1
"""A look at what is not acknowledged that is so late finds a loop that stood still: what has arrived meanwhile is read first."""
MOST_UNANSWERED = 1_000
"""Messages of QoS 1 that may lack an acknowledgement, whatever the broker allows."""
MOST_LATE_LOOKS = 10
"""Late looks in succession after which the loop counts as always late: what has no acknowledgement is given up all the same."""
AT_ONCE = 32
"""Packets handled in one turn of the loop: a flood on this connection must not delay another one."""
Settled = Callable[[Exception | None], None]
"""Called once: None where the broker has the message, else why not."""


class PublishRefused(WithReasonCode, aiomqtt.MqttError):
    """The broker took the message and refused it; `str` says why."""


class Unsent(aiomqtt.MqttError):
    """The message did not leave."""


class TooLarge(Unsent):
    """The broker takes no packet of this size."""


def publish_packet(out: PublishMessage, identifier: int) -> bytes:
    """Return a message as a PUBLISH packet.

    Args:
        out: the message.
        identifier: of the packet; only QoS 1 has one.

    Raises:
        ValueError: a topic or payload that no packet may contain.
    """
    topic = out.topic.encode()
    if not topic or any(sign in topic for sign in (b"+", b"#", b"\0")):
        raise ValueError("a topic to publish on is not empty and has no wildcard and no null character")
    if len(topic) > MAX_TOPIC:
        raise ValueError(f"a topic of {len(topic)} bytes; at most {MAX_TOPIC}")
    number = identifier.to_bytes(2, "big") if out.qos else b""
    length = 2 + len(topic) + len(number) + len(out.properties) + len(out.payload)
    if length > MAX_LENGTH:
        raise ValueError(f"a message of {length} bytes; at most {MAX_LENGTH}")
    first = bytes((PUBLISH | out.qos << 1 | (RETAIN if out.retain else 0),))
    size = len(topic).to_bytes(2, "big")
    return b"".join((first, variable_length(length), size, topic, number, out.properties, out.payload))


def paho_of(client: aiomqtt.Client) -> Any:
    """Return paho's client within aiomqtt's, with parts that have no public types."""
    return client._client


class PacketWriter:
    """Publishes through one client. Create it inside the running loop, and use it there only.

    Args:
        client: not connected yet.
        timeout_s: for an acknowledgement where a call states no other one.
    """

    def __init__(self, client: aiomqtt.Client, timeout_s: float) -> None:
        self._client, self._timeout_s = client, timeout_s
        self._inner = paho_of(client)
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[int, tuple[Settled, float, float]] = {}
        """By identifier: what to call, when it was sent, and when its time is over."""
        self._unanswered: set[int] = set()
        """Of QoS 1: the broker counts a message until it acknowledges it, even after its time is over here."""
        self._waiting: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        """Packets for which the broker has no room yet, by identifier: the ordinary ones, and the urgent ones."""
        self._urgent_queued: set[int] = set()
        """Urgent ones that wait for the socket."""
        self._room = MOST_UNANSWERED
        self._max_packet: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._late_looks = 0
        self.answer = (0.0, -math.inf)
        """When the message that was acknowledged last was sent, and when the acknowledgement came; monotonic seconds."""
        self._acknowledged, self._published = self._inner._handle_pubackcomp, self._inner.on_publish
        self._inner._handle_pubackcomp, self._inner.on_publish = self._puback, self._left
        self._connected = self._inner.on_connect
        self._inner.on_connect = self._note_limits

    def publish(
        self, out: PublishMessage, settled: Settled, timeout_s: float | None = None, *, urgent: bool = False
    ) -> int | None:
        """Send a message; `settled` is called at the acknowledgement for QoS 1, and once the socket has it for QoS 0.

        An urgent one leaves before others that wait, and some of the broker's room is for urgent ones alone. The identifier of a message that
        waits, for room or for the socket, is returned for `withdraw`; None where it does not wait.

        Raises:
            ValueError: a topic or payload that no packet may contain; `settled` is not called then.
        """
        identifier = self._new_identifier()
        packet = publish_packet(out, identifier)
        now_s = time.monotonic()
        due_s = now_s + (self._timeout_s if timeout_s is None else timeout_s)
        self._under_way[identifier] = settled, now_s, due_s
        if self._max_packet is not None and len(packet) > self._max_packet:
            self._settle(identifier, TooLarge(f"a packet of {len(packet)} bytes; the broker takes {self._max_packet}"))
            return None
        is_behind = self._waiting[True] or (self._waiting[False] and not urgent)
        if out.qos and (is_behind or len(self._unanswered) >= self._limit(urgent=urgent)):
            self._waiting[urgent][identifier] = packet
            self._watch(due_s)
            return identifier
        return None if self._send(packet, identifier, out.qos, urgent=urgent) else identifier

    def withdraw(self, identifier: int) -> bool:
        """Keep a message that waits from leaving, without a call of its `settled`; False where it has begun to leave."""
        if identifier not in self._under_way or not self._take_back(identifier):
            return False
        del self._under_way[identifier]
        self._fill()
        return True

    def _take_back(self, identifier: int) -> bool:
        """Take out a message that waits for room or for the socket; the first in front of the socket has begun to leave."""
        if self._waiting[0].pop(identifier, None) or self._waiting[1].pop(identifier, None):
            return True
        queue = self._inner._out_packet
        for place in range(1, len(queue)):
            if queue[place]["mid"] == identifier and _publishes(queue[place]):
                del queue[place]
                self._urgent_queued.discard(identifier)
                self._unanswered.discard(identifier)
                return True
        return False

    def _send(self, packet: bytes, identifier: int, qos: int, *, urgent: bool) -> bool:
        """Write a packet, or queue it; return whether all of it left, or never will."""
        due_s = self._under_way[identifier][2]
        if qos:
            self._unanswered.add(identifier)
        try:
            is_written = self._write(packet, identifier, qos, urgent=urgent)
        except OSError as error:  # as aiomqtt does where it writes
            if not self._client._disconnected.done():
                self._client._disconnected.set_exception(error)
            self._settle(identifier, aiomqtt.MqttError(str(error)))
            return True
        if is_written and not qos:
            self._settle(identifier, None)
        else:
            self._watch(due_s)
        return is_written

    def _note_limits(self, client: paho.Client, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        """Take over what the broker's answer to the connect says about its limits."""
        self._room = min(MOST_UNANSWERED, max(1, getattr(properties, "ReceiveMaximum", MOST_UNANSWERED)))
        self._max_packet = getattr(properties, "MaximumPacketSize", None)
        self._connected(client, userdata, flags, code, properties)

    def _limit(self, *, urgent: bool) -> int:
        """Return how many the broker may have unanswered; a quarter, and at least one of several, is for urgent ones."""
        return self._room if urgent else max(1, self._room - max(1, self._room // 4))

    def _fill(self) -> None:
        """Send what waited, as far as the broker has room again."""
        for urgent in (True, False):
            waiting = self._waiting[urgent]
            while waiting and len(self._unanswered) < self._limit(urgent=urgent):
                identifier = next(iter(waiting))
                packet = waiting.pop(identifier)
                settled, _, due_s = self._under_way[identifier]
                self._under_way[identifier] = settled, time.monotonic(), due_s
                self._send(packet, identifier, 1, urgent=urgent)

    def close(self) -> None:
        """Settle all that the broker has not acknowledged: the session is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for identifier in list(self._under_way):
            if identifier not in self._under_way:  # a callback has withdrawn it
                continue
            error = Unsent if self._take_back(identifier) else aiomqtt.MqttError
            self._settle(identifier, error("the session ended before the acknowledgement"))

    def _new_identifier(self) -> int:
        while True:
            identifier = int(self._inner._mid_generate())
            if identifier not in self._under_way and identifier not in self._unanswered:
                return identifier

    def _write(self, packet: bytes, identifier: int, qos: int, *, urgent: bool) -> bool:
        """Write a packet, or leave to paho what the socket does not take; return whether all of it left.

        Raises:
            OSError: the connection is broken, or there is none.
        """
        inner = self._inner
        written = 0
        if inner._sock is None:
            raise ConnectionError("no connection")
        if not inner._out_packet:
            try:
                written = inner._sock_send(packet)
            except BlockingIOError:
                written = 0
            inner._last_msg_out = time.monotonic()
        if written == len(packet):
            return True
        inner._packet_queue(packet[0], packet[written:], identifier, qos, paho.MQTTMessageInfo(identifier))
        if urgent:
            self._to_front(identifier)
        return False

    def _to_front(self, identifier: int) -> None:
        """Let an urgent message that was queued last follow the packet that has begun to leave, and older urgent ones."""
        queue = self._inner._out_packet
        if len(queue) > 1 and queue[-1]["mid"] == identifier:
            packet, place = queue.pop(), 1
            while place < len(queue) and queue[place]["mid"] in self._urgent_queued and _publishes(queue[place]):
                place += 1
            queue.insert(place, packet)
            self._urgent_queued.add(identifier)

    def _watch(self, due_s: float) -> None:
        """Look at what has no acknowledgement at a time, or before."""
        if self._timer is not None and self._timer.when() <= due_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._expire, due_s)

    def _expire(self, due_s: float) -> None:
        self._timer, now_s = None, time.monotonic()
        if now_s - due_s > LATE_S and self._late_looks < MOST_LATE_LOOKS:
            self._late_looks += 1
            self._timer = self._loop.call_at(now_s + LATE_S / 2, self._expire, now_s + LATE_S / 2)
            return
        self._late_looks = 0
        for identifier in [i for i, (_, _, due_s) in self._under_way.items() if due_s <= now_s]:
            if identifier not in self._under_way:  # a callback has withdrawn it
                continue
            if self._take_back(identifier):
                self._settle(identifier, Unsent("the broker took or acknowledged too little of what was sent before"))
            else:
                self._settle(identifier, aiomqtt.MqttError("Operation timed out"))
        self._fill()
        if self._under_way:
            self._watch(min(due_s for _, _, due_s in self._under_way.values()))

    def _puback(self, command: str) -> MQTTErrorCode:
        """Take an acknowledgement out of what paho has just read."""
        packet = self._inner._in_packet["packet"]
        identifier = int.from_bytes(packet[:2], "big")
        if command != "PUBACK" or identifier not in self._unanswered or len(packet) < 2:
            return MQTTErrorCode(self._acknowledged(command))
        self._unanswered.discard(identifier)
        entry = self._under_way.get(identifier)
        if entry is not None:
            self.answer = entry[1], time.monotonic()
            code = packet[2] if len(packet) > 2 else 0
            self._settle(identifier, None if code < FAILURE else PublishRefused(reason_of(code), code))
        self._fill()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _left(self, client: paho.Client, userdata: Any, mid: int, code: Any, properties: Properties) -> None:
        """A message of QoS 0 has left paho's queue."""
        if mid in self._under_way:
            self._settle(mid, None)
        else:
            self._published(client, userdata, mid, code, properties)

    def _settle(self, identifier: int, error: Exception | None) -> None:
        settled, *_ = self._under_way.pop(identifier)
        self._urgent_queued.discard(identifier)
        try:
            settled(error)
        except Exception as failure:  # noqa: BLE001 - the connection is in order all the same
            self._loop.call_exception_handler({"message": "a publish was settled", "exception": failure})


def _publishes(packet: Any) -> bool:
    return packet["command"] & 0xF0 == PUBLISH  # type: ignore[no-any-return]


def reason_of(code: int) -> str:
    """Return the reason of a refused publish as a text."""
    try:
        return str(ReasonCode(PacketTypes.PUBACK, identifier=code))
    except KeyError:
        return f"reason code {code}"


class ReceivedProperties(Properties):
    """Properties of a received PUBLISH. paho builds its tables again for every message, which takes longer than all else of it."""

    _tables = vars(Properties(PacketTypes.PUBLISH))  # type: ignore[no-untyped-call]
    types, names, properties = _tables["types"], _tables["names"], _tables["properties"]

    def __init__(self) -> None:
        object.__setattr__(self, "packetType", PacketTypes.PUBLISH)

    def clear(self) -> None:
        """Do nothing: it is filled once, by `unpack`, which clears first."""


class PacketReader:
    """Reads from the socket of a client in larger pieces than paho, which asks the kernel for one byte at a time.

    It decodes PUBLISH packets itself, and leaves to paho what is malformed, of QoS 2 or without a topic.

    Args:
        client: not connected yet.
        after_read: called with the client after each read.
    """

    def __init__(self, client: aiomqtt.Client, after_read: Callable[[paho.Client], None]) -> None:
        self._client, self._after_read = client, after_read
        self._inner = paho_of(client)
        self._loop = asyncio.get_running_loop()
        self._data, self._at = b"", 0
        self._may_read = True
        self._rest: asyncio.Handle | None = None
        """The turn in which the rest of a flood is handled."""
        self._receive, self._read_packet = self._inner._sock_recv, self._inner.loop_read
        self._inner._sock_recv, self._inner.loop_read = self.receive, self.read
        self._paho_publish = self._inner._handle_publish
        self._inner._handle_publish = self.publish

    def receive(self, size: int) -> bytes:
        """Return at most `size` bytes, as paho's own function does; the kernel is asked once a `read`.

        Raises:
            BlockingIOError: nothing has arrived.
            OSError: the connection is broken.
        """
        if self._at == len(self._data):
            if not self._may_read and size < CHUNK:
                raise BlockingIOError
            self._may_read = False
            self._data, self._at = self._receive(max(size, CHUNK)), 0
        found = self._data[self._at : self._at + size]
        self._at += len(found)
        if self._at == len(self._data):
            self._data, self._at = b"", 0
        return found

    def read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Handle the packets that have arrived; of many, the rest in the next turn of the loop."""
        self._may_read = True
        code = MQTTErrorCode(self._read_packet(max_packets))
        handled = 1
        while code == MQTTErrorCode.MQTT_ERR_SUCCESS and self._at < len(self._data):
            if handled == AT_ONCE:
                if self._rest is None:
                    self._rest = self._loop.call_soon(self._read_on, self._inner._sock)
                break
            code = MQTTErrorCode(self._read_packet(max_packets))
            handled += 1
        self._after_read(self._inner)
        return code

    def publish(self) -> MQTTErrorCode:
        """Handle the PUBLISH packet that has been read."""
        packet = self._inner._in_packet
        message = decoded_publish(packet["command"], bytes(packet["packet"]))
        if message is None:
            return MQTTErrorCode(self._paho_publish())
        message.timestamp = time.monotonic()
        self._inner._handle_on_message(message)
        if not message.qos or self._inner._manual_ack:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        return MQTTErrorCode(self._inner._send_puback(message.mid))

    def _read_on(self, sock: Any) -> None:
        self._rest = None
        if self._inner._sock is not sock or sock is None or self._at == len(self._data):
            return
        try:
            self.read()
        except Exception as error:  # noqa: BLE001 - as aiomqtt does where it reads
            if not self._client._disconnected.done():
                self._client._disconnected.set_exception(error)


def decoded_publish(command: int, packet: bytes) -> paho.MQTTMessage | None:
    """Return a PUBLISH packet of QoS 0 or 1 as paho's message; None for any other, and for a malformed one."""
    qos, at = command >> 1 & 3, 2 + int.from_bytes(packet[:2], "big")
    if qos > 1 or at == 2 or len(packet) < at + 2 * qos + 1:
        return None
    message = paho.MQTTMessage(int.from_bytes(packet[at : at + 2], "big") if qos else 0, packet[2:at])
    message.dup, message.qos, message.retain = bool(command & DUP), qos, bool(command & RETAIN)
    at += 2 * qos
    message.properties = ReceivedProperties()
    if packet[at]:
        try:
            _, length = message.properties.unpack(packet[at:])  # type: ignore[no-untyped-call]
        except (MQTTException, ValueError, LookupError, struct.error):
            return None
    else:
        length = 1
    message.payload = packet[at + length :]
    return message
