"""A supervisor process, a fake agent and a simulated device on a real broker, and the clock between a fault and the safe value."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import canaries
import orjson
import psutil
from wire_helpers import address

from actuators.device import Command, DeviceInbox
from actuators.wire import state_payload
from fakes import Mosquitto, end, eventually
from runtime.mqtt import Connection, Message

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]

CONFIG = """\
agent: tester
tick: {{rate_hz: 20}}
state_dir: {state}
mqtt: {{url: "{url}", {login}}}
streams:
  joints: {{kind: telemetry, source: topic, fields: [a], max_age_s: 0.5}}
actuators:
  head: {{kind: choice, choices: [left, stay, right], safe: stay}}
gate: {{reconcile_s: 0.2, arm: {arm}}}
learner: {{enabled: false}}
"""


@dataclass
class Device:
    """A head that obeys commands as a device must, and everything else the broker carries."""

    connection: Connection
    inbox: DeviceInbox = field(default_factory=DeviceInbox)
    value: str = "stay"
    done: list[tuple[float, Command]] = field(default_factory=list)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    raw: list[Message] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    """Age of each command when it was carried out."""
    clock_off_s: float = 0.0
    """What the device's clock is ahead of the true one."""

    def wall_s(self) -> float:
        """Unix seconds by the device's clock."""
        return time.time() + self.clock_off_s

    def command(self, message: Message) -> None:
        self.raw.append(message)
        now_s = self.wall_s()
        command = self.inbox.accept(message.payload, retained=message.retain, now_s=now_s)
        if command is not None:
            self.done.append((message.stamp_s, command))
            self.ages_s.append(now_s - command.stamp_s)
            self.value = str(command.value)
            self.report(command)

    def report(self, command: Command | None = None) -> None:
        payload = state_payload(self.value, command and command.seq, command and command.boot)
        self.connection.enqueue("reflexd/tester/act/head/state", payload, qos=1, retain=True)

    def moves(self) -> int:
        return sum(command.policy != "gate" for _, command in self.done)

    async def moving(self) -> None:
        """Until the policy has moved it some times more."""
        goal = self.moves() + 4
        await eventually(lambda: self.moves() >= goal, "the policy moving the device")

    async def safe_after(self, fault_s: float, timeout_s: float = 60.0) -> float:
        """Seconds from the fault to the safe value."""
        await eventually(lambda: self.first_safe(fault_s) is not None, "the safe value at the device", timeout_s)
        found = self.first_safe(fault_s)
        assert found is not None
        return found - fault_s

    def first_safe(self, since_s: float) -> float | None:
        return next((at for at, c in self.done if at >= since_s and c.policy == "gate" and c.value == "stay"), None)


@dataclass
class Daemon:
    """A running supervisor."""

    process: subprocess.Popen[bytes]
    log: Path
    state: Path

    def child(self, marker: str) -> psutil.Process:
        """The child with a command line that contains `marker`."""
        for each in psutil.Process(self.process.pid).children():
            if any(marker in part for part in each.cmdline()):
                return each
        raise LookupError(f"no child {marker!r}:\n{self.log.read_text()}")

    def agent(self) -> psutil.Process:
        return self.child("fake_agent")


def write_config(folder: Path, url: str, arm: str = "auto", more: str = "") -> Path:
    """A settings file for the fake agent."""
    path = folder / "tester.yaml"
    path.write_text(CONFIG.format(state=folder / "state", url=url, arm=arm, login=canaries.LOGIN_YAML) + more)
    return path


def agent_row(*arguments: str) -> list[Any]:
    """The fake agent as a row for `supervised.py`."""
    return [
        "agent",
        True,
        [
            sys.executable,
            str(HERE / "fake_agent.py"),
            "--gate-fd",
            "{gate_fd}",
            "--agreement",
            "{agreement}",
            *arguments,
        ],
    ]


def start_daemon(
    folder: Path,
    config: Path,
    rows: list[list[Any]] | None = None,
    within: tuple[str, ...] = (),
    **environment: str,
) -> Daemon:
    """Start `supervised.py`, if need be by a command that becomes it, such as `ip netns exec NAME`."""
    children = folder / "children.json"
    children.write_bytes(orjson.dumps(rows if rows is not None else [agent_row()]))
    log = folder / "daemon.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*within, sys.executable, str(HERE / "supervised.py"), str(config), str(children)],
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )
    return Daemon(process, log, folder / "state")


def end_daemon(daemon: Daemon, timeout_s: float = 60.0) -> int:
    """SIGTERM and wait; returns the exit code."""
    return end(daemon.process, timeout_s)


@asynccontextmanager
async def device_on(port: int) -> AsyncIterator[Device]:
    """A device that is connected."""
    connection = Connection(address(port), "tester-device")
    device = Device(connection)
    connection.subscribe("reflexd/tester/act/head/set", device.command)
    connection.subscribe(
        "reflexd/tester/status", lambda m: device.statuses.append(orjson.loads(m.payload)), retained="send"
    )
    connection.subscribe("reflexd/tester/event", lambda m: device.events.append(orjson.loads(m.payload)))
    connection.on_connect = device.report
    task = asyncio.create_task(connection.run())
    try:
        async with asyncio.timeout(60):
            await connection.up()
        yield device
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def under_test(
    folder: Path, broker: Mosquitto, rows: list[list[Any]] | None = None, arm: str = "auto"
) -> AsyncIterator[tuple[Daemon, Device]]:
    """Broker, device and daemon together."""
    config = write_config(folder, broker.url, arm)
    async with device_on(broker.port) as device:
        daemon = start_daemon(folder, config, rows)
        try:
            yield daemon, device
        finally:
            await asyncio.to_thread(end_daemon, daemon)
