"""One connection to the broker: the only importer of aiomqtt.

It reconnects by itself (back-off with jitter), and on every connect subscribes first and then says hello. A frozen broker
keeps TCP alive, so an own echo (a QoS 1 publish nobody reads, whose acknowledgement is awaited) notices silence within
half of `keepalive_s`. Nothing is queued without bound: the oldest incoming message makes room for the newest, and what
cannot be sent is dropped; both are counted in `drops`. Payloads are untrusted: a handler raises `Refused`, which is counted.

The client identifier is fixed. The broker therefore ends an older session of the same name, and publishes its will, before it
lets the new one in: a late will can never overwrite a newer status. It knows nothing of what the payloads mean.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from uuid import uuid4

import aiomqtt
import structlog
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from runtime.settings import Credentials, MqttSettings
from runtime.topics import Refused

log = structlog.get_logger(__name__)

STEADY_S = 5.0
"""A session that lasted so long ends the back-off."""
BACKOFF_S = (0.1, 1.5)
KEPT = 100
"""Messages kept for the next connect."""
TAKEN_OVER = 0x8E
T = TypeVar("T")


class MqttLost(ConnectionError):  # noqa: N818 - reads as what happened
    """There is no connection, or no answer in time."""


@dataclass(frozen=True, slots=True)
class Message:
    """One incoming message."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    response_topic: str | None = None
    correlation: bytes | None = None
    stamp_s: float = 0.0
    """Monotonic seconds of its arrival."""


Handler = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when this client vanishes."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


@dataclass(frozen=True, slots=True)
class Address:
    """Where the broker is and who asks."""

    host: str
    port: int
    credentials: Credentials | None = None
    tls: ssl.SSLContext | None = None
    keepalive_s: float = 2.0

    @classmethod
    def of(cls, settings: MqttSettings, process: Literal["gate", "agent", "dashboard"]) -> Address:
        """The address for one process.

        Raises:
            OSError: a certificate file cannot be read (ssl.SSLError: or is none).
        """
        tls = None
        if settings.scheme == "mqtts":
            tls = ssl.create_default_context(cafile=settings.ca)
            if settings.cert is not None:
                tls.load_cert_chain(settings.cert, settings.key)
        return cls(settings.host, settings.port, settings.credentials(process), tls, settings.keepalive_s)


@dataclass(frozen=True, slots=True)
class Subscription:
    """One topic filter and who takes its messages."""

    filter: str
    handler: Handler
    qos: Literal[0, 1] = 1
    retained: Literal["send", "ignore"] = "ignore"
    """`ignore` is Retain Handling 2: what the broker remembers is not sent on subscribing."""
    no_local: bool = False

    @property
    def options(self) -> SubscribeOptions:
        """Retain as published, so that a handler can tell."""
        return SubscribeOptions(
            qos=self.qos,
            noLocal=self.no_local,
            retainAsPublished=True,
            retainHandling=0 if self.retained == "send" else 2,
        )


class _Newest(asyncio.Queue[aiomqtt.Message]):
    """A bounded queue in which the newest pushes the oldest out."""

    dropped = 0

    def put_nowait(self, item: aiomqtt.Message) -> None:
        if self.full():
            self.get_nowait()
            self.dropped += 1
        super().put_nowait(item)


@dataclass(frozen=True, slots=True)
class _Outgoing:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties | None


@dataclass(slots=True)
class Connection:
    """A connection that is kept up while `run` runs. Create it inside the running loop."""

    address: Address
    identifier: str
    will: Will | None = None
    hello: Callable[[], None] = lambda: None
    """Called after subscribing, on every connect; publishes with `post`."""
    changed: Callable[[bool, str], None] = lambda _up, _reason: None
    """Called with the new state and the reason on every change."""
    protected: Callable[[str], bool] = lambda _topic: False
    """Topics that are never answered to, whatever a request asks for."""
    max_incoming: int = 1_000
    max_outgoing: int = 200
    max_packet: int = 2_097_152
    drops: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    connects: int = 0
    _subscriptions: dict[str, Subscription] = field(default_factory=dict)
    _queue: _Newest = field(init=False)
    _client: aiomqtt.Client | None = None
    _group: asyncio.TaskGroup | None = None
    _sending: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _up: asyncio.Event = field(default_factory=asyncio.Event)
    _kept: OrderedDict[str, _Outgoing] = field(default_factory=OrderedDict)
    _answers: dict[bytes, asyncio.Future[Message]] = field(default_factory=dict)
    _heard_s: float = 0.0
    _greeted: bool = False

    def __post_init__(self) -> None:
        self._queue = _Newest(maxsize=self.max_incoming)
        self._idle.set()

    # --- what the owner calls

    @property
    def connected(self) -> bool:
        """Whether the broker answers, as far as is known."""
        return self._up.is_set()

    async def up(self) -> None:
        """Wait for the connection."""
        await self._up.wait()

    def on(
        self,
        topic_filter: str,
        handler: Handler,
        *,
        qos: Literal[0, 1] = 1,
        retained: Literal["send", "ignore"] = "ignore",
        no_local: bool = False,
    ) -> None:
        """Route a filter to a handler, now and after every reconnect. The handler is called in the loop and must be quick."""
        subscription = Subscription(topic_filter, handler, qos, retained, no_local)
        self._subscriptions[topic_filter] = subscription
        if self.connected and self._group is not None and self._client is not None:
            self._group.create_task(self._join(self._client, subscription), name=f"subscribe {topic_filter}")

    def post(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: Literal[0, 1] = 0,
        retain: bool = False,
        expiry_s: float | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        keep: Literal["no", "latest", "all"] = "no",
    ) -> bool:
        """Send without waiting; False when it was dropped (and counted).

        Without a connection `keep` decides: `latest` keeps the newest of each topic for the next connect, `all` keeps every one
        (the oldest of `KEPT` gives way), `no` drops.
        """
        properties = _properties(expiry_s, response_topic, correlation)
        outgoing = _Outgoing(topic, payload, qos, retain, properties)
        if not self.connected:
            return self._keep(outgoing, keep)
        if self._sending >= self.max_outgoing:
            self.drops["outgoing full"] += 1
            return False
        self._start(outgoing)
        return True

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: Literal[0, 1] = 1,
        retain: bool = False,
        expiry_s: float | None = None,
        timeout_s: float = 1.0,
    ) -> None:
        """Send and wait: for the acknowledgement at QoS 1, for the socket at QoS 0.

        Raises:
            MqttLost: no connection, or no acknowledgement in time.
        """
        client = self._client
        if client is None or not self.connected:
            raise MqttLost(f"no connection to {self.address.host}:{self.address.port}")
        try:
            properties = _properties(expiry_s, None, None)
            await _faithful(client.publish(topic, payload, qos, retain, properties, timeout=timeout_s))
        except aiomqtt.MqttError as error:
            raise MqttLost(f"{topic}: {error}") from None

    async def request(self, topic: str, payload: bytes, *, reply_to: str, timeout_s: float = 2.0) -> Message:
        """Publish a request and wait for the answer with the same correlation data on `reply_to`.

        Raises:
            MqttLost: no connection.
            TimeoutError: no answer in time.
        """
        if not self.connected or self._client is None:
            raise MqttLost(f"no connection to {self.address.host}:{self.address.port}")
        if reply_to not in self._subscriptions:
            answers = Subscription(reply_to, self._answered)
            self._subscriptions[reply_to] = answers
            await self._subscribe(self._client, [answers])
        correlation = uuid4().bytes
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[correlation] = future
        try:
            self.post(topic, payload, qos=1, response_topic=reply_to, correlation=correlation)
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            del self._answers[correlation]

    def reply(self, request: Message, payload: bytes, fallback: str) -> bool:
        """Answer on the request's response topic, else on `fallback`; never on a protected topic (counted)."""
        topic = request.response_topic or fallback
        if any(c in topic for c in "+#\0") or topic.startswith("$") or self.protected(topic):
            self.drops["forbidden response topic"] += 1
            topic = fallback
        return self.post(topic, payload, qos=1, correlation=request.correlation)

    async def drained(self, timeout_s: float) -> bool:
        """Wait until everything posted was sent and acknowledged; False when it was not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    async def run(self) -> None:
        """Keep the connection up until cancelled, then take leave so that no will is published."""
        attempt = 0
        while True:
            begun_s = time.monotonic()
            reason = await self._session()
            if _cancelled():  # Python 3.11's TaskGroup loses it when a child fails meanwhile
                raise asyncio.CancelledError
            self.drops["incoming full"] = self._queue.dropped
            attempt = 0 if time.monotonic() - begun_s > STEADY_S else attempt + 1
            delay_s = min(BACKOFF_S[1], BACKOFF_S[0] * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            log.debug("mqtt.retry", client=self.identifier, reason=reason, delay_s=round(delay_s, 2))
            await asyncio.sleep(delay_s)

    # --- one session

    async def _session(self) -> str:
        """From connect to loss; returns why it ended."""
        client = self._new_client()
        reason = "closed by the broker"
        try:
            await self._open(client)
            async with asyncio.TaskGroup() as group:
                self._group, self._client = group, client
                group.create_task(self._watch(client), name=f"{self.identifier} echo")
                try:  # in the body: a child that fails while the group exits miscounts cancels
                    await self._greet(client)
                    await self._receive(client)
                finally:
                    self._leave()
        except (aiomqtt.MqttError, MqttLost) as error:
            reason = _said(error)
        except ExceptionGroup as errors:
            _, other = errors.split((aiomqtt.MqttError, MqttLost))
            if other is not None:
                raise other from None
            reason = _said(errors)
        finally:
            self._leave()
            if _cancelled():  # whatever a child raised meanwhile: without a DISCONNECT the broker publishes the will
                with suppress(aiomqtt.MqttError):
                    await client.__aexit__(None, None, None)
            if self._greeted:
                self._greeted = False
                log.warning("mqtt.lost", client=self.identifier, reason=reason)
                self.changed(False, reason)
            await _shut(client)
        return reason

    def _new_client(self) -> aiomqtt.Client:
        a = self.address
        connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        connect.MaximumPacketSize = self.max_packet
        will = self.will and aiomqtt.Will(self.will.topic, self.will.payload, self.will.qos, self.will.retain)
        password = a.credentials.password if a.credentials else None
        client = aiomqtt.Client(
            a.host,
            a.port,
            identifier=self.identifier,
            username=a.credentials.username if a.credentials else None,
            password=password.get_secret_value() if password else None,
            protocol=aiomqtt.ProtocolVersion.V5,
            will=will or None,
            clean_start=True,
            keepalive=max(2, round(a.keepalive_s)),
            timeout=max(1.0, a.keepalive_s / 2),
            queue_type=self._own_queue,  # type: ignore[arg-type]  # only ever called with maxsize
            max_inflight_messages=100,
            properties=connect,
            tls_context=a.tls,
            socket_options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
        )
        client.pending_calls_threshold = self.max_outgoing
        client._client.connect_timeout = max(1.0, a.keepalive_s / 2)  # aiomqtt leaves paho's 5 s
        return client

    def _own_queue(self, maxsize: int) -> _Newest:  # noqa: ARG002 - the bound is ours
        """One queue for all sessions: what arrived before a loss is still handled."""
        return self._queue

    async def _open(self, client: aiomqtt.Client) -> None:
        """Connect; a cancellation waits for the connecting thread, which would otherwise leave a socket behind."""
        connecting = asyncio.ensure_future(client.__aenter__())
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            await asyncio.wait([connecting])
            if not connecting.cancelled():
                connecting.exception()
            raise

    async def _greet(self, client: aiomqtt.Client) -> None:
        if self._subscriptions:
            await self._subscribe(client, list(self._subscriptions.values()))
        self.connects += 1
        self._greeted = True
        self._up.set()
        log.info("mqtt.connected", client=self.identifier, broker=f"{self.address.host}:{self.address.port}")
        while self._kept:  # before hello: what was kept is older than what is said now
            self._start(self._kept.popitem(last=False)[1])
        self.hello()
        self.changed(True, "connected")

    async def _join(self, client: aiomqtt.Client, subscription: Subscription) -> None:
        """One more subscription in a running session."""
        try:
            await self._subscribe(client, [subscription])
        except aiomqtt.MqttError:
            self._leave()
            raise

    def _leave(self) -> None:
        """From here on nothing is sent: a group that ends takes no more tasks."""
        self._group = self._client = None
        self._up.clear()

    async def _subscribe(self, client: aiomqtt.Client, subscriptions: list[Subscription]) -> None:
        codes: Any = await _faithful(client.subscribe([(s.filter, s.options) for s in subscriptions]))
        for subscription, code in zip(subscriptions, codes, strict=False):
            if code.value >= 0x80:
                log.error(
                    "mqtt.subscription_refused",
                    topic=subscription.filter,
                    reason=str(code),
                    remedy=f"let {self.identifier} read it in the broker's ACL",
                )

    async def _receive(self, client: aiomqtt.Client) -> None:
        async for first in client.messages:
            self._dispatch(first)
            while not self._queue.empty():
                self._dispatch(self._queue.get_nowait())
        raise MqttLost("closed by the broker")

    def _dispatch(self, raw: aiomqtt.Message) -> None:
        self._heard_s = time.monotonic()
        properties = raw.properties
        message = Message(
            str(raw.topic),
            bytes(raw.payload) if isinstance(raw.payload, bytes | bytearray) else str(raw.payload or "").encode(),
            raw.qos,
            raw.retain,
            getattr(properties, "ResponseTopic", None),
            getattr(properties, "CorrelationData", None),
            self._heard_s,
        )
        for name in self._routes(raw.topic):
            try:
                self._subscriptions[name].handler(message)
            except Refused as refusal:
                self.refused[name] += 1
                log.info("mqtt.refused", topic=message.topic, reason=str(refusal))

    def _routes(self, topic: aiomqtt.Topic) -> list[str]:
        exact = topic.value
        return [name for name in self._subscriptions if name == exact or (_wild(name) and topic.matches(name))]

    async def _watch(self, client: aiomqtt.Client) -> None:
        """The echo. Its topic has no readers; the acknowledgement is the answer."""
        topic = f"reflexd/echo/{self.identifier}"
        patience_s = self.address.keepalive_s / 4
        while True:
            await asyncio.sleep(self.address.keepalive_s * 0.15)  # with the patience: 0.4 of the keepalive at most
            asked_s = time.monotonic()
            try:
                await _faithful(client.publish(topic, b"", 1, timeout=patience_s))
            except aiomqtt.MqttError as error:
                stalled = time.monotonic() - asked_s > patience_s * 1.4  # this loop was late, not the broker
                if self._heard_s < asked_s and not stalled:
                    self._leave()
                    raise MqttLost(f"the broker is silent: {error}") from None

    # --- sending

    def _start(self, outgoing: _Outgoing) -> None:
        assert self._group is not None
        assert self._client is not None
        task = self._group.create_task(self._send(self._client, outgoing), name=f"publish {outgoing.topic}")
        self._sending += 1
        self._idle.clear()
        task.add_done_callback(self._sent)  # also of a task that is cancelled before it began

    def _sent(self, _task: asyncio.Task[None]) -> None:
        self._sending -= 1
        if not self._sending:
            self._idle.set()

    async def _send(self, client: aiomqtt.Client, out: _Outgoing) -> None:
        try:
            await client.publish(out.topic, out.payload, out.qos, out.retain, out.properties)
        except aiomqtt.MqttError:
            self.drops["not acknowledged"] += 1
        except ValueError as error:  # paho: a topic or payload it cannot write
            self.drops["unsendable"] += 1
            log.warning("mqtt.unsendable", topic=out.topic, reason=str(error))

    def _keep(self, outgoing: _Outgoing, keep: Literal["no", "latest", "all"]) -> bool:
        if keep == "no":
            self.drops["disconnected"] += 1
            return False
        key = outgoing.topic if keep == "latest" else uuid4().hex
        self._kept.pop(key, None)
        self._kept[key] = outgoing
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
            self.drops["disconnected"] += 1
        return True

    def _answered(self, message: Message) -> None:
        future = self._answers.get(message.correlation or b"")
        if future is not None and not future.done():
            future.set_result(message)


def _cancelled() -> bool:
    """Whether this task was told to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _faithful(call: Coroutine[Any, Any, T]) -> T:
    """Await a call of aiomqtt; Python 3.11's `wait_for` inside it swallows a cancellation that comes with the answer."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    result = await call
    if task.cancelling() > before:
        raise asyncio.CancelledError
    return result


def _wild(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter or topic_filter.startswith("$share/")


def _properties(expiry_s: float | None, response_topic: str | None, correlation: bytes | None) -> Properties | None:
    if expiry_s is None and response_topic is None and correlation is None:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if expiry_s is not None:  # whole seconds on the wire, rounded up; `ttl_ms` in the payload is exact
        properties.MessageExpiryInterval = max(1, int(-(-expiry_s // 1)))
    if response_topic is not None:
        properties.ResponseTopic = response_topic
    if correlation is not None:
        properties.CorrelationData = correlation
    return properties


def _said(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(sorted({_said(inner) for inner in error.exceptions}))
    code = getattr(getattr(error, "rc", None), "value", None)
    if code == TAKEN_OVER:
        return "another client uses this identifier: give each agent its own name (agent:)"
    return str(error) or type(error).__name__


async def _shut(client: aiomqtt.Client) -> None:
    """Close what aiomqtt leaves open when a connect fails half-way or the broker is silent."""
    client._client._sock_close()
    housekeeping = client._misc_task
    if housekeeping is not None and not housekeeping.done():
        housekeeping.cancel()
        await asyncio.wait([housekeeping])
    for future in (client._connected, client._disconnected):
        if future.done() and not future.cancelled():
            future.exception()  # retrieved, so that asyncio does not complain
