"""Both embedded brokers pass the same wire tests; what cannot be started says why."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import aiomqtt
import canaries
import pytest
from embedded_brokers import EmbeddedBroker, settings
from free_ports import free_port
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from wire_helpers import Collector, address, running

from fakes import eventually
from runtime.config.mqtt_settings import Credentials
from runtime.mqtt import Address, Connection, Will
from runtime.process import child
from runtime.supervisor import broker, broker_iotcore
from runtime.supervisor.child_processes import environment

MEGABYTE = 1_048_576


@pytest.fixture(params=["mosquitto", "iotcore"])
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedBroker]:
    made = EmbeddedBroker(request.param, tmp_path, free_port())
    yield made
    made.end()


def connect(embedded: EmbeddedBroker, name: str, **more: object) -> Connection:
    return Connection(address(embedded.port), name, **more)  # type: ignore[arg-type]


async def test_qos_0_and_1_in_order(embedded: EmbeddedBroker) -> None:
    got = Collector()
    reader = connect(embedded, "reader")
    reader.subscribe("a/+", got)
    async with running(reader), running(connect(embedded, "writer")) as writer:
        for n in range(50):
            await writer.publish(f"a/{n % 2}", str(n).encode(), qos=n % 2)  # type: ignore[arg-type]
        await got.until(lambda m: len(m) == 50)
    assert [int(m.payload) for m in got.messages] == list(range(50))
    assert {m.qos for m in got.messages if m.topic == "a/1"} == {1}  # iotcore delivers QoS 0 at QoS 1, too


async def test_properties_travel(embedded: EmbeddedBroker) -> None:
    seen = Collector()
    server = connect(embedded, "server")
    server.subscribe("request/x", lambda m: (seen(m), server.reply(m, b"answer", "fallback"))[0])
    async with running(server), running(connect(embedded, "client")) as client:
        answer = await client.request("request/x", b"q", reply_to="answers/me", timeout_s=60)
    assert answer.payload == b"answer"
    assert seen.messages[0].response_topic == "answers/me"
    assert seen.messages[0].correlation == answer.correlation


async def test_retained_is_stored_replaced_and_cleared(embedded: EmbeddedBroker) -> None:
    async with running(connect(embedded, "writer")) as writer:
        await writer.publish("s", b"one", retain=True)
        await writer.publish("s", b"two", retain=True)
        late = Collector()
        reader = connect(embedded, "reader")
        reader.subscribe("s", late, retained="send")
        async with running(reader):
            await late.until(lambda m: len(m) == 1)
        await writer.publish("s", b"", retain=True)
        empty = Collector()
        other = connect(embedded, "other")
        other.subscribe("s", empty, retained="send")
        async with running(other):
            await writer.publish("s", b"live")
            await empty.until(lambda m: len(m) == 1)
    assert [m.payload for m in late.messages] == [b"two"]
    assert [m.payload for m in empty.messages] == [b"live"]


async def test_retained_is_not_sent_to_who_ignores_it(embedded: EmbeddedBroker) -> None:
    async with running(connect(embedded, "writer")) as writer:
        await writer.publish("cmd", b"old", retain=True)
        got = Collector()
        reader = connect(embedded, "reader")
        reader.subscribe("cmd", got)
        async with running(reader):
            await writer.publish("cmd", b"new")
            await got.until(lambda m: m[-1:] != [] and m[-1].payload == b"new")
    assert all(m.retain for m in got.messages[:-1])  # a broker without Retain Handling marks it, and handlers refuse it


async def test_the_will(embedded: EmbeddedBroker) -> None:
    got = Collector()
    watcher = connect(embedded, "watcher")
    watcher.subscribe("status", got)
    async with running(watcher):
        victim = connect(embedded, "victim", will=Will("status", b"offline", retain=False))
        async with running(victim):
            assert victim._client is not None
            sock = victim._client._client.socket()
            assert isinstance(sock, socket.socket)
            sock.shutdown(socket.SHUT_RDWR)
            await got.until(lambda m: len(m) == 1)
    assert got.messages[0].payload == b"offline"


async def test_a_shared_subscription_gives_each_message_once(embedded: EmbeddedBroker) -> None:
    one, two = Collector(), Collector()
    first, second = connect(embedded, "first"), connect(embedded, "second")
    first.subscribe("$share/group/work", one)
    second.subscribe("$share/group/work", two)
    async with running(first), running(second), running(connect(embedded, "writer")) as writer:
        for n in range(20):
            await writer.publish("work", str(n).encode())
        await eventually(lambda: len(one.messages) + len(two.messages) >= 20)
    assert sorted(int(m.payload) for m in one.messages + two.messages) == list(range(20))
    assert one.messages
    assert two.messages


async def test_a_megabyte(embedded: EmbeddedBroker) -> None:
    got = Collector()
    reader = connect(embedded, "reader")
    reader.subscribe("big", got)
    payload = os.urandom(MEGABYTE)
    async with running(reader), running(connect(embedded, "writer")) as writer:
        for _ in range(3):
            await writer.publish("big", payload, timeout_s=60)
        await got.until(lambda m: len(m) == 3)
    assert all(m.payload == payload for m in got.messages)


async def test_an_expired_message_is_not_delivered(tmp_path: Path) -> None:
    made = EmbeddedBroker("mosquitto", tmp_path, free_port())
    try:
        connect_properties = Properties(PacketTypes.CONNECT)
        connect_properties.SessionExpiryInterval = 60
        session = {
            "identifier": "sleeper",
            "protocol": aiomqtt.ProtocolVersion.V5,
            "clean_start": False,
            "properties": connect_properties,
        }
        async with aiomqtt.Client("127.0.0.1", made.port, **session) as sleeper:  # type: ignore[arg-type]
            await sleeper.subscribe("t", qos=1)
        async with running(connect(made, "writer")) as writer:
            await writer.publish("t", b"short", expiry_s=0.3)
            await writer.publish("t", b"long", expiry_s=60)
            await asyncio.sleep(2.1)  # the expiry itself, in whole seconds
            async with aiomqtt.Client("127.0.0.1", made.port, **session) as sleeper:  # type: ignore[arg-type]
                async with asyncio.timeout(60):
                    first = await anext(aiter(sleeper.messages))
        assert first.payload == b"long"
    finally:
        made.end()


async def test_users_of_the_settings_may_enter_and_no_one_else(tmp_path: Path) -> None:
    port = free_port()
    made = EmbeddedBroker(
        "mosquitto",
        tmp_path,
        port,
        username="me",
        password=canaries.ODD,
        gate={"username": "g", "password": canaries.MQTT},
    )
    try:
        address = Address("127.0.0.1", port, Credentials.model_validate({"username": "me", "password": canaries.ODD}))
        async with running(Connection(address, "one")) as one:
            await one.publish("t", b"")
        stranger = Connection(Address("127.0.0.1", port), "two")
        client = stranger._new_client()
        with pytest.raises(aiomqtt.MqttError, match="Not authorized"):
            await client.__aenter__()
        client._client._sock_close()
        await asyncio.sleep(0)
    finally:
        made.end()
    secret = tmp_path / "broker" / "passwords"
    assert secret.stat().st_mode & 0o077 == 0
    assert canaries.received(secret.read_text()) is None


async def test_mosquitto_keeps_what_is_retained_over_a_restart(tmp_path: Path) -> None:
    port = free_port()
    made = EmbeddedBroker("mosquitto", tmp_path, port)
    async with running(connect(made, "writer")) as writer:
        await writer.publish("s", b"kept", retain=True)
    made.end()
    made = EmbeddedBroker("mosquitto", tmp_path, port)
    got = Collector()
    reader = connect(made, "reader")
    reader.subscribe("s", got, retained="send")
    async with running(reader):
        await got.until(lambda m: len(m) == 1)
    made.end()
    assert [(m.payload, m.retain) for m in got.messages] == [(b"kept", True)]


def test_a_taken_port_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(broker.BrokerError, match=f"mqtt://127.0.0.1:{port}"):
            broker.prepare(settings(port), tmp_path)


def test_an_open_broker_beyond_loopback_is_refused(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(broker.ExposedError, match="every client on the network"):
        broker.prepare(settings(port).model_copy(update={"url": f"embedded://0.0.0.0:{port}"}), tmp_path)
    with pytest.raises(broker.ExposedError, match="every client on the network"):
        broker.prepare(settings(port).model_copy(update={"url": f"embedded://some.host:{port}"}), tmp_path)
    with_users = settings(port, username="u", password=canaries.MQTT).model_copy(
        update={"url": f"embedded://0.0.0.0:{port}"}
    )
    assert "listener" in (Path(broker.prepare(with_users, tmp_path).command[-1])).read_text()


def test_without_any_broker_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_mosquitto_binary", lambda: None)
    assert broker.installed() == "iotcore"
    config = Path(broker.prepare(settings(free_port(), username='u"', password="p\\"), tmp_path).command[-1])
    assert '"u\\"" = "p\\\\"' in config.read_text()
    monkeypatch.setattr(broker, "find_spec", lambda _name: None)
    with pytest.raises(broker.BrokerError, match="apt-get install mosquitto"):
        broker.installed()


def test_names_that_are_loopback() -> None:
    assert broker._is_loopback("localhost")
    assert broker._is_loopback("::1")
    assert not broker._is_loopback("example.org")


def test_iotcore_is_only_imported_by_its_own_process() -> None:
    code = "import sys, runtime.supervisor.broker, runtime.supervisor.broker_iotcore; print('iotcore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)
    assert done.stdout == b"False\n"


def test_iotcore_gets_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    class Broker:
        def __init__(self, config_path: str) -> None:
            started.append(config_path)

        def run_forever(self) -> None:
            started.append("run")

    monkeypatch.setitem(sys.modules, "iotcore", SimpleNamespace(IotCoreBroker=Broker))
    monkeypatch.setattr(child, "set_process_title", started.append)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    assert broker_iotcore.main(["x.toml"]) == 0
    assert started == ["broker", "x.toml", "run"]
