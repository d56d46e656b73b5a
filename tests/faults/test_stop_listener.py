"""A stop that is sent while the gate is dead, frozen or without a connection. Real processes, real signals, a real broker."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import canaries
import psutil
from disks import small_disk
from faults.harness import Daemon, Device, agent_row, device_on, end_daemon, start_daemon, write_config
from free_ports import free_port

from fakes import Mosquitto, eventually
from runtime.gate.stop.latch import StopLatch

STOP = "reflexd/tester/stop"
KILLS = int(os.environ.get("STOP_KILLS", "3"))
"""At random moments; each takes about three seconds."""
DEAF_GATE = """\
listener {port} 127.0.0.1
allow_anonymous true
acl_file {acl}
set_tcp_nodelay true
user root
"""
"""A broker that passes no stop to the gate's own connection."""
LOGINS = f"gate: {{username: gate, requests: requests, stop: halt, password: {canaries.MQTT}}}"


def rows(config: Path) -> list[list[Any]]:
    listener = "import os, sys; from runtime.gate.stop.listener import main; sys.exit(main(sys.argv[1:]))"
    return [
        agent_row(),
        ["stop listener", False, [sys.executable, "-c", listener, "--gate-fd", "{gate_fd}", str(config)]],
    ]


def connects(daemon: Daemon) -> int:
    return daemon.log.read_text().count('"event":"mqtt.connected"')


async def connected(daemon: Daemon, times: int) -> None:
    await eventually(lambda: connects(daemon) >= times, "the gate and the listener")


def listener_of(daemon: Daemon) -> psutil.Process:
    return next(p for p in psutil.Process(daemon.process.pid).children() if "stop listener" in " ".join(p.cmdline()))


@asynccontextmanager
async def listening(folder: Path, broker: Mosquitto, logins: str = "") -> AsyncIterator[tuple[Path, Daemon, Device]]:
    """A moving device, and a listener that is connected."""
    config = write_config(folder, broker.url)
    config.write_text(config.read_text().replace(canaries.LOGIN_YAML, f"{canaries.LOGIN_YAML}, {logins}"))
    async with device_on(broker.port) as device:
        daemon = start_daemon(folder, config, rows(config))
        try:
            await device.moving()
            await eventually(lambda: connects(daemon) >= 3, "the listener")
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
            assert "stop listener" in device.statuses[-1]["reasons"][0]
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


async def test_a_stop_outlives_gate_and_listener_killed_at_any_moment(tmp_path: Path, broker: Mosquitto) -> None:
    """The broker has a stop of QoS 1 that neither process has on the disk, and sends it again."""
    draw, latch = random.Random(18), StopLatch.of(tmp_path / "state")
    async with listening(tmp_path, broker) as (config, first, device):
        daemon = first
        for number in range(KILLS):
            pids = daemon.process.pid, listener_of(daemon).pid
            if number % 2:  # both find the stop in their sockets, and have no head start on the kill
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
            stop = asyncio.create_task(device.connection.publish(STOP, b'{"engaged": true}', timeout_s=20.0))
            if number % 2:
                await stop
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(draw.uniform(0.0, 0.02))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await stop
            daemon.process.wait()
            await eventually(lambda: device.statuses[-1]["state"] == "offline", "the will")
            moved, before = device.moves(), connects(daemon)
            daemon = start_daemon(tmp_path, config, rows(config))
            try:
                await connected(daemon, before + 3)
                await eventually(lambda: device.statuses[-1]["state"] == "stopped", f"the stop of kill {number}", 20.0)
                assert (device.moves(), device.value) == (moved, "stay")
                while (
                    device.statuses[-1]["state"] == "stopped" or latch.exists()
                ):  # a release counts a second after the connects
                    await device.connection.publish(STOP, b'{"engaged": false}')
                    await asyncio.sleep(0.1)
            except BaseException:
                await asyncio.to_thread(end_daemon, daemon)
                raise
        await asyncio.to_thread(end_daemon, daemon)


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


async def test_a_stop_that_the_listener_alone_receives_reaches_the_gate_while_the_disk_refuses(tmp_path: Path) -> None:
    users = "".join(f"user {name}\ntopic readwrite #\n" for name in ("tester", "requests", "halt"))
    acl = tmp_path / "acl"
    acl.write_text(f"{users}user gate\ntopic deny {STOP}\ntopic readwrite #\n")
    port = free_port()
    broker = Mosquitto(tmp_path, port, DEAF_GATE.format(port=port, acl=acl)).start()
    try:
        with small_disk(tmp_path / "state", "size=1m") as disk:
            async with listening(tmp_path, broker, LOGINS) as (_, daemon, device):
                listener_of(daemon).kill()
                await eventually(lambda: connects(daemon) >= 4, "the next one")
                disk.fill()
                await device.connection.publish(STOP, b'{"engaged": true}', qos=0)
                await eventually(lambda: "stopped" in [e["data"].get("change") for e in device.events], "the stop")
                moved = device.moves()
                await eventually(lambda: device.value == "stay", "the safe action")
                assert not StopLatch.of(disk.folder).exists()
                disk.free()
                await eventually(lambda: device.statuses[-1]["state"] == "stopped", "the stop on the disk")
                assert "stop listener" in device.statuses[-1]["reasons"][0]
                assert device.moves() == moved
    finally:
        broker.stop()
