"""Define what a connection uses: messages, subscriptions, wills, addresses, and the properties of MQTT 5.

Specification: MQTT 5.0 (OASIS 2019); retain handling 3.8.3.1, message expiry 3.3.2.3.3, request and response 4.10.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from paho.mqtt.subscribeoptions import SubscribeOptions

from runtime.config.mqtt_settings import Client, Credentials, MqttSettings


class MqttLost(ConnectionError):  # noqa: N818 - reads as what happened
    """There is no connection, or no answer in time."""


LASTING_REFUSALS = frozenset({0x87, 0x90, 0x99})
"""Not authorized, topic name invalid, payload format invalid (MQTT 5.0, 3.4.2.1): the same message is refused again.

Any other one may pass: a quota, a packet identifier in use, an unspecified or implementation specific error.
"""


class WithReasonCode(Exception):  # noqa: N818 - a part of errors
    """An error with the reason code of an acknowledgement.

    Args:
        reason: as a text.
        code: the reason code (MQTT 5.0, 3.4.2.1).
    """

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


class BrokerRefused(WithReasonCode, MqttLost):
    """The broker took a message and refused it, such as by its ACL."""

    @property
    def is_lasting(self) -> bool:
        """Whether the broker will refuse the same message again."""
        return self.code in LASTING_REFUSALS


class BrokerSilent(MqttLost):
    """The broker acknowledged nothing in time; this side ended the session."""


def _nothing() -> None:
    """Acknowledge nothing."""


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
    resumed: bool = False
    """It arrived shortly after a session was resumed, so the broker may have stored it, and its age is unknown."""
    properties: tuple[tuple[str, str], ...] = ()
    """User properties of MQTT 5, as name and value."""
    acknowledge: Callable[[], None] = field(default=_nothing, compare=False, repr=False)
    """Acknowledges it to the broker where the connection has `handlers_acknowledge`; does nothing elsewhere."""


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
    def of(cls, settings: MqttSettings, client: Client) -> Address:
        """Return the address for one client.

        Raises:
            ValueError: other clients have a login and this one has none.
            OSError: a certificate file cannot be read (ssl.SSLError: or is none).
        """
        tls = None
        if settings.scheme == "mqtts":
            tls = ssl.create_default_context(cafile=settings.ca)
            if settings.cert is not None:
                tls.load_cert_chain(settings.cert, settings.key)
        return cls(settings.host, settings.port, settings.credentials(client), tls, settings.keepalive_s)


@dataclass(frozen=True, slots=True)
class Limit:
    """How often a handler is called for one sender's messages on one topic; between two calls the newest message wins."""

    rate_hz: float
    burst: int


@dataclass(frozen=True, slots=True)
class Subscription:
    """One topic filter and who takes its messages."""

    filter: str
    handler: Handler
    qos: Literal[0, 1] = 1
    retained: Literal["send", "ignore"] = "ignore"
    """`ignore` is Retain Handling 2: what the broker remembers is not sent on subscribing."""
    no_local: bool = False
    limit: Limit | None = None
    as_published: bool = True
    """False: the retain flag distinguishes a stored message from a new one."""

    @property
    def options(self) -> SubscribeOptions:
        """The options of MQTT 5."""
        return SubscribeOptions(
            qos=self.qos,
            noLocal=self.no_local,
            retainAsPublished=self.as_published,
            retainHandling=0 if self.retained == "send" else 2,
        )


@dataclass(frozen=True, slots=True)
class PublishMessage:
    """One message on its way out."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: bytes
    """As `properties` encodes them."""


def wild(topic_filter: str) -> bool:
    """Return whether a filter may match more than the topic of its own name."""
    return "+" in topic_filter or "#" in topic_filter or topic_filter.startswith("$share/")


def properties(expiry_s: float | None, response_topic: str | None, correlation: bytes | None) -> bytes:
    """Return the properties of a PUBLISH packet with their length in front (MQTT 5.0, 3.3.2.3)."""
    found = b""
    if expiry_s is not None:  # whole seconds on the wire, rounded up; `ttl_ms` in the payload is exact
        found += b"\x02" + max(1, int(-(-expiry_s // 1))).to_bytes(4, "big")
    if response_topic is not None:
        found += b"\x08" + _with_size(response_topic.encode())
    if correlation is not None:
        found += b"\x09" + _with_size(correlation)
    return variable_length(len(found)) + found


def variable_length(number: int) -> bytes:
    """Return a number as a variable byte integer (MQTT 5.0, 1.5.5)."""
    found = bytearray()
    while True:
        number, low = divmod(number, 128)
        found.append(low | (128 if number else 0))
        if not number:
            return bytes(found)


def _with_size(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
