"""Maintain one connection to the broker.

The connection reconnects automatically (back-off with jitter). On every connect it subscribes first, then publishes its greeting.
A frozen broker keeps TCP alive. The connection therefore publishes an echo with QoS 1 and waits for the acknowledgement, which
detects a silent broker within half of `keepalive_s`.

Every queue is bounded: the oldest incoming message is dropped for the newest, and what cannot be sent is dropped. Both are
counted in `drops`. Payloads are untrusted: a handler raises `Refused`, which is counted.

The client identifier is fixed. The broker therefore ends an older session of the same name, and publishes its will, before it
accepts the new one. A late will can never overwrite a newer status. This module knows nothing of the meaning of payloads.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import aiomqtt
import structlog

from runtime.config.mqtt_names import topic_problem
from runtime.mqtt import handshake
from runtime.mqtt.aiomqtt_client import (
    Newest,
    acknowledge,
    answered_s,
    cancelled,
    connect,
    error_text,
    faithful,
    make,
    publish,
    shut,
    was_resumed,
)
from runtime.mqtt.connection_problem import ConnectionProblem
from runtime.mqtt.connection_types import (
    Address,
    BrokerRefused,
    BrokerSilent,
    Handler,
    Limit,
    Message,
    MqttLost,
    PublishMessage,
    Subscription,
    Will,
    properties,
)
from runtime.mqtt.packets import PublishRefused
from runtime.mqtt.publisher import Done, Keep, Sender
from runtime.mqtt.subscriber import Receiver

log = structlog.get_logger(__name__)

STEADY_S = 5.0
"""A session that lasted so long ends the back-off; one that ended because the broker was silent does so too."""
BACKOFF_S = (0.1, 1.5)
SHORT_SESSIONS_S = 10.0
"""Longest pause while sessions do not last: two clients of one name must not end each other's sessions all the time."""
SUBSCRIBE_AGAIN_S = 5.0
"""Between two attempts at subscriptions that the broker refused."""
AT_ONCE = 32
"""Messages handled in one turn of the loop."""
TURN_S = 0.001
"""Between two looks at whether messages have been handled."""
NO_PROPERTIES = properties(None, None, None)
"""Of the echo."""


@dataclass(slots=True)
class Connection:
    """A connection that reconnects while `run` runs. Create it inside the running loop."""

    address: Address
    identifier: str
    will: Will | None = None
    on_connect: Callable[[], None] = lambda: None
    """Called after subscribing, on every connect; publishes with `enqueue`."""
    on_connection_change: Callable[[bool, str], None] = lambda _up, _reason: None
    """Called with the new state and the reason on every change."""
    on_subscription_change: Callable[[], None] = lambda: None
    """Called when a subscription of a running session was refused, granted after a refusal, or refused otherwise (`denial`)."""
    response_prefix: str = ""
    """Answers go only to topics that begin with it, whatever topic a request names."""
    session_s: int = 0
    """How long the broker keeps the session and stores QoS 1 messages while this client is away."""
    max_incoming: int = 1_000
    max_outgoing: int = 200
    max_packet: int = 2_097_152
    """Bytes of the largest packet that the broker may send; it drops a larger one, and reports it to neither side."""
    max_payload: int | None = None
    """A longer payload is cut to one byte more, so that its handler refuses and counts it; default: no limit but `max_packet`."""
    handlers_acknowledge: bool = False
    """A handler acknowledges each message itself, once its work is done; until then the broker stores it. What a handler refuses, and
    what none takes, is acknowledged at once. The broker sends at most `max_incoming` that are not acknowledged."""
    drops: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    connects: int = 0
    _inbound: Receiver = field(init=False)
    _queue: Newest = field(init=False)
    _client: aiomqtt.Client | None = None
    _group: asyncio.TaskGroup | None = None
    _sender: Sender = field(init=False)
    _trouble: ConnectionProblem = field(init=False)
    _up: asyncio.Event = field(default_factory=asyncio.Event)
    _greeted: bool = False
    _handled: int = 0

    def __post_init__(self) -> None:
        self._queue = Newest(self.max_incoming, self.max_payload)
        self._inbound = Receiver(self.identifier, self.refused, self.drops)
        self._trouble = ConnectionProblem(self.address, self.identifier)
        self._sender = Sender(self.max_outgoing, self.drops)

    # --- what the owner calls

    @property
    def connected(self) -> bool:
        """Whether the broker answers, as far as is known."""
        return self._up.is_set()

    @property
    def trouble(self) -> str | None:
        """Why there is no connection, or why it does not last, with the remedy; None while it is in order."""
        return self._trouble.reason

    def denial(self, topic_filter: str) -> str | None:
        """Return why the broker refuses the subscription to a filter; None while it does not. It is asked for again now and then."""
        return self._inbound.denied.get(topic_filter)

    @property
    def denials(self) -> dict[str, str]:
        """Why the broker refuses subscriptions, by filter."""
        return dict(self._inbound.denied)

    @property
    def dropped_incoming(self) -> int:
        """How many messages were dropped before anything read them, because too many came at once."""
        return self._queue.dropped

    def when_dropping(self, call: Callable[[], None]) -> None:
        """Have this called after each incoming message that was dropped before anything read it."""
        self._queue.on_drop = call

    async def up(self) -> None:
        """Wait for the connection."""
        await self._up.wait()

    def subscribe(
        self,
        topic_filter: str,
        handler: Handler,
        *,
        qos: Literal[0, 1] = 1,
        retained: Literal["send", "ignore"] = "ignore",
        no_local: bool = False,
        limit: Limit | None = None,
        as_published: bool = True,
    ) -> None:
        """Route a filter to a handler, now and after every reconnect. The handler is called in the loop and must be quick."""
        subscription = Subscription(topic_filter, handler, qos, retained, no_local, limit, as_published)
        self._inbound.subscriptions[topic_filter] = subscription
        if self.connected and self._group is not None and self._client is not None:
            self._group.create_task(self._join(self._client, [subscription]), name=f"subscribe {topic_filter}")

    def unsubscribe(self, topic_filter: str) -> None:
        """Receive a filter no more; the broker may still deliver what it has sent."""
        self._inbound.subscriptions.pop(topic_filter, None)
        self._inbound.denied.pop(topic_filter, None)
        if self.connected and self._group is not None and self._client is not None:
            self._group.create_task(self._unsubscribe(self._client, topic_filter), name=f"unsubscribe {topic_filter}")

    def enqueue(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: Literal[0, 1] = 0,
        retain: bool = False,
        expiry_s: float | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        keep: Keep = "no",
    ) -> bool:
        """Send without waiting; False when it was dropped (and counted).

        Without a connection `keep` decides: `latest` keeps the newest of each topic for the next connect, `all` keeps every one
        (the oldest of `MAX_RETAINED` gives way), `no` drops.
        """
        outgoing = PublishMessage(topic, payload, qos, retain, properties(expiry_s, response_topic, correlation))
        return self._sender.send(outgoing) if self.connected else self._sender.keep(outgoing, keep)

    def send_newest(
        self,
        key: str,
        topic: str,
        payload: bytes,
        done: Done,
        *,
        urgent: bool = False,
        retain: bool = False,
        expiry_s: float | None = None,
    ) -> None:
        """Send the newest message of `key` at QoS 1, in a place of its own; `done` is called once with what became of it.

        An urgent one leaves at once; another one waits for the acknowledgement of the one before, and a newer one replaces it.
        """
        outgoing = PublishMessage(topic, payload, 1, retain, properties(expiry_s, None, None))
        self._sender.send_newest(key, outgoing, done, urgent=urgent)

    def discard(self, key: str) -> None:
        """Keep a message of this key that waits from leaving; its `done` is called with `unsent`."""
        self._sender.discard(key)

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
            BrokerRefused: the broker refuses it, such as by its ACL.
            MqttLost: no connection, or no acknowledgement in time.
        """
        client = self._client
        if client is None or not self.connected:
            raise MqttLost(f"no connection to {self.address.host}:{self.address.port}")
        try:
            out = PublishMessage(topic, payload, qos, retain, properties(expiry_s, None, None))
            await publish(client, out, timeout_s)
        except aiomqtt.MqttError as error:
            reason = f"{topic}: {error}"
            raise (
                BrokerRefused(reason, error.code) if isinstance(error, PublishRefused) else MqttLost(reason)
            ) from None

    def expect_answers(self, reply_to: str) -> None:
        """Subscribe to a response topic at each connect, so that no request waits for the subscription."""
        self._inbound.await_answers(reply_to)

    async def request(self, topic: str, payload: bytes, *, reply_to: str, timeout_s: float = 2.0) -> Message:
        """Publish a request and wait for the answer with the same correlation data on `reply_to`.

        Raises:
            MqttLost: no connection, or the broker did not acknowledge the subscription to `reply_to` in time.
            TimeoutError: no answer in time.
        """
        if not self.connected or self._client is None:
            raise MqttLost(f"no connection to {self.address.host}:{self.address.port}")
        if reply_to not in self._inbound.subscriptions:
            try:
                await self._inbound.subscribe(self._client, [self._inbound.await_answers(reply_to)], timeout_s)
            except aiomqtt.MqttError as error:
                raise MqttLost(f"{reply_to}: {error}") from None
        correlation, future = self._inbound.question()
        try:
            self.enqueue(topic, payload, qos=1, response_topic=reply_to, correlation=correlation)
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            self._inbound.forget(correlation)

    def reply(self, request: Message, payload: bytes, fallback: str) -> bool:
        """Answer on the request's response topic, else on `fallback` (counted): never outside `response_prefix`.

        Nor on a topic over which a broker would end this connection.
        """
        topic = request.response_topic or fallback
        is_wild = any(c in topic for c in "+#") or topic.startswith("$")
        if is_wild or not topic.startswith(self.response_prefix) or topic_problem(topic) is not None:
            self.drops["forbidden response topic"] += 1
            topic = fallback
        return self.enqueue(topic, payload, qos=1, correlation=request.correlation)

    async def caught_up(self, timeout_s: float) -> bool:
        """Wait until what the broker had sent here before this call is handled; False when it was not in time.

        The broker acknowledges an echo, and everything that it sent before the acknowledgement comes first on the same socket.
        """
        try:
            async with asyncio.timeout(timeout_s):
                with suppress(BrokerRefused):  # an ACL without the echo: the refusal is an answer, too
                    await self.publish(f"reflexd/echo/{self.identifier}", b"", timeout_s=timeout_s)
                arrived = self._queue.arrived
                while self._handled + self._queue.dropped < arrived:  # noqa: ASYNC110 - the queue announces nothing
                    await asyncio.sleep(TURN_S)
        except (MqttLost, TimeoutError):
            return False
        return True

    async def drained(self, timeout_s: float) -> bool:
        """Wait until everything posted was sent and acknowledged; False when it was not in time."""
        return await self._sender.drained(timeout_s)

    async def run(self) -> None:
        """Keep the connection up until cancelled, then take leave so that no will is published."""
        attempt = 0
        while True:
            begun_s = time.monotonic()
            reason = await self._session()
            if cancelled():  # Python 3.11's TaskGroup loses it when a child fails meanwhile
                raise asyncio.CancelledError
            self.drops["incoming full"] = self._queue.dropped
            is_over = self._trouble.was_silent or time.monotonic() - begun_s > STEADY_S
            attempt = 0 if is_over else attempt + 1
            longest_s = SHORT_SESSIONS_S if self._trouble.is_short_lived else BACKOFF_S[1]
            delay_s = min(longest_s, BACKOFF_S[0] * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            log.debug("mqtt.retry", client=self.identifier, reason=reason, delay_s=round(delay_s, 2))
            await asyncio.sleep(delay_s)

    # --- one session

    async def _session(self) -> str:
        """From connect to loss; returns why it ended."""
        client = self._new_client()
        reason = "closed by the broker"
        failure: BaseException = MqttLost(reason)
        try:
            await connect(client)
            handshake.check(client)
            self._inbound.resumed_s = time.monotonic() if was_resumed(client) else float("-inf")
            async with asyncio.TaskGroup() as group:
                self._group, self._client = group, client
                self._sender.begin(client)
                group.create_task(self._watch(client), name=f"{self.identifier} echo")
                group.create_task(self._subscribe_again(client), name=f"{self.identifier} refused subscriptions")
                try:  # in the body: a child that fails while the group exits miscounts cancels
                    await self._greet(client)
                    await self._receive(client)
                finally:
                    self._leave()
        except (aiomqtt.MqttError, MqttLost) as error:
            reason, failure = error_text(error), handshake.cause(client, error)
        except ExceptionGroup as errors:
            _, other = errors.split((aiomqtt.MqttError, MqttLost))
            if other is not None:
                raise other from None
            reason, failure = error_text(errors), handshake.cause(client, errors)
        finally:
            self._leave()
            if cancelled():  # whatever a child raised meanwhile: without a DISCONNECT the broker publishes the will
                with suppress(aiomqtt.MqttError):
                    await client.__aexit__(None, None, None)
            if cancelled():
                self._greeted = False
            else:
                reason = self._ended(failure) or reason
            await shut(client)
        return reason

    def _ended(self, failure: BaseException) -> str | None:
        """Log the end of a session, or a failed attempt, as often as is useful; return the reason."""
        due = self._trouble.ended(failure)
        reason = self._trouble.reason
        if due:
            event = "mqtt.lost" if self._greeted else "mqtt.unreachable"
            log.warning(event, client=self.identifier, reason=reason)
        if self._greeted:
            self._greeted = False
            self.on_connection_change(False, reason or "")
        return reason

    def _new_client(self) -> aiomqtt.Client:
        client = make(
            self.address,
            self.identifier,
            self.will,
            self._queue,
            max_packet=self.max_packet,
            session_s=self.session_s,
            handlers_acknowledge=self.handlers_acknowledge,
        )
        self._queue.session = client if self.handlers_acknowledge else None
        handshake.watch(client)
        return client

    async def _greet(self, client: aiomqtt.Client) -> None:
        await self._inbound.subscribe(client, list(self._inbound.subscriptions.values()))
        self.connects += 1
        self._greeted = True
        self._trouble.connected()
        self._up.set()
        (log.debug if self.trouble else log.info)(
            "mqtt.connected", client=self.identifier, broker=f"{self.address.host}:{self.address.port}"
        )
        self._sender.catch_up()  # before the greeting: the stored messages are older
        self.on_connect()
        self.on_connection_change(True, "connected")

    async def _join(self, client: aiomqtt.Client, subscriptions: list[Subscription]) -> None:
        """Add subscriptions to a running session."""
        before = self.denials
        try:
            await self._inbound.subscribe(client, subscriptions)
        except aiomqtt.MqttError:
            self._leave()
            raise
        if before != self.denials:
            self.on_subscription_change()

    async def _subscribe_again(self, client: aiomqtt.Client) -> None:
        """Ask again for what the broker refused: its ACL may have been mended, and nothing says so."""
        while True:
            await asyncio.sleep(SUBSCRIBE_AGAIN_S)
            known = self._inbound.subscriptions
            if denied := [known[name] for name in self._inbound.denied if name in known]:
                await self._join(client, denied)

    async def _unsubscribe(self, client: aiomqtt.Client, topic_filter: str) -> None:
        """Take a filter out of a running session."""
        with suppress(aiomqtt.MqttError):  # the next session does not have it
            await faithful(client.unsubscribe(topic_filter))

    def _leave(self) -> None:
        """From here on nothing is sent: a group that ends takes no more tasks."""
        self._group = self._client = None
        self._sender.leave()
        self._up.clear()

    async def _receive(self, client: aiomqtt.Client) -> None:
        async for first in client.messages:
            self._dispatch(first)
            for _ in range(AT_ONCE):
                if self._queue.empty():
                    break
                self._dispatch(self._queue.get_nowait())
            await asyncio.sleep(0)  # a flood on this connection must not delay another one
        raise MqttLost("closed by the broker")

    def _dispatch(self, message: aiomqtt.Message) -> None:
        self._handled += 1
        if self.handlers_acknowledge and message.qos:
            self._inbound.dispatch(message, partial(self._acknowledge, getattr(message, "session", None), message))
        else:
            self._inbound.dispatch(message)

    def _acknowledge(self, session: aiomqtt.Client | None, message: aiomqtt.Message) -> None:
        """Acknowledge a message of this session; the broker sends one of an earlier session again."""
        if session is not None and session is self._client:
            acknowledge(session, message)

    async def _watch(self, client: aiomqtt.Client) -> None:
        """The echo, where no other acknowledgement shows that the broker responds. Its topic has no readers.

        What the broker sends of itself shows nothing: a slow one still delivers what is late.
        """
        topic = f"reflexd/echo/{self.identifier}"
        patience_s = self.address.keepalive_s / 4
        quiet_s = self.address.keepalive_s * 0.15  # with the patience: 0.4 of the keepalive at most
        asked_s, good_s = time.monotonic(), -math.inf  # each session begins with an echo
        while True:
            left_s = max(good_s, asked_s) + quiet_s - time.monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
                if good_s > -math.inf:
                    good_s = max(good_s, answered_s(client, patience_s))
                continue
            asked_s = time.monotonic()
            try:
                with suppress(PublishRefused):  # an ACL without the echo: the refusal is an answer, too
                    await publish(client, PublishMessage(topic, b"", 1, False, NO_PROPERTIES), patience_s, urgent=True)
            except aiomqtt.MqttError as error:
                stalled = time.monotonic() - asked_s > patience_s * 1.4  # this loop was late, not the broker
                if self._inbound.last_message_s < asked_s and not stalled:
                    self._leave()
                    raise BrokerSilent(
                        f"the broker does not respond ({error}); check the network and the broker"
                    ) from None
            else:
                good_s = time.monotonic()
                self._trouble.answered()
