"""The engine on a GPU: decisions as on the CPU, versions that change while a graph replays, exact snapshots. Skipped without CUDA."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_engines import POLICIES, engine_of, observation, version_of
from numpy.typing import NDArray
from policy_files import frozen_policy
from torch import nn

from learners.model.backends.cuda import CudaGraphRun
from learners.model.spec import PolicySpec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
TOLERANCE = 2e-3
"""Of values, relative to the largest. Tokens are stored in half precision, so the last bit of a token may differ."""


def far(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one - other).max() / max(1.0, np.abs(one).max()))


def assert_alike(spec: PolicySpec, cpu: Any, gpu: Any) -> None:
    """The same choice, unless two are as good as equal; the same motion up to rounding."""
    for actuator in spec.actions.choices:
        scores = cpu.scores[actuator.name]
        mine, theirs = (
            np.array(list(x.values()) if isinstance(x, dict) else x) for x in (scores, gpu.scores[actuator.name])
        )
        assert far(mine, theirs) < TOLERANCE
        best = np.sort(mine)
        if best[-1] - best[-2] > 2 * TOLERANCE * max(1.0, np.abs(mine).max()):
            assert cpu.actions[actuator.name].value == gpu.actions[actuator.name].value
    for motion in spec.actions.continuous:
        values = [np.array(one.actions[motion.name].value) for one in (cpu, gpu)]
        assert far(*values) < TOLERANCE


@pytest.mark.parametrize("kind", POLICIES)
async def test_greedy_decisions_are_those_of_the_cpu(kind: str, tmp_path: Path) -> None:
    spec = POLICIES[kind]
    cpu, gpu = (engine_of(spec, device, tmp_path) for device in ("cpu", "cuda"))
    name = version_of(spec, tmp_path, 7)
    for tick in range(60):
        if tick == 30:
            for engine in (cpu, gpu):
                await engine.load(name)
                await engine.activate(name)
        seen = observation(spec, tick)
        assert_alike(spec, await cpu.decide(seen), await gpu.decide(seen))
    for engine in (cpu, gpu):
        engine.close()


@pytest.mark.parametrize("kind", ["mixed", "plain"])
async def test_versions_are_loaded_and_swapped_while_the_graph_replays(kind: str, tmp_path: Path) -> None:
    """Ticks without a pause, and a load, a swap and a release beside them, over and over."""
    spec = POLICIES[kind]
    gpu = engine_of(spec, "cuda", tmp_path)
    names = [version_of(spec, tmp_path, seed) for seed in range(1, 6)]
    results, swaps = {}, []

    async def swap() -> None:
        before = "untrained"
        for name in [*names, *names]:
            await gpu.load(name)
            await gpu.activate(name)
            if before != "untrained":
                await gpu.release(before)
            before = name
            swaps.append(name)

    swapping = asyncio.create_task(swap())
    tick = 0
    while not swapping.done():
        results[tick] = await gpu.decide(observation(spec, tick))
        tick += 1
    await swapping
    assert len(swaps) == 10
    assert tick > 20
    last = await gpu.decide(observation(spec, tick))
    cpu = engine_of(spec, "cpu", tmp_path)
    await cpu.load(names[-1])
    await cpu.activate(names[-1])
    for past in range(max(0, tick - spec.history), tick):
        await cpu.decide(observation(spec, past))
    assert_alike(spec, await cpu.decide(observation(spec, tick)), last)
    cpu.close()
    gpu.close()


async def test_exploration_goes_on_exactly_from_a_snapshot(tmp_path: Path) -> None:
    spec = POLICIES["mixed"]
    one, other = (engine_of(spec, "cuda", tmp_path) for _ in range(2))
    for engine in (one, other):
        assert engine.policy.heads.continuous is not None
        engine.policy.heads.continuous.epsilon.fill_(0.5)
    for tick in range(20):
        await one.decide(observation(spec, tick), explore=True)
    await other.restore((await one.snapshot()).files)
    for tick in range(20, 40):
        seen = observation(spec, tick)
        found = [(await engine.decide(seen, explore=True)).actions_message() for engine in (one, other)]
        assert found[0] == found[1]
    for engine in (one, other):
        engine.close()


async def test_another_version_is_compared_and_the_acting_one_is_copied(tmp_path: Path) -> None:
    spec = POLICIES["mixed"]
    gpu, cpu = (engine_of(spec, device, tmp_path) for device in ("cuda", "cpu"))
    name = version_of(spec, tmp_path, 7)
    await gpu.load(name)
    for tick in range(8):
        await gpu.decide(observation(spec, tick), explore=True)
    compared = await gpu.compare(name)
    assert compared is not None
    assert set(compared.actions) == {"head", "arm"}
    assert all(action["probability"] >= 0 for action in compared.actions.values())
    mine, theirs = frozen_policy(gpu).state_dict(), frozen_policy(cpu).state_dict()
    assert all(x.device.type == "cpu" for x in mine.values())
    assert [name for name in theirs if "normal" not in name and not torch.equal(mine[name], theirs[name])] == []
    for engine in (gpu, cpu):
        engine.close()


def test_a_graph_is_captured_while_another_thread_uses_the_gpu() -> None:
    """A capture must not forbid what the inference thread does meanwhile: allocate, copy, wait."""
    module, x = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)).cuda().eval(), torch.randn(1, 64).cuda()
    stop, errors, rounds = threading.Event(), [], 0

    def work() -> None:
        nonlocal rounds
        try:
            with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode():
                while not stop.is_set():
                    big = torch.empty(1 << (20 + rounds % 5), device="cuda")
                    module(torch.randn(8, 64).to("cuda")).cpu()
                    del big
                    rounds += 1
        except RuntimeError as error:
            errors.append(error)

    beside = threading.Thread(target=work)
    beside.start()
    try:
        graphs = [CudaGraphRun(module, (x,)) for _ in range(30)]
    finally:
        stop.set()
        beside.join(30)
    assert errors == []
    assert rounds > 0
    with torch.inference_mode():
        for graph in graphs:
            torch.testing.assert_close(graph(x * 2), module(x * 2), rtol=1e-4, atol=1e-5)
