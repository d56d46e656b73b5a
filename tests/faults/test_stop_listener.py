"""A stop that is sent while the gate is dead, frozen or without a connection. Real processes, real signals, a real broker."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from faults.harness import Daemon, Device, agent_row, device_on, end_daemon, start_daemon, write_config

from fakes import Mosquitto, eventually
from runtime.gate.stop_latch import StopLatch

STOP = "reflexd/tester/stop"


def rows(config: Path) -> list[list[Any]]:
    listener = "import os, sys; from runtime.gate.stop_listener import main; sys.exit(main(sys.argv[1:]))"
    return [agent_row(), ["stop listener", False, [sys.executable, "-c", listener, str(config)]]]


def listener_of(daemon: Daemon) -> psutil.Process:
    return next(p for p in psutil.Process(daemon.process.pid).children() if "stop listener" in " ".join(p.cmdline()))


@asynccontextmanager
async def listening(folder: Path, broker: Mosquitto) -> AsyncIterator[tuple[Path, Daemon, Device]]:
    """A moving device, and a listener that is connected."""
    config = write_config(folder, broker.url)
    async with device_on(broker.port) as device:
        daemon = start_daemon(folder, config, rows(config))
        try:
            await device.moving()
            await eventually(lambda: daemon.log.read_text().count('"event":"mqtt.connected"') >= 3, "the listener")
            yield config, daemon, device
        finally:
            await asyncio.to_thread(end_daemon, daemon)


async def test_a_stop_sent_while_the_gate_is_dead_holds_after_its_restart(tmp_path: Path, broker: Mosquitto) -> None:
    latch = StopLatch.of(tmp_path / "state")
    async with listening(tmp_path, broker) as (config, daemon, device):
        first = listener_of(daemon)
        daemon.process.kill()
        daemon.process.wait()
        await eventually(lambda: device.statuses[-1]["state"] == "offline", "the will")
        assert first.is_running()
        await device.connection.publish(STOP, b'{"engaged": true}', qos=0)  # the broker stores nothing of QoS 0
        await eventually(lambda: latch.read() is not None, "the latch on the disk")
        await device.connection.publish(STOP, b'{"engaged": false}', qos=0)
        device.statuses.clear()
        again = start_daemon(tmp_path, config, rows(config))
        try:
            await eventually(lambda: device.statuses and device.statuses[-1]["state"] == "stopped", "stopped", 60.0)
            assert "second listener" in device.statuses[-1]["reasons"][0]
            await eventually(lambda: not first.is_running(), "the new listener in place of the old one", 60.0)
            moved = device.moves()
            await device.connection.publish("reflexd/tester/request/arm", b"")
            await asyncio.sleep(0.5)  # ten ticks in which a policy might move
            assert device.moves() == moved
            assert device.value == "stay"
            await device.connection.publish(STOP, b'{"engaged": false}')
            await eventually(lambda: latch.read() is None, "the release on the disk")
            await device.connection.publish("reflexd/tester/request/arm", b"")
            await device.moving()
            second = listener_of(again)
        finally:
            await asyncio.to_thread(end_daemon, again)
        assert not second.is_running()


async def test_a_stop_is_obeyed_once_when_both_listeners_have_it(tmp_path: Path, broker: Mosquitto) -> None:
    latch = StopLatch.of(tmp_path / "state")
    async with listening(tmp_path, broker) as (_, daemon, device):
        await device.connection.publish(STOP, b'{"engaged": true}')
        await eventually(lambda: device.statuses[-1]["state"] == "stopped", "stopped")
        assert device.statuses[-1]["reasons"] == ["the software stop is engaged"]
        await eventually(lambda: latch.read() is not None, "the latch")
        await device.connection.publish(STOP, b'{"engaged": false}')
        await eventually(lambda: latch.read() is None, "the release")
        await device.connection.publish("reflexd/tester/request/arm", b"")
        await device.moving()
        assert sum(event["type"] == "stopped" for event in device.events) == 1
        listener = listener_of(daemon)
    assert not listener.is_running(), "it ends with a supervisor that ends in order"


async def test_a_frozen_gate_has_the_stop_on_the_disk(tmp_path: Path, broker: Mosquitto) -> None:
    latch = StopLatch.of(tmp_path / "state")
    async with listening(tmp_path, broker) as (_, daemon, device):
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            await device.connection.publish(STOP, b'{"engaged": true}', qos=0)
            await eventually(lambda: latch.read() is not None, "the latch")
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        await eventually(lambda: device.statuses[-1]["state"] == "stopped", "stopped")
