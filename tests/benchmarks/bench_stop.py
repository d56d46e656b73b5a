"""How long from a cause to the safe command on the wire: `python tests/benchmarks/bench_stop.py [--runs N] [--only WORD]`.

A real daemon with twelve actuators at 50 Hz and its page, on a real mosquitto. A run ends when the last of the twelve has its
safe command. The flood comes from another process: requests, overrides, reports, rewards, labels and text as fast as it can
publish them. A broker that is away is frozen. This process, which observes the wire, runs at a higher priority where it is
permitted: on a busy machine it would otherwise measure its own delay. Prints the table of docs/safety.md; 100 runs of each
cause take 10 to 15 minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

import aiohttp  # noqa: E402 - after the path
import orjson  # noqa: E402
import paho.mqtt.client as paho  # noqa: E402
import psutil  # noqa: E402
from faults.harness import Daemon, end_daemon, start_daemon  # noqa: E402
from free_ports import free_port  # noqa: E402

from actuators.safety.decisions import Proposal  # noqa: E402
from fakes import Mosquitto, eventually, listening, wait_for  # noqa: E402
from runtime.gate import ipc  # noqa: E402
from runtime.mqtt import Address, Connection, Message, MqttLost  # noqa: E402

ACTUATORS = [f"j{n:02d}" for n in range(12)]
RATE_HZ = 50
KILLS = 3
"""More within a minute would end the daemon, as it should, and each later one is restarted more slowly."""
AWAY_S = (0.1, 0.5, 1.0, 2.0, 5.0)
ATTEMPTS = 6
OBSERVER = -15
"""Niceness of this process while it measures; the gate has -10, agent and broker -5, the page -3, the flood 0."""
TOKEN = "bench-token-of-the-operator"
CONFIG = """\
agent: bench
tick: {{rate_hz: 50}}
state_dir: {folder}/state
mqtt: {{url: "{url}"}}
streams:
  eyes: {{kind: telemetry, source: topic, fields: [a], required: true}}
actuators:
{actuators}
gate: {{reconcile_s: 0.2, deadman_ms: 60}}
learner: {{enabled: false}}
dashboard: {{listen: "127.0.0.1:{page}", token: {token}}}
"""


class World:
    """The daemon under test, and everything it publishes."""

    def __init__(self, broker: Mosquitto, daemon: Daemon, outside: Connection, page: int) -> None:
        self.broker, self.daemon, self.outside, self.page = broker, daemon, outside, page
        self.socket: aiohttp.ClientWebSocketResponse | None = None
        self.safe_s: dict[str, float] = {}
        self.moved_s: dict[str, float] = {}
        outside.subscribe("reflexd/bench/act/+/set", self.commanded)

    def commanded(self, message: Message) -> None:
        name = message.topic.split("/")[3]
        by_gate = orjson.loads(message.payload)["policy"] == "gate"
        (self.safe_s if by_gate else self.moved_s)[name] = message.stamp_s
        if by_gate and self.since_s <= message.stamp_s:
            self.first_s.setdefault(name, message.stamp_s)

    since_s = float("inf")
    first_s: dict[str, float]

    def agent(self) -> psutil.Process:
        return self.daemon.child("bench_stop")

    async def moving(self) -> None:
        """Until the policy moves every actuator, armed again if need be."""
        for _ in range(ATTEMPTS):
            with suppress(MqttLost, TimeoutError):  # a busy machine
                await self.outside.publish("reflexd/bench/stop", b'{"engaged": false}')
                await self.outside.publish("reflexd/bench/request/arm", b"{}")
                begun_s = time.monotonic()
                await eventually(
                    lambda since_s=begun_s: all(self.moved_s.get(name, 0.0) > since_s for name in ACTUATORS),
                    "the policy moving",
                    10.0,
                )
                await asyncio.sleep(0.2)
                return
        raise RuntimeError(f"the policy does not move: {self.daemon.log.read_text()[-2_000:]}")

    async def all_safe(self, begun_s: float) -> float:
        """Milliseconds until the last actuator has its safe command."""
        await eventually(lambda: len(self.first_s) == len(ACTUATORS), "every safe command", 30.0)
        return 1_000 * (max(self.first_s.values()) - begun_s)

    def begin(self) -> float:
        self.first_s, self.since_s = {}, time.monotonic()
        return self.since_s


async def stop(world: World) -> float:
    begun_s = world.begin()
    await world.outside.publish("reflexd/bench/stop", b'{"engaged": true}')
    return await world.all_safe(begun_s)


def signalled(number: signal.Signals, then: signal.Signals | None = None) -> Callable[[World], Awaitable[float]]:
    async def measure(world: World) -> float:
        agent = world.agent()
        begun_s = world.begin()
        agent.send_signal(number)
        took_ms = await world.all_safe(begun_s)
        if then is not None:
            agent.send_signal(then)
        return took_ms

    return measure


async def stop_by_page(world: World) -> float:
    assert world.socket is not None
    begun_s = world.begin()
    await world.socket.send_json({"do": "stop", "engaged": True})
    return await world.all_safe(begun_s)


async def broker_away(away_s: float, world: World) -> float:
    """The agent freezes while the broker is frozen; counted from the broker's return."""
    agent = world.agent()
    world.broker.signal(signal.SIGSTOP)
    agent.send_signal(signal.SIGSTOP)
    await asyncio.sleep(away_s)
    begun_s = world.begin()
    world.broker.signal(signal.SIGCONT)
    took_ms = await world.all_safe(begun_s)
    agent.send_signal(signal.SIGCONT)
    return took_ms


@asynccontextmanager
async def nothing_else(_world: World) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def a_flood(world: World) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--flood", str(world.broker.port))
    try:
        await asyncio.sleep(1.5)
        yield
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def an_open_page(world: World) -> AsyncIterator[None]:
    """The page's process, and an operator's browser on it."""
    config = world.daemon.state.parent / "bench.yaml"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "runtime.dashboard", str(config), cwd=HERE.parent.parent, stderr=subprocess.DEVNULL
    )
    try:
        await asyncio.to_thread(wait_for, lambda: listening(world.page), "the page")
        address = f"http://127.0.0.1:{world.page}"
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
            await http.post(f"{address}/login", data={"token": TOKEN}, headers={"Origin": address})
            async with http.ws_connect(f"{address}/socket", origin=address) as world.socket:
                reading = asyncio.create_task(read(world.socket))
                await asyncio.sleep(1.0)
                yield
                reading.cancel()
    finally:
        process.terminate()
        await process.wait()


async def read(page: aiohttp.ClientWebSocketResponse) -> None:
    """Take what the page shows, as a browser does."""
    async for _ in page:
        pass


@dataclass(frozen=True)
class Cause:
    """One row of the table."""

    name: str
    measure: Callable[[World], Awaitable[float]]
    during: Callable[[World], AbstractAsyncContextManager[None]] = nothing_else
    at_most: float = math.inf
    """Runs with one daemon."""
    share: int = 1
    """Takes this part of the runs."""


CAUSES = (
    Cause("stop on the page", stop_by_page, an_open_page),
    Cause("stop by MQTT", stop),
    Cause("agent killed", signalled(signal.SIGKILL), at_most=KILLS),
    Cause("agent frozen", signalled(signal.SIGSTOP, signal.SIGCONT)),
    Cause("a required stream goes stale", signalled(signal.SIGUSR2, signal.SIGUSR2)),
    Cause("stop by MQTT in a flood of every topic", stop, a_flood),
    *(
        Cause(
            f"agent frozen while the broker is away {away_s:g} s, from its return",
            partial(broker_away, away_s),
            share=len(AWAY_S),
        )
        for away_s in AWAY_S
    ),
)


@asynccontextmanager
async def world_of(folder: Path, broker: Mosquitto) -> AsyncIterator[World]:
    config = folder / "bench.yaml"
    lines = "\n".join(f"  {name}: {{kind: continuous, low: [-1], high: [1], safe: [0]}}" for name in ACTUATORS)
    page = free_port()
    config.write_text(CONFIG.format(folder=folder, url=broker.url, actuators=lines, page=page, token=TOKEN))
    command = [sys.executable, __file__, "--gate-fd", "{gate_fd}", "--agreement", "{agreement}"]
    daemon = start_daemon(folder, config, [["agent", True, command]])
    outside = Connection(Address("127.0.0.1", broker.port, keepalive_s=10.0), "outside")
    world = World(broker, daemon, outside, page)
    task = asyncio.create_task(outside.run())
    try:
        await outside.up()
        await eventually(lambda: "child.started" in daemon.log.read_text(), "the start")
        yield world
    finally:
        task.cancel()
        await asyncio.wait([task])
        await asyncio.to_thread(end_daemon, daemon)


@asynccontextmanager
async def first_in_line() -> AsyncIterator[None]:
    """Give this process a higher priority; what it has started before keeps its own."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, min(before, OBSERVER))
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


async def measured(cause: Cause, runs: int) -> list[float]:
    """Return the milliseconds of each run."""
    times: list[float] = []
    while len(times) < runs:
        with tempfile.TemporaryDirectory() as folder:
            broker = Mosquitto(Path(folder)).start()
            async with world_of(Path(folder), broker) as world:
                await world.moving()
                async with cause.during(world), first_in_line():
                    for _ in range(int(min(cause.at_most, runs - len(times)))):
                        await world.moving()
                        times.append(await cause.measure(world))
            broker.stop()
    return times


async def main_async(runs: int, only: str) -> None:
    begun_s = time.monotonic()
    rows = []
    for cause in (each for each in CAUSES if only in each.name):
        times = await measured(cause, max(1, runs // cause.share))
        rows.append(f"| {cause.name} | {len(times)} | {statistics.median(times):.0f} | {max(times):.0f} |")
        sys.stderr.write(f"{time.monotonic() - begun_s:6.0f} s  {rows[-1]}\n")
    sys.stdout.write(
        f"`python tests/benchmarks/bench_stop.py --runs {runs}`, 12 actuators at 50 Hz, mosquitto on the same machine: "
        f"{os.cpu_count()} cores, load {os.getloadavg()[2]:.1f}, {time.strftime('%Y-%m-%d')}. "
        "From the cause to the last of the\ntwelve safe commands on the wire.\n\n"
        "| cause | runs | median ms | worst ms |\n|---|---:|---:|---:|\n" + "\n".join(rows) + "\n"
    )


def agent(descriptor: int, agreement: str) -> None:
    """Propose for every actuator at 50 Hz; SIGUSR2 takes the required stream away, or brings it back."""
    end = socket.socket(fileno=descriptor)
    os.set_inheritable(end.fileno(), False)
    end.settimeout(60.0)  # longer than it is frozen
    stale: list[str] = []
    signal.signal(signal.SIGUSR2, lambda *_: stale.clear() if stale else stale.append("eyes"))
    begun_s, number = time.monotonic(), 0
    while True:
        actions: dict[str, Any] = dict.fromkeys(ACTUATORS, (0.1 + 0.8 * (number % 2),))
        end.send(
            ipc.pack(
                Proposal(
                    number,
                    f"{os.getpid()}-{number}",
                    "bench",
                    time.monotonic(),
                    actions,
                    tuple(stale),
                    agreement=agreement,
                )
            )
        )
        end.recv(ipc.MAX_MESSAGE)
        number += 1
        wait_s = begun_s + number / RATE_HZ - time.monotonic()
        if wait_s < -1.0:  # it was frozen
            begun_s -= wait_s
        time.sleep(max(0.0, wait_s))


def flood(port: int) -> None:
    """Publish requests, overrides and reports as fast as it goes."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    topics = [("request/arm", b"{}"), ("request/mode", b'{"mode": "autonomous"}'), ("request/warm", b"x")]
    topics += [(f"override/{name}", b'{"value": [0.5], "hold_s": 0}') for name in ACTUATORS]
    topics += [(f"act/{name}/state", b'{"value": [0.5]}') for name in ACTUATORS]
    topics += [("reward", b'{"value": 1.0}'), ("label/x", b'{"label": "a"}'), ("text/x", b'{"text": "a"}')]
    while True:
        for topic, payload in topics:
            client.publish(f"reflexd/bench/{topic}", payload, 0)
        time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--only", default="", help="causes with this in their name")
    parser.add_argument("--gate-fd", type=int, help=argparse.SUPPRESS)  # this file's own children
    parser.add_argument("--agreement", help=argparse.SUPPRESS)
    parser.add_argument("--flood", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.gate_fd is not None:
        agent(given.gate_fd, given.agreement)
    elif given.flood is not None:
        flood(given.flood)
    else:
        asyncio.run(main_async(given.runs, given.only))


if __name__ == "__main__":
    main()
