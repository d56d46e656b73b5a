"""A broker that takes little: few messages without its acknowledgement, small packets, few bytes at once.

The broker is a scripted one, which ends the session as MQTT 5.0 says when a client exceeds a limit (3.2.2.3, 4.9, 4.13).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
from certificates import certificate
from scripted_broker import PUBACK, SUBSCRIBE, LimitedBroker, serving
from wire_helpers import Collector, running

from fakes import eventually
from runtime.mqtt import Address, Connection, MqttLost
from runtime.mqtt.connection_types import PublishMessage, properties
from runtime.mqtt.packets import publish_packet

NONE = properties(None, None, None)


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The two sides' TLS, with a certificate made for this."""
    key, cert = certificate(folder)
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(cert, key)
    return served, ssl.create_default_context(cafile=str(cert))


def made(port: int, tls: ssl.SSLContext | None = None, **options: int) -> Connection:
    return Connection(Address("127.0.0.1", port, None, tls, 60.0), "one", **options)


@pytest.mark.parametrize("maximum", [1, 2, 20, None])
async def test_no_more_messages_are_under_way_than_the_broker_takes(maximum: int | None) -> None:
    broker = LimitedBroker(maximum)
    async with serving(broker) as port, running(made(port)) as link:
        for number in range(150):
            assert link.enqueue("t", str(number).encode(), qos=1)
        assert await link.drained(20)
        assert [int(payload) for _, payload in broker.taken] == list(range(150))
        assert broker.most <= (maximum or 1_000)
        assert (broker.ended, link.connects, +link.drops) == ([], 1, {})


async def test_a_safe_action_leaves_although_the_broker_acknowledges_nothing_else() -> None:
    broker = LimitedBroker(4, acknowledges=lambda topic: topic == b"safe")
    results: list[str] = []
    async with serving(broker) as port, running(made(port)) as link:
        for number in range(10):
            link.enqueue("t", str(number).encode(), qos=1)
        link.send_newest("arm", "command", b"", results.append)
        await eventually(lambda: len(broker.taken) == 3, "all but one place")
        link.send_newest("arm", "safe", b"", results.append, urgent=True)
        await eventually(lambda: "acknowledged" in results, "the safe action")
        assert [topic for topic, _ in broker.taken] == [b"t", b"t", b"t", b"safe"]
        assert results == ["unsent", "acknowledged"]
        broker.acknowledges = lambda _topic: True
        for identifier in list(broker.unanswered):
            broker.acknowledge(identifier)
        assert await link.drained(20)
        assert [topic for topic, _ in broker.taken] == [b"t"] * 3 + [b"safe"] + [b"t"] * 7
        assert broker.ended == []


async def test_a_refused_subscription_is_named_and_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.mqtt.connection.SUBSCRIBE_AGAIN_S", 0.02)
    broker = LimitedBroker(suback=lambda name: 0x87 if name == b"stop" else 1)
    changes: list[dict[str, str]] = []
    link = made(0)
    link.on_subscription_change = lambda: changes.append(link.denials)
    for name in ("stop", "other"):
        link.subscribe(name, lambda _message: None)
    async with serving(broker) as port:
        link.address = Address("127.0.0.1", port, None, None, 60.0)
        async with running(link):
            assert (link.denial("stop"), link.denial("other")) == ("Not authorized", None)
            await eventually(lambda: broker.subscribed.count(b"stop") >= 3, "two more attempts")
            assert broker.subscribed.count(b"other") == 1
            assert changes == []
            broker.suback = lambda _name: 0
            await eventually(lambda: link.denial("stop") == "QoS 0 granted instead of 1", "less than requested")
            broker.suback = lambda _name: 1
            await eventually(lambda: link.denials == {} and changes[-1:] == [{}], "the grant")
            before = len(broker.subscribed)
            broker.suback = lambda _name: 0
            link.subscribe("quick", lambda _message: None, qos=0)
            broker.suback = lambda name: 0x80 if name == b"late" else 0
            link.subscribe("late", lambda _message: None)
            await eventually(lambda: changes[-1] != {}, "the refusal of a late one")
            assert changes[-1] == {"late": "Unspecified error"}
            await eventually(lambda: set(broker.subscribed[before:]) == {b"quick", b"late"}, "both")
            assert (broker.ended, link.connects) == ([], 1)


async def test_what_the_broker_calls_too_large_does_not_end_the_session() -> None:
    broker = LimitedBroker(max_packet=2_000)
    fits = 2_000 - len(publish_packet(PublishMessage("t", b"x" * 1_900, 1, False, NONE), 1)) + 1_900
    async with serving(broker) as port, running(made(port)) as link:
        for qos in (0, 1):
            assert link.enqueue("t", b"x" * 3_000, qos=qos)  # type: ignore[arg-type]
        assert link.enqueue("t", b"x" * (fits + 1), qos=1)
        with pytest.raises(MqttLost, match="3009 bytes; the broker takes 2000"):
            await link.publish("t", b"x" * 3_000)
        assert link.enqueue("t", b"x" * fits, qos=1)
        assert await link.drained(20)
        assert [len(payload) for _, payload in broker.taken] == [fits]
        assert (broker.ended, link.connects, +link.drops) == ([], 1, {"unsendable": 3})


@pytest.mark.parametrize("encrypted", [False, True])
async def test_packets_of_both_writers_stay_whole_where_the_socket_takes_little(
    tmp_path: Path, encrypted: bool
) -> None:
    """Acknowledgements and subscriptions are written by paho, between pieces of messages that are larger than all buffers."""
    broker = LimitedBroker(20, chunk=3_001, rests=True)
    got = Collector()
    sizes = [300_000 if number % 40 == 7 else number * 97 % 5_000 for number in range(240)]
    sent = [number.to_bytes(4, "big") + bytes([number]) * size for number, size in enumerate(sizes)]
    server, client = await asyncio.to_thread(contexts, tmp_path) if encrypted else (None, None)
    async with serving(broker, server) as port:
        link = made(port, client, max_outgoing=1_000)
        link.subscribe("in", got)
        async with running(link):
            assert link._client is not None
            sock = link._client._client.socket()
            assert isinstance(sock, socket.socket)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
            for number, payload in enumerate(sent):
                assert link.enqueue(f"t{number % 2}", payload, qos=number % 2)  # type: ignore[arg-type]
                packet = publish_packet(PublishMessage("in", bytes([number]), 1, False, NONE), number + 1)
                assert broker.writer is not None
                broker.writer.write(packet)
                if number % 8 == 0:
                    await asyncio.sleep(0)
                if number % 60 == 0:
                    link.subscribe(f"more/{number}", got)
            assert await link.drained(30)
            await eventually(lambda: broker.kinds.count(PUBACK) == len(sent), "every acknowledgement")
        for parity in (0, 1):
            topic = f"t{parity}".encode()
            assert [payload for each, payload in broker.taken if each == topic] == sent[parity::2]
        assert [message.payload[0] for message in got.messages] == list(range(240))
        assert broker.kinds.count(SUBSCRIBE) == 5
        assert (broker.ended, link.connects, link.drops["not acknowledged"]) == ([], 1, 0)
