"""Pass a stop of the fleet on to the stop of this device's agent, and answer with what its gate says.

Two connections of its own, so that no segment and no policy delays a stop: one to the fleet's broker, and one to the agent's. The
relay writes nothing at the agent's broker but `stop`, and there nothing but a stop: it never releases one. The fleet's broker stores a
stop for `SESSION_S` while the device is away, as it does for a gate. Whatever is malformed is a stop.

A stop is tried again until the gate answers: a broker stores nothing for a gate that never connected. A new status, which a gate publishes
when it connects, shortens the wait. Each attempt is answered, so that a person sees that there was none. Events, through the outbox:
`fleet_stop`; `fleet_stop_not_heard` and `fleet_stop_heard`, where the fleet's broker does not grant the subscriptions.

The fleet's broker has the acknowledgement of a stop once the file of `pending.py` names it, or once it is obeyed. So whatever ends this
process, one of the two has the stop. No disk delays it: it is passed on while the file is written.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from learners.ipc.outbox import Outbox
from runtime.fleet.stop.messages import MAX_IDS, MAX_REASON, Outcome, StopAnswer, StopTopics, named, read_order
from runtime.fleet.stop.pending import PendingStops
from runtime.mqtt import BrokerRefused, Connection, Message, MqttLost
from runtime.mqtt.topics import Refused, Status, Topics, decode, encode, parse

log = structlog.get_logger(__name__)

SESSION_S = 86_400
"""How long the fleet's broker stores a stop while this device is away."""
GATE_S = 2.0
"""For the agent's broker, and then for the answer of its gate."""
RETRY_S = (2.0, 60.0)
"""Before a stop without an answer is tried again: at first, doubled each time, and at most."""
WRITE_AGAIN_S = 1.0
"""Before the file is written again after the disk refused it."""
SILENT_S = 600.0
"""How long a gate may be silent while its broker takes the stop. Further attempts would undo releases where an answer cannot come."""
NAME = "fleet-stop"
"""Of the response topic at the agent's broker."""


@dataclass(slots=True)
class StopRelay:
    """The way of a fleet's stop on one device. Create it inside the running loop.

    Args:
        fleet: the connection to the fleet's broker, for the stop alone, with `handlers_acknowledge`.
        local: the connection to the agent's broker; None where this device obeys no stop of the fleet.
        topics: of the group.
        agent: its name.
        outbox: takes the event.
        pending: the file of the stops without an answer.
        refusal: why this device obeys none.
    """

    fleet: Connection
    local: Connection | None
    topics: StopTopics
    agent: str
    outbox: Outbox
    pending: PendingStops
    refusal: str = ""
    gate_s: float = GATE_S
    retry_s: tuple[float, float] = RETRY_S
    silent_s: float = SILENT_S
    daemon_state: str | None = None
    """As the agent's gate publishes it; None before the first status."""
    _own: Topics = field(init=False)
    _waiting: dict[str, str] = field(default_factory=dict)
    """By id of a message, its source. One stop answers them all."""
    _under_way: dict[str, str] = field(default_factory=dict)
    """Those that the present attempt is to answer."""
    _unacknowledged: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    """Id of each message that the fleet's broker stores until its acknowledgement is called."""
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    """The file may differ from the stops without an answer."""
    _reply_to: str = ""
    _taken_s: float | None = None
    """Since when the agent's broker takes a stop that its gate does not answer."""
    _denial: str = ""
    """Why the fleet's broker does not grant a subscription; empty while it grants both."""
    _is_stated: bool = False
    """Whether the gate has published `stopped` since the last attempt began."""

    def __post_init__(self) -> None:
        self._own = Topics(self.agent)
        self._reply_to = self._own("response", NAME, secrets.token_hex(6))
        for topic in (self.topics.of_all, self.topics.of(self.agent)):
            self.fleet.subscribe(topic, self._ordered, retained="send")
        self.fleet.on_connect = self.fleet.on_subscription_change = self._listen
        self._wait_for(self.pending.load())
        if self._waiting:  # of a process before
            self._arrived.set()
            self._changed.set()
        if self.local is not None:
            self.local.expect_answers(self._reply_to)
            self.local.subscribe(self._own("status"), self._status, retained="send")

    async def run(self) -> None:
        """Pass stops on until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.fleet.run(), name="fleet stop")
            if self.local is not None:
                group.create_task(self.local.run(), name="agent's stop")
            group.create_task(self._serve(), name="stops")
            group.create_task(self._store_pending(), name="file of the stops")

    def state(self) -> str | None:
        """Return the state of the daemon as its gate publishes it; None while nothing says so."""
        return self.daemon_state if self.local is not None and self.local.connected else None

    def _listen(self) -> None:
        """Post an event when the fleet's broker begins or ends to keep stops from this device."""
        before, self._denial = (
            self._denial,
            "; ".join(f"{topic}: {reason}" for topic, reason in sorted(self.fleet.denials.items())),
        )
        if self._denial and not before:
            self._post("fleet_stop_not_heard", {"reason": self._denial})
        elif before and not self._denial:
            self._post("fleet_stop_heard", {})

    def _ordered(self, message: Message) -> None:
        """Take a message of the fleet.

        Raises:
            Refused: it is a release.
        """
        try:
            order = read_order(message)
        except Refused as refusal:
            self._answer([named(message.payload)[0]], "refused", str(refusal))
            raise
        if order is None:
            message.acknowledge()
            return
        self._unacknowledged.append((order[0], message.acknowledge))
        self._wait_for({order[0]: order[1]})
        self._arrived.set()
        self._changed.set()

    def _wait_for(self, newer: dict[str, str]) -> None:
        """Add what has no answer so far; of more than one answer can name, the newest."""
        self._waiting |= newer
        for identifier in list(self._waiting)[:-MAX_IDS]:
            del self._waiting[identifier]

    def _status(self, message: Message) -> None:
        self.daemon_state = decode(Status, message.payload).state if message.payload else None
        self._is_stated = self.daemon_state == "stopped"
        if self._waiting:  # without an answer so far
            self._arrived.set()

    async def _serve(self) -> None:
        pause_s = self.retry_s[0]
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            orders, self._waiting = self._waiting, {}
            self._under_way = orders
            outcome, reason, is_over = await self._engage()
            self._answer(list(orders), outcome, reason)
            self._under_way = {}
            if is_over:
                self._note(orders, outcome, reason)
                self._acknowledge([each for each in self._unacknowledged if each[0] in orders])
                self._changed.set()
                pause_s, self._taken_s = self.retry_s[0], None
                continue
            newer, self._waiting = self._waiting, orders
            self._wait_for(newer)
            with suppress(TimeoutError):  # a further stop is passed on at once
                async with asyncio.timeout(pause_s):
                    await self._arrived.wait()
            pause_s = min(2 * pause_s, self.retry_s[1])
            self._arrived.set()

    async def _store_pending(self) -> None:
        """Write the file whenever it differs, and acknowledge what it then has; a refused write is tried again."""
        is_failing = False
        while True:
            await self._changed.wait()
            self._changed.clear()
            covered = list(self._unacknowledged)
            try:
                await asyncio.to_thread(self.pending.save, self._under_way | self._waiting)
            except OSError as error:
                if not is_failing:
                    effect = "the fleet's broker stores the stop until it is obeyed"
                    log.warning(
                        "uplink.stops_not_written", file=str(self.pending.path), reason=str(error), effect=effect
                    )
                is_failing = True
                self._changed.set()
                await asyncio.sleep(WRITE_AGAIN_S)
                continue
            is_failing = False
            self._acknowledge(covered)

    def _acknowledge(self, done: list[tuple[str, Callable[[], None]]]) -> None:
        """Acknowledge messages to the fleet's broker; a repeated call does nothing."""
        for _, acknowledge in done:
            acknowledge()
        known = set(map(id, done))
        self._unacknowledged = [each for each in self._unacknowledged if id(each) not in known]

    async def _engage(self) -> tuple[Outcome, str, bool]:
        """Stop the agent once; return outcome, reason, and whether nothing is left to be done here."""
        if self.local is None:
            return "refused", self.refusal, True
        self._is_stated = False
        topic, payload = self._own("stop"), encode({"engaged": True, "source": "fleet"})
        try:
            async with asyncio.timeout(self.gate_s):
                await self.local.up()
            answer = await self.local.request(topic, payload, reply_to=self._reply_to, timeout_s=self.gate_s)
        except (TimeoutError, MqttLost):
            return await self._store(self.local, topic, payload)
        return _outcome_of(answer)

    async def _store(self, local: Connection, topic: str, payload: bytes) -> tuple[Outcome, str, bool]:
        """Leave the stop with the agent's broker, which stores it for the gate and the stop listener."""
        try:
            await local.publish(topic, payload, timeout_s=self.gate_s)
        except BrokerRefused as error:
            if error.is_lasting:
                return "refused", f"the agent's broker: {error}", True
            return "no_answer", f"the agent's broker: {error}; that may pass, and the stop is tried again", False
        except MqttLost as error:
            return "no_answer", f"the agent's broker: {local.trouble or error}; the stop is tried again", False
        if self._is_stated:
            return "stopped", "its status says so; the answer of its gate did not arrive here", True
        now_s = time.monotonic()
        self._taken_s = now_s if self._taken_s is None else self._taken_s
        if now_s - self._taken_s >= self.silent_s:
            return (
                "no_answer",
                f"no gate of the agent answered for {self.silent_s:.0f} s; its broker has the stop",
                True,
            )
        return "no_answer", "no gate of the agent answered; the stop is tried again", False

    def _answer(self, ids: list[str], outcome: Outcome, reason: str) -> None:
        answer = StopAnswer(agent=self.agent, ids=ids, outcome=outcome, reason=reason[:MAX_REASON], stamp=time.time())
        self.fleet.enqueue(self.topics.answer(self.agent), encode(answer), qos=1, keep="latest")

    def _note(self, orders: dict[str, str], outcome: Outcome, reason: str) -> None:
        source = next(iter(orders.values()), "") or "not named"
        fields = {"group": self.topics.group, "source": source, "outcome": outcome, "reason": reason}
        log.warning("uplink.fleet_stop", **fields)
        self._post("fleet_stop", fields)

    def _post(self, kind: str, fields: dict[str, str]) -> None:
        try:
            self.outbox.post(kind, fields)
        except OSError as error:
            log.warning("uplink.event_not_stored", reason=str(error))


def _outcome_of(answer: Message) -> tuple[Outcome, str, bool]:
    """Return what the answer of a gate says."""
    try:
        body = parse(answer.payload)
    except Refused as refusal:
        return "no_answer", f"the answer of the gate is malformed: {refusal}", True
    fields = body if isinstance(body, dict) else {}
    data = fields.get("data")
    if fields.get("status") == "ok" and isinstance(data, dict) and data.get("stopped") is True:
        return "stopped", "", True
    return "refused", str(fields.get("error") or "the gate says that it is not stopped"), True
