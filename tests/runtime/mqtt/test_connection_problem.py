"""Why there is no connection: one sentence with the remedy, at once and then at a growing interval."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from fakes import Mosquitto, eventually, free_port
from runtime.mqtt import Address, Connection, MqttLost
from runtime.mqtt.connection_problem import SHORT_SESSIONS, ConnectionProblem
from runtime.mqtt.models import BrokerSilent

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


async def test_a_plain_connection_to_a_port_of_another_protocol_is_named() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    port = free_port()
    async with await asyncio.start_server(talk, "127.0.0.1", port):
        assert f"127.0.0.1:{port}" in await trouble_of(Address("127.0.0.1", port, keepalive_s=1))


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
