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

from runtime.mqtt.aiomqtt_client import submit, withdraw
from runtime.mqtt.connection_types import PublishMessage
from runtime.mqtt.packets import PublishRefused, TooLarge, Unsent

log = structlog.get_logger(__name__)

MAX_RETAINED = 100
"""Number of messages that are stored for the next connect."""
FEW = 10
"""Messages that cannot be sent are each logged so long as they are so few."""
Keep = Literal["no", "latest", "all"]
Delivery = Literal["acknowledged", "undelivered", "unsent"]
"""`undelivered` left and may have arrived; `unsent` did not leave, or the broker refused it (MQTT 5.0, 3.4.2.1)."""
Done = Callable[[Delivery], None]


@dataclass(slots=True, eq=False)
class Departure:
    """One message on its way: it leaves in the next turn of the loop, and is over once the broker has answered."""

    outgoing: PublishMessage
    done: Done | None = None
    slot: PublishSlot | None = None
    """That of an ordinary message which an urgent one may overtake."""
    urgent: bool = False
    turn: asyncio.Handle | None = None
    """The turn in which it leaves; None once it was given to the client."""
    waits_as: int | None = None
    """How the client names it while the broker has no room for it."""
    is_over: bool = False


@dataclass(slots=True)
class PublishSlot:
    """The place of one key: what is under way, and the newest that waits."""

    under_way: int = 0
    urgent_under_way: int = 0
    waiting: tuple[PublishMessage, Done, bool] | None = None
    unstarted: list[Departure] = field(default_factory=list)
    """Ordinary messages that have not left yet; an urgent one overtakes them."""

    def is_free(self, *, urgent: bool) -> bool:
        """Return whether a message may leave now: an ordinary one after the one before, an urgent one after an urgent one."""
        return not (self.urgent_under_way if urgent else self.under_way)


@dataclass(slots=True)
class Sender:
    """Sends through the client of the session.

    Args:
        limit: of ordinary messages under way.
        drops: what was dropped, by cause; shared with the connection.
    """

    limit: int
    drops: Counter[str]
    sending: int = 0
    _client: aiomqtt.Client | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _under_way: dict[Departure, None] = field(default_factory=dict)
    """In the order in which they began."""
    _retained: OrderedDict[str, PublishMessage] = field(default_factory=OrderedDict)
    _slots: dict[str, PublishSlot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._idle.set()

    def begin(self, client: aiomqtt.Client) -> None:
        """Start a session: messages leave through this client."""
        self._client, self._loop = client, asyncio.get_running_loop()

    def leave(self) -> None:
        """End the session: what waits does not leave, and what has left may have arrived."""
        client, self._client = self._client, None
        for slot in self._slots.values():
            self._discard(slot, "disconnected")
        for departure in self._under_way:
            if self._recall(departure, client):
                self._abandon(departure, "unsent", "disconnected")
            else:
                self._abandon(departure, "undelivered", "not acknowledged")

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
        if self._client is None:
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
        for departure in slot.unstarted:
            if self._recall(departure, self._client):
                self._abandon(departure, "unsent", "superseded")
        slot.unstarted.clear()

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

    def _start(self, outgoing: PublishMessage, done: Done | None = None, *, urgent: bool = False) -> Departure:
        assert self._loop is not None
        departure = Departure(outgoing, done, urgent=urgent)
        departure.turn = self._loop.call_soon(self._depart, departure)
        self._under_way[departure] = None
        self.sending += 1
        self._idle.clear()
        return departure

    def _start_slot(self, slot: PublishSlot, outgoing: PublishMessage, done: Done, *, urgent: bool) -> None:
        slot.under_way += 1
        slot.urgent_under_way += urgent
        departure = self._start(outgoing, partial(self._slot_done, slot, done, urgent), urgent=urgent)
        if not urgent:
            departure.slot = slot
            slot.unstarted.append(departure)

    def _slot_done(self, slot: PublishSlot, done: Done, urgent: bool, delivery: Delivery) -> None:  # noqa: FBT001 - a callback
        slot.under_way -= 1
        slot.urgent_under_way -= urgent
        done(delivery)
        if slot.waiting is not None and slot.is_free(urgent=slot.waiting[2]) and self._client is not None:
            outgoing, waiting_done, waiting_urgent = slot.waiting
            slot.waiting = None
            self._start_slot(slot, outgoing, waiting_done, urgent=waiting_urgent)

    def _depart(self, departure: Departure) -> None:
        departure.turn = None
        assert self._client is not None
        settled = partial(self._settled, departure)
        try:
            departure.waits_as = submit(self._client, departure.outgoing, settled, urgent=departure.urgent)
        except ValueError as error:
            self._note_unsendable(departure, error)
            self._over(departure, "unsent", "unsendable")
        if departure.waits_as is None:
            self._note_left(departure)

    def _settled(self, departure: Departure, error: Exception | None) -> None:
        """Note what the broker, or the end of the wait for it, made of a message."""
        if departure.is_over:
            return
        match error:
            case None:
                self._over(departure, "acknowledged")
            case PublishRefused():
                if self._is_rare("refused by the broker"):
                    remedy = "let this user write the topic in the broker's ACL"
                    topic = departure.outgoing.topic
                    log.warning("mqtt.publish_refused", topic=topic, reason=str(error), remedy=remedy)
                self._over(departure, "unsent", "refused by the broker")
            case TooLarge():
                self._note_unsendable(departure, error)
                self._over(departure, "unsent", "unsendable")
            case Unsent():
                self._over(departure, "unsent", "outgoing full")
            case _:
                self._over(departure, "undelivered", "not acknowledged")

    def _note_unsendable(self, departure: Departure, error: Exception) -> None:
        if self.drops["unsendable"] < FEW or self._is_rare("unsendable"):
            log.warning("mqtt.unsendable", topic=departure.outgoing.topic, reason=str(error))

    def _is_rare(self, cause: str) -> bool:
        """Return whether the next drop of this cause is to be logged: the first, and then few."""
        return self.drops[cause] + 1 in {1, 100, 10_000}

    def _note_left(self, departure: Departure) -> None:
        """From now on an urgent message can only follow this one."""
        departure.waits_as = None
        if departure.slot is not None and departure in departure.slot.unstarted:
            departure.slot.unstarted.remove(departure)

    def _recall(self, departure: Departure, client: aiomqtt.Client | None) -> bool:
        """Keep a message from leaving; False where it has left already."""
        if departure.turn is not None:
            departure.turn.cancel()
            return True
        identifier, departure.waits_as = departure.waits_as, None
        return identifier is not None and client is not None and withdraw(client, identifier)

    def _abandon(self, departure: Departure, delivery: Delivery, cause: str) -> None:
        """Wait for a message no longer; its callback runs in the next turn."""
        assert self._loop is not None
        self._loop.call_soon(self._over, departure, delivery, cause)

    def _over(self, departure: Departure, delivery: Delivery, cause: str | None = None) -> None:
        if departure.is_over:
            return
        departure.is_over = True
        del self._under_way[departure]
        self._note_left(departure)
        if cause is not None:
            self.drops[cause] += 1
        self.sending -= 1
        if not self.sending:
            self._idle.set()
        if departure.done is not None:
            departure.done(delivery)
