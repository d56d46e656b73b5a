"""A broker that does what a script says: takes little, refuses messages or subscriptions with a reason code."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from runtime.mqtt.connection_types import variable_length

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 4, 8, 12, 14


@dataclass
class LimitedBroker:
    """Takes packets one by one, and notes each PUBLISH.

    Args:
        receive_maximum: of messages at QoS 1 without an acknowledgement.
        max_packet: in bytes.
    """

    receive_maximum: int | None = None
    max_packet: int | None = None
    acknowledges: Callable[[bytes], bool] = lambda _topic: True
    """Whether the message on a topic is acknowledged, in the next turn of the loop."""
    taken: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Topic and payload of each message, in their order; without echoes."""
    kinds: list[int] = field(default_factory=list)
    most: int = 0
    """The most messages that lacked an acknowledgement at once."""
    ended: list[str] = field(default_factory=list)
    """Why sessions were ended."""
    unanswered: list[int] = field(default_factory=list)
    puback: Callable[[bytes], int] = lambda _topic: 0
    """The reason code with which the message on a topic is acknowledged."""
    suback: Callable[[bytes], int] = lambda _filter: 1
    """The reason code with which a subscription is acknowledged."""
    subscribed: list[bytes] = field(default_factory=list)
    """Each filter that was asked for."""
    chunk: int = 65_536
    """Bytes read at once."""
    rests: bool = False
    """Whether the loop has another turn between two reads, so that the other side's buffers are full most of the time."""
    writer: asyncio.StreamWriter | None = None
    _data: bytes = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer, self._data = writer, b""
        self.unanswered.clear()
        try:
            while (packet := await self._packet(reader)) is not None:
                first, body = packet
                if reason := self._handle(first, body):
                    self.ended.append(reason)
                    break
        finally:
            writer.close()

    async def _packet(self, reader: asyncio.StreamReader) -> tuple[int, bytes] | None:
        while True:
            length, shift, at = 0, 0, 1
            while at < len(self._data) and at <= 4:
                length |= (self._data[at] & 127) << shift
                shift, at = shift + 7, at + 1
                if not self._data[at - 1] & 128:
                    if len(self._data) >= at + length:
                        first, body = self._data[0], self._data[at : at + length]
                        self._data = self._data[at + length :]
                        return first, body
                    break
            if self.rests:
                await asyncio.sleep(0)
            data = await reader.read(self.chunk)
            if not data:
                return None
            self._data += data

    def _handle(self, first: int, body: bytes) -> str | None:
        """Answer a packet; return why the session ends, if it does."""
        kind = first >> 4
        self.kinds.append(kind)
        if self.max_packet is not None and 1 + len(variable_length(len(body))) + len(body) > self.max_packet:
            return "packet too large"
        if kind == CONNECT:
            limits = b""
            if self.receive_maximum is not None:
                limits += b"\x21" + self.receive_maximum.to_bytes(2, "big")
            if self.max_packet is not None:
                limits += b"\x27" + self.max_packet.to_bytes(4, "big")
            self.send(0x20, b"\0\0" + variable_length(len(limits)) + limits)
        elif kind == PUBLISH:
            return self._publish(first, body)
        elif kind == SUBSCRIBE:
            self.send(0x90, body[:2] + b"\0" + bytes(map(self.suback, self._filters(body))))
        elif kind == PINGREQ:
            self.send(0xD0, b"")
        elif kind not in {PUBACK, DISCONNECT}:
            return f"malformed: {first:#x}"
        return None

    def _filters(self, body: bytes) -> list[bytes]:
        """Return the filters of a SUBSCRIBE, and note them."""
        at, found = 3 + body[2], []
        while at < len(body):
            size = int.from_bytes(body[at : at + 2], "big")
            found.append(body[at + 2 : at + 2 + size])
            at += 3 + size
        self.subscribed += found
        return found

    def _publish(self, first: int, body: bytes) -> str | None:
        size = int.from_bytes(body[:2], "big")
        topic, rest = body[2 : 2 + size], body[2 + size :]
        if first & 0x06:
            identifier, rest = int.from_bytes(rest[:2], "big"), rest[2:]
            if identifier in self.unanswered:
                return "identifier in use"
            self.unanswered.append(identifier)
            self.most = max(self.most, len(self.unanswered))
            if self.receive_maximum is not None and len(self.unanswered) > self.receive_maximum:
                return "receive maximum exceeded"
            is_echo = topic.startswith(b"reflexd/echo/")
            if is_echo or self.acknowledges(topic):
                code = 0 if is_echo else self.puback(topic)
                asyncio.get_running_loop().call_soon(self.acknowledge, identifier, code)
            if is_echo:
                return None
        self.taken.append((topic, rest[1 + rest[0] :]))
        return None

    def acknowledge(self, identifier: int, code: int = 0) -> None:
        if identifier in self.unanswered:
            self.unanswered.remove(identifier)
            self.send(0x40, identifier.to_bytes(2, "big") + (bytes((code, 0)) if code else b""))

    def send(self, first: int, body: bytes) -> None:
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(bytes((first,)) + variable_length(len(body)) + body)


@asynccontextmanager
async def serving(broker: LimitedBroker, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    server = await asyncio.start_server(broker.serve, sock=listening, ssl=tls, limit=4_096)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if broker.writer is not None:
            broker.writer.close()
