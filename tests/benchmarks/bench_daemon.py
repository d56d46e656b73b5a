"""What learning, swaps and a fine-tune cost the ticks of the real daemon, as an MQTT client sees them.

`python tests/benchmarks/bench_daemon.py [--quick] [--rounds 10] [--block 20] [--finetune] [--quiet-page]`. `--quick` takes less
than ten minutes and needs no person: after `--limit` seconds no further block begins, and the table shows what was measured. The demo as shipped runs as a
whole daemon: supervisor, agent, learner, dashboard and plant in a process tree of their own, on a real mosquitto. Blocks take
turns: learner stopped by a signal (off), learner with more updates than it can make (full), the same with another policy
version live every `--swap-every` seconds (swap), and, with `--finetune`, a fine-tune of a text task that runs in it (finetune).
In all of them a page with previews is open, a recording runs, metrics are scraped every second and a decision is explained
every five.

Latency is from the deadline of a tick to its proposal, as `decision` has it. A tick is missed when its number is absent. The
table has each block's figures, the ratio of its p99 to that of `off`, and memory and CPU by process. Exit code 1 if the goal is
missed: ratio of p99 at most 1.15 with swaps, no tick missed, no dead-man trip.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import paho.mqtt.client as mqtt
import psutil
import torch
import yaml
from paho.mqtt.enums import CallbackAPIVersion

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes import Mosquitto, free_port  # noqa: E402 - after the path
from learners.checkpoints.store import open_checkpoints  # noqa: E402 - after the path
from learners.config import PromotionSettings  # noqa: E402 - after the path
from learners.ipc.policy_spec import read_policy_spec  # noqa: E402 - after the path
from learners.ipc.settings import Backend  # noqa: E402 - after the path
from learners.model.policy import Policy  # noqa: E402 - after the path
from learners.worker.compilation import compile_candidate  # noqa: E402 - after the path

BASE, TOKEN = "reflexd/demo", "bench-token-of-the-operator"
SETTLE_S = 2.0
"""At the begin of a block, not counted: what the block before began may still end."""
START_S = 300.0
GOAL = 1.15
ORDERS = ("turn to the red one", "look at the house", "show me the tree", "go back to the start")


@dataclass
class Block:
    """What was seen in all blocks of one kind."""

    latencies_ms: list[float] = field(default_factory=list)
    missed: int = 0
    ticks: int = 0
    swaps: int = 0
    trips: int = 0


class Listener:
    """The MQTT client: hears decisions and events, sends requests and labels."""

    def __init__(self, port: int) -> None:
        self.blocks: dict[str, Block] = defaultdict(Block)
        self.kind = ""
        """The block that counts now; empty for none."""
        self.last: tuple[str, int] | None = None
        self.newest = ""
        self.events: dict[str, int] = defaultdict(int)
        self.answers: list[tuple[str, Any]] = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        topics = ("event", "decision", "response/promote", "response/record", "response/finetune")
        self.client.on_connect = lambda c, *_: c.subscribe([(f"{BASE}/{name}", 1) for name in topics])
        self.client.on_message = self._take
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def ask(self, verb: str, body: dict[str, Any]) -> None:
        self.client.publish(f"{BASE}/request/{verb}", orjson.dumps(body), 1)

    def label(self, count: int) -> None:
        """Labels of texts, below the quota of one source."""
        for number in range(count):
            text = f"{ORDERS[number % len(ORDERS)]} {number}"
            body = {"task": "intents", "text": text, "label": f"c{number % len(ORDERS)}"}
            self.client.publish(f"{BASE}/label", orjson.dumps(body), 1).wait_for_publish(10)
            time.sleep(0.012)

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        body, name = orjson.loads(message.payload), message.topic.removeprefix(BASE + "/")
        block = self.blocks[self.kind]
        if name == "event":
            self.events[body["type"]] += 1
            block.swaps += body["type"] == "policy_swapped"
            block.trips += body["type"] == "agent_lost"
        elif name == "decision":
            session, tick = body["id"].rsplit("-", 1)[0], body["tick"]
            if self.last is not None and self.last[0] == session:
                block.missed += max(0, tick - self.last[1] - 1)
            self.last, self.newest = (session, tick), body["id"]
            block.ticks += 1
            block.latencies_ms.append(body["latency_ms"])
        else:
            self.answers.append((name, body))

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def settings(folder: Path, port: int, *, finetune: bool) -> Path:
    """The demo's settings on our broker, with a learner that always has updates to make and never promotes a candidate."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    config["mqtt"]["url"] = f"mqtt://127.0.0.1:{port}"
    config["state_dir"] = str(folder / "state")
    config["learner"] |= {"warmup": 64, "promote_every_s": 86_400, "updates_per_step": 64, "update_every_s": 0.1}
    config["promotion"] = {"experiments": False}
    config["metrics"]["listen"] = f"127.0.0.1:{free_port()}"
    config["dashboard"] = {"listen": f"127.0.0.1:{free_port()}", "token": TOKEN}
    if finetune:
        task = {"kind": "text-classification", "stream": "orders", "model": config["encoders"]["language"]["model"]}
        config["tasks"] = {"intents": task}
        config["finetune"] = {"every_s": 86_400, "min_labels": 32}
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def three_versions(state_dir: Path, seed: int) -> list[str]:
    """Save versions as the learner does it, with their graphs; the engine holds two, so that every swap loads one."""
    spec = read_policy_spec(state_dir)
    assert spec is not None
    checkpoints = open_checkpoints(state_dir, PromotionSettings())
    names = []
    for number in range(3):
        torch.manual_seed(seed + number)
        state = Policy(spec).state_dict()
        made = compile_candidate(spec, state, Backend(), [])
        documents = {"spec": orjson.loads(spec.to_json()), **made.documents}
        names.append(checkpoints.save({"policy": state}, documents, graphs=made.graphs))
    return names


async def page(url: str) -> None:
    """Keep a page with previews open."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        answer = await http.post(f"{url}/login", data={"token": TOKEN}, headers={"Origin": url})
        cookie = answer.headers["Set-Cookie"].split(";")[0]
        async with http.ws_connect(
            f"{url}/socket", headers={"Cookie": cookie, "Origin": url}, max_msg_size=0
        ) as socket:
            await socket.send_json({"do": "subscribe_previews", "id": 1, "streams": ["front", "room"]})
            async for _ in socket:
                pass


async def every(seconds: float, action: Any) -> None:
    """Do something at an interval; what fails is tried again."""
    while True:
        await asyncio.sleep(seconds)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            await action()


def processes(daemon: psutil.Process) -> dict[str, psutil.Process]:
    """The daemon's processes by title."""
    found = {"supervisor": daemon}
    for process in daemon.children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            title = process.cmdline()[0]
            if title.startswith("reflexd:"):
                found[title.removeprefix("reflexd: ").strip()] = process
    return found


@dataclass
class Usage:
    """Memory and processor time by block and process."""

    rss_mb: dict[str, float] = field(default_factory=dict)
    cpu: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def begin(self, daemon: psutil.Process) -> dict[str, float]:
        return {name: sum(p.cpu_times()[:2]) for name, p in processes(daemon).items()}

    def end(self, daemon: psutil.Process, kind: str, before: dict[str, float], seconds: float) -> None:
        for name, process in processes(daemon).items():
            with contextlib.suppress(psutil.Error):
                if name in before:
                    self.cpu[kind, name].append((sum(process.cpu_times()[:2]) - before[name]) / seconds)
                self.rss_mb[name] = max(self.rss_mb.get(name, 0.0), process.memory_info().rss / 1e6)


async def run(given: argparse.Namespace, folder: Path) -> tuple[Listener, Usage, float]:
    broker = Mosquitto(folder).start()
    listener = Listener(broker.port)
    path = settings(folder, broker.port, finetune=given.finetune)
    config = yaml.safe_load(path.read_text())
    begun_s = time.monotonic()
    with (folder / "log").open("w") as log:
        daemon = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "runtime.cli", "run", str(path), stdout=log, stderr=log
        )
    usage, beside = Usage(), []
    failed = True
    try:
        await until(lambda: listener.last is not None, daemon, "a first decision")
        first_s = time.monotonic() - begun_s
        state_dir = Path(config["state_dir"])
        await until(lambda: read_policy_spec(state_dir) is not None, daemon, "the policy spec")
        versions = await asyncio.to_thread(three_versions, state_dir, given.seed)
        tree = psutil.Process(daemon.pid)
        await until(lambda: "learner" in processes(tree), daemon, "the learner")
        listener.ask("promote", {"version": versions[0]})
        await until(lambda: listener.events["policy_swapped"] > 0, daemon, "a first swap")
        listener.ask("record", {"on": True})
        metrics = f"http://{config['metrics']['listen']}/metrics"
        if not given.quiet_page:
            beside.append(asyncio.create_task(page(f"http://{config['dashboard']['listen']}")))
        beside += [
            asyncio.create_task(every(1.0, lambda: scrape(metrics))),
            asyncio.create_task(every(5.0, lambda: explain(listener))),
        ]
        await asyncio.sleep(given.warmup)
        kinds = ["off", "full", "swap", *(["finetune"] if given.finetune else [])]
        for number in range(given.rounds):
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                if time.monotonic() - begun_s + SETTLE_S + given.block > given.limit:
                    print(f"no time for a block {kind} of round {number + 1}", file=sys.stderr)
                    continue
                try:
                    await block(given, kind, tree, listener, usage, versions)
                except (KeyError, psutil.Error) as error:
                    listener.kind = ""
                    print(f"a block {kind} ended early: {type(error).__name__} {error}", file=sys.stderr)
        failed = False
    finally:
        for task in beside:
            task.cancel()
        with contextlib.suppress(ProcessLookupError, KeyError, psutil.Error):
            processes(psutil.Process(daemon.pid))["learner"].send_signal(signal.SIGCONT)
        with contextlib.suppress(ProcessLookupError):
            daemon.send_signal(signal.SIGTERM)
        await ended(daemon)
        listener.close()
        broker.stop()
        if failed:
            print((folder / "log").read_text()[-3000:], file=sys.stderr)
    return listener, usage, first_s


async def ended(daemon: asyncio.subprocess.Process) -> None:
    """Wait for the daemon's end; kill its whole tree where it does not come within a minute."""
    with contextlib.suppress(psutil.Error):
        tree = [*psutil.Process(daemon.pid).children(recursive=True), psutil.Process(daemon.pid)]
        try:
            await asyncio.wait_for(daemon.wait(), 60)
        except TimeoutError:
            print("the daemon did not end within 60 s and was killed", file=sys.stderr)
            for process in tree:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            await daemon.wait()


async def scrape(url: str) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http, http.get(url) as answer:
        await answer.read()


async def explain(listener: Listener) -> None:
    listener.ask("explain", {"decision": listener.newest})


async def block(
    given: argparse.Namespace,
    kind: str,
    tree: psutil.Process,
    listener: Listener,
    usage: Usage,
    versions: list[str],
) -> None:
    """One block: the learner is stopped or continued, and every `swap_every` seconds the other version goes live."""
    listener.kind = ""
    learner = processes(tree)["learner"]
    learner.send_signal(signal.SIGSTOP if kind == "off" else signal.SIGCONT)
    if kind == "finetune":
        await asyncio.to_thread(listener.label, 64)
        listener.ask("finetune", {"task": "intents"})
    await asyncio.sleep(SETTLE_S)
    before, begun_s = usage.begin(tree), time.monotonic()
    listener.kind = kind
    while (left_s := given.block - (time.monotonic() - begun_s)) > 0:
        if kind == "swap":
            versions.append(versions.pop(0))
            listener.ask("promote", {"version": versions[0]})
        await asyncio.sleep(min(left_s, given.swap_every))
    listener.kind = ""
    usage.end(tree, kind, before, time.monotonic() - begun_s)
    print(f"{kind}: {len(listener.blocks[kind].latencies_ms)} ticks so far", file=sys.stderr, flush=True)


async def until(condition: Any, process: asyncio.subprocess.Process, what: str) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline or process.returncode is not None:
            raise TimeoutError(
                f"{what}: not within {START_S:.0f} s, or the daemon ended (exit code {process.returncode})"
            )
        await asyncio.sleep(0.1)


def figures(block: Block) -> dict[str, float]:
    """Percentiles of the latency, and what went wrong."""
    latencies = np.array(block.latencies_ms or [np.nan])
    return {
        **{f"p{q:g}": float(np.percentile(latencies, q)) for q in (50, 99, 99.9)},
        "worst": float(latencies.max()),
        "ticks": block.ticks,
        "missed": block.missed,
        "swaps": block.swaps,
        "trips": block.trips,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 rounds, less than ten minutes with the start")
    parser.add_argument(
        "--limit", type=float, help="seconds after which no block begins; default: none, 520 with --quick"
    )
    parser.add_argument("--rounds", type=int, help="of all kinds of block; default: 10, 4 with --quick")
    parser.add_argument("--block", type=float, default=20.0, help="seconds of one block")
    parser.add_argument("--swap-every", type=float, default=10.0, help="seconds between two swaps")
    parser.add_argument("--warmup", type=float, default=20.0, help="seconds before the first block: the learner begins")
    parser.add_argument("--seed", type=int, default=0, help="of the weights of the versions")
    parser.add_argument(
        "--finetune", action="store_true", help="with a text task that is fine-tuned in blocks of its own"
    )
    parser.add_argument("--quiet-page", action="store_true", help="open no page")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the daemon ends with this program
    given.rounds = given.rounds or (4 if given.quick else 10)
    given.limit = given.limit or (520.0 if given.quick else float("inf"))
    with tempfile.TemporaryDirectory(prefix="bench-daemon-") as name:
        listener, usage, first_s = asyncio.run(run(given, Path(name)))
    table = {kind: figures(block) for kind, block in listener.blocks.items() if kind and block.ticks}
    if not {"off", "swap"} <= table.keys():
        print(f"no ticks in the blocks off and swap, only in {sorted(table)}; events: {dict(listener.events)}")
        return 1
    names = next(iter(table.values()))
    print(f"{'block':10}" + "".join(f"{name:>8}" for name in names) + f"{'p99/off':>9}")
    for kind, row in table.items():
        cells = "".join(f"{value:8.2f}" if isinstance(value, float) else f"{value:8d}" for value in row.values())
        print(f"{kind:10}{cells}{row['p99'] / table.get('off', row)['p99']:9.2f}")
    print(f"\n{'process':12}{'RSS MB':>9}" + "".join(f"{f'CPU {kind}':>14}" for kind in table))
    for name, rss in sorted(usage.rss_mb.items()):
        cells = "".join(f"{np.mean(usage.cpu.get((kind, name), [0.0])):14.1%}" for kind in table)
        print(f"{name:12}{rss:9.0f}{cells}")
    print(f"\nstart to first decision: {first_s:.1f} s; events: {json.dumps(dict(listener.events), sort_keys=True)}")
    refused = [body for _, body in listener.answers if body.get("status") != "ok"]
    if refused:
        print(f"refused requests: {refused[:5]}")
    swap = table["swap"]
    good = (
        swap["p99"] <= GOAL * table["off"]["p99"] and not swap["missed"] and not any(b["trips"] for b in table.values())
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
