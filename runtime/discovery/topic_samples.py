"""Store what a broker sends while `reflexd discover` listens: samples and the rate of each topic, in bounded memory."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from runtime.mqtt import Address, Connection, Message

MAX_TOPICS = 5_000
MAX_SAMPLES = 6
MAX_PAYLOAD = 262_144
CONNECT_S = 5.0


class NoBroker(Exception):  # noqa: N818 - reads as what happened
    """The broker does not answer; `str` says why and what to do."""


@dataclass(slots=True)
class TopicSamples:
    """What came on one topic."""

    samples: list[bytes] = field(default_factory=list)
    """Distinct payloads, oldest first."""
    count: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    longest_s: float = 0.0
    """Longest time between two messages."""

    def take(self, payload: bytes, now_s: float) -> None:
        """Note one message."""
        if self.count:
            self.longest_s = max(self.longest_s, now_s - self.last_s)
        else:
            self.first_s = now_s
        self.count, self.last_s = self.count + 1, now_s
        if payload not in self.samples and len(self.samples) < MAX_SAMPLES:
            self.samples.append(payload)

    @property
    def rate_hz(self) -> float | None:
        """Messages a second; None for fewer than three."""
        spell_s = self.last_s - self.first_s
        return (self.count - 1) / spell_s if self.count > 2 and spell_s > 0 else None


@dataclass(slots=True)
class Tree:
    """Every topic that was observed."""

    topics: dict[str, TopicSamples] = field(default_factory=dict)
    left_out: int = 0
    """Messages on topics beyond `MAX_TOPICS`, or too large to be read."""

    def take(self, topic: str, payload: bytes, now_s: float) -> None:
        """Note one message; a retained one counts like any other."""
        if len(payload) > MAX_PAYLOAD or (topic not in self.topics and len(self.topics) >= MAX_TOPICS):
            self.left_out += 1
            return
        self.topics.setdefault(topic, TopicSamples()).take(payload, now_s)

    def text(self, topic: str) -> str | None:
        """Return the newest sample of a topic as text; None where there is none or it is no text."""
        observed = self.topics.get(topic)
        if observed is None or not observed.samples:
            return None
        try:
            return observed.samples[-1].decode()
        except UnicodeDecodeError:
            return None


def levels(topic: str) -> Iterator[str]:
    """Every topic that this one lies below, the nearest first."""
    end = topic.rfind("/")
    while end > 0:
        yield topic[:end]
        end = topic.rfind("/", 0, end)


async def listen(
    address: Address, topic_filter: str, seconds: float, progress: Callable[[float, int], None] = lambda _left, _n: None
) -> Tree:
    """Subscribe and listen for a while; publishes nothing.

    Args:
        address: of the broker.
        topic_filter: what to listen to; `#` for everything.
        seconds: how long.
        progress: called about once a second with the seconds that are left and the number of topics.

    Raises:
        NoBroker: there is no connection within `CONNECT_S`.
    """
    tree = Tree()

    def take(message: Message) -> None:
        if message.topic.startswith("$"):
            return
        tree.take(message.topic, message.payload, time.monotonic())

    link = Connection(address, f"reflexd-discover-{secrets.token_hex(6)}", max_incoming=20_000)
    link.subscribe(topic_filter, take, qos=0, retained="send")
    running = asyncio.create_task(link.run(), name="discover mqtt")
    try:
        try:
            async with asyncio.timeout(CONNECT_S):
                await link.up()
        except TimeoutError:
            reason = link.trouble or "it does not answer"
            raise NoBroker(f"no broker on {address.host}:{address.port}: {reason}; check address and login") from None
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            progress(left_s, len(tree.topics))
            await asyncio.sleep(min(1.0, left_s))
    finally:
        running.cancel()
        await asyncio.wait([running])
    return tree
