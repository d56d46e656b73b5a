"""Untrained weights act on ordinary telemetry: no action is stuck at its limit, every transition can be stored, replays are exact."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from actuators.actions import ActionSpace, Continuous
from learners.experience.transition import Transition, encode
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendSettings
from learners.model.spec import PolicySpec, StreamSpec
from runtime.inference.decision import InferenceResult
from runtime.inference.engine import HISTORY_FILE
from runtime.inference.torch_engine import TorchEngine, untrained
from sensors.readings import Observation, Telemetry

KINDS: dict[str, tuple[list[float], list[float]]] = {
    "unit": ([0, 0, 0], [1, 1, 1]),
    "climate": ([293, 1_013, 45], [1, 5, 10]),
    "encoder ticks": ([2_048, 2_048, 2_048], [800, 800, 800]),
    "pressure in Pa": ([101_325, 293, 45], [100, 1, 10]),
    "degrees": ([180, 180, 180], [100, 100, 100]),
}
SPEC = PolicySpec(
    (StreamSpec("s", "telemetry", 1, 3),), ActionSpace((Continuous("arm", (-1.0, -1.0), (1.0, 1.0)),)), history=2
)


def no_version(_version: str, _shapes: Any) -> Any:
    raise AssertionError("no version to load")


def engine(folder: Path) -> TorchEngine:
    return TorchEngine(untrained(SPEC, 0), {}, {}, Calibrations(folder, BackendSettings(backend="torch")), no_version)


def seen(tick: int, values: np.ndarray[Any, Any]) -> Observation:
    reading = Telemetry("s", tick / 10, tick, ("a", "b", "c"), values.astype(np.float32))
    return Observation(tick, tick / 10, {"s": reading}, {"s": 0.0}, frozenset(), frozenset({"s"}))


@pytest.mark.parametrize("kind", KINDS)
def test_no_transition_is_refused_and_actions_vary(tmp_path: Path, kind: str) -> None:
    base, spread = (np.array(each) for each in KINDS[kind])
    rng, one = np.random.default_rng(0), engine(tmp_path)

    async def run() -> list[InferenceResult]:
        return [await one.decide(seen(k, base + rng.normal(size=3) * spread), explore=True) for k in range(150)]

    decided = asyncio.run(run())
    one.close()
    for k, each in enumerate(decided):
        arm = each.actions["arm"]
        encode(Transition("x", k, str(k), 0.0, "p", each.tokens, probabilities={"arm": arm.probability}))
    actions = np.array([each.actions["arm"].value for each in decided], float)
    assert float((np.abs(actions) > 0.99).mean()) < 0.15
    assert float(actions.std(0).min()) > 0.2


def test_a_replay_from_the_middle_is_exact_and_old_recordings_have_no_statistics(tmp_path: Path) -> None:
    base, spread = (np.array(each) for each in KINDS["climate"])
    rng = np.random.default_rng(0)
    observed = [seen(k, base + rng.normal(size=3) * spread) for k in range(40)]
    one, two, old = engine(tmp_path), engine(tmp_path), engine(tmp_path)

    async def run() -> None:
        for each in observed[:20]:
            await one.decide(each, explore=True)
        files = (await one.snapshot()).files
        await two.restore(files)
        for each in observed[20:]:
            recorded, now = await one.decide(each, explore=True), await two.decide(each, explore=True)
            assert recorded.actions == now.actions
            assert recorded.value == now.value

        rows = {
            name: x
            for name, x in safetensors.torch.load(files[HISTORY_FILE]).items()
            if not name.startswith("statistics/")
        }
        await old.restore({HISTORY_FILE: safetensors.torch.save(rows)})
        policy = old.frozen_policy()
        await old.decide(observed[20])
        assert float(policy.normalisers()["s"].count) == 0

    asyncio.run(run())
    for each in (one, two, old):
        each.close()
