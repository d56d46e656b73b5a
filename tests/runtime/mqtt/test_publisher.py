"""The queue in front of the broker: what waits, what overtakes, what is dropped, and what becomes of each message."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import aiomqtt
import pytest
from structlog.testing import capture_logs

from runtime.mqtt import publisher
from runtime.mqtt.connection_types import PublishMessage
from runtime.mqtt.packets import PublishRefused, Settled, Unsent
from runtime.mqtt.publisher import MAX_RETAINED, Sender

LIMIT = 3
UNSENDABLE = "t/#"


class Broker:
    """Takes messages in order and acknowledges them when the test says so."""

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()
        self.sender = Sender(LIMIT, self.drops)
        self.client = cast("aiomqtt.Client", object())
        self.taken: list[str] = []
        self.waiting: list[Settled] = []
        self.results: list[tuple[str, str]] = []
        self.has_room = True
        self.held: dict[int, tuple[PublishMessage, Settled, bool]] = {}
        """What waits in the client because the broker has no room."""

    def take(
        self, client: aiomqtt.Client, out: PublishMessage, settled: Settled, *, urgent: bool = False
    ) -> int | None:
        assert client is self.client
        if out.topic == UNSENDABLE:
            raise ValueError("a topic with a wildcard")
        if not self.has_room:
            self.held[len(self.held) + 1] = out, settled, urgent
            return len(self.held)
        self.taken.append(out.payload.decode())
        self.waiting.append(settled)
        return None

    def withdraw(self, client: aiomqtt.Client, identifier: int) -> bool:
        assert client is self.client
        return self.held.pop(identifier, None) is not None

    def newest(self, payload: str, *, urgent: bool = False, key: str = "arm") -> None:
        done = lambda delivery: self.results.append((payload, delivery))  # noqa: E731 - one callback
        self.sender.send_newest(key, message(payload), done, urgent=urgent)

    async def answers(self, error: Exception | None = None) -> None:
        """The oldest message is acknowledged, or fails."""
        self.waiting.pop(0)(error)
        await turns()


def message(payload: str, topic: str = "t") -> PublishMessage:
    return PublishMessage(topic, payload.encode(), 1, False, b"\0")


@asynccontextmanager
async def session(broker: Broker) -> AsyncIterator[None]:
    broker.sender.begin(broker.client)
    yield
    broker.sender.leave()
    await turns()
    assert broker.sender.sending == 0
    for settled in broker.waiting:
        settled(aiomqtt.MqttError("late"))  # changes nothing any more
    assert broker.sender.sending == 0


async def turns() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()
    monkeypatch.setattr(publisher, "submit", made.take)
    monkeypatch.setattr(publisher, "withdraw", made.withdraw)
    return made


async def test_ordinary_messages_are_bounded_and_those_of_a_key_are_not(broker: Broker) -> None:
    async with session(broker):
        sent = [broker.sender.send(message(str(number))) for number in range(5)]
        assert sent == [True, True, True, False, False]
        assert broker.drops == {"outgoing full": 2}
        broker.newest("command")
        await turns()
        assert broker.taken == ["0", "1", "2", "command"], "the limit does not hold a command back"
        assert broker.sender.sending == 4
        await broker.answers()
        assert broker.sender.sending == 3
        assert broker.sender.send(message("late")) is False
        await broker.answers()
        assert broker.sender.send(message("later")) is True


async def test_an_ordinary_command_waits_for_the_one_before_and_the_newest_wins(broker: Broker) -> None:
    async with session(broker):
        for payload in ("1", "2", "3"):
            broker.newest(payload)
        await turns()
        assert broker.taken == ["1"]
        assert broker.results == [("2", "unsent")]
        assert broker.drops == {"superseded": 1}
        await broker.answers()
        assert broker.results == [("2", "unsent"), ("1", "acknowledged")]
        assert broker.taken == ["1", "3"]
        await broker.answers()
        assert broker.results[-1] == ("3", "acknowledged")
        broker.newest("4")
        await turns()
        assert broker.taken == ["1", "3", "4"], "the place is free again"


async def test_keys_do_not_wait_for_one_another(broker: Broker) -> None:
    async with session(broker):
        for key in ("arm", "lamp"):
            broker.newest(key, key=key)
        await turns()
        assert broker.taken == ["arm", "lamp"]


async def test_an_urgent_message_overtakes_what_is_under_way(broker: Broker) -> None:
    async with session(broker):
        broker.newest("1")
        await turns()
        broker.newest("2")
        broker.newest("safe", urgent=True)
        await turns()
        assert broker.taken == ["1", "safe"]
        assert broker.results == [("2", "unsent")]
        broker.newest("safe 2", urgent=True)
        await turns()
        assert broker.taken == ["1", "safe"], "one safe action at a time is under way"
        await broker.answers()
        assert broker.taken == ["1", "safe"]
        await broker.answers()
        assert broker.taken == ["1", "safe", "safe 2"]
        broker.newest("3")
        await turns()
        assert "3" not in broker.taken, "an ordinary one waits for the safe one too"
        await broker.answers()
        assert broker.taken[-1] == "3"


async def test_a_safe_action_that_waits_leaves_after_the_one_before_whatever_else_is_under_way(broker: Broker) -> None:
    async with session(broker):
        broker.newest("1")
        await turns()
        for payload in ("safe", "safe 2", "safe 3", "safe 4"):
            broker.newest(payload, urgent=True)
            await turns()
        assert broker.taken == ["1", "safe"]
        assert broker.drops == {"superseded": 2}
        broker.waiting.pop()(None)
        await turns()
        assert broker.taken == ["1", "safe", "safe 4"], "the first one is under way still"


async def test_an_urgent_message_overtakes_what_is_not_sent_yet(broker: Broker) -> None:
    async with session(broker):
        broker.newest("1")
        broker.newest("safe", urgent=True)
        await turns()
        assert broker.taken == ["safe"]
        assert broker.results == [("1", "unsent")]
        assert broker.sender.sending == 1
        assert broker.sender._slots["arm"].unstarted == []
        await broker.answers()
        assert broker.results == [("1", "unsent"), ("safe", "acknowledged")]
        broker.newest("2")
        await turns()
        assert broker.taken == ["safe", "2"]


async def test_an_ordinary_message_that_waits_behind_an_urgent_one_leaves_after_it(broker: Broker) -> None:
    async with session(broker):
        broker.newest("safe", urgent=True)
        broker.newest("1")
        await turns()
        assert broker.taken == ["safe"]
        await broker.answers()
        assert broker.taken == ["safe", "1"]


async def test_what_is_discarded_does_not_leave(broker: Broker) -> None:
    async with session(broker):
        broker.sender.discard("nothing")
        broker.newest("1")
        broker.newest("2")
        broker.sender.discard("arm")
        await turns()
        assert broker.taken == []
        assert broker.results == [("2", "unsent"), ("1", "unsent")]
        assert broker.drops == {"superseded": 2}, "that which had not left is a drop too"
        broker.newest("3")
        await turns()
        broker.sender.discard("arm")
        await turns()
        assert broker.taken == ["3"], "what has left has left"
        await broker.answers()
        assert broker.results[-1] == ("3", "acknowledged")


@pytest.mark.parametrize(
    ("error", "cause", "delivery"),
    [
        (aiomqtt.MqttError("timed out"), "not acknowledged", "undelivered"),
        (PublishRefused("Not authorized", 0x87), "refused by the broker", "unsent"),
        (Unsent("no room"), "outgoing full", "unsent"),
    ],
)
async def test_each_failure_is_counted_by_its_cause(
    broker: Broker, error: Exception, cause: str, delivery: str
) -> None:
    async with session(broker):
        broker.newest("1")
        await turns()
        with capture_logs() as logs:
            await broker.answers(error)
        assert broker.results == [("1", delivery)]
        assert broker.drops == {cause: 1}
        assert broker.sender.sending == 0
        broker.newest("2")
        await turns()
        await broker.answers(error)
        assert broker.results[1:] == [("2", delivery)]
        assert broker.drops == {cause: 2}
        events: dict[str, dict[str, Any]] = {each["event"]: dict(each) for each in logs}
        if cause == "refused by the broker":
            assert events["mqtt.publish_refused"] == {
                "event": "mqtt.publish_refused",
                "log_level": "warning",
                "topic": "t",
                "reason": "Not authorized",
                "remedy": "let this user write the topic in the broker's ACL",
            }
        else:
            assert logs == []


async def test_a_message_that_no_packet_may_contain_is_counted_and_does_not_leave(broker: Broker) -> None:
    results: list[str] = []
    async with session(broker):
        for number in (1, 2):
            with capture_logs() as logs:
                broker.sender.send_newest("arm", message("1", UNSENDABLE), results.append, urgent=False)
                await turns()
            assert results == ["unsent"] * number
            assert broker.drops == {"unsendable": number}
            assert broker.sender.sending == 0
            warning = {"event": "mqtt.unsendable", "log_level": "warning", "topic": UNSENDABLE}
            assert logs == [{**warning, "reason": "a topic with a wildcard"}]
        broker.newest("2")
        await turns()
        assert broker.taken == ["2"], "the place is free again"


async def test_refusals_are_logged_at_the_first_and_then_rarely(broker: Broker) -> None:
    async with session(broker):
        for least, most, logged in ((1, 99, 1), (100, 100, 1), (101, 101, 0)):
            with capture_logs() as logs:
                for _ in range(least, most + 1):
                    broker.newest("1")
                    await turns()
                    await broker.answers(PublishRefused("no", 0x87))
            assert len(logs) == logged
        assert broker.drops["refused by the broker"] == 101
        broker.drops["refused by the broker"] = 9_999
        with capture_logs() as logs:
            broker.newest("1")
            await turns()
            await broker.answers(PublishRefused("no", 0x87))
        assert len(logs) == 1


async def test_without_a_session_a_command_is_unsent_at_once(broker: Broker) -> None:
    async with session(broker):
        broker.newest("1")
        await turns()
        broker.newest("2")
        broker.sender.leave()
        assert broker.results == [("2", "unsent")]
        assert broker.drops == {"disconnected": 1}
        broker.newest("3")
        broker.newest("4", urgent=True)
        assert broker.results == [("2", "unsent"), ("3", "unsent"), ("4", "unsent")]
        assert broker.drops == {"disconnected": 3}
        await broker.answers(aiomqtt.MqttError("lost"))
        assert broker.results[-1] == ("1", "undelivered")
        assert broker.taken == ["1"]


async def test_what_has_left_at_the_end_of_the_session_may_have_arrived(broker: Broker) -> None:
    async with session(broker):
        broker.newest("1")
        await turns()
        broker.newest("2", key="lamp")
        broker.sender.leave()
        assert broker.results == [], "no callback runs within a call"
        await turns()
        assert sorted(broker.results) == [("1", "undelivered"), ("2", "unsent")]
        assert broker.taken == ["1"]
        assert broker.drops == {"not acknowledged": 1, "disconnected": 1}
        broker.sender.leave()
        await turns()
        assert broker.drops == {"not acknowledged": 1, "disconnected": 1}, "each drop counts once"


async def test_an_urgent_message_replaces_one_that_waits_for_room(broker: Broker) -> None:
    """The broker takes no more: what waits must not leave after the safe action that replaced it."""
    async with session(broker):
        broker.has_room = False
        broker.newest("1")
        await turns()
        broker.newest("safe", urgent=True)
        await turns()
        assert [(out.payload, urgent) for out, _, urgent in broker.held.values()] == [(b"safe", True)]
        assert broker.results == [("1", "unsent")]
        assert broker.drops == {"superseded": 1}
        broker.held.popitem()[1][1](None)
        await turns()
        assert broker.results[-1] == ("safe", "acknowledged")
        assert broker.sender._slots["arm"].unstarted == []


async def test_what_left_after_a_wait_for_room_is_not_called_unsent(broker: Broker) -> None:
    async with session(broker):
        broker.has_room = False
        broker.newest("1")
        await turns()
        _, (_, settled, _) = broker.held.popitem()  # it has left now
        broker.newest("safe", urgent=True)
        await turns()
        assert broker.results == []
        settled(None)
        assert broker.results == [("1", "acknowledged")]


async def test_what_waits_for_room_at_the_end_of_the_session_did_not_leave(broker: Broker) -> None:
    async with session(broker):
        broker.has_room = False
        broker.newest("1")
        await turns()
        broker.sender.leave()
        await turns()
        assert broker.held == {}
        assert broker.results == [("1", "unsent")]
        assert broker.drops == {"disconnected": 1}


async def test_messages_are_stored_for_the_next_session_in_order(broker: Broker) -> None:
    async with session(broker):
        sender = broker.sender
        assert sender.keep(message("dropped"), "no") is False
        assert sender.keep(message("dropped too"), "no") is False
        assert broker.drops == {"disconnected": 2}
        assert sender.keep(message("old", "status"), "latest")
        assert sender.keep(message("event 1", "event"), "all")
        assert sender.keep(message("new", "status"), "latest")
        assert sender.keep(message("event 2", "event"), "all")
        sender.catch_up()
        await turns()
        assert broker.taken == ["event 1", "new", "event 2"]
        sender.catch_up()
        await turns()
        assert len(broker.taken) == 3


async def test_what_is_stored_is_bounded_and_the_oldest_goes(broker: Broker) -> None:
    async with session(broker):
        for number in range(MAX_RETAINED + 2):
            assert broker.sender.keep(message(str(number)), "all")
        assert broker.drops == {"disconnected": 2}
        broker.sender.catch_up()
        await turns()
        assert broker.taken == [str(number) for number in range(2, MAX_RETAINED + 2)]


async def test_drained_once_everything_is_acknowledged(broker: Broker) -> None:
    async with session(broker):
        assert await broker.sender.drained(0.0), "nothing was sent"
        broker.newest("1")
        broker.sender.send(message("2"))
        await turns()
        assert not await broker.sender.drained(0.01)
        draining = asyncio.create_task(broker.sender.drained(60.0))
        await broker.answers()
        assert not draining.done()
        await broker.answers()
        await turns()
        assert draining.done()
        assert draining.result() is True


def test_an_idle_sender_needs_no_loop() -> None:
    never: Callable[[str], None] = partial(pytest.fail)
    sender = Sender(LIMIT, Counter())
    sender.send_newest(
        "arm", message("1"), lambda delivery: None if delivery == "unsent" else never(delivery), urgent=True
    )
    assert sender.drops == {"disconnected": 1}
