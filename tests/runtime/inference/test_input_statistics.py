"""Untrained weights act on ordinary telemetry: no action is stuck at its limit, every transition can be stored, replays are exact."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from numpy.typing import NDArray
from policy_files import frozen_policy

from actuators.actions import ActionSpace, Choice, Continuous
from learners.experience.transition import Transition, encode
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendSettings
from learners.model.spec import PolicySpec, StreamSpec
from runtime.inference import stream_tokens
from runtime.inference.decision import InferenceResult
from runtime.inference.engine import HISTORY_FILE
from runtime.inference.numpy_policy.history import TickFeatures
from runtime.inference.numpy_policy.input_statistics import (
    EPS,
    FARTHEST,
    FARTHEST_AFTER,
    LARGEST,
    MEMORY,
    RESOLUTION,
    InputStatistics,
    RunningStatistics,
    normalised,
)
from runtime.inference.torch_engine import TorchEngine, untrained
from sensors.readings import Observation, Telemetry

KINDS: dict[str, tuple[list[float], list[float]]] = {
    "unit": ([0, 0, 0], [1, 1, 1]),
    "climate": ([293, 1_013, 45], [1, 5, 10]),
    "encoder ticks": ([2_048, 2_048, 2_048], [800, 800, 800]),
    "pressure in Pa": ([101_325, 293, 45], [100, 1, 10]),
    "degrees": ([180, 180, 180], [100, 100, 100]),
    "small units": ([0, 1e-3, 5e-6], [1e-5, 1e-5, 1e-6]),
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
        policy = frozen_policy(old)
        await old.decide(observed[20])
        assert float(policy.normalisers()["s"].count) == 0

    asyncio.run(run())
    for each in (one, two, old):
        each.close()


class OneStream:
    """The statistics of one stream, as `learners.model.normalizer` keeps them: a row at a time."""

    def __init__(self, width: int) -> None:
        self.count, self.mean, self.scatter = 0.0, np.zeros(width, np.float32), np.zeros(width, np.float32)
        self.first: list[NDArray[np.float32]] = []

    def observe(self, x_W: NDArray[np.float32]) -> None:
        remaining = min(self.count, MEMORY - 1.0)
        if remaining < self.count:
            self.scatter = self.scatter * np.float32(remaining / self.count)
        total = remaining + 1.0
        x_W = np.clip(x_W, -LARGEST, LARGEST)
        shift_W = x_W - self.mean
        self.first += [x_W] if self.count < FARTHEST_AFTER else []
        if self.count >= FARTHEST_AFTER:
            var_W = self.scatter / np.float32(self.count)
            reach_W = FARTHEST * np.sqrt(var_W + (EPS + np.square(RESOLUTION * self.mean)))
            shift_W = np.clip(shift_W, -reach_W, reach_W)
        self.scatter = self.scatter + np.square(shift_W) * np.float32(remaining / total)
        self.mean = self.mean + shift_W * np.float32(1.0 / total)
        self.count = total
        if self.count == len(self.first) == FARTHEST_AFTER:
            x_NW = np.array(self.first)
            middle_W = np.median(x_NW, axis=0)
            var_W = np.sort(np.square(x_NW - middle_W), axis=0)[:-1].mean(0)
            reach_W = FARTHEST * np.sqrt(var_W + (EPS + np.square(RESOLUTION * middle_W)))
            x_NW = np.clip(x_NW, middle_W - reach_W, middle_W + reach_W)
            self.mean = x_NW.mean(0)
            self.scatter = np.square(x_NW - self.mean).sum(0)


def test_all_streams_of_a_width_together_have_the_bits_of_each_alone() -> None:
    """Readings come at any tick, some never; widths are mixed; numbers are tiny, ordinary and huge."""
    widths = {"a": 3, "b": 8, "words": 4, "c": 8, "d": 3, "silent": 8, "e": 1}
    spec = PolicySpec(
        tuple(StreamSpec(name, "text" if name == "words" else "telemetry", 1, width) for name, width in widths.items()),
        ActionSpace((Choice("head", ("left", "right")),)),
    )
    together, alone = InputStatistics(spec), {name: OneStream(width) for name, width in widths.items()}
    fuse = together.applied_to(lambda _present, _ages, *tokens: np.concatenate([x.reshape(-1) for x in tokens]))
    rng = np.random.default_rng(0)
    for _ in range(MEMORY + 200):
        tokens = {
            name: (rng.normal(size=(1, 1, width)) * 10.0 ** rng.integers(-3, 20)).astype(np.float32)
            for name, width in widths.items()
        }
        fresh = {name for name in widths if name != "silent" and rng.random() < 0.9}
        together.observe(TickFeatures(tokens, np.ones((1, 7), bool), np.zeros((1, 7), np.float32)), fresh)
        want = []
        for name, x in tokens.items():
            if name in fresh:
                alone[name].observe(x.reshape(-1))
            one = alone[name]
            want.append(x if name == "words" else normalised(x, one.count, one.mean, one.scatter))
        found = fuse(None, None, *tokens.values())
        assert np.array_equal(found, np.concatenate([x.reshape(-1) for x in want]))
    packed = together.pack()
    assert [key for key in packed if key.endswith("/count")] == [f"statistics/{name}/count" for name in widths if name != "words"]  # fmt: skip
    for name, one in alone.items():
        if name != "words":
            assert float(packed[f"statistics/{name}/count"]) == one.count
            assert np.array_equal(packed[f"statistics/{name}/mean"], one.mean)
            assert np.array_equal(packed[f"statistics/{name}/scatter"], one.scatter)
    restored = InputStatistics(spec)
    restored.unpack(packed)
    assert all(np.array_equal(x, packed[key]) for key, x in restored.pack().items())


@pytest.mark.parametrize("place", [0, 1, 9, 15])
def test_a_faulty_reading_among_the_first_hides_no_signal_also_after_a_restart(place: int) -> None:
    spec = PolicySpec((StreamSpec("s", "telemetry", 1, 1),), SPEC.actions)
    rng, statistics = np.random.default_rng(0), InputStatistics(spec)
    for k in range(60):
        value = 3e38 if k == place else 20.0 + 0.1 * rng.normal()
        tokens = {"s": np.full((1, 1, 1), value, np.float32)}
        statistics.observe(TickFeatures(tokens, np.ones((1, 1), bool), np.zeros((1, 1), np.float32)), {"s"})
        if k == 11:
            packed, statistics = statistics.pack(), InputStatistics(spec)
            statistics.unpack(packed)
    assert "statistics/s/first" not in statistics.pack()
    one = statistics.by_stream()["s"]
    assert abs(float(one["mean"][0]) - 20.0) < 0.2
    assert 0.05 < float(np.sqrt(one["scatter"][0] / one["count"])) < 1.0


def test_readings_that_are_faulty_for_long_hide_no_signal_for_ever() -> None:
    one, fresh_S = RunningStatistics(1, 1), np.array([True])
    for k in range(2 * MEMORY):
        one.observe(np.array([[3e38 if k % 2 else -3e38]], np.float32), fresh_S)
    assert np.isfinite(one.scatter_SW).all()  # the sum of squares was infinite


def test_a_reading_that_lasts_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A house has hundreds of sensors that report once a minute."""
    converted: list[Any] = []
    convert = stream_tokens.policy_numbers
    monkeypatch.setattr(stream_tokens, "policy_numbers", lambda *given: (converted.append(given), convert(*given))[1])
    one, first = engine(tmp_path), seen(0, np.array([1.0, 2.0, 3.0]))

    async def run() -> list[InferenceResult]:
        later = [replace(first, tick=tick, stamp_s=tick / 10, fresh=frozenset()) for tick in range(1, 4)]
        return [await one.decide(each) for each in (first, *later, seen(4, np.array([4.0, 5.0, 6.0])))]

    decided = asyncio.run(run())
    one.close()
    assert len(converted) == 2
    assert [each.tokens["s"].tolist() for each in decided] == [[[1, 2, 3]]] * 4 + [[[4, 5, 6]]]
