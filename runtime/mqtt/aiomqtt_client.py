"""Create, open and close aiomqtt's client with the options that reflexd needs, and without leaks.

Only this module and `packets.py` use private parts of aiomqtt and paho. They need them for what the public parts cannot do: the
connect timeout, packets that cost little, and closing a half-open connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from runtime.mqtt.connection_types import Address, PublishMessage, Will
from runtime.mqtt.packets import PacketReader, PacketWriter, Settled
from runtime.mqtt.socket_options import SEND_AT_ONCE, acknowledge_at_once

TAKEN_OVER = 0x8E
T = TypeVar("T")


class Newest(asyncio.Queue[aiomqtt.Message]):
    """A bounded queue in which the newest pushes the oldest out.

    Args:
        maxsize: messages.
        most_bytes: a longer payload is cut to one byte more, so that its handler refuses it; None for no such limit.
    """

    dropped = 0
    arrived = 0

    def __init__(self, maxsize: int = 0, most_bytes: int | None = None) -> None:
        super().__init__(maxsize)
        self._most_bytes = most_bytes
        self.on_drop: Callable[[], None] = lambda: None
        """Called after each item that was dropped."""
        self.session: aiomqtt.Client | None = None
        """The client that receives; each item has it as `session`."""

    def put_nowait(self, item: aiomqtt.Message) -> None:
        """Take an item; the oldest is dropped (and counted) where there is no room."""
        self.arrived += 1
        if self.session is not None:
            item.session = self.session  # type: ignore[attr-defined]  # an acknowledgement belongs to the session of its message
        if self._most_bytes is not None and isinstance(item.payload, bytes | bytearray):
            item.payload = item.payload[: self._most_bytes + 1]
        if self.full():
            self._drop_one()
            self.dropped += 1
            self.on_drop()
        super().put_nowait(item)

    def _drop_one(self) -> None:
        """Drop the oldest item; where handlers acknowledge, the oldest of QoS 0.

        There the broker sends no more of QoS 1 than have room here. It would count one that is dropped as under way for ever.
        """
        waiting: deque[aiomqtt.Message] = self._queue  # type: ignore[attr-defined]  # of asyncio's queue
        if self.session is not None:
            for index, each in enumerate(waiting):
                if not each.qos:
                    del waiting[index]
                    return
        self.get_nowait()


def make(
    address: Address,
    identifier: str,
    will: Will | None,
    queue: Newest,
    *,
    max_packet: int,
    session_s: int = 0,
    handlers_acknowledge: bool = False,
) -> aiomqtt.Client:
    """Make a client that is not connected yet; every session uses `queue`, so what arrived before a loss is still handled.

    The broker stores the session, with its QoS 1 messages, for `session_s` seconds after a disconnect. With `handlers_acknowledge`
    nothing is acknowledged but by `acknowledge`, and the broker sends no more than the queue holds before that.
    """

    def own_queue(maxsize: int) -> Newest:  # noqa: ARG001 - the bound is ours
        return queue

    a = address
    connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    connect.MaximumPacketSize = max_packet
    if session_s:
        connect.SessionExpiryInterval = session_s
    if handlers_acknowledge:
        connect.ReceiveMaximum = queue.maxsize
    last = will and aiomqtt.Will(will.topic, will.payload, will.qos, will.retain)
    password = a.credentials.password if a.credentials else None
    client = aiomqtt.Client(
        a.host,
        a.port,
        identifier=identifier,
        username=a.credentials.username if a.credentials else None,
        password=password.get_secret_value() if password else None,
        protocol=aiomqtt.ProtocolVersion.V5,
        will=last or None,
        clean_start=not session_s,
        keepalive=max(2, round(a.keepalive_s)),
        timeout=max(1.0, a.keepalive_s / 2),
        queue_type=own_queue,  # type: ignore[arg-type]  # only ever called with maxsize
        max_inflight_messages=1_000,
        properties=connect,
        tls_context=a.tls,
        socket_options=(SEND_AT_ONCE,),
    )
    remember_session(client)
    client._client.manual_ack_set(handlers_acknowledge)
    client._client.connect_timeout = max(1.0, a.keepalive_s / 2)  # aiomqtt leaves paho's 5 s
    client._packets = PacketWriter(client, client.timeout)  # type: ignore[attr-defined]
    PacketReader(client, acknowledge_at_once)
    write_at_once(client)
    return client


def was_resumed(client: aiomqtt.Client) -> bool:
    """Return whether the broker had stored the session of this connected client."""
    return bool(getattr(client, "_resumed", False))


def remember_session(client: aiomqtt.Client) -> None:
    """Note whether the broker resumes a stored session; aiomqtt drops the flag."""
    connected: Any = client._client.on_connect

    def note(paho_client: paho.Client, userdata: Any, flags: Any, code: Any, properties: Properties) -> None:
        client._resumed = bool(flags.session_present)  # type: ignore[attr-defined]
        connected(paho_client, userdata, flags, code, properties)

    client._client.on_connect = note  # type: ignore[assignment]  # of the callback API version that aiomqtt chose


def acknowledge(client: aiomqtt.Client, message: aiomqtt.Message) -> None:
    """Acknowledge a message of a client that was made with `handlers_acknowledge`; a repeated call does nothing."""
    if not getattr(message, "is_acknowledged", False):
        message.is_acknowledged = True  # type: ignore[attr-defined]  # its identifier may be in use again
        client._client.ack(message.mid, message.qos)


def submit(client: aiomqtt.Client, out: PublishMessage, settled: Settled, *, urgent: bool = False) -> int | None:
    """Send a message without waiting; `settled` is called once (`PacketWriter.publish`).

    Raises:
        ValueError: a topic or payload that cannot be written.
    """
    writer: PacketWriter = client._packets  # type: ignore[attr-defined]
    return writer.publish(out, settled, urgent=urgent)


def withdraw(client: aiomqtt.Client, identifier: int) -> bool:
    """Keep a message that waits from leaving (`PacketWriter.withdraw`)."""
    writer: PacketWriter = client._packets  # type: ignore[attr-defined]
    return writer.withdraw(identifier)


def outcome() -> tuple[asyncio.Future[None], Settled]:
    """Return what waits for the end of a publish, and what is to be called at that end."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settled(error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    return future, settled


async def publish(
    client: aiomqtt.Client, out: PublishMessage, timeout_s: float | None = None, *, urgent: bool = False
) -> None:
    """Publish and wait: for the acknowledgement at QoS 1, for the socket at QoS 0.

    Raises:
        PublishRefused: the broker refused it.
        aiomqtt.MqttError: no connection, or no acknowledgement in time.
        ValueError: a topic or payload that cannot be written.
    """
    future, settled = outcome()
    writer: PacketWriter = client._packets  # type: ignore[attr-defined]
    writer.publish(out, settled, timeout_s, urgent=urgent)
    await future


def answered_s(client: aiomqtt.Client, patience_s: float) -> float:
    """Return the monotonic seconds of the newest acknowledgement that came within `patience_s`; minus infinity before the first."""
    sent_s, acknowledged_s = client._packets.answer  # type: ignore[attr-defined]
    return float(acknowledged_s) if acknowledged_s - sent_s <= patience_s else float("-inf")


def write_at_once(client: aiomqtt.Client) -> None:
    """Write a packet when it is published, where the socket takes it; aiomqtt goes three times through the loop for each.

    paho calls this when a packet waits. What the socket does not take, what another thread sends (it connects), and what is sent
    from within a callback of paho, leave as aiomqtt does it.
    """
    inner = client._client
    wait_until_writable: Any = inner.on_socket_register_write
    loop = asyncio.get_running_loop()

    def write(paho_client: paho.Client, userdata: Any, sock: Any) -> None:
        is_free = asyncio._get_running_loop() is loop and inner._in_callback_mutex.acquire(blocking=False)
        if is_free:
            inner._in_callback_mutex.release()
            try:
                inner.loop_write()
            except Exception as error:  # noqa: BLE001 - as aiomqtt does where it writes
                if not client._disconnected.done():
                    client._disconnected.set_exception(error)
                return
        if paho_client.socket() is sock and (not is_free or inner.want_write()):  # a failed write has closed it
            wait_until_writable(paho_client, userdata, sock)

    inner.on_socket_register_write = write


async def connect(client: aiomqtt.Client) -> None:
    """Connect; a cancellation waits for the connecting thread, which would otherwise leave a socket behind."""
    connecting = asyncio.ensure_future(client.__aenter__())
    try:
        await asyncio.shield(connecting)
    except asyncio.CancelledError:
        await asyncio.wait([connecting])
        if not connecting.cancelled():
            connecting.exception()
        raise


async def shut(client: aiomqtt.Client) -> None:
    """Close what aiomqtt leaves open when a connect fails half-way or the broker is silent."""
    client._packets.close()  # type: ignore[attr-defined]
    client._client._sock_close()
    for future in (client._connected, client._disconnected):
        if future.done() and not future.cancelled():
            future.exception()  # retrieved, so that asyncio does not complain
    housekeeping = client._misc_task
    if housekeeping is not None and not housekeeping.done():
        housekeeping.cancel()
        await asyncio.wait([housekeeping])


def cancelled() -> bool:
    """Return whether this task is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def faithful(call: Coroutine[Any, Any, T]) -> T:
    """Await a call of aiomqtt; Python 3.11's `wait_for` inside it swallows a cancellation that comes with the answer."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    result = await call
    if task.cancelling() > before:
        raise asyncio.CancelledError
    return result


def error_text(error: BaseException) -> str:
    """Return an error as a text."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(sorted({error_text(inner) for inner in error.exceptions}))
    code = getattr(getattr(error, "rc", None), "value", None)
    if code == TAKEN_OVER:
        return "another client uses this identifier: give each agent its own name (agent:)"
    return str(error) or type(error).__name__
