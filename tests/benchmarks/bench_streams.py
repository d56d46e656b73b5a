"""What a decision costs with many telemetry streams, and with pictures of several cameras: the engine alone, without a broker.

`python tests/benchmarks/bench_streams.py [--streams 1 8 32 256] [--cameras 1 2 4 8] [--ticks 200] [--seed 0]`. Every tick has a new
reading of every stream. Telemetry streams have 8 fields. Printed are p50 and p99 of a decision in milliseconds (from the observation
to the actions), by part: tokens, features and input statistics, fused graph and heads. Cameras of 320x240 share one encoder
(EfficientNet-Lite0): the decision over the bare call of the same graph with the same batch, and the decision where tokens are ready
(`when: arrival`). Goals: p50 at most .6, .8, 1.2 and 5 ms; ratio at most 1.15; 2 ms with ready tokens. Exit code 1 if one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from learners.checkpoints.store import open_checkpoints  # noqa: E402 - after the path
from runtime.config.loader import load  # noqa: E402 - after the path
from runtime.inference.build import build_engine  # noqa: E402 - after the path
from runtime.inference.compiled_engine import CompiledEngine  # noqa: E402 - after the path
from sensors.readings import Frame, Observation, Reading, Telemetry  # noqa: E402 - after the path

FIELDS = tuple("abcdefgh")
GOALS_MS = {1: 0.6, 8: 0.8, 32: 1.2, 256: 5.0}
RATIO, READY_MS = 1.15, 2.0
WARM = 20
"""Ticks that are not counted."""


def engine_of(folder: Path, streams: dict[str, Any], encoders: dict[str, Any]) -> CompiledEngine:
    """Build an engine on graphs, with untrained weights."""
    body = {
        "agent": "bench", "state_dir": str(folder / "state"), "mqtt": {"url": "mqtt://127.0.0.1:1"},
        "streams": streams, "encoders": encoders, "policy": {"history": 1},
        "actuators": {"head": {"kind": "choice", "choices": ["left", "stay", "right"], "safe": "stay"}},
    }  # fmt: skip
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(body))
    config = load(path).config
    engine = build_engine(config, open_checkpoints(config.state_dir, config.promotion), runtime="compiled")
    assert isinstance(engine, CompiledEngine)
    return engine


def observed(tick: int, readings: list[Reading]) -> Observation:
    """Return the observation of a tick in which every reading is new."""
    names = {reading.stream: reading for reading in readings}
    return Observation(tick, float(tick), names, dict.fromkeys(names, 0.01), frozenset(), frozenset(names))


async def decisions(engine: CompiledEngine, ticks: int, readings: Any, *, ready: bool = False) -> np.ndarray[Any, Any]:
    """Return the milliseconds of each decision; with `ready` tokens are made before."""
    took_ms = []
    for tick in range(WARM + ticks):
        now: list[Reading] = readings(tick)
        if ready:
            for reading in now:
                engine._tokens._encode_early(reading)
        observation = observed(tick, now)
        start = time.perf_counter()
        await engine.decide(observation)
        took_ms.append((time.perf_counter() - start) * 1e3)
    return np.array(took_ms[WARM:])


async def telemetry(count: int, ticks: int, seed: int) -> np.ndarray[Any, Any]:
    """Measure telemetry streams; return the milliseconds of each decision."""
    names = [f"s{number}" for number in range(count)]
    streams = {name: {"kind": "telemetry", "source": "topic", "fields": list(FIELDS)} for name in names}
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(WARM + ticks, count, len(FIELDS)))
    with tempfile.TemporaryDirectory() as folder:
        engine = engine_of(Path(folder), streams, {})

        def readings(tick: int) -> list[Reading]:
            return [Telemetry(name, float(tick), tick, FIELDS, values[tick, i]) for i, name in enumerate(names)]

        try:
            return await decisions(engine, ticks, readings)
        finally:
            engine.close()


async def cameras(count: int, ticks: int, seed: int) -> tuple[float, float, float]:
    """Measure cameras; return p50 in milliseconds of a decision, of the bare graph, and of a decision with ready tokens."""
    names = [f"c{number}" for number in range(count)]
    streams = {name: {"kind": "camera", "source": "topic", "encoder": "vision"} for name in names}
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 255, (4, count, 240, 320, 3), np.uint8)

    def readings(tick: int) -> list[Reading]:
        return [Frame(name, float(tick), tick, pictures[tick % 4, i]) for i, name in enumerate(names)]

    found = []
    for when in ("tick", "arrival"):
        with tempfile.TemporaryDirectory() as folder:
            encoder = {"vision": {"model": "bundled:efficientnet-lite0", "when": when}}
            engine = engine_of(Path(folder), streams, encoder)
            try:
                found.append(float(np.median(await decisions(engine, ticks, readings, ready=when == "arrival"))))
                if when == "tick":
                    vision: Any = engine.encoders["vision"]
                    bare_ms = []
                    for tick in range(WARM + ticks):
                        inputs = vision.inputs(readings(tick))
                        start = time.perf_counter()
                        vision.run.arrays(*inputs)
                        bare_ms.append((time.perf_counter() - start) * 1e3)
                    found.append(float(np.median(bare_ms[WARM:])))
            finally:
                engine.close()
    return found[0], found[1], found[2]


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32, 256])
    parser.add_argument("--cameras", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--ticks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    good = True
    print("streams     p50     p99  goal ms")
    for count in given.streams:
        took_ms = asyncio.run(telemetry(count, given.ticks, given.seed))
        p50, p99 = np.percentile(took_ms, (50, 99))
        goal = GOALS_MS.get(count, float("nan"))
        good &= not p50 > goal
        print(f"{count:7d}{p50:8.2f}{p99:8.2f}{goal:9.2f}", flush=True)
    print("\ncameras  decision  bare  ratio  ready tokens (ms)")
    for count in given.cameras:
        decision, bare, ready = asyncio.run(cameras(count, given.ticks, given.seed))
        good &= decision / bare <= RATIO and ready <= READY_MS
        print(f"{count:7d}{decision:10.1f}{bare:6.1f}{decision / bare:7.2f}{ready:8.2f}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
