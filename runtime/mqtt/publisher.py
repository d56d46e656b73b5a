"""Publish messages: ordinary ones in a bounded queue, and the newest of each key (a command, a status) in a place of its own.

`Connection` uses it. Nothing here knows what a payload means. Everything is bounded; what is dropped is counted by cause.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal
from uuid import uuid4

import aiomqtt
import structlog

from runtime.mqtt.client import PublishRefused, publish
from runtime.mqtt.connection_types import PublishMessage

log = structlog.get_logger(__name__)

MAX_RETAINED = 100
"""Number of messages that are stored for the next connect."""
Keep = Literal["no", "latest", "all"]
Delivery = Literal["acknowledged", "undelivered", "unsent"]
"""`undelivered` left and may have arrived; `unsent` did not leave."""
Done = Callable[[Delivery], None]


@dataclass(slots=True)
class PublishSlot:
    """The place of one key: what is under way, and the newest that waits."""

    under_way: int = 0
    urgent_under_way: int = 0
    waiting: tuple[PublishMessage, Done, bool] | None = None
    unstarted: set[asyncio.Task[Delivery]] = field(default_factory=set)
    """Ordinary messages that are not sent yet; an urgent one overtakes them."""

    def is_free(self, *, urgent: bool) -> bool:
        """Return whether a message may leave now: an ordinary one after the one before, an urgent one after an urgent one."""
        return not (self.urgent_under_way if urgent else self.under_way)


@dataclass(slots=True)
class Sender:
    """Sends in tasks of the session's group.

    Args:
        limit: of ordinary messages under way.
        drops: what was dropped, by cause; shared with the connection.
    """

    limit: int
    drops: Counter[str]
    sending: int = 0
    _group: asyncio.TaskGroup | None = None
    _client: aiomqtt.Client | None = None
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _retained: OrderedDict[str, PublishMessage] = field(default_factory=OrderedDict)
    _slots: dict[str, PublishSlot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._idle.set()

    def begin(self, group: asyncio.TaskGroup, client: aiomqtt.Client) -> None:
        """Start a session: messages leave through this client, in tasks of this group."""
        self._group, self._client = group, client

    def leave(self) -> None:
        """End the session: a group that ends takes no more tasks, and what waits does not leave."""
        self._group = self._client = None
        for slot in self._slots.values():
            self._discard(slot, "disconnected")

    def send(self, outgoing: PublishMessage) -> bool:
        """Send without waiting; False when too much is under way."""
        if self.sending >= self.limit:
            self.drops["outgoing full"] += 1
            return False
        self._start(outgoing)
        return True

    def send_newest(self, key: str, outgoing: PublishMessage, done: Done, *, urgent: bool) -> None:
        """Send the newest message of this key; one that waits is replaced.

        Args:
            key: one for each actuator, and one for the status.
            outgoing: the message.
            done: called once with what became of it.
            urgent: it leaves at once, whatever else is under way.
        """
        slot = self._slots.setdefault(key, PublishSlot())
        if urgent:
            self.discard(key)
        self._discard(slot, "superseded")
        if self._group is None:
            self.drops["disconnected"] += 1
            done("unsent")
        elif slot.is_free(urgent=urgent):
            self._start_slot(slot, outgoing, done, urgent=urgent)
        else:
            slot.waiting = (outgoing, done, urgent)

    def discard(self, key: str) -> None:
        """Keep a message of this key that waits from leaving."""
        slot = self._slots.get(key, PublishSlot())
        self._discard(slot, "superseded")
        for task in slot.unstarted:
            task.cancel()

    def keep(self, outgoing: PublishMessage, keep: Keep) -> bool:
        """Without a connection: keep the message for the next one, or drop it."""
        if keep == "no":
            self.drops["disconnected"] += 1
            return False
        key = outgoing.topic if keep == "latest" else uuid4().hex
        self._retained.pop(key, None)
        self._retained[key] = outgoing
        if len(self._retained) > MAX_RETAINED:
            self._retained.popitem(last=False)
            self.drops["disconnected"] += 1
        return True

    def catch_up(self) -> None:
        """Send the stored messages, in order."""
        while self._retained:
            self._start(self._retained.popitem(last=False)[1])

    async def drained(self, timeout_s: float) -> bool:
        """Wait until everything was sent and acknowledged; False when it was not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    def _discard(self, slot: PublishSlot, cause: str) -> None:
        if slot.waiting is not None:
            _, done, _ = slot.waiting
            slot.waiting = None
            self.drops[cause] += 1
            done("unsent")

    def _start(
        self, outgoing: PublishMessage, unstarted: set[asyncio.Task[Delivery]] | None = None
    ) -> asyncio.Task[Delivery]:
        assert self._group is not None
        assert self._client is not None
        task = self._group.create_task(self._send(self._client, outgoing, unstarted), name=f"publish {outgoing.topic}")
        self.sending += 1
        self._idle.clear()
        task.add_done_callback(self._sent)  # also of a task that is cancelled before it began
        return task

    def _start_slot(self, slot: PublishSlot, outgoing: PublishMessage, done: Done, *, urgent: bool) -> None:
        slot.under_way += 1
        slot.urgent_under_way += urgent
        task = self._start(outgoing, slot.unstarted)
        if not urgent:
            slot.unstarted.add(task)
        task.add_done_callback(partial(self._slot_done, slot, done, urgent))

    def _slot_done(self, slot: PublishSlot, done: Done, urgent: bool, task: asyncio.Task[Delivery]) -> None:  # noqa: FBT001 - a callback
        slot.under_way -= 1
        slot.urgent_under_way -= urgent
        if task in slot.unstarted:
            slot.unstarted.discard(task)
            done("unsent")
        else:
            done("undelivered" if task.cancelled() or task.exception() is not None else task.result())
        if slot.waiting is not None and slot.is_free(urgent=slot.waiting[2]) and self._group is not None:
            outgoing, waiting_done, waiting_urgent = slot.waiting
            slot.waiting = None
            self._start_slot(slot, outgoing, waiting_done, urgent=waiting_urgent)

    def _sent(self, _task: asyncio.Task[Delivery]) -> None:
        self.sending -= 1
        if not self.sending:
            self._idle.set()

    async def _send(
        self, client: aiomqtt.Client, out: PublishMessage, unstarted: set[asyncio.Task[Delivery]] | None
    ) -> Delivery:
        if unstarted is not None:
            task = asyncio.current_task()
            assert task is not None
            unstarted.discard(task)
        try:
            await publish(client, out)
        except PublishRefused as error:
            self.drops["refused by the broker"] += 1
            if self.drops["refused by the broker"] in {1, 100, 10_000}:
                remedy = "let this user write the topic in the broker's ACL"
                log.warning("mqtt.publish_refused", topic=out.topic, reason=str(error), remedy=remedy)
            return "undelivered"
        except aiomqtt.MqttError:
            self.drops["not acknowledged"] += 1
            return "undelivered"
        except ValueError as error:  # paho: a topic or payload it cannot write
            self.drops["unsendable"] += 1
            log.warning("mqtt.unsendable", topic=out.topic, reason=str(error))
            return "unsent"
        return "acknowledged"
