"""Shared fakes and real servers under a test's control."""

from __future__ import annotations

import asyncio
import errno
import heapq
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import canaries
import paho.mqtt.client as mqtt
from free_ports import free_port
from paho.mqtt.enums import CallbackAPIVersion

DEADLINE_S = 60.0


def disk_full(*_: object) -> None:
    """Stand in for `os.fsync` on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def connect_when_up(client: mqtt.Client, port: int, timeout_s: float) -> None:
    """Connect a plain MQTT client, with the login of the tests, as soon as a broker listens, and start its thread."""
    client.username_pw_set(*canaries.LOGIN.values())
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            client.connect("127.0.0.1", port)
            break
        except OSError:
            assert time.monotonic() < deadline_s, "the broker never listened"
            threading.Event().wait(0.1)
    client.loop_start()


def end(process: subprocess.Popen[Any], timeout_s: float = 60.0) -> int:
    """SIGTERM and wait: the exit code. What does not end in time is killed, and that fails the test."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def _holds(condition: Callable[[], bool]) -> bool:
    """Whether it holds; `messages[-1]` before the first message does not."""
    try:
        return condition()
    except LookupError:
        return False


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Poll a condition outside the loop; fails with `what` when it does not come true in time."""
    end = time.monotonic() + timeout_s
    while not _holds(condition):
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {timeout_s} s")
        time.sleep(0.005)


async def eventually(condition: Callable[[], bool], what: str = "it", timeout_s: float = DEADLINE_S) -> float:
    """Wait in the loop until a condition holds; returns the seconds it took, and fails when it never does."""
    begun = time.monotonic()
    while not _holds(condition):
        if time.monotonic() - begun > timeout_s:
            raise TimeoutError(f"{what} did not happen within {timeout_s} s")
        await asyncio.sleep(0.002)
    return time.monotonic() - begun


class Contention:
    """How long tasks of this machine have waited for a core or a disk since its creation: the kernel's pressure stall information.

    A limit of time is a promise for a machine that has the time: `assert took_s <= 1.0 + contention.s`.
    """

    def __init__(self) -> None:
        self._at_s = self._total_s()

    @property
    def s(self) -> float:
        """Seconds in which at least one task waited."""
        return self._total_s() - self._at_s

    @staticmethod
    def _total_s() -> float:
        files = [Path("/proc/pressure") / name for name in ("cpu", "io")]
        some = [path.read_text().partition("\n")[0] for path in files if path.exists()]
        return sum(int(line.rpartition("=")[2]) for line in some) / 1e6


def listening(port: int) -> bool:
    """Whether somebody accepts on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def listener(port: int) -> mqtt.Client:
    """A client that gets whatever passes an open broker, so that `canary_watch.py` hears it, until that broker is gone."""
    ear = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
    ear.on_connect = lambda client, *_: client.subscribe("#")
    ear.connect("127.0.0.1", port)
    ear.loop_start()
    return ear


class Mosquitto:
    """A real mosquitto that can be stopped, continued, killed and started again on the same port."""

    def __init__(self, folder: Path, port: int | None = None, extra: str = "") -> None:
        self.folder = folder
        self.port = port or free_port()
        self.extra = extra
        self.process: subprocess.Popen[bytes] | None = None
        self._ear: mqtt.Client | None = None

    @property
    def url(self) -> str:
        """`mqtt://127.0.0.1:PORT`."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it and wait until it listens."""
        config = self.folder / f"mosquitto-{self.port}.conf"
        config.write_text(
            self.extra or f"listener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n",
        )
        binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert binary, "mosquitto is missing: apt-get install mosquitto"
        log = (self.folder / f"mosquitto-{self.port}.log").open("ab")
        with log:
            self.process = subprocess.Popen([binary, "-c", str(config), "-v"], stdout=log, stderr=log)
        wait_for(lambda: listening(self.port), "mosquitto listening")
        if not self.extra:
            self._ear = listener(self.port)
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP freezes it with its connections open."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """Kill it, frozen or not."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=DEADLINE_S)
            self.process = None
        if self._ear is not None:
            self._ear.disconnect()
            self._ear.loop_stop()
            self._ear = None


@dataclass(slots=True)
class FakeClock:
    """Time that moves only by `advance`, which wakes whoever waits for a moment that has come."""

    time_s: float = 0.0
    _waiting: list[tuple[float, int, asyncio.Future[None]]] = field(default_factory=list)
    _order: int = 0

    def now(self) -> float:
        """The time last set."""
        return self.time_s

    async def sleep_until(self, deadline_s: float) -> None:
        """Wait until `advance` passes `deadline_s`."""
        if deadline_s <= self.time_s:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._waiting, (deadline_s, self._order, future))
        await future

    def advance(self, seconds: float) -> None:
        """Move time on and wake what is due, in order."""
        self.time_s += seconds
        while self._waiting and self._waiting[0][0] <= self.time_s:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
