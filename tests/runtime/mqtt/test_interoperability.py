"""The cases of Eclipse Paho's interoperability tests that concern a client, against each embedded broker.

What `tests/runtime/supervisor/test_broker.py` covers is not repeated: order at QoS 0 and 1, request and response, retained
messages, the will, shared subscriptions, large messages and expiry.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest
from embedded_brokers import EmbeddedBroker
from free_ports import free_port
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from wire_helpers import Collector, address, running

from fakes import eventually
from runtime.mqtt import Connection


@pytest.fixture(params=["mosquitto", "iotcore"])
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedBroker]:
    made = EmbeddedBroker(request.param, tmp_path, free_port())
    yield made
    made.end()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """For what iotcore lacks: sessions that outlive a connection, and aliases of topics."""
    made = EmbeddedBroker("mosquitto", tmp_path, free_port())
    yield made
    made.end()


@asynccontextmanager
async def stranger(broker: EmbeddedBroker) -> AsyncIterator[aiomqtt.Client]:
    """Another client, not ours."""
    async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        yield client


def cut(connection: Connection) -> None:
    """Cut the connection below MQTT."""
    assert connection._client is not None
    sock = connection._client._client.socket()
    assert isinstance(sock, socket.socket)
    sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("topic", ["a", "/a", "a/", "a//b", "/", "Küche/Lampe 灯", "a b/$c", "x/" * 30 + "x"])
async def test_every_valid_topic_is_published_and_received(embedded: EmbeddedBroker, topic: str) -> None:
    got = Collector()
    link = Connection(address(embedded.port), "one")
    link.subscribe(topic, got)
    async with running(link):
        await link.publish(topic, b"x")
        await got.until(lambda m: len(m) == 1)
    assert got.messages[0].topic == topic


async def test_wildcards_match_whole_levels_and_no_system_topic(embedded: EmbeddedBroker) -> None:
    one, many = Collector(), Collector()
    first, second = Connection(address(embedded.port), "one"), Connection(address(embedded.port), "two")
    first.subscribe("a/+", one)
    second.subscribe("#", many)
    async with running(first), running(second), stranger(embedded) as client:
        for topic in ("a", "a/b", "a/b/c", "ab/c", "a/"):
            await client.publish(topic, topic, 1)
        await client.publish("last", "last", 1)
        await many.until(lambda m: [x.topic for x in m][-1:] == ["last"])
        await client.publish("a/end", "end", 1)
        await one.until(lambda m: m[-1:] != [] and m[-1].topic == "a/end")
    assert {m.topic for m in one.messages} == {"a/b", "a/", "a/end"}
    assert not any(m.topic.startswith("$") for m in many.messages)


async def test_overlapping_subscriptions_reach_each_handler_once(embedded: EmbeddedBroker) -> None:
    exact, wide = Collector(), Collector()
    link = Connection(address(embedded.port), "one")
    link.subscribe("a/b", exact)
    link.subscribe("a/#", wide)
    async with running(link), stranger(embedded) as client:
        await client.publish("a/b", b"first", 1)
        await client.publish("a/c", b"last", 1)
        await wide.until(lambda m: m[-1:] != [] and m[-1].payload == b"last")
    assert {m.payload for m in exact.messages} == {b"first"}
    assert {m.payload for m in wide.messages} == {b"first", b"last"}


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_message_of_any_qos_and_an_empty_one_arrive(embedded: EmbeddedBroker, qos: int) -> None:
    got = Collector()
    link = Connection(address(embedded.port), "one")
    link.subscribe("t", got)
    async with running(link), stranger(embedded) as client:
        await client.publish("t", b"", qos)
        await client.publish("t", b"x", qos)
        await got.until(lambda m: len(m) == 2)
    assert [m.payload for m in got.messages] == [b"", b"x"]


async def test_a_cut_connection_subscribes_again(embedded: EmbeddedBroker) -> None:
    got = Collector()
    link = Connection(address(embedded.port), "one")
    link.subscribe("t", got)
    async with running(link), stranger(embedded) as client:
        for number in range(3):
            cut(link)
            await eventually(lambda n=number: link.connects == n + 2 and link.connected, "another session")  # type: ignore[misc]
            await client.publish("t", str(number), 1)
            await got.until(lambda m, n=number: len(m) == n + 1)  # type: ignore[misc]
    assert [m.payload for m in got.messages] == [b"0", b"1", b"2"]


async def test_a_quiet_connection_outlives_its_keep_alive(embedded: EmbeddedBroker) -> None:
    got = Collector()
    link = Connection(dataclasses.replace(address(embedded.port), keepalive_s=1), "one")
    link.subscribe("t", got)
    async with running(link), stranger(embedded) as client:
        await asyncio.sleep(2.5)  # the interval itself, in whole seconds
        await client.publish("t", b"x", 1)
        await got.until(lambda m: len(m) == 1)
    assert link.connects == 1


async def test_more_messages_under_way_than_the_broker_allows(embedded: EmbeddedBroker) -> None:
    got = Collector()
    link = Connection(address(embedded.port), "one", max_incoming=1_000)
    link.subscribe("t", got)
    async with running(link), running(Connection(address(embedded.port), "two")) as writer:
        await asyncio.gather(*(writer.publish("t", str(n).encode(), timeout_s=60) for n in range(200)))
        await got.until(lambda m: len(m) >= 200, 60.0)
    assert sorted(int(m.payload) for m in got.messages) == list(range(200))


async def test_what_comes_while_we_are_away_waits_in_the_session(mosquitto: EmbeddedBroker) -> None:
    got = Collector()
    link = Connection(address(mosquitto.port), "sleeper", session_s=60)
    link.subscribe("t", got)
    async with running(link):
        await link.publish("t", b"before")
        await got.until(lambda m: len(m) == 1)
    async with stranger(mosquitto) as client:
        for number in range(3):
            await client.publish("t", str(number), 1)
        await client.publish("t", b"not stored", 0)
    again = Connection(address(mosquitto.port), "sleeper", session_s=60)
    again.subscribe("t", got)
    async with running(again):
        await got.until(lambda m: len(m) >= 4)
    assert [m.payload for m in got.messages[:4]] == [b"before", b"0", b"1", b"2"]


async def test_user_properties_content_types_and_topic_aliases_are_taken(mosquitto: EmbeddedBroker) -> None:
    got = Collector()
    link = Connection(address(mosquitto.port), "one")
    link.subscribe("t", got)
    odd = Properties(PacketTypes.PUBLISH)
    odd.TopicAlias = 1
    odd.UserProperty = [("a", "1"), ("a", "2"), ("", "")]
    odd.ContentType = "application/octet-stream"
    odd.PayloadFormatIndicator = 1
    async with running(link), stranger(mosquitto) as client:
        await client.publish("t", b"\xff", 1, properties=odd)
        await got.until(lambda m: len(m) == 1)
    assert got.messages[0].payload == b"\xff"
