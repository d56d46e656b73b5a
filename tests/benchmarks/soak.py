"""Soak: the demo at three times its rate, with a broker that goes away and policies that change, watched for what grows.

`python tests/benchmarks/soak.py --seconds 900 --reconnects 50 --swaps 50 --out runs/soak`. Real daemon, real broker, the demo's models,
learner and simulated world. All of the daemon's connections go through a small proxy that cuts them; the learner promotes a
version for every swap, and every second one is rolled back. Memory, descriptors and threads of each process are read from outside, the agent's tasks from its `health`.
Prints a table of slopes after warm-up and writes `soak.png` and `soak.json`; exit code 1 where something grows.

Shapes: N samples.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import orjson
import paho.mqtt.client as mqtt
import psutil
import yaml
from paho.mqtt.enums import CallbackAPIVersion

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))
from free_ports import free_port

from fakes import Mosquitto

mpl.use("Agg")
from matplotlib import pyplot as plt

MEMORY, FLAT = 0.02, 0.5
"""Growth of memory over the run as a share of itself; growth of a count that is still noise of a sample more or less."""
WARM_UP = 0.2
"""Share of the run that is left out: caches fill, replay grows to what it will be."""
EVERY_S = 1.0
QUANTITIES = ("rss_mb", "descriptors", "threads")


@dataclass
class Proxy:
    """A TCP relay to the broker that can cut all its connections at once."""

    target: int
    port: int = 0
    cuts: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection, as a broker does that is killed."""
        self.cuts += 1
        for writer in list(self._open):
            writer.transport.abort()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, out = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, out}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, out))
                group.create_task(_pump(there, writer))
        finally:
            self._open -= {writer, out}
            for each in (writer, out):
                each.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@dataclass
class Samples:
    """What was read, by process and quantity."""

    at_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    values: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    pids: dict[str, int] = field(default_factory=dict)
    restarted: list[str] = field(default_factory=list)

    def read(self, daemon: psutil.Process, now_s: float) -> None:
        """One reading of every process."""
        for process in (daemon, *daemon.children()):
            with contextlib.suppress(psutil.Error, IndexError):
                name = _name(process)
                figures = (process.memory_info().rss / 1e6, process.num_fds(), process.num_threads())
                if self.pids.setdefault(name, process.pid) != process.pid:
                    self.pids[name] = process.pid
                    self.restarted.append(name)
                self.at_s[name].append(now_s)
                for quantity, value in zip(QUANTITIES, figures, strict=True):
                    self.values[name, quantity].append(float(value))

    def tasks(self, now_s: float, count: float) -> None:
        """The agent's own count of its tasks."""
        self.at_s["agent tasks"].append(now_s)
        self.values["agent", "tasks"].append(count)


def _name(process: psutil.Process) -> str:
    title = process.cmdline()[0]
    return title.removeprefix("reflexd: ").strip() if title.startswith("reflexd:") else process.name()


def settings(folder: Path, port: int, times: float, seconds: float, swaps: int) -> Path:
    """The demo's settings at another rate, with a learner that has a version to change soon."""
    config: dict[str, Any] = yaml.safe_load(Path("configs/demo.yaml").read_text())
    config["mqtt"]["url"] = f"mqtt://127.0.0.1:{port}"
    config["state_dir"] = str(folder / "state")
    config["tick"]["rate_hz"] *= times
    config["learner"] |= {"warmup": 64, "promote_every_s": max(2.0, seconds / swaps), "replay_gb": 0.03}
    config["promotion"] = {"steps": ["integrity"], "keep_last": 5, "experiments": False}
    config["metrics"]["listen"] = f"127.0.0.1:{free_port()}"
    config["dashboard"]["listen"] = f"127.0.0.1:{free_port()}"
    path = folder / "soak.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class Operator:
    """A client on the broker itself: hears events, health and answers, and asks for swaps."""

    def __init__(self, port: int) -> None:
        self.events: dict[str, int] = defaultdict(int)
        self.health: dict[str, Any] = {}
        self.ticks = 0
        self.latencies_ms: list[float] = []
        self.answers: list[dict[str, Any]] = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        topics = ("event", "health", "decision", "response/promote", "response/rollback")
        self.client.on_connect = lambda c, *_: c.subscribe([(f"reflexd/demo/{name}", 1) for name in topics])
        self.client.on_message = self._take
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        body, name = orjson.loads(message.payload), message.topic.removeprefix("reflexd/demo/")
        if name == "event":
            self.events[body["type"]] += 1
        elif name == "health":
            self.health = body | {"heard_s": time.monotonic()}
        elif name == "decision":
            self.ticks += 1
            self.latencies_ms.append(body["latency_ms"])
        else:
            self.answers.append(body)

    def roll_back(self) -> None:
        """Take the live version out; the learner's next one goes live in its time, so the two take turns."""
        self.client.publish("reflexd/demo/request/rollback", b"{}", 1)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


async def soak(given: argparse.Namespace) -> tuple[Samples, dict[str, Any]]:
    """The run; returns what was read and what happened."""
    folder: Path = given.out
    broker = Mosquitto(folder).start()
    proxy = Proxy(broker.port)
    await proxy.start()
    operator = Operator(broker.port)
    config = settings(folder, proxy.port, given.times, given.seconds, given.swaps)
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "runtime.cli", "run", str(config)]
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        await _until(
            lambda: operator.ticks > 0 and operator.events["policy_swapped"] > 0, process, "a first version acts"
        )
        operator.latencies_ms.clear()
        samples = await _watch(given, psutil.Process(process.pid), proxy, operator)
    finally:
        process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(process.wait(), 60)
        operator.close()
        await proxy.close()
        broker.stop()
    facts = {
        "seconds": given.seconds,
        "reconnects": proxy.cuts,
        "broker_recovered": operator.events["broker_recovered"],
        "swaps": operator.events["policy_swapped"],
        "promoted": operator.events["policy_promoted"],
        "rolled_back": operator.events["policy_rolled_back"],
        "answers": dict(_count(operator.answers)),
        "events": dict(operator.events),
        "ticks": operator.ticks,
        "latency_ms": {
            "p50": statistics.median(operator.latencies_ms),
            "p99": float(np.percentile(operator.latencies_ms, 99)),
        },
        "restarted": samples.restarted,
        "exit": code,
    }
    return samples, facts


def _count(answers: list[dict[str, Any]]) -> dict[str, int]:
    out: dict[str, int] = defaultdict(int)
    for answer in answers:
        out[answer["status"] + (f": {answer['error']}" if answer["status"] != "ok" else "")] += 1
    return out


async def _until(condition: Any, process: asyncio.subprocess.Process, what: str, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline or process.returncode is not None:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s, or the daemon ended; see the log")
        await asyncio.sleep(0.2)


async def _watch(given: argparse.Namespace, daemon: psutil.Process, proxy: Proxy, operator: Operator) -> Samples:
    samples, begun, cuts, swaps, heard_s = Samples(), time.monotonic(), 0, 0, 0.0
    while (now_s := time.monotonic() - begun) < given.seconds:
        samples.read(daemon, now_s)
        if operator.health.get("heard_s", 0.0) > max(heard_s, begun):
            heard_s = operator.health["heard_s"]
            samples.tasks(heard_s - begun, operator.health["process"]["tasks"])
        # apart by half an interval: a request does not fall into a cut
        if cuts < given.reconnects * now_s / given.seconds:
            cuts += 1
            proxy.cut()
        if swaps < given.swaps / 2 * now_s / given.seconds - 0.25:
            operator.roll_back()
            swaps += 1
        _show(now_s, given.seconds, cuts, swaps)
        await asyncio.sleep(EVERY_S - (time.monotonic() - begun) % EVERY_S)
    return samples


def _show(now_s: float, seconds: float, cuts: int, swaps: int) -> None:
    if sys.stderr.isatty():
        print(
            f"\r{now_s:5.0f} of {seconds:.0f} s, {cuts} reconnects, {swaps} rollbacks ",
            end="",
            file=sys.stderr,
            flush=True,
        )


def rows(samples: Samples, seconds: float) -> list[dict[str, Any]]:
    """Slope of each quantity of each process after warm-up, over a whole run, by Theil and Sen: cuts leave single spikes."""
    out = []
    for (name, quantity), values in sorted(samples.values.items()):
        at_s = np.array(samples.at_s[f"{name} tasks" if quantity == "tasks" else name])
        x_N, y_N = at_s[at_s >= WARM_UP * seconds], np.array(values)[at_s >= WARM_UP * seconds]
        if len(x_N) < 3:
            continue
        growth = _slope(x_N, y_N) * float(x_N[-1] - x_N[0])
        level = float(np.median(y_N))
        allowed = MEMORY * level if quantity == "rss_mb" else FLAT
        out.append(
            {"process": name, "what": quantity, "median": level, "least": float(y_N.min()), "most": float(y_N.max()),
             "growth": growth, "allowed": allowed, "good": growth <= allowed}
        )  # fmt: skip
    return out


def _slope(x_N: np.ndarray[Any, Any], y_N: np.ndarray[Any, Any]) -> float:
    step = max(1, len(x_N) // 400)
    x_N, y_N = x_N[::step], y_N[::step]
    i, j = np.triu_indices(len(x_N), 1)
    return float(np.median((y_N[j] - y_N[i]) / (x_N[j] - x_N[i])))


def series(samples: Samples) -> dict[str, dict[str, list[float]]]:
    """Every reading by process: `at_s` and the quantities."""
    out: dict[str, dict[str, list[float]]] = {name: {"at_s": at_s} for name, at_s in samples.at_s.items()}
    for (name, quantity), values in samples.values.items():
        out["agent tasks" if quantity == "tasks" else name][quantity] = values
    return out


def plot(samples: Samples, seconds: float, path: Path) -> None:
    """Every quantity against time, one line a process."""
    figure, axes = plt.subplots(4, 1, figsize=(9, 11), sharex=True)
    for (name, quantity), values in sorted(samples.values.items()):
        row = (*QUANTITIES, "tasks").index(quantity)
        axes[row].plot(samples.at_s[f"{name} tasks" if quantity == "tasks" else name], values, label=name)
    for axis, title in zip(axes, ("memory, MB", "file descriptors", "threads", "tasks of the agent"), strict=True):
        axis.set_ylabel(title)
        axis.axvspan(0, WARM_UP * seconds, color="grey", alpha=0.15)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[0].set_yscale("log")
    axes[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--reconnects", type=int, help="default: 50 in 900 s")
    parser.add_argument("--swaps", type=int, help="default: 50 in 900 s")
    parser.add_argument("--times", type=float, default=3.0, help="of the demo's tick rate")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    given = parser.parse_args()
    for name in ("reconnects", "swaps"):
        if getattr(given, name) is None:
            setattr(given, name, max(2, round(50 * given.seconds / 900)))
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    samples, facts = asyncio.run(soak(given))
    table = rows(samples, given.seconds)
    print(f"\n{'process':12} {'what':12} {'median':>9} {'least':>9} {'most':>9} {'growth':>9} {'allowed':>9}")
    for row in table:
        numbers = " ".join(f"{row[key]:9.2f}" for key in ("median", "least", "most", "growth", "allowed"))
        print(f"{row['process']:12} {row['what']:12} {numbers}  {'' if row['good'] else 'GROWS'}")
    print(json.dumps(facts, indent=1))
    plot(samples, given.seconds, given.out / "soak.png")
    (given.out / "soak.json").write_text(json.dumps({"table": table, "facts": facts, "series": series(samples)}))
    print(f"plot: {given.out / 'soak.png'}")
    return 0 if all(row["good"] for row in table) and not facts["restarted"] and facts["exit"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
