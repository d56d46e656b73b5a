"""Why there is no connection: one sentence with the remedy, at once and then at a growing interval."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from certificates import certificate
from free_ports import free_port
from structlog.testing import capture_logs

from fakes import Mosquitto, eventually
from runtime.mqtt import Address, Connection, MqttLost
from runtime.mqtt.connection_problem import SHORT_SESSIONS, ConnectionProblem, explain
from runtime.mqtt.connection_types import BrokerSilent

ADDRESS = Address("127.0.0.1", 1883)


@asynccontextmanager
async def running(*connections: Connection) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in connections]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def warnings(logs: list[structlog.typing.EventDict]) -> list[structlog.typing.EventDict]:
    return [entry for entry in logs if entry["log_level"] == "warning"]


async def trouble_of(address: Address) -> str:
    connection = Connection(address, "reflexd-lamp-gate")
    async with running(connection):
        await eventually(lambda: connection.trouble is not None, "the trouble")
        assert connection.trouble is not None
        return connection.trouble


async def test_a_closed_port_is_logged_once_with_its_remedy() -> None:
    port = free_port()
    with capture_logs() as logs:
        connection = Connection(Address("127.0.0.1", port), "reflexd-lamp-gate")
        async with running(connection):
            await eventually(lambda: connection.trouble is not None, "the trouble")
            await asyncio.sleep(1.0)  # several attempts more
    assert [entry["event"] for entry in warnings(logs)] == ["mqtt.unreachable"]
    assert "no broker listens there; start it, or correct mqtt.url" in warnings(logs)[0]["reason"]
    assert f"127.0.0.1:{port}" in warnings(logs)[0]["reason"]


ANSWERS: dict[str, tuple[bytes, str]] = {
    "nothing, and closes": (b"", "closes the connection without an answer: it may expect TLS (mqtts://), be full, or be no broker"),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "answers, but not in MQTT: another program listens there; correct mqtt.url"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", "answers, but not in MQTT"),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x46", "answers, but not in MQTT"),
    "half of an answer": (b"\x20\x03\x00", "closes the connection without an answer"),
    "MQTT 3.1.1": (b"\x20\x02\x00\x01", "does not speak MQTT 5; use a broker that does"),
    "unknown user": (b"\x20\x03\x00\x86\x00", "refuses the login (no user); correct mqtt.username and mqtt.password"),
    "unavailable": (b"\x20\x03\x00\x88\x00", "is not available; start its service"),
    "banned": (b"\x20\x03\x00\x8a\x00", "bans this client; remove the ban"),
    "quota": (b"\x20\x03\x00\x97\x00", "has reached a limit (quota); raise it"),
    "moved": (b"\x20\x03\x00\x9d\x00", "has moved to another server; correct mqtt.url"),
    "too many": (b"\x20\x03\x00\x9f\x00", "accepts no more connections at present"),
    "unspecified": (b"\x20\x03\x00\x80\x00", "refuses the connection (Unspecified error); the log of the broker"),
    "shuts down": (b"\x20\x03\x00\x00\x00\xe0\x02\x8b\x00", "is shutting down; start it again, or wait"),
    "administrator": (b"\x20\x03\x00\x00\x00\xe0\x02\x98\x00", "ended the session by an administrator"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_answers_in_place_of_a_broker_is_named_at_once(name: str) -> None:
    answer, sentence = ANSWERS[name]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        await writer.drain()
        writer.close()

    port = free_port()
    async with await asyncio.start_server(talk, "127.0.0.1", port):
        reason = await trouble_of(Address("127.0.0.1", port, keepalive_s=30))  # waits for no time limit
    assert reason.startswith(f"127.0.0.1:{port} {sentence}"), reason


async def test_a_broker_that_requires_a_certificate_of_the_client_is_named(tmp_path: Path) -> None:
    """TLS 1.3 refuses it after the handshake, where only an alert says so."""
    key, cert = await asyncio.to_thread(certificate, tmp_path)
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(cert))
    served.load_cert_chain(cert, key)
    served.verify_mode = ssl.CERT_REQUIRED
    asked = ssl.create_default_context(cafile=str(cert))
    port = free_port()
    async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port, ssl=served):
        reason = await trouble_of(Address("127.0.0.1", port, tls=asked, keepalive_s=30))
    assert "mqtt.cert and mqtt.key" in reason, reason  # a reset that overtakes the alert hides the rest


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "cannot be reached from this machine (Network is unreachable)"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "cannot be reached from this machine (No route to host)"),
        (OSError(errno.EINVAL, "Invalid argument"), "is not an address that accepts connections; correct mqtt.url"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "closes the connection without an answer: it may expect TLS"),
    ],
)  # fmt: skip
def test_an_error_of_the_network_has_its_remedy(error: OSError, sentence: str) -> None:
    assert explain(error, Address("fd00::1", 1883), "x").startswith(f"[fd00::1]:1883 {sentence}")


async def test_two_clients_of_one_name_are_named_and_slow_down(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path).start()
    address = Address("127.0.0.1", broker.port)
    try:
        with capture_logs() as logs:
            one, two = Connection(address, "reflexd-lamp-gate"), Connection(address, "reflexd-lamp-gate")
            async with running(one, two):
                await eventually(
                    lambda: all("give each daemon its own name" in (each.trouble or "") for each in (one, two)),
                    "both name it",
                    60,
                )
    finally:
        broker.stop()
    assert len(warnings(logs)) <= 6, warnings(logs)


async def test_a_clean_stop_logs_no_loss(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path).start()
    connection = Connection(Address("127.0.0.1", broker.port), "reflexd-lamp-gate")
    try:
        with capture_logs() as logs:
            async with running(connection):
                await eventually(lambda: connection.connected, "connected")
        assert not warnings(logs)
    finally:
        broker.stop()


def test_the_interval_grows_and_starts_again_after_a_steady_session() -> None:
    now = [0.0]
    trouble = ConnectionProblem(ADDRESS, "x", lambda: now[0])
    logged = []
    for second in range(2_000):
        now[0] = float(second)
        if trouble.ended(ConnectionRefusedError()):
            logged.append(second)
    assert logged == [0, 10, 70, 670, 1_270, 1_870]
    trouble.connected()
    assert trouble.reason is None
    now[0] += 6
    assert trouble.reason is None
    assert trouble.ended(MqttLost("closed by the broker"))


def test_a_broker_that_pauses_again_and_again_is_not_taken_for_a_second_client() -> None:
    now = [0.0]
    trouble = ConnectionProblem(ADDRESS, "x", lambda: now[0])
    for _ in range(2 * SHORT_SESSIONS):
        for error in (BrokerSilent("the broker does not respond"), MqttLost("closed by the broker")):
            trouble.connected()
            now[0] += 1
            trouble.ended(ExceptionGroup("of a session", [error]))
            assert trouble.was_silent is isinstance(error, BrokerSilent)
            assert not trouble.is_short_lived
            assert "give each daemon its own name" not in (trouble.reason or "")
    for _ in range(SHORT_SESSIONS):
        trouble.connected()
        trouble.ended(MqttLost("closed by the broker"))
    assert trouble.is_short_lived
    trouble.ended(ConnectionRefusedError())
    assert not trouble.was_silent
    assert not trouble.is_short_lived


@pytest.mark.parametrize("error", [TimeoutError(), OSError("odd"), MqttLost("closed by the broker")])
def test_every_error_has_the_address_in_its_text(error: Exception) -> None:
    trouble = ConnectionProblem(ADDRESS, "x")
    assert trouble.ended(error)
    assert trouble.reason is not None
    assert "127.0.0.1:1883" in trouble.reason


def test_a_session_after_silence_is_in_order_once_the_broker_answers_in_it() -> None:
    """A broker with a round trip beyond the patience accepts each connection, and never answers an echo in time."""
    now = [0.0]
    problem = ConnectionProblem(ADDRESS, "x", lambda: now[0])
    silent = BrokerSilent("the broker does not respond; check the network and the broker")
    problem.connected()
    assert problem.reason is None, "nothing is known against the first session"
    for _ in range(10):
        now[0] += 0.8
        problem.ended(silent)
        problem.connected()
        assert "does not respond" in str(problem.reason)
    problem.answered()
    assert problem.reason is None
