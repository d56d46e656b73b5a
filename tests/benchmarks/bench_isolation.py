"""What learning costs the tick: `python tests/benchmarks/bench_isolation.py [MINUTES]`, 20 Hz, interleaved blocks.

A tick fuses the demo's four streams in the inference thread, decides, and remembers. Beside it, in turn for `BLOCK_S` each:
nothing; the learner process at full tilt (stopped and continued by signals, so that it is always the same one); a learner in
a thread of the same process. Latency is from the tick's deadline to its decision; a deadline is missed when the decision is
not there before the next one. Prints a table and the p99 ratios to "nothing".
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import learning  # noqa: E402 - the path comes first

from actuators.actions import (  # noqa: E402
    ActionSpace,
    Choice,
)
from learners.config.learner import ExperienceSettings  # noqa: E402 - the path comes first
from learners.experience.store import (  # noqa: E402
    Store,
    Transition,
)
from learners.ipc.policy_spec import write_policy_spec  # noqa: E402 - the path comes first
from learners.model.features import Features  # noqa: E402 - the path comes first
from learners.model.policy import Policy  # noqa: E402 - the path comes first
from learners.model.spec import (  # noqa: E402
    PolicySpec,
    StreamSpec,
)
from learners.worker.learner import Learner  # noqa: E402 - the path comes first
from learners.worker.loop import LearnerConfig  # noqa: E402 - the path comes first

RATE_HZ, BLOCK_S, SETTLE_S = 20.0, 10.0, 1.0
SPEC = PolicySpec(
    (
        StreamSpec("front", "image", 4, 1_280),
        StreamSpec("room", "audio", 4, 384),
        StreamSpec("orders", "text", 4, 384),
        StreamSpec("joints", "telemetry", 1, 1),
    ),
    ActionSpace((Choice("head", ("left", "stay", "right")),)),
)


class Agent:
    """The part of a tick that shares the machine with the learner."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "experience", ExperienceSettings.model_validate({}))
        self.policy = Policy(SPEC).eval()
        self.generator = torch.Generator().manual_seed(0)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self.rng = np.random.default_rng(0)
        self.count = 0

    def infer(self, tokens: dict[str, np.ndarray]) -> str:
        features = {name: torch.from_numpy(array)[None, None].float() for name, array in tokens.items()}
        history = {name: array.expand(1, SPEC.history, -1, -1) for name, array in features.items()}
        here = torch.ones(1, SPEC.history, len(SPEC.streams), dtype=torch.bool)
        out = self.policy.act(Features(history, here, torch.zeros(here.shape)), generator=self.generator)
        return ("left", "stay", "right")[int(out.values["head"])]

    def remember(self, tokens: dict[str, np.ndarray], action: str) -> None:
        n = self.count
        self.count += 1
        self.store.append(
            Transition(
                session="bench", tick=n, decision=f"bench-{n}", stamp_s=time.time(), policy="p", tokens=tokens,
                encoder_versions={}, present=dict.fromkeys(tokens, True), ages_s=dict.fromkeys(tokens, 0.0),
                actions={"head": action}, probabilities={"head": 0.5}, by={"head": "policy"},
                reward=float(self.rng.normal()), done=n % 200 == 199,
            )
        )  # fmt: skip

    def tokens(self) -> dict[str, np.ndarray]:
        kinds = {s.name: np.float32 if s.modality == "telemetry" else np.float16 for s in SPEC.streams}
        return {s.name: self.rng.normal(size=(s.tokens, s.width)).astype(kinds[s.name]) for s in SPEC.streams}

    async def block(self, seconds: float) -> tuple[list[float], int]:
        """Latencies of the block's ticks after its first second, and missed deadlines."""
        loop = asyncio.get_running_loop()
        latencies, missed = [], 0
        start = time.monotonic() + 0.05
        for index in range(int(seconds * RATE_HZ)):
            deadline = start + index / RATE_HZ
            await asyncio.sleep(max(0.0, deadline - time.monotonic()))
            tokens = self.tokens()
            action = await loop.run_in_executor(self.thread, self.infer, tokens)
            self.remember(tokens, action)
            latency = time.monotonic() - deadline
            if index >= SETTLE_S * RATE_HZ:
                latencies.append(latency)
                missed += latency > 1 / RATE_HZ
        return latencies, missed


def learner_process(folder: Path) -> subprocess.Popen[bytes]:
    settings = {
        "state_dir": str(folder), "device": "cpu", "tick": {"rate_hz": RATE_HZ},
        "learner": {"updates_per_step": 64, "promote_every_s": 20, "batch": 64},
        "promotion": {"steps": ["integrity", "latency"]},
    }  # fmt: skip
    path = folder / "settings.json"
    path.write_bytes(LearnerConfig.model_validate(settings).model_dump_json().encode())
    write_policy_spec(folder, SPEC)
    return subprocess.Popen([sys.executable, "-m", "learners.worker", str(path)], cwd=ROOT)


def progress(folder: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = orjson.loads((folder / "learner" / "progress.json").read_bytes())
    except FileNotFoundError:
        return {"updates": 0}
    return body


def first_update(folder: Path) -> None:
    while not progress(folder)["updates"]:
        time.sleep(0.2)


def train_here(learner: Learner, stop: threading.Event) -> None:
    while not stop.is_set():
        learner.train(float("inf"), until=learner.position.update + 1)


async def measure(minutes: float, folder: Path) -> None:
    torch.set_num_threads(1)
    agent = Agent(folder)
    for _ in range(600):
        agent.remember(agent.tokens(), "left")
    agent.store.flush()
    own = learning.make_learner(folder / "own", SPEC, Policy, replay_gb=0.1, batch=64)
    own.source = learning.ExperienceSnapshots(learning.Reader(folder / "experience"))
    own.ingest()
    child = learner_process(folder)
    await asyncio.to_thread(first_update, folder)
    child.send_signal(signal.SIGSTOP)
    found: dict[str, list[float]] = {"nothing": [], "learner process": [], "learner thread": []}
    missed = dict.fromkeys(found, 0)
    rounds = max(1, round(minutes * 60 / BLOCK_S / len(found)))
    before = progress(folder)["updates"]
    for number in range(rounds):
        for name in sorted(found, key=lambda name: (len(name) + number) % 3):
            stop = threading.Event()
            thread = threading.Thread(target=train_here, args=(own, stop))
            if name == "learner process":
                child.send_signal(signal.SIGCONT)
            elif name == "learner thread":
                thread.start()
            latencies, late = await agent.block(BLOCK_S)
            stop.set()
            if name == "learner process":
                child.send_signal(signal.SIGSTOP)
            elif name == "learner thread":
                thread.join()
            found[name] += latencies
            missed[name] += late
    updates = {
        "nothing": 0,
        "learner process": progress(folder)["updates"] - before,
        "learner thread": own.position.update,
    }
    child.kill()
    child.wait()
    agent.store.close()
    report(found, missed, updates, rounds)


def report(found: dict[str, list[float]], missed: dict[str, int], updates: dict[str, int], rounds: int) -> None:
    base = float(np.percentile(found["nothing"], 99))
    print(f"{rounds} blocks of {BLOCK_S:g} s each, interleaved, {RATE_HZ:g} Hz")
    print(
        "| beside the tick | ticks | p50 ms | p99 ms | p99 ratio | missed | updates/s |\n|---|---|---|---|---|---|---|"
    )
    for name, values in found.items():
        p50, p99 = np.percentile(values, [50, 99]) * 1e3
        rate = updates[name] / (rounds * BLOCK_S)
        print(
            f"| {name} | {len(values)} | {p50:.2f} | {p99:.2f} | {p99 / base / 1e3:.2f} | {missed[name]} | {rate:.1f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "minutes", nargs="?", type=float, default=10.0, help="of all blocks together; each kind has at least one"
    )
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as where:
        asyncio.run(measure(minutes, Path(where)))
