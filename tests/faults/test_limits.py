"""What the operator sees when descriptors run out, when the network swallows packets, and when two daemons have one name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from faults.harness import agent_row, device_on, end_daemon, start_daemon, under_test, write_config
from free_ports import free_port

from fakes import Mosquitto, eventually


async def test_descriptors_that_run_out_stop_no_movement_and_the_broker_is_found_again(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with under_test(tmp_path, broker) as (daemon, device):
        await device.moving()
        pid = daemon.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = psutil.Process(pid).num_fds()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))  # no number is free: those in use stay open
        await device.moving()
        broker.stop()
        broker.start()
        gone_s = time.monotonic()
        await eventually(lambda: "mqtt.unreachable" in daemon.log.read_text(), "the reason in the log", 60.0)
        moves = device.moves()
        await asyncio.sleep(1.0)
        assert device.moves() == moves, "nothing moves without a broker"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        await device.moving()
        print(f"descriptors exhausted: moving again {time.monotonic() - gone_s:.1f} s after the broker came back")
        assert daemon.process.poll() is None
        assert psutil.Process(pid).num_fds() <= used + 4
    assert "Traceback" not in daemon.log.read_text()


class Wire:
    """A proxy before a broker that can swallow or delay what is sent, in both directions, with every connection open."""

    def __init__(self, broker_port: int) -> None:
        self.port = free_port()
        self.swallows = False
        self.delay_s = 0.0
        self.connections = 0
        self._to = broker_port
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(65_536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if not self.swallows:
                    writer.write(data)
                    await writer.drain()
        if not self.swallows:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, there_writer]
        for pair in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._pump(*pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Listen."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for writer in self._writers:
                writer.transport.abort()


OPEN_BROKER = "listener {port} 0.0.0.0\nallow_anonymous true\nset_tcp_nodelay true\n"
HERE_IP, THERE_IP, NO_STATION = "10.219.19.1", "10.219.19.2", "02:00:00:00:00:99"


class Namespace:
    """A network of its own on one cable, of which the ends can be made to miss each other while both are up."""

    def __init__(self, name: str) -> None:
        self.name, self.here, self.there = name, f"{name}a", f"{name}b"

    def ip(self, *arguments: str, inside: bool = False) -> None:
        subprocess.run(["ip", *(("-n", self.name) if inside else ()), *arguments], check=True, capture_output=True)

    def cut(self) -> None:
        """Send every packet to a station that does not exist: nothing arrives, and no end learns of it."""
        self.ip("neigh", "replace", THERE_IP, "lladdr", NO_STATION, "dev", self.here, "nud", "permanent")
        self.ip("neigh", "replace", HERE_IP, "lladdr", NO_STATION, "dev", self.there, "nud", "permanent", inside=True)

    def mend(self) -> None:
        """Let the ends find each other again."""
        self.ip("neigh", "del", THERE_IP, "dev", self.here)
        self.ip("neigh", "del", HERE_IP, "dev", self.there, inside=True)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """Make a network namespace; skip the test where this user may not."""
    one = Namespace(f"rx{os.getpid() % 100_000}")
    try:
        one.ip("netns", "add", one.name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespace can be made here: {error}")
    try:
        one.ip("link", "add", one.here, "type", "veth", "peer", "name", one.there, "netns", one.name)
        one.ip("addr", "add", f"{HERE_IP}/30", "dev", one.here)
        one.ip("addr", "add", f"{THERE_IP}/30", "dev", one.there, inside=True)
        for device, inside in ((one.here, False), (one.there, True), ("lo", True)):
            one.ip("link", "set", device, "up", inside=inside)
        yield one
    finally:
        one.ip("netns", "del", one.name)  # takes the cable with it


async def test_a_connection_that_is_half_open_in_the_network_is_noticed_and_replaced(tmp_path: Path) -> None:
    """The daemon is in a network of its own; both ends keep their socket, and no packet arrives."""
    port = free_port()
    broker = Mosquitto(tmp_path, port, OPEN_BROKER.format(port=port)).start()
    try:
        with namespace() as network:
            config = write_config(tmp_path, f"mqtt://{HERE_IP}:{port}")
            async with device_on(port) as device:
                daemon = start_daemon(tmp_path, config, [agent_row()], ("ip", "netns", "exec", network.name))
                try:
                    await device.moving()
                    network.cut()
                    begun_s, moves = time.monotonic(), device.moves()
                    await eventually(lambda: '"type":"broker_lost"' in daemon.log.read_text(), "the loss", 60)
                    lost_s, after = time.monotonic() - begun_s, device.moves()
                    await eventually(lambda: "does not answer" in daemon.log.read_text(), "an attempt that fails", 60)
                    network.mend()
                    mended_s = time.monotonic()
                    await device.moving()
                    back_s = time.monotonic() - mended_s
                finally:
                    await asyncio.to_thread(end_daemon, daemon)
    finally:
        broker.stop()
    print(
        f"half-open in the network: noticed after {lost_s:.1f} s, {after - moves} movements meanwhile, moving again "
        f"{back_s:.1f} s after it was mended"
    )
    assert after - moves <= 4, "what was under way"
    assert max(device.ages_s) <= 0.3, "no command is carried out late"


async def test_a_half_open_connection_is_noticed_and_replaced(tmp_path: Path, broker: Mosquitto) -> None:
    wire = Wire(broker.port)
    config = write_config(tmp_path, f"mqtt://127.0.0.1:{wire.port}")
    async with wire.open(), device_on(broker.port) as device:
        daemon = start_daemon(tmp_path, config, [agent_row()])
        try:
            await device.moving()
            wire.swallows = True
            begun_s = time.monotonic()
            await eventually(lambda: "broker_lost" in daemon.log.read_text(), "the loss in the log", 60)
            lost_s = time.monotonic() - begun_s
            moves = device.moves()
            wire.swallows = False
            await device.moving()
            print(f"half-open connection: noticed after {lost_s:.1f} s")
            assert moves < device.moves()
            assert max(device.ages_s) <= 0.3, "no command is carried out late"
        finally:
            await asyncio.to_thread(end_daemon, daemon)


async def test_a_broker_that_is_slow_counts_as_lost_and_nothing_is_carried_out_late(
    tmp_path: Path, broker: Mosquitto
) -> None:
    """Each packet takes longer than a command's time to live."""
    wire = Wire(broker.port)
    config = write_config(tmp_path, f"mqtt://127.0.0.1:{wire.port}")
    async with wire.open(), device_on(broker.port) as device:
        daemon = start_daemon(tmp_path, config, [agent_row()])
        try:
            await device.moving()
            wire.delay_s = 0.35
            begun_s = time.monotonic()
            await eventually(lambda: "the broker does not respond" in daemon.log.read_text(), "the reason", 60)
            lost_s = time.monotonic() - begun_s
            await eventually(lambda: '"type":"disarmed"' in daemon.log.read_text(), "disarmed", 60)
            before = wire.connections
            await eventually(lambda: wire.connections >= before + 5, "sessions that do not last", 60)
            assert '"type":"broker_recovered"' not in daemon.log.read_text(), (
                "a session that does not last is no recovery"
            )
            wire.delay_s = 0.0
            await device.moving()
            assert daemon.log.read_text().count('"type":"broker_lost"') == 1
            await eventually(lambda: '"type":"broker_recovered"' in daemon.log.read_text(), "the recovery", 60)
            expired = device.inbox.drops["expired"]
            print(f"slow broker: named and disarmed after {lost_s:.1f} s; {expired} commands expired on the way")
            moves = [
                age_s
                for age_s, (_, command) in zip(device.ages_s, device.done, strict=True)
                if command.policy != "gate"
            ]
            assert max(moves) <= 0.3, "no movement is carried out late; a safe action is right whenever it arrives"
        finally:
            await asyncio.to_thread(end_daemon, daemon)


async def test_two_daemons_of_one_name_say_so_once_and_rarely(tmp_path: Path, broker: Mosquitto) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    async with device_on(broker.port):
        daemons = []
        try:
            for folder in folders:
                folder.mkdir()
                daemons.append(start_daemon(folder, write_config(folder, broker.url), [agent_row()]))
            begun_s = time.monotonic()

            def named() -> bool:
                return any("give each daemon its own name" in each.log.read_text() for each in daemons)

            await eventually(named, "the reason in a log", 60)
            print(f"two daemons of one name: named after {time.monotonic() - begun_s:.1f} s")
            for each in daemons:
                assert each.log.read_text().count('"level":"warning"') < 40
        finally:
            for each in daemons:
                await asyncio.to_thread(end_daemon, each)
