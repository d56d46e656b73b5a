"""How long from a cause to the safe command on the wire: `python tests/benchmarks/bench_stop.py [--runs N]`.

A real daemon with twelve actuators at 50 Hz on a real mosquitto. A run ends when the last of the twelve has its safe command.
The flood comes from another process: requests, overrides and reports as fast as it can publish them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

import orjson  # noqa: E402 - after the path
import paho.mqtt.client as paho  # noqa: E402
import psutil  # noqa: E402
from faults.harness import Daemon, end_daemon, start_daemon  # noqa: E402

from actuators.safety.decisions import Proposal  # noqa: E402
from fakes import Mosquitto, eventually  # noqa: E402
from runtime.gate import ipc  # noqa: E402
from runtime.mqtt import Address, Connection, Message  # noqa: E402

ACTUATORS = [f"j{n:02d}" for n in range(12)]
RATE_HZ = 50
KILLS = 4
"""More within a minute would end the daemon, as it should."""
AWAY_S = 0.5
CONFIG = """\
agent: bench
tick: {{rate_hz: 50}}
state_dir: {folder}/state
mqtt: {{url: "{url}"}}
streams:
  eyes: {{kind: telemetry, source: topic, fields: [a], required: true}}
actuators:
{actuators}
gate: {{reconcile_s: 0.2}}
learner: {{enabled: false}}
"""


class World:
    """The daemon under test, and everything it publishes."""

    def __init__(self, broker: Mosquitto, daemon: Daemon, outside: Connection) -> None:
        self.broker, self.daemon, self.outside = broker, daemon, outside
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
        await self.outside.publish("reflexd/bench/stop", b'{"engaged": false}')
        await self.outside.publish("reflexd/bench/request/arm", b"{}")
        begun_s = time.monotonic()
        await eventually(
            lambda: all(self.moved_s.get(name, 0.0) > begun_s for name in ACTUATORS), "the policy moving", 60.0
        )
        await asyncio.sleep(0.2)

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


async def stop_in_flood(world: World) -> float:
    flood = await asyncio.create_subprocess_exec(sys.executable, __file__, "--flood", str(world.broker.port))
    try:
        await asyncio.sleep(1.5)
        return await stop(world)
    finally:
        flood.kill()
        await flood.wait()
        await asyncio.sleep(1.0)


async def broker_away(world: World) -> float:
    """The agent dies while the broker is frozen; counted from its return."""
    agent = world.agent()
    world.broker.signal(signal.SIGSTOP)
    agent.kill()
    await asyncio.sleep(AWAY_S)
    begun_s = world.begin()
    world.broker.signal(signal.SIGCONT)
    return await world.all_safe(begun_s)


MEASURES: dict[str, tuple[Callable[[World], Awaitable[float]], bool]] = {
    "stop by MQTT": (stop, False),
    "agent kill -9": (signalled(signal.SIGKILL), True),
    "agent SIGSTOP": (signalled(signal.SIGSTOP, signal.SIGCONT), False),
    "a required stream goes stale": (signalled(signal.SIGUSR2, signal.SIGUSR2), False),
    "stop by MQTT in a flood of every topic": (stop_in_flood, False),
    f"agent kill -9 while the broker is away {AWAY_S} s, from its return": (broker_away, True),
}


@asynccontextmanager
async def world_of(folder: Path, broker: Mosquitto) -> AsyncIterator[World]:
    config = folder / "bench.yaml"
    lines = "\n".join(f"  {name}: {{kind: continuous, low: [-1], high: [1], safe: [0]}}" for name in ACTUATORS)
    config.write_text(CONFIG.format(folder=folder, url=broker.url, actuators=lines))
    command = [sys.executable, __file__, "--gate-fd", "{gate_fd}"]
    daemon = start_daemon(folder, config, [["agent", True, command]])
    outside = Connection(Address("127.0.0.1", broker.port, keepalive_s=10.0), "outside")
    world = World(broker, daemon, outside)
    task = asyncio.create_task(outside.run())
    try:
        await outside.up()
        await eventually(lambda: "child.started" in daemon.log.read_text(), "the start")
        yield world
    finally:
        task.cancel()
        await asyncio.wait([task])
        await asyncio.to_thread(end_daemon, daemon)


async def main_async(runs: int) -> None:
    print("| cause | runs | median ms | worst ms |\n|---|---:|---:|---:|", flush=True)
    for name, (measure, kills) in MEASURES.items():
        times: list[float] = []
        while len(times) < runs:
            with tempfile.TemporaryDirectory() as folder:
                broker = Mosquitto(Path(folder)).start()
                async with world_of(Path(folder), broker) as world:
                    for _ in range(min(KILLS if kills else runs, runs - len(times))):
                        await world.moving()
                        times.append(await measure(world))
                broker.stop()
        print(f"| {name} | {len(times)} | {statistics.median(times):.0f} | {max(times):.0f} |", flush=True)


def agent(descriptor: int) -> None:
    """Propose for every actuator at 50 Hz; SIGUSR2 takes the required stream away, or brings it back."""
    end = socket.socket(fileno=descriptor)
    os.set_inheritable(end.fileno(), False)
    end.settimeout(5.0)
    stale: list[str] = []
    signal.signal(signal.SIGUSR2, lambda *_: stale.clear() if stale else stale.append("eyes"))
    begun_s, number = time.monotonic(), 0
    while True:
        actions: dict[str, Any] = dict.fromkeys(ACTUATORS, (0.1 + 0.8 * (number % 2),))
        end.send(
            ipc.pack(Proposal(number, f"{os.getpid()}-{number}", "bench", time.monotonic(), actions, tuple(stale)))
        )
        end.recv(ipc.MAX_MESSAGE)
        number += 1
        time.sleep(max(0.0, begun_s + number / RATE_HZ - time.monotonic()))


def flood(port: int) -> None:
    """Publish requests, overrides and reports as fast as it goes."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    topics = [("request/arm", b"{}"), ("request/mode", b'{"mode": "autonomous"}'), ("request/warm", b"x")]
    topics += [(f"override/{name}", b'{"value": [0.5], "hold_s": 0}') for name in ACTUATORS]
    topics += [(f"act/{name}/state", b'{"value": [0.5]}') for name in ACTUATORS]
    while True:
        for topic, payload in topics:
            client.publish(f"reflexd/bench/{topic}", payload, 0)
        time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--gate-fd", type=int, help=argparse.SUPPRESS)  # this file's own children
    parser.add_argument("--flood", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.gate_fd is not None:
        agent(given.gate_fd)
    elif given.flood is not None:
        flood(given.flood)
    else:
        asyncio.run(main_async(given.runs))


if __name__ == "__main__":
    main()
