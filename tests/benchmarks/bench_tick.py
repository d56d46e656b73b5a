"""What the runtime costs over a script by hand: `python tests/benchmarks/bench_tick.py [ROUNDS] [FRAMES]`.

The real daemon (supervisor with gate, agent) and `handwritten.py` on one real mosquitto, with the same encoder, policy and
backend, at the same rate; in alternating rounds each is sent JPEG frames. Reported, as medians of the rounds' figures:

- tick: from what is observed to the proposal at the gate, as `decision` tells it, over the script's bare forward (resize,
  encoder, fused part, heads, timed around the calls) of ticks with a new frame, p50 and p99; goal 1.10 at p50.
- command, from the frame: published to received by the device, at phases spread evenly over the period, the same for
  both. Both wait for a tick, 50 ms on average at 10 Hz, which is no work of either and brings the ratio nearer to 1; also
- aligned: frames are sent `LEAD_S` before the next tick of whoever gets them, so that nothing but that lead is waited for
  (both decode within it); the ratio is taken without the lead: what is left is from the tick to the command; and
- from tick start: the tick's own stamp to the command received. Goal 1.15 for the frame's.

The exit code is 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes import Mosquitto, eventually  # noqa: E402 - after the path
from runtime.mqtt import (  # noqa: E402
    Address,
    Connection,
    Message,
)
from sensors.drivers import opencv  # noqa: E402 - after the path

PERIOD_S, LEAD_S, SPACING_S = 0.1, 0.02, 0.25
START_S = 180.0
SETTLE = 3
"""Frames at the begin of a round that are not counted: the other's round has just ended."""
SETTINGS = """\
agent: bench
tick: {{rate_hz: 10}}
state_dir: {state}
mqtt: {{url: "{url}"}}
streams:
  front: {{kind: camera, source: topic, rate_hz: 10, max_age_s: 1.0, required: true, encoder: vision}}
encoders:
  vision: {{model: "bundled:efficientnet-lite0"}}
actuators:
  head: {{kind: choice, choices: [left, stay, right], safe: stay}}
gate: {{reconcile_s: 0.2}}
learner: {{enabled: false}}
"""


@dataclass
class Side:
    """One of the two, as its messages show it. A row is (arrival of the frame, tick's stamp, command received, model ms)."""

    topic: str
    rows: list[tuple[float, float, float, float]] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)
    received: dict[str, float] = field(default_factory=dict)

    def of(self, published_s: float) -> tuple[float, float, float, float] | None:
        """The first command that came of a frame published then."""
        return next((row for row in self.rows if row[0] >= published_s - 0.0005), None)

    def next_tick_s(self) -> float:
        """When the next tick but one begins: the phase of the last ones, continued."""
        last_s, now_s = self.stamps[-1], time.time()
        return last_s + (int((now_s - last_s) / PERIOD_S) + 2) * PERIOD_S


@dataclass
class Client:
    """The camera and the device."""

    connection: Connection
    daemon: Side = field(default_factory=lambda: Side("reflexd/bench/in/front"))
    script: Side = field(default_factory=lambda: Side("script/front"))

    def __post_init__(self) -> None:
        self.connection.subscribe("reflexd/bench/decision", self.decided)
        self.connection.subscribe("reflexd/bench/act/head/set", self.commanded)
        self.connection.subscribe("script/set", self.scripted)

    def decided(self, message: Message) -> None:
        body = orjson.loads(message.payload)
        self.daemon.stamps.append(body["stamp"])
        command_s = self.daemon.received.pop(body["id"], None)
        if command_s is not None and "front" in body["ages_ms"]:
            seen_s = body["stamp"] - body["ages_ms"]["front"] / 1e3
            self.daemon.rows.append((seen_s, body["stamp"], command_s, body["latency_ms"]))

    def commanded(self, message: Message) -> None:
        body = orjson.loads(message.payload)
        if body["decision"] is not None:  # arrives before its decision: the gate sends first
            self.daemon.received[body["decision"]] = wall(message)

    def scripted(self, message: Message) -> None:
        body = orjson.loads(message.payload)
        self.script.stamps.append(body["stamp"])
        self.script.rows.append((body["arrived"], body["stamp"], wall(message), body["forward_ms"]))

    async def round(self, side: Side, frames: list[bytes], leads_s: list[float]) -> dict[str, list[float]]:
        """Send each frame so long before the next tick; times in ms."""
        out: dict[str, list[float]] = {"model": [], "frame": [], "aligned": [], "tick": []}
        for i, frame in enumerate(frames):
            await asyncio.sleep(side.next_tick_s() - leads_s[i] - time.time())
            published_s = time.time()
            self.connection.enqueue(side.topic, frame)
            await asyncio.sleep(SPACING_S)
            row = side.of(published_s)
            if row is None or i < SETTLE:
                continue
            out["model"].append(row[3])
            out["tick"].append(1e3 * (row[2] - row[1]))
            if leads_s[i] == LEAD_S:
                out["aligned"].append(1e3 * (row[2] - published_s - LEAD_S))
            else:
                out["frame"].append(1e3 * (row[2] - published_s))
        side.rows.clear()
        return out


def phases(frames: int, chance: random.Random) -> list[float]:
    """Seconds before the next tick for each frame: every second one aligned, the others spread over a period."""
    count = frames // 2
    spread = [PERIOD_S * (k + chance.random()) / count for k in range(count)]
    chance.shuffle(spread)
    return [LEAD_S if i % 2 or i // 2 >= count else spread[i // 2] for i in range(frames)]


def wall(message: Message) -> float:
    return time.time() - (time.monotonic() - message.stamp_s)


def pictures(count: int) -> list[bytes]:
    from skimage import data

    astronaut: np.ndarray[Any, np.dtype[np.uint8]] = data.astronaut()  # type: ignore[no-untyped-call]
    image = np.ascontiguousarray(astronaut[::2, ::2])
    return [opencv.encode(np.roll(image, 7 * i, axis=1)) for i in range(count)]


async def measure(folder: Path, broker: Mosquitto, rounds: int, frames: int) -> list[dict[str, dict[str, list[float]]]]:
    config = folder / "bench.yaml"
    config.write_text(SETTINGS.format(state=folder / "state", url=broker.url))
    connection = Connection(Address("127.0.0.1", broker.port), "bench-client")
    client, sent, chance = Client(connection), pictures(frames), random.Random(0)
    task = asyncio.create_task(connection.run())
    with ExitStack() as stack:
        start(stack, folder, "-m", "runtime.cli", "run", str(config))
        await eventually(lambda: bool(client.daemon.stamps), "the daemon's first decision", START_S)
        start(stack, folder, str(ROOT / "tests" / "benchmarks" / "handwritten.py"), str(config), str(broker.port))
        await eventually(lambda: bool(client.script.stamps), "the script's first command", START_S)
        found = [
            {
                "reflexd": await client.round(client.daemon, sent, leads),
                "script": await client.round(client.script, sent, leads),
            }
            for leads in (phases(frames, chance) for _ in range(rounds))
        ]
    task.cancel()
    await asyncio.wait([task])
    return found


def start(stack: ExitStack, folder: Path, *arguments: str) -> None:
    log = stack.enter_context((folder / "log").open("ab"))
    process = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log, cwd=ROOT)
    stack.callback(process.wait)
    stack.callback(process.terminate)


def p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, round(0.99 * (len(values) - 1)))]


ROWS: list[tuple[str, str, Callable[[list[float]], float], float | None]] = [
    ("tick / bare forward, p50", "model", statistics.median, 1.10),
    ("tick / bare forward, p99", "model", p99, None),
    ("frame to command, random phase", "frame", statistics.median, 1.15),
    ("frame to command, aligned, less the lead", "aligned", statistics.median, 1.15),
    ("tick start to command", "tick", statistics.median, None),
]


def report(found: list[dict[str, dict[str, list[float]]]]) -> int:
    """Print the table; how many goals were missed."""
    missed = 0
    print(f"{'median of rounds, ms':42}{'reflexd':>10}{'script':>10}{'ratio':>8}{'goal':>7}")
    for title, key, reduce, goal in ROWS:
        pairs = [(reduce(each["reflexd"][key]), reduce(each["script"][key])) for each in found]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        late = goal is not None and ratio > goal
        missed += late
        print(f"{title:42}{ours:10.2f}{theirs:10.2f}{ratio:8.3f}{goal or '':>7}{' MISSED' if late else ''}")
    counted: dict[str, Any] = {side: sum(len(each[side]["model"]) for each in found) for side in found[0]}
    print(f"frames that became commands: {counted}, in {len(found)} rounds")
    return missed


def main(rounds: int, frames: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        broker = Mosquitto(Path(folder)).start()
        try:
            found = asyncio.run(measure(Path(folder), broker, rounds, frames))
        finally:
            broker.stop()
    return 1 if report(found) else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=6, help="rounds")
    parser.add_argument("frames", nargs="?", type=int, default=40, help="frames of each round")
    given = parser.parse_args()
    sys.exit(main(given.rounds, given.frames))
