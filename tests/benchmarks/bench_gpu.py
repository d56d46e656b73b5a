"""Deciding and learning on a GPU against the CPU of the same machine. Without CUDA the table has the CPU alone.

    python tests/benchmarks/bench_gpu.py [--ticks 2000] [--seconds 2] [--only act|learn]

`act`: milliseconds of `decide` (p50, p99, worst) for several kinds of policy, on the CPU in torch with one thread and on the GPU
as a CUDA graph. `bare`: the same numbers from the model alone, its inputs on the device and its actions copied back. `swaps`: the
ticks during which another version was loaded, put live and released beside the decisions.
`learn`: updates a second of every algorithm by batch size, on one thread of the CPU, on all of them, and on the GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from device_engines import POLICIES, engine_of, observation, version_of  # noqa: E402 - after the path
from rl import ARM, CHOICE, plain, random_batch  # noqa: E402 - after the path

from learners.model.backends.cuda import CudaGraphRun  # noqa: E402 - after the path
from learners.model.policy import Policy  # noqa: E402 - after the path
from learners.model.policy_graph import FlatPolicyModule, example_inputs  # noqa: E402 - after the path
from learners.model.spec import PolicySpec  # noqa: E402 - after the path
from learners.rl.algorithm import Algorithm  # noqa: E402 - after the path

KINDS = ("choices", "continuous", "mixed", "categorical", "plain")
BATCHES = (64, 256, 2048)
LEARNED = {
    "DQN": ((CHOICE,), "auto"),
    "CrossQ": ((ARM,), "auto"),
    "SAC": ((ARM,), "sac"),
    "C51": ((CHOICE,), "xqc"),
    "XQC": ((ARM,), "xqc"),
}


def milliseconds(seconds: Sequence[float]) -> str:
    """Return p50, p99 and the worst."""
    found = 1_000 * np.array(seconds)
    return f"{np.percentile(found, 50):8.3f}{np.percentile(found, 99):8.3f}{found.max():8.2f}"


def bare(spec: PolicySpec, device: str, ticks: int) -> list[float]:
    """Seconds of the model alone: fusion over the history, heads, and the actions on the CPU."""
    torch.manual_seed(0)
    place = torch.device(device)
    policy = Policy(spec).eval().to(place)
    module: nn.Module = FlatPolicyModule(policy).eval()
    inputs = tuple(x.to(place) for x in example_inputs(spec))
    run = CudaGraphRun(module, inputs) if device == "cuda" and not spec.plain else module
    taken = []
    with torch.inference_mode():
        for _ in range(ticks):
            begun = time.perf_counter()
            state_BD = run(*inputs)
            context_BC = policy.context(state_BD[:, None].expand(-1, spec.history, *state_BD.shape[1:]).contiguous())
            out = policy.heads.act(context_BC, generator=torch.Generator(place).manual_seed(1), explore=False)
            _ = [value.cpu() for value in out.values.values()]
            taken.append(time.perf_counter() - begun)
    return taken[len(taken) // 10 :]


async def decided(spec: PolicySpec, device: str, ticks: int, folder: Path, *, swaps: bool) -> tuple[list[float], int]:
    """Seconds of each decision, and how many versions went live meanwhile."""
    engine = engine_of(spec, device, folder)
    names = [version_of(spec, folder, seed) for seed in (1, 2, 3)]
    taken, done, ended = [], 0, False

    async def swap() -> None:
        nonlocal done
        before = ""
        for name in itertools.cycle(names):
            await engine.load(name)
            await engine.activate(name)
            if before:
                await engine.release(before)
            before, done = name, done + 1
            await asyncio.sleep(0.05)
            if ended:
                return

    swapping = asyncio.create_task(swap()) if swaps else None
    for tick in range(ticks):
        seen = observation(spec, tick)
        begun = time.perf_counter()
        await engine.decide(seen)
        taken.append(time.perf_counter() - begun)
    ended = True
    if swapping is not None:
        await swapping
    engine.close()
    return taken[len(taken) // 10 :], done


def act(devices: Sequence[str], ticks: int) -> None:
    """Print milliseconds of decisions."""
    print(f"{'decide, ms':16}{'device':8}{'what':8}{'p50':>8}{'p99':>8}{'worst':>8}")
    with tempfile.TemporaryDirectory() as name:
        for kind, device in itertools.product(KINDS, devices):
            torch.set_num_threads(1)
            spec = POLICIES[kind]
            print(f"{kind:16}{device:8}{'bare':8}{milliseconds(bare(spec, device, ticks))}", flush=True)
            for swaps in (False, True):
                taken, done = asyncio.run(decided(spec, device, ticks, Path(name), swaps=swaps))
                what = f"{done} swaps" if swaps else "decide"
                print(f"{kind:16}{device:8}{what:8}{milliseconds(taken)}", flush=True)


def updates(policy_of: Callable[[], Policy], device: str, batch: int, seconds: float) -> float:
    """Return updates a second."""
    policy = policy_of().to(device)
    algorithm = Algorithm(policy, torch.Generator(device).manual_seed(0))
    draws = torch.Generator().manual_seed(0)
    batches = [random_batch(policy, batch, draws) for _ in range(8)]
    for one in batches[:4]:
        algorithm.update(one.to(device))
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        algorithm.update(batches[count % 8].to(device))
        count += 1
    return count / (time.perf_counter() - begun)


def learn(devices: Sequence[str], seconds: float) -> None:
    """Print updates a second."""
    cores = len(os.sched_getaffinity(0))
    places = [("cpu", 1), *([("cpu", cores)] if cores > 1 else []), *((d, 1) for d in devices if d != "cpu")]
    print(f"\n{'updates/s':10}{'batch':>6}" + "".join(f"{f'{d} x{t}' if d == 'cpu' else d:>10}" for d, t in places))
    for (name, (actuators, algorithm)), batch in itertools.product(LEARNED.items(), BATCHES):
        row = ""
        for device, threads in places:
            torch.set_num_threads(threads)

            def made(actuators: tuple[object, ...] = actuators, algorithm: str = algorithm) -> Policy:
                return plain(*actuators, width=8, algorithm=algorithm)  # type: ignore[arg-type]

            row += f"{updates(made, device, batch, seconds):10.1f}"
        print(f"{name:10}{batch:6}{row}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=2_000, help="decisions of each row; the first tenth is left out")
    parser.add_argument("--seconds", type=float, default=2.0, help="of updates in each cell")
    parser.add_argument("--only", choices=("act", "learn"))
    given = parser.parse_args()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    shown = torch.cuda.get_device_name() if len(devices) > 1 else "no GPU"
    print(f"{len(os.sched_getaffinity(0))} cores, {shown}, torch {torch.__version__}")
    if given.only != "learn":
        act(devices, given.ticks)
    if given.only != "act":
        learn(devices, given.seconds)


if __name__ == "__main__":
    main()
