"""The connection against a real mosquitto."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from pathlib import Path

import aiomqtt
import canaries
import pytest
from free_ports import free_port
from wire_helpers import Collector, address, running

from fakes import Contention, Mosquitto, eventually
from runtime.config.mqtt_settings import MqttSettings
from runtime.mqtt import Address, Connection, Message, MqttLost, Will
from runtime.mqtt import aiomqtt_client as own
from runtime.mqtt import connection as connection_module
from runtime.mqtt.connection_types import PublishMessage
from runtime.mqtt.topics import Refused


def connection(broker: Mosquitto, identifier: str = "one", **options: object) -> Connection:
    return Connection(address(broker.port), identifier, **options)  # type: ignore[arg-type]


async def test_qos_1_is_acknowledged_and_nagle_is_off(broker: Mosquitto) -> None:
    got = Collector()
    link = connection(broker)
    link.subscribe("t/+", got)
    async with running(link):
        assert link._client is not None
        sock = link._client._client.socket()
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        await link.publish("t/a", b"hello")
        messages = await got.until(lambda m: len(m) == 1)
    assert (messages[0].topic, messages[0].payload, messages[0].qos, messages[0].retain) == ("t/a", b"hello", 1, False)


@pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")
async def test_what_was_read_is_acknowledged_at_once(broker: Mosquitto) -> None:
    """The kernel falls back to delayed acknowledgements after every exchange; a read turns them off again."""
    got = Collector()
    link = connection(broker)
    link.subscribe("t", got, qos=0)
    async with running(link), running(connection(broker, "two")) as other:
        assert link._client is not None
        sock = link._client._client.socket()
        assert isinstance(sock, socket.socket)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 0
        other.enqueue("t", b"hello")
        await got.until(lambda m: len(m) == 1)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1


async def test_retained_is_ignored_or_sent_as_asked(broker: Mosquitto) -> None:
    async with running(connection(broker, "writer")) as writer:
        await writer.publish("cmd", b"old", retain=True)
        await writer.publish("state", b"known", retain=True)
    commands, states = Collector(), Collector()
    link = connection(broker)
    link.subscribe("cmd", commands)
    link.subscribe("state", states, retained="send")
    async with running(link):
        await states.until(lambda m: len(m) == 1)
        await link.publish("cmd", b"new")
        await commands.until(lambda m: len(m) == 1)
    assert [m.payload for m in commands.messages] == [b"new"]
    assert [(m.payload, m.retain) for m in states.messages] == [(b"known", True)]


@pytest.mark.parametrize(
    "topic",
    [
        "response/a\x01",
        "response/\x7f",
        "response/\ufffe",
        "response/" + "a/" * 250,
        "response/#",
        "response/+/a",
        "$SYS/a",
        "act/a",
    ],
)
async def test_no_answer_goes_to_a_topic_over_which_a_broker_ends_the_connection(broker: Mosquitto, topic: str) -> None:
    """Who asks chooses the response topic; one that no broker accepts must not cost the gate its connection."""
    server, got = connection(broker, "server", response_prefix="response/"), Collector()
    client = connection(broker, "client")
    client.subscribe("response/ping", got)
    async with running(server), running(client):
        await eventually(lambda: client.connected and server.connected)
        server.reply(Message("request/ping", b"", 1, retain=False, response_topic=topic), b"!", "response/ping")
        await got.until(lambda m: len(m) == 1)
    assert (server.connects, server.drops["forbidden response topic"]) == (1, 1)


async def test_request_and_response(broker: Mosquitto) -> None:
    server = connection(broker, "server", response_prefix="response/")
    server.subscribe("request/ping", lambda m: server.reply(m, m.payload + b"!", "response/ping") and None)
    client = connection(broker, "client")
    fallback = Collector()
    client.subscribe("response/ping", fallback)
    acted = Collector()
    client.subscribe("act/#", acted)
    async with running(server), running(client):
        answers = await asyncio.gather(
            *(client.request("request/ping", str(n).encode(), reply_to="response/client") for n in range(5))
        )
        assert [a.payload for a in answers] == [b"0!", b"1!", b"2!", b"3!", b"4!"]
        await client.publish("request/ping", b"plain")
        await fallback.until(lambda m: len(m) == 1)
        client.enqueue("request/ping", b"sly", qos=1, response_topic="act/head/set")
        await fallback.until(lambda m: len(m) == 2)
        with pytest.raises(TimeoutError):
            await client.request("request/nobody", b"", reply_to="response/client", timeout_s=0.05)
    assert acted.messages == []
    assert server.drops["forbidden response topic"] == 1


async def test_refused_payloads_are_counted_and_the_connection_lives(broker: Mosquitto) -> None:
    def refuse(message: Message) -> None:
        raise Refused("no")

    got = Collector()
    link = connection(broker)
    link.subscribe("bad/#", refuse)
    link.subscribe("good", got)
    async with running(link):
        await link.publish("bad/a", b"\xff" * 10)
        await link.publish("good", b"")
        await got.until(lambda m: len(m) == 1)
    assert link.refused == {"bad/#": 1}
    assert link.connects == 1


async def test_the_oldest_incoming_gives_way(broker: Mosquitto) -> None:
    got = Collector()
    link = connection(broker, max_incoming=5)
    link.subscribe("flood", got, qos=0)
    async with running(link), running(connection(broker, "writer")) as writer:
        queue = link._queue
        for n in range(20):
            queue.put_nowait(_raw(f"{n}".encode()))
        await writer.publish("flood", b"last")
        await got.until(lambda m: m[-1:] != [] and m[-1].payload == b"last")
    assert queue.dropped >= 15
    assert [m.payload for m in got.messages][-2:] == [b"19", b"last"]


def _raw(payload: bytes) -> aiomqtt.Message:
    return aiomqtt.Message("flood", payload, 0, retain=False, mid=0, properties=None)


async def test_what_is_posted_while_disconnected(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    link = connection(broker)
    try:
        async with running(link, wait=False):
            assert not link.enqueue("gone", b"1")
            assert link.enqueue("state", b"1", retain=True, qos=1, keep="latest")
            assert link.enqueue("state", b"2", retain=True, qos=1, keep="latest")
            assert link.enqueue("event", b"a", qos=1, keep="all")
            assert link.enqueue("event", b"b", qos=1, keep="all")
            with pytest.raises(MqttLost):
                await link.publish("x", b"")
            with pytest.raises(MqttLost):
                await link.request("x", b"", reply_to="y")
            got = Collector()
            link.subscribe("#", got)
            broker.start()
            await got.until(lambda m: len(m) == 3)
    finally:
        broker.stop()
    assert [(m.topic, m.payload) for m in got.messages] == [("state", b"2"), ("event", b"a"), ("event", b"b")]
    assert link.drops["disconnected"] == 1


async def test_a_frozen_broker_is_noticed_and_everything_restored(broker: Mosquitto) -> None:
    changes: list[tuple[float, bool, str]] = []
    link = connection(
        broker,
        will=Will("status", b"offline"),
        on_connect=lambda: link.enqueue("status", b"online", qos=1, retain=True) and None,
        on_connection_change=lambda up, why: changes.append((time.monotonic(), up, why)),
    )
    got = Collector()
    link.subscribe("in", got)
    async with running(link):
        frozen_s, contention = time.monotonic(), Contention()
        broker.signal(signal.SIGSTOP)
        await eventually(lambda: not link.connected)
        noticed_s = time.monotonic() - frozen_s
        broker.signal(signal.SIGCONT)
        back_s = await eventually(lambda: link.connected)
        watcher, status = connection(broker, "watcher"), Collector()
        watcher.subscribe("status", status, retained="send")
        async with running(watcher):
            await status.until(lambda m: len(m) == 1)
            await watcher.publish("in", b"again")
            await got.until(lambda m: len(m) == 1)
    assert status.messages[0].payload == b"online"
    assert "does not respond" in changes[1][2]
    assert noticed_s <= 3.0 + contention.s, noticed_s  # 1 s on a quiet machine: tests/benchmarks/bench_gate.py
    assert back_s <= 5.0 + contention.s, back_s


async def test_killed_broker_back_on_the_same_port(broker: Mosquitto) -> None:
    link = connection(broker)
    got = Collector()
    link.subscribe("in", got)
    async with running(link):
        broker.stop()
        await eventually(lambda: not link.connected)
        broker.start()
        await eventually(lambda: link.connected)
        await link.publish("in", b"x")
        await got.until(lambda m: len(m) == 1)
    assert link.connects == 2


async def test_the_will_is_published_for_who_vanishes_and_not_for_who_leaves(broker: Mosquitto) -> None:
    status = Collector()
    watcher = connection(broker, "watcher")
    watcher.subscribe("status/+", status)
    async with running(watcher):
        async with running(connection(broker, "polite", will=Will("status/polite", b"offline"))):
            pass
        unlucky = connection(broker, "unlucky", will=Will("status/unlucky", b"offline"))
        async with running(unlucky):
            assert unlucky._group is not None
            unlucky._group.create_task(_fails_when_cancelled())
            await watcher.publish("x", b"")  # one turn: the task has begun
        rude = connection(broker, "rude", will=Will("status/rude", b"offline"))
        async with running(rude):
            assert rude._client is not None
            sock = rude._client._client.socket()
            assert sock is not None
            sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
            await status.until(lambda m: len(m) == 1)
    assert [m.topic for m in status.messages] == ["status/rude"]


async def test_cancelled_while_connecting_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(5)
        link = Connection(Address("127.0.0.1", mute.getsockname()[1]), "one")
        task = asyncio.create_task(link.run())
        await eventually(lambda: bool(mute.fileno()) and _pending(mute))
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert link.connects == 0


async def _fails_when_cancelled() -> None:
    """As a publish with a time-out at the same moment as the cancellation."""
    try:
        await asyncio.Event().wait()
    finally:
        raise aiomqtt.MqttError("timed out")


def _pending(server: socket.socket) -> bool:
    import select

    return bool(select.select([server], [], [], 0)[0])


async def test_bounded_outgoing_and_unsendable(broker: Mosquitto) -> None:
    link = connection(broker, max_outgoing=2)
    async with running(link):
        assert link.enqueue("a", b"")
        assert link.enqueue("b/+", b"")
        assert not link.enqueue("c", b"")
        assert await link.drained(5)
    assert link.drops["outgoing full"] == 1
    assert link.drops["unsendable"] == 1


async def test_a_wrong_password_is_retried_not_fatal(tmp_path: Path) -> None:
    port = free_port()
    broker = Mosquitto(tmp_path, port, f"listener {port} 127.0.0.1\nallow_anonymous false\n").start()
    try:
        link = connection(broker)
        async with running(link, wait=False):
            client = link._new_client()
            with pytest.raises(aiomqtt.MqttError, match="Not authorized"):
                await own.connect(client)
            await own.shut(client)
            assert not link.connected
    finally:
        broker.stop()


def test_an_address_from_settings() -> None:
    settings = MqttSettings.model_validate(
        {"url": "mqtt://h:1", "username": "u", "password": canaries.MQTT, "gate": {"username": "g"}}
    )
    assert Address.of(settings, "agent").credentials == settings.credentials("agent")
    assert Address.of(settings, "top").credentials == settings.credentials("agent")
    gate = Address.of(settings, "gate").credentials
    assert gate is not None
    assert gate.username == "g"
    with pytest.raises(OSError, match="No such file"):
        Address.of(settings.model_copy(update={"url": "mqtts://h", "ca": Path("/nowhere")}), "gate")


async def test_posting_at_any_moment_of_a_loss_is_safe(broker: Mosquitto) -> None:
    link = connection(broker)
    posted = 0
    async with running(link):
        for _ in range(3):
            await eventually(lambda: link.connected)
            broker.stop()
            end = time.monotonic() + 0.3
            while (
                time.monotonic() < end or link.connected
            ):  # in every turn of the loop, before, during and after the loss
                posted += link.enqueue("t", b"x", qos=1)
                await asyncio.sleep(0)
            broker.start()
        await eventually(lambda: link.connected)
        assert await link.drained(5)
        assert link._sender.sending == 0
    assert posted
    assert link.drops["disconnected"]


async def test_a_filter_added_while_connected(broker: Mosquitto) -> None:
    got = Collector()
    link = connection(broker)
    async with running(link), running(connection(broker, "writer")) as writer:
        await writer.publish("late", b"retained", retain=True)
        link.subscribe("late", got, retained="send")
        await got.until(lambda m: len(m) == 1)
    assert got.messages[0].payload == b"retained"


@pytest.mark.parametrize("faithful", [True, False])
async def test_a_cancellation_that_comes_with_the_answer_is_retained(faithful: bool) -> None:
    answered = asyncio.Event()
    after: list[str] = []

    async def call() -> None:
        await asyncio.wait_for(answered.wait(), timeout=60)

    async def caller() -> None:
        await (own.faithful(call()) if faithful else call())
        after.append("went on")

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answered.set()
    await asyncio.sleep(0)  # the answer is there, its receiver has not run
    task.cancel()
    await asyncio.wait([task])
    if faithful:
        assert task.cancelled()
        assert after == []
    elif sys.version_info < (3, 12):
        assert after == ["went on"]  # what this guards against


async def test_a_packet_is_written_when_it_is_published_and_one_of_a_callback_of_paho_soon_after(
    broker: Mosquitto,
) -> None:
    got = Collector()
    link = connection(broker)
    link.subscribe("t/+", got)
    async with running(link):
        assert link._client is not None
        inner = link._client._client
        inner.publish("t/a", b"at once", 1)
        assert not inner.want_write()
        with inner._in_callback_mutex:
            inner.publish("t/b", b"soon", 1)
            assert inner.want_write()
        await got.until(lambda m: len(m) == 2)
    assert [message.payload for message in got.messages] == [b"at once", b"soon"]


async def test_a_broker_is_asked_unless_prompt_acknowledgements_show_that_it_responds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each session begins with a question. Late acknowledgements show nothing: a slow broker delivers, but too late."""

    class Client:
        took_s, looked, asked = 0.0, 0, 0

        @property
        def _packets(self) -> Client:
            return self

        @property
        def answer(self) -> tuple[float, float]:
            self.looked += 1
            now_s = time.monotonic()
            return now_s - self.took_s, now_s

    async def ask(client: Client, out: PublishMessage, timeout_s: float, *, urgent: bool) -> None:
        assert (out.topic, out.qos, timeout_s, urgent) == ("reflexd/echo/one", 1, pytest.approx(0.05), True)
        client.asked += 1

    monkeypatch.setattr(connection_module, "publish", ask)
    link, client = Connection(Address("127.0.0.1", 1, keepalive_s=0.2), "one"), Client()
    watching = asyncio.create_task(link._watch(client))  # type: ignore[arg-type]
    await eventually(lambda: client.looked >= 4)
    assert client.asked == 1
    client.took_s = 0.06
    await eventually(lambda: client.asked >= 4)
    watching.cancel()
    await asyncio.wait([watching])


async def test_thousands_of_messages_of_all_sizes_arrive_whole_and_in_order(broker: Mosquitto) -> None:
    """Through a real broker, both ways at once: pieces end anywhere within a packet."""
    got, count = Collector(), 600
    patient = Address("127.0.0.1", broker.port, keepalive_s=60)
    link = Connection(patient, "one", max_outgoing=10 * count, max_incoming=10 * count)
    link.subscribe("t/#", got, qos=0)
    sizes = [n * 37 % 90_000 if n % 50 == 0 else n % 40 for n in range(count)]
    sent = [n.to_bytes(4, "big") + bytes([n % 256]) * size for n, size in enumerate(sizes)]
    async with running(link):
        for number, payload in enumerate(sent):
            assert link.enqueue(f"t/{number % 7}", payload, qos=number % 2)  # type: ignore[arg-type]
        messages = await got.until(lambda m: len(m) == count)
        assert await link.drained(10)
    assert sorted(m.payload for m in messages) == sent
    for topic in {m.topic for m in messages}:  # what is published at one quality on one topic arrives in order
        for qos in (0, 1):
            numbers = [
                number
                for m in messages
                if m.topic == topic
                if (number := int.from_bytes(m.payload[:4], "big")) % 2 == qos
            ]
            assert numbers == sorted(numbers)
    assert not link.drops["not acknowledged"]


async def test_a_broker_that_refuses_the_echo_answers_all_the_same(tmp_path: Path) -> None:
    """An ACL of someone's own, without `reflexd/echo`: the connection lasts, and nothing waits for it in vain."""
    (tmp_path / "acl").write_text("topic read #\ntopic write reflexd/x/#\n")
    (tmp_path / "acl").chmod(0o644)
    strict = Mosquitto(tmp_path)
    strict.extra = f"listener {strict.port} 127.0.0.1\nuser root\nallow_anonymous true\nacl_file {tmp_path}/acl\n"
    strict.start()
    changes: list[bool] = []
    link = Connection(Address("127.0.0.1", strict.port), "reflexd-x-gate")
    link.on_connection_change = lambda up, _reason: changes.append(up)
    try:
        async with running(link):
            for _ in range(3):
                assert await link.caught_up(10)
                await asyncio.sleep(0.4)  # an echo of the watch
            assert (changes, link.trouble) == ([True], None)
    finally:
        strict.stop()
