"""Receive messages: route each to the handlers of its topic, limit how often a handler is called, match answers to requests.

`Connection` uses it. Nothing here knows what a payload means.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import Any
from uuid import uuid4

import aiomqtt
import structlog

from runtime.mqtt.aiomqtt_client import faithful
from runtime.mqtt.connection_types import Limit, Message, Subscription, wild
from runtime.mqtt.topics import Refused

log = structlog.get_logger(__name__)

FAILURE = 0x80
"""Reason codes of a SUBACK from here on are refusals (MQTT 5.0, 3.9.3)."""
RESUMED_S = 1.0
"""After a session was resumed, messages that the broker stored arrive within this time."""
MAX_SENDERS = 64
"""Senders of one filter that are limited apart; further ones share one limit of each topic, and of all topics at the end."""
MAX_ROUTES = 1_024
"""Number of topics for which the filters are remembered; beyond it they are looked up again."""
SHARED = "#"
"""In place of a topic; no topic of a message has this name."""
Sender = tuple[str, str]
"""The topic and the response topic: MQTT does not name who published."""


@dataclass(slots=True)
class Bucket:
    """A token bucket, and the newest message that waits for a token."""

    limit: Limit
    tokens: float
    filled_s: float
    waiting: Message | None = None

    def is_full(self, now_s: float) -> bool:
        """Return whether it has every token and nothing waits."""
        tokens = self.tokens + (now_s - self.filled_s) * self.limit.rate_hz
        return self.waiting is None and tokens >= self.limit.burst

    def take(self, now_s: float) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        self.tokens = min(self.limit.burst, self.tokens + (now_s - self.filled_s) * self.limit.rate_hz)
        self.filled_s = now_s
        if self.tokens < 1:
            return (1 - self.tokens) / self.limit.rate_hz
        self.tokens -= 1
        return 0.0


@dataclass(slots=True)
class Receiver:
    """Routes what arrives.

    Args:
        identifier: of the client, for the log.
        refused: messages that a handler refused, by filter; shared with the connection.
        drops: messages that a limit replaced by newer ones, by filter; shared with the connection.
    """

    identifier: str
    refused: Counter[str]
    drops: Counter[str]
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    """By filter; subscribed again at every connect."""
    last_message_s: float = 0.0
    """Monotonic seconds of the last message."""
    resumed_s: float = float("-inf")
    """When the broker resumed a stored session."""
    denied: dict[str, str] = field(default_factory=dict)
    """By filter: why the broker refuses the subscription; a later grant removes it."""
    _answers: dict[bytes, asyncio.Future[Message]] = field(default_factory=dict)
    _buckets: dict[str, dict[Sender, Bucket]] = field(default_factory=dict)
    """By filter and sender."""
    _filters: tuple[str, ...] = ()
    """For which `_known_routes` holds."""
    _known_routes: dict[str, list[str]] = field(default_factory=dict)
    """Matching filters by topic."""

    def await_answers(self, topic: str) -> Subscription:
        """Treat messages on this topic as answers to requests from now on."""
        self.subscriptions[topic] = Subscription(topic, self._answered)
        return self.subscriptions[topic]

    def question(self) -> tuple[bytes, asyncio.Future[Message]]:
        """Correlation data of a new request, and the future of its answer."""
        correlation = uuid4().bytes
        self._answers[correlation] = asyncio.get_running_loop().create_future()
        return correlation, self._answers[correlation]

    def forget(self, correlation: bytes) -> None:
        """Wait for this answer no longer."""
        del self._answers[correlation]

    async def subscribe(
        self, client: aiomqtt.Client, subscriptions: list[Subscription], timeout_s: float | None = None
    ) -> None:
        """Subscribe at the broker; a refusal is noted in `denied`, and logged once with its remedy.

        A lower QoS than requested counts as a refusal: the broker then stores nothing for a client that is away.

        Without `timeout_s` the client's own applies.

        Raises:
            aiomqtt.MqttError: no answer in time.
        """
        if not subscriptions:
            return
        codes: Any = await faithful(client.subscribe([(s.filter, s.options) for s in subscriptions], timeout=timeout_s))
        for subscription, code in zip_longest(subscriptions, list(codes)[: len(subscriptions)]):
            before = self.denied.pop(subscription.filter, None)
            denial = _denial(subscription, code)
            if denial is None:
                continue
            self.denied[subscription.filter] = denial
            if before is None:
                log.error(
                    "mqtt.subscription_refused",
                    topic=subscription.filter,
                    reason=denial,
                    remedy=f"let {self.identifier} read it with QoS {subscription.qos} in the broker's ACL and settings",
                )

    def dispatch(self, raw: aiomqtt.Message, acknowledge: Callable[[], None] | None = None) -> None:
        """Pass a message to every handler with a matching filter.

        Args:
            raw: as it arrived.
            acknowledge: for the handler, or called here where no handler takes the message or one refuses it; None where nothing
                waits for it.
        """
        self.last_message_s = time.monotonic()
        properties = raw.properties
        message = Message(
            str(raw.topic),
            bytes(raw.payload) if isinstance(raw.payload, bytes | bytearray) else str(raw.payload or "").encode(),
            raw.qos,
            raw.retain,
            getattr(properties, "ResponseTopic", None),
            getattr(properties, "CorrelationData", None),
            self.last_message_s,
            self.last_message_s - self.resumed_s < RESUMED_S,
            tuple(getattr(properties, "UserProperty", ())),
        )
        routes = self._routes(raw.topic)
        if acknowledge is not None:
            message = replace(message, acknowledge=acknowledge)
            if not routes:
                acknowledge()
        for name in routes:
            subscription = self.subscriptions[name]
            if subscription.limit is None:
                self._handle(subscription, message)
            else:
                self._limit(subscription, subscription.limit, message)

    def _limit(self, subscription: Subscription, limit: Limit, message: Message) -> None:
        """Pass the message on now, or the newest one as soon as the limit allows."""
        bucket = self._bucket(subscription, limit, message)
        if bucket.waiting is not None:
            self.drops[f"too many on {subscription.filter}"] += 1
            bucket.waiting.acknowledge()
            bucket.waiting = message
            return
        wait_s = bucket.take(message.stamp_s)
        if wait_s <= 0:
            self._handle(subscription, message)
            return
        bucket.waiting = message
        asyncio.get_running_loop().call_later(wait_s, partial(self._release, subscription, bucket))

    def _bucket(self, subscription: Subscription, limit: Limit, message: Message) -> Bucket:
        buckets = self._buckets.setdefault(subscription.filter, {})
        key = (message.topic, message.response_topic or "")
        if key not in buckets and len(buckets) >= MAX_SENDERS:
            for idle in [name for name, bucket in buckets.items() if bucket.is_full(message.stamp_s)]:
                del buckets[idle]  # a new one would be the same
        if key not in buckets and len(buckets) >= MAX_SENDERS:
            key = (message.topic, SHARED)
        if key not in buckets and len(buckets) >= 2 * MAX_SENDERS:
            key = (SHARED, SHARED)
        return buckets.setdefault(key, Bucket(limit, limit.burst, message.stamp_s))

    def _release(self, subscription: Subscription, bucket: Bucket) -> None:
        message, bucket.waiting = bucket.waiting, None
        if message is not None:
            bucket.take(time.monotonic())
            self._handle(subscription, message)

    def _handle(self, subscription: Subscription, message: Message) -> None:
        try:
            subscription.handler(message)
        except Refused as refusal:
            self.refused[subscription.filter] += 1
            message.acknowledge()
            log.info("mqtt.refused", topic=message.topic, reason=str(refusal))

    def _routes(self, topic: aiomqtt.Topic) -> list[str]:
        """Return the filters that match a topic; those of the newest `MAX_ROUTES` topics are remembered."""
        filters, exact = tuple(self.subscriptions), topic.value
        if filters != self._filters or len(self._known_routes) > MAX_ROUTES:
            self._filters, self._known_routes = filters, {}
        found = self._known_routes.get(exact)
        if found is None:
            found = [name for name in filters if name == exact or (wild(name) and topic.matches(name))]
            self._known_routes[exact] = found
        return found

    def _answered(self, message: Message) -> None:
        future = self._answers.get(message.correlation or b"")
        if future is not None and not future.done():
            future.set_result(message)


def _denial(subscription: Subscription, code: Any) -> str | None:
    """Return why the broker does not grant a subscription as requested (MQTT 5.0, 3.9.3); None where it does."""
    if code is None:
        return "the broker did not answer for it"
    if code.value >= FAILURE:
        return str(code)
    if code.value < subscription.qos:
        return f"QoS {code.value} granted instead of {subscription.qos}"
    return None
