"""What remembering costs: `python tests/benchmarks/bench_experience.py [ROWS]` prints one table.

Rows are as in the demo: four streams of pooled tokens, 17 kB. The append is what a tick pays; the rest happens elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from actuators.actions import ActionSpace, Choice
from learners.config.learner import ExperienceSettings
from learners.experience.reader import Reader
from learners.experience.store import Store, Transition
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.replay_buffer import ReplayBuffer

STREAMS = {"front": (4, 1_280), "room": (4, 384), "orders": (4, 384)}


def transition(n: int, tokens: dict[str, np.ndarray]) -> Transition:
    return Transition(
        session="bench", tick=n, decision=f"bench-{n}", stamp_s=n / 10, policy="000001-00000000", tokens=tokens,
        encoder_versions=dict.fromkeys(STREAMS, "v1"), present=dict.fromkeys(tokens, True),
        ages_s=dict.fromkeys(tokens, 0.01), actions={"head": "left"}, probabilities={"head": 0.9},
        by={"head": "policy"}, reward=0.1, done=n % 500 == 499,
    )  # fmt: skip


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def row(name: str, value: str) -> None:
    print(f"| {name:<52} | {value:>24} |")


def main(rows: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    tokens = {name: rng.normal(size=shape).astype(np.float16) for name, shape in STREAMS.items()}
    tokens["joints"] = rng.normal(size=(1, 1)).astype(np.float32)
    print(f"| {'experience':<52} | {'measured':>24} |\n|{'-' * 54}|{'-' * 26}|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(folder, ExperienceSettings.model_validate({"max_gb": 2.0}), limit=rows + 1)
        calls = []
        started = time.perf_counter()
        for n in range(rows):
            before = time.perf_counter()
            store.append(transition(n, tokens))
            calls.append(time.perf_counter() - before)
        store.flush(600)
        row("rows a second to the disk", f"{rows / (time.perf_counter() - started):,.0f}")
        row(
            "append, as the tick sees it, p50 / p99",
            f"{percentile(calls, 0.5) * 1e6:.0f} / {percentile(calls, 0.99) * 1e6:.0f} us",
        )
        acknowledged = []
        for n in range(rows, rows + 200):
            before = time.perf_counter()
            store.append(transition(n, tokens))
            store.credit(1.0, decision=f"bench-{n}")
            store.flush()
            acknowledged.append(time.perf_counter() - before)
        row(
            "one row and its reward acknowledged, p50 / p99",
            f"{percentile(acknowledged, 0.5) * 1e3:.2f} / {percentile(acknowledged, 0.99) * 1e3:.2f} ms",
        )
        store.close()
        size = sum(path.stat().st_size for path in folder.iterdir())
        row("bytes a row on disk", f"{size / (rows + 200):,.0f}")
        read_and_draw(folder, rows)


def read_and_draw(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(1)
    spec = PolicySpec(
        (
            StreamSpec("front", "image", 4, 1_280),
            StreamSpec("room", "audio", 4, 384),
            StreamSpec("orders", "text", 4, 384),
            StreamSpec("joints", "telemetry", 1, 1),
        ),
        ActionSpace((Choice("head", ("left", "stay", "right")),)),
    )
    with Reader(folder) as reader:
        times = []
        for _ in range(20):
            before = time.perf_counter()
            reader.pick([int(n) for n in rng.integers(1, rows, 256)])
            times.append(time.perf_counter() - before)
        row("256 random rows from disk, p50", f"{percentile(times, 0.5) * 1e3:.2f} ms")
        replay = ReplayBuffer(spec, max_bytes=500_000_000, steps=3)
        before = time.perf_counter()
        for start in range(1, rows + 1, 512):
            for found in reader.rows(start, start + 512):
                replay.append(found.transition, found.row)
        row("rows a second from disk into the replay", f"{rows / (time.perf_counter() - before):,.0f}")
    generator = torch.Generator().manual_seed(0)
    for size in (64, 256):
        times = []
        for _ in range(50):
            before = time.perf_counter()
            replay.sample(size, generator)
            times.append(time.perf_counter() - before)
        row(f"batch of {size}, history 4, 3 steps, p50", f"{percentile(times, 0.5) * 1e3:.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=int, default=5_000, help="rows to write and read")
    main(parser.parse_args().rows)
