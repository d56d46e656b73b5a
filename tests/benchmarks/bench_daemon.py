"""What learning, swaps and a fine-tune cost the ticks of the real daemon, as an MQTT client sees them.

`python tests/benchmarks/bench_daemon.py [--quick] [--rounds 10] [--block 20] [--finetune] [--quiet-page]
[--device auto] [--language FOLDER]`. `--quick` ends within
six minutes: no block begins that would end after `--limit` seconds, and the table shows what was measured until then, also after
an interrupt or a failure. Run it after `reflexd prepare configs/demo.yaml`. The demo as shipped runs as a whole daemon: supervisor, agent, learner, dashboard and plant in a process tree of their own, on a real mosquitto. Blocks take
turns: learner stopped by a signal (off), learner with more updates than it can make (full), the same with another policy
version live every `--swap-every` seconds (swap), and, with `--finetune`, a fine-tune of a text task that runs in it (finetune).
In all of them a page with previews is open, a recording runs, metrics are scraped every second and a decision is explained
every five.

Latency is from the deadline of a tick to its proposal, as `decision` has it. A tick is missed when its number is absent. The
table has each block's figures, the ratio of its p99 to that of `off`, memory and CPU by process, and the load by other programs:
the processor time of the whole machine less that of this program, the daemon and the broker, in cores. Exit code 1 if the goal is
missed: ratio of p99 at most 1.15 with swaps, no tick missed, no dead-man trip. Exit code 2 if the blocks `off` and `swap` were not
both measured.
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

from free_ports import free_port  # noqa: E402 - after the path
from processor_time import busy_s, ours_s  # noqa: E402 - after the path

from fakes import Mosquitto  # noqa: E402 - after the path
from learners.checkpoints.store import open_checkpoints  # noqa: E402 - after the path
from learners.config.learner import PromotionSettings  # noqa: E402 - after the path
from learners.ipc.policy_spec import read_policy_spec  # noqa: E402 - after the path
from learners.ipc.settings import Backend  # noqa: E402 - after the path
from learners.model.policy import Policy  # noqa: E402 - after the path
from learners.worker.compilation import compile_candidate  # noqa: E402 - after the path

BASE, TOKEN = "reflexd/demo", "bench-token-of-the-operator"
SETTLE_S = 2.0
"""At the begin of a block, not counted: what the block before began may still end."""
START_S, LEARNER_S = 300.0, 60.0
"""How long each step of the start may take; the learner, of the lowest priority, may never start on a busy machine."""
QUICK_S, END_S = 320.0, 25.0
"""With `--quick`: when the last block ends at the latest, and what the daemon has to end after it."""
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


@dataclass
class Usage:
    """Memory and processor time by block and process."""

    rss_mb: dict[str, float] = field(default_factory=dict)
    cpu: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    other: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By block, cores that programs outside this run used."""

    def begin(self, daemon: psutil.Process) -> dict[str, float]:
        """Return the processor seconds until now: by process, and of the whole machine as `machine`."""
        seconds: dict[str, float] = {"machine": busy_s(), "ours": ours_s()}
        for name, process in processes(daemon).items():
            with contextlib.suppress(psutil.Error):
                seconds[name] = sum(process.cpu_times()[:2])
        return seconds

    def end(self, daemon: psutil.Process, kind: str, before: dict[str, float], seconds: float) -> None:
        """Record what was used since `before`."""
        after = self.begin(daemon)
        others_s = after.pop("machine") - before["machine"] - (after.pop("ours") - before["ours"])
        self.other[kind].append(max(0.0, others_s / seconds))
        for name, process in processes(daemon).items():
            with contextlib.suppress(psutil.Error):
                if name in before and name in after:
                    self.cpu[kind, name].append((after[name] - before[name]) / seconds)
                self.rss_mb[name] = max(self.rss_mb.get(name, 0.0), process.memory_info().rss / 1e6)


@dataclass
class Measured:
    """What a run has measured so far; the table shows it however the run ends."""

    blocks: dict[str, Block] = field(default_factory=lambda: defaultdict(Block))
    usage: Usage = field(default_factory=Usage)
    events: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    answers: list[tuple[str, Any]] = field(default_factory=list)
    first_s: float = float("nan")
    phase: str = "the start"
    """What the run waits for."""


class Listener:
    """The MQTT client: hears decisions and events, sends requests and labels."""

    def __init__(self, port: int, measured: Measured) -> None:
        self.blocks, self.events, self.answers = measured.blocks, measured.events, measured.answers
        self.kind = ""
        """The block that counts now; empty for none."""
        self.last: tuple[str, int] | None = None
        self.newest = ""
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


def settings(given: argparse.Namespace, folder: Path, port: int) -> Path:
    """The demo's settings on our broker, with a learner that always has updates to make and never promotes a candidate."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    config["device"] = given.device
    if given.language:
        config["encoders"]["language"]["model"] = given.language
    config["mqtt"]["url"] = f"mqtt://127.0.0.1:{port}"
    config["state_dir"] = str(folder / "state")
    config["learner"] |= {"warmup": 64, "promote_every_s": 86_400, "updates_per_step": 64, "update_every_s": 0.1}
    config["promotion"] = {"experiments": False}
    config["metrics"]["listen"] = f"127.0.0.1:{free_port()}"
    config["dashboard"] = {"listen": f"127.0.0.1:{free_port()}", "token": TOKEN}
    if given.finetune:
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


async def run(given: argparse.Namespace, folder: Path, measured: Measured) -> None:
    """Start broker and daemon, measure, and end them.

    Raises:
        TimeoutError: the daemon did not come so far in time, or ended.
    """
    broker = Mosquitto(folder).start()
    listener = Listener(broker.port, measured)
    path = settings(given, folder, broker.port)
    config = yaml.safe_load(path.read_text())
    begun_s = time.monotonic()
    with (folder / "log").open("w") as log:
        daemon = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "runtime.cli", "run", str(path), stdout=log, stderr=log
        )
    beside: list[asyncio.Task[None]] = []
    failed = True
    try:
        async with asyncio.timeout(given.limit):
            await measure(given, config, daemon, listener, measured, beside, begun_s)
        failed = False
    except TimeoutError as error:
        print(
            f"ended after {time.monotonic() - begun_s:.0f} s: {error or f'the limit, while it waited for {measured.phase}'}",
            file=sys.stderr,
        )
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


async def measure(
    given: argparse.Namespace,
    config: dict[str, Any],
    daemon: asyncio.subprocess.Process,
    listener: Listener,
    measured: Measured,
    beside: list[asyncio.Task[None]],
    begun_s: float,
) -> None:
    """Wait for the daemon, put its load beside it, and run the blocks; a block that would end after the limit does not begin."""

    async def reached(condition: Any, what: str) -> None:
        measured.phase = what
        await until(condition, daemon, what)

    await reached(lambda: listener.last is not None, "a first decision")
    measured.first_s = time.monotonic() - begun_s
    state_dir = Path(config["state_dir"])
    await reached(lambda: read_policy_spec(state_dir) is not None, "the policy spec")
    measured.phase = "the versions"
    versions = await asyncio.to_thread(three_versions, state_dir, given.seed)
    tree = psutil.Process(daemon.pid)
    try:
        await until(lambda: "learner" in processes(tree), daemon, "the learner", LEARNER_S)
    except TimeoutError as error:
        print(f"{error}; the blocks measure a daemon without learning", file=sys.stderr)
    listener.ask("promote", {"version": versions[0]})
    await reached(lambda: measured.events["policy_swapped"] > 0, "a first swap")
    measured.phase = "its blocks"
    listener.ask("record", {"on": True})
    metrics = f"http://{config['metrics']['listen']}/metrics"
    if not given.quiet_page:
        page_url = f"http://{config['dashboard']['listen']}"
        beside.append(asyncio.create_task(every(1.0, lambda: page(page_url))))
    beside += [
        asyncio.create_task(every(1.0, lambda: scrape(metrics))),
        asyncio.create_task(every(5.0, lambda: explain(listener))),
    ]
    await asyncio.sleep(given.warmup)
    kinds = ["off", "full", "swap", *(["finetune"] if given.finetune else [])]
    for number in range(given.rounds):
        for kind in kinds if number % 2 == 0 else reversed(kinds):
            if time.monotonic() - begun_s + SETTLE_S + given.block + 1.0 > given.limit:
                print(f"no time for a block {kind} of round {number + 1}", file=sys.stderr)
                continue
            try:
                await block(given, kind, tree, listener, measured.usage, versions)
            except (KeyError, psutil.Error) as error:
                listener.kind = ""
                print(f"a block {kind} ended early: {type(error).__name__} {error}", file=sys.stderr)


async def ended(daemon: asyncio.subprocess.Process) -> None:
    """Wait for the daemon's end; kill its whole tree where it does not come within `END_S`."""
    with contextlib.suppress(psutil.Error):
        tree = [*psutil.Process(daemon.pid).children(recursive=True), psutil.Process(daemon.pid)]
        try:
            await asyncio.wait_for(daemon.wait(), END_S)
        except TimeoutError:
            print(f"the daemon did not end within {END_S:.0f} s and was killed", file=sys.stderr)
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
    learner = processes(tree).get("learner")
    if learner is not None:
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


async def until(condition: Any, process: asyncio.subprocess.Process, what: str, timeout_s: float = START_S) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it is not met in time, or the process ended.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline or process.returncode is not None:
            raise TimeoutError(
                f"{what}: not within {timeout_s:.0f} s, or the daemon ended (exit code {process.returncode})"
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
    parser.add_argument("--quick", action="store_true", help="3 rounds, within six minutes with start and end")
    parser.add_argument(
        "--limit", type=float, help=f"seconds of start and blocks; default: none, {QUICK_S:.0f} with --quick"
    )
    parser.add_argument("--rounds", type=int, help="of all kinds of block; default: 10, 3 with --quick")
    parser.add_argument("--block", type=float, default=20.0, help="seconds of one block")
    parser.add_argument("--swap-every", type=float, default=10.0, help="seconds between two swaps")
    parser.add_argument("--warmup", type=float, default=20.0, help="seconds before the first block: the learner begins")
    parser.add_argument("--seed", type=int, default=0, help="of the weights of the versions")
    parser.add_argument(
        "--finetune", action="store_true", help="with a text task that is fine-tuned in blocks of its own"
    )
    parser.add_argument("--quiet-page", action="store_true", help="open no page")
    parser.add_argument("--device", default="auto", help="where the models run: `auto`, `cpu` or `cuda`")
    parser.add_argument(
        "--language", help="another model for texts than the demo's, where the bundled one is not installed"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the daemon ends with this program
    given.rounds = given.rounds or (3 if given.quick else 10)
    given.limit = given.limit or (QUICK_S if given.quick else float("inf"))
    measured, load = Measured(), psutil.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-daemon-", ignore_cleanup_errors=True) as name:
        try:
            asyncio.run(run(given, Path(name), measured))
        except KeyboardInterrupt:
            print("interrupted; the table shows what was measured until then", file=sys.stderr)
    return report(measured, load)


def report(measured: Measured, load: float) -> int:
    """Print the tables; return the exit code.

    Args:
        measured: what the run measured, perhaps not all.
        load: the load average of the machine before the run.
    """
    table = {kind: figures(block) for kind, block in measured.blocks.items() if kind and block.ticks}
    off = table.get("off", {}).get("p99", float("nan"))
    if table:
        names = next(iter(table.values()))
        print(f"{'block':10}" + "".join(f"{name:>8}" for name in names) + f"{'p99/off':>9}{'others':>8}")
        for kind, row in table.items():
            cells = "".join(f"{value:8.2f}" if isinstance(value, float) else f"{value:8d}" for value in row.values())
            others = float(np.mean(measured.usage.other.get(kind, [np.nan])))
            print(f"{kind:10}{cells}{row['p99'] / off:9.2f}{others:8.2f}")
        print(f"\n{'process':12}{'RSS MB':>9}" + "".join(f"{f'CPU {kind}':>14}" for kind in table))
        for name, rss in sorted(measured.usage.rss_mb.items()):
            used = [np.mean(measured.usage.cpu.get((kind, name), [0.0])) for kind in table]
            print(f"{name:12}{rss:9.0f}" + "".join(f"{share:14.1%}" for share in used))
    cores = psutil.cpu_count() or 1
    print(f"\n{cores} cores; load average before the run {load:.1f}; `others`: cores used by programs outside this run")
    events = json.dumps(dict(measured.events), sort_keys=True)
    print(f"start to first decision: {measured.first_s:.1f} s; events: {events}")
    refused = [body for _, body in measured.answers if body.get("status") != "ok"]
    if refused:
        print(f"refused requests: {refused[:5]}")
    if not {"off", "swap"} <= table.keys():
        print(f"blocks off and swap were not both measured, only {sorted(table)}")
        return 2
    swap = table["swap"]
    trips = any(row["trips"] for row in table.values())
    return 0 if swap["p99"] <= GOAL * off and not swap["missed"] and not trips else 1


if __name__ == "__main__":
    sys.exit(main())
