"""Receiving: subscriptions, who takes the messages of each, and answers to requests of our own."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiomqtt
import structlog

from runtime.mqtt.client import faithful
from runtime.mqtt.models import Message, Subscription, wild
from runtime.mqtt.topics import Refused

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Receiver:
    """Routes what arrives.

    Args:
        identifier: of the client, for what is said.
        refused: messages that a handler refused, by filter; shared with the connection.
    """

    identifier: str
    refused: Counter[str]
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    """By filter; all of them are made anew at every connect."""
    heard_s: float = 0.0
    """Monotonic seconds of the last message."""
    _answers: dict[bytes, asyncio.Future[Message]] = field(default_factory=dict)

    def await_answers(self, topic: str) -> Subscription:
        """From now on, messages on this topic answer questions."""
        self.subscriptions[topic] = Subscription(topic, self._answered)
        return self.subscriptions[topic]

    def question(self) -> tuple[bytes, asyncio.Future[Message]]:
        """Correlation data of a new question, and where its answer will be."""
        correlation = uuid4().bytes
        self._answers[correlation] = asyncio.get_running_loop().create_future()
        return correlation, self._answers[correlation]

    def forget(self, correlation: bytes) -> None:
        """Nobody waits for this answer any more."""
        del self._answers[correlation]

    async def subscribe(self, client: aiomqtt.Client, subscriptions: list[Subscription]) -> None:
        """Tell the broker; a refusal is logged with its remedy.

        Raises:
            aiomqtt.MqttError: no answer in time.
        """
        if not subscriptions:
            return
        codes: Any = await faithful(client.subscribe([(s.filter, s.options) for s in subscriptions]))
        for subscription, code in zip(subscriptions, codes, strict=False):
            if code.value >= 0x80:
                log.error(
                    "mqtt.subscription_refused",
                    topic=subscription.filter,
                    reason=str(code),
                    remedy=f"let {self.identifier} read it in the broker's ACL",
                )

    def dispatch(self, raw: aiomqtt.Message) -> None:
        """Give a message to every handler whose filter it matches."""
        self.heard_s = time.monotonic()
        properties = raw.properties
        message = Message(
            str(raw.topic),
            bytes(raw.payload) if isinstance(raw.payload, bytes | bytearray) else str(raw.payload or "").encode(),
            raw.qos,
            raw.retain,
            getattr(properties, "ResponseTopic", None),
            getattr(properties, "CorrelationData", None),
            self.heard_s,
        )
        for name in self._routes(raw.topic):
            try:
                self.subscriptions[name].handler(message)
            except Refused as refusal:
                self.refused[name] += 1
                log.info("mqtt.refused", topic=message.topic, reason=str(refusal))

    def _routes(self, topic: aiomqtt.Topic) -> list[str]:
        exact = topic.value
        return [name for name in self.subscriptions if name == exact or (wild(name) and topic.matches(name))]

    def _answered(self, message: Message) -> None:
        future = self._answers.get(message.correlation or b"")
        if future is not None and not future.done():
            future.set_result(message)
