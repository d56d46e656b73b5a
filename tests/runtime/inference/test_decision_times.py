"""Where decisions are made: in the event loop while they are short, else in the inference thread, and never two things at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from actuators.actions import ActionSpace, Choice
from learners.checkpoints.manifest import Manifest
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendSettings
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from runtime.inference import decision_times
from runtime.inference.compiled_engine import CompiledEngine
from runtime.inference.decision_times import ENOUGH, RECENT, SHORT_S, STALL_S, DecisionTimes
from runtime.inference.engine import UNTRAINED
from sensors.readings import Observation, Telemetry

SPEC = PolicySpec(
    (StreamSpec("joints", "telemetry", 1, 3),),
    ActionSpace((Choice("head", ("left", "stay", "right")),)),
    width=16,
    hidden=(16,),
    history=30,
)


def weights(seed: int) -> dict[str, NDArray[Any]]:
    torch.manual_seed(seed)
    return {name: tensor.numpy() for name, tensor in Policy(SPEC).eval().state_dict().items()}


def load(version: str, *_: Any) -> Any:
    manifest = Manifest(version, None, 0.0, {}, {})
    return SimpleNamespace(arrays={"policy": weights(int(version))}, graphs={}, documents={}, manifest=manifest)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[CompiledEngine]:
    calibrations = Calibrations(tmp_path, BackendSettings("openvino", "float32", 1))
    made = CompiledEngine(SPEC, weights(0), {}, {}, calibrations, load, seed=3)
    yield made
    made.close()


@pytest.fixture
def any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions of this small policy are short although another program takes the core away."""
    monkeypatch.setattr(decision_times, "SHORT_S", 30.0)
    monkeypatch.setattr(decision_times, "STALL_S", 60.0)


def seen(tick: int) -> Observation:
    values = np.random.default_rng(tick).normal(size=3).astype(np.float32)
    return Observation(tick, float(tick), {"joints": Telemetry("joints", 0.0, tick, tuple("abc"), values)}, {"joints": 0.1}, frozenset())  # fmt: skip


def around(engine: CompiledEngine, call: Callable[[], None], version: str = UNTRAINED) -> None:
    """Have something happen in each fusion of a loaded version."""
    loaded = engine._versions[version]
    fuse = loaded.fuse

    def changed(*inputs: Any) -> Any:
        call()
        return fuse(*inputs)

    engine._versions[version] = replace(loaded, fuse=changed)
    if engine._live is loaded:
        engine._live = engine._versions[version]


async def decide(engine: CompiledEngine, first: int, count: int) -> list[str]:
    """Decide some ticks; return the thread of each fusion."""
    threads: list[str] = []
    before = dict(engine._versions), engine._live
    around(engine, lambda: threads.append(threading.current_thread().name), engine.version)
    for tick in range(first, first + count):
        await engine.decide(seen(tick))
    engine._versions, engine._live = before
    return threads


@pytest.mark.usefixtures("any_machine")
async def test_a_policy_decides_in_the_loop_once_its_decisions_have_proved_short(engine: CompiledEngine) -> None:
    threads = await decide(engine, 0, ENOUGH + 12)
    assert threads == ["inference_0"] * ENOUGH + ["MainThread"] * 12


async def test_a_policy_with_long_decisions_never_delays_the_loop(engine: CompiledEngine) -> None:
    """A count of streams says nothing: widths, layers and the machine decide."""
    go_on = threading.Event()
    around(engine, lambda: go_on.wait(60) and None)
    for tick in range(2 * RECENT):
        deciding = asyncio.create_task(engine.decide(seen(tick)))
        await asyncio.sleep(2 * SHORT_S)  # the loop runs meanwhile: without that nothing would ever set the event
        go_on.set()
        await deciding
        go_on.clear()


@pytest.mark.usefixtures("any_machine")
async def test_one_decision_that_stalls_sends_the_next_ones_to_the_thread(engine: CompiledEngine) -> None:
    await decide(engine, 0, RECENT)
    assert await decide(engine, ENOUGH, 1) == ["MainThread"]
    assert engine._durations is not None
    engine._durations.add(UNTRAINED, 61.0)
    assert set(await decide(engine, ENOUGH + 1, ENOUGH)) == {"inference_0"}


@pytest.mark.usefixtures("any_machine")
async def test_a_swap_with_a_long_history_does_not_hold_the_loop(engine: CompiledEngine) -> None:
    """It fuses 30 ticks again: 30 decisions' worth of work between two ticks."""
    await engine.load("1")
    await decide(engine, 0, 2 * RECENT)
    reached, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        assert go_on.wait(60)

    around(engine, wait, "1")
    swapping = asyncio.create_task(engine.activate("1"))
    await asyncio.to_thread(reached.wait, 60)
    deciding = asyncio.create_task(engine.decide(seen(2 * RECENT)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not deciding.done(), "a tick in the middle of a swap waits for its end"
    go_on.set()
    assert (await deciding).policy == "1"
    await swapping
    alone = CompiledEngine(SPEC, weights(1), {}, {}, engine.calibrations, load, seed=3, version="1")
    for tick in range(2 * RECENT + 1):
        want = await alone.decide(seen(tick))
    alone._inference.shutdown()
    last = await engine.decide(seen(2 * RECENT + 1))
    assert last.policy == "1"
    assert (await deciding).scores["head"] == pytest.approx(want.scores["head"], abs=1e-6)


@pytest.mark.usefixtures("any_machine")
async def test_a_cancelled_swap_does_not_let_a_tick_run_beside_what_runs_already(engine: CompiledEngine) -> None:
    await engine.load("1")
    await decide(engine, 0, 2 * RECENT)
    running, go_on, order = threading.Event(), threading.Event(), list[str]()

    def slowly() -> None:
        running.set()
        assert go_on.wait(60)
        order.append("work")

    first = asyncio.create_task(engine._between_ticks(slowly))
    await asyncio.to_thread(running.wait, 60)
    second = asyncio.create_task(engine.activate("1"))
    await asyncio.sleep(0)
    second.cancel()  # it had not begun
    await asyncio.wait([second])
    around(engine, lambda: order.append("tick"))
    deciding = asyncio.create_task(engine.decide(seen(2 * RECENT)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert order == []
    go_on.set()
    assert (await deciding).policy == UNTRAINED
    await first
    assert order == ["work", "tick"]


@pytest.mark.usefixtures("any_machine")
async def test_the_time_of_each_version_counts_alone(engine: CompiledEngine) -> None:
    """A rollback returns to the loop at once; a new version has to prove itself."""
    await decide(engine, 0, 2 * RECENT)
    assert engine._durations is not None
    await engine.load("1")
    await engine.activate("1")
    assert set(await decide(engine, 2 * RECENT, ENOUGH)) == {"inference_0"}
    await engine.activate(UNTRAINED)
    await engine.release("1")
    assert not engine._durations.is_short("1")
    await engine.load("1")
    await engine.activate("1")
    assert set(await decide(engine, 3 * RECENT, ENOUGH)) == {"inference_0"}


@pytest.mark.usefixtures("any_machine")
async def test_a_tick_right_after_a_swap_does_not_try_a_new_version_in_the_loop(engine: CompiledEngine) -> None:
    """The swap is over in its thread, and the task that asked for it has not had its turn."""
    await decide(engine, 0, 2 * RECENT)
    await engine.load("1")
    threads: list[str] = []
    around(engine, lambda: threads.append(threading.current_thread().name), "1")
    swapping = asyncio.create_task(engine.activate("1"))
    await asyncio.sleep(0)
    engine._between[-1].result(60)
    threads.clear()
    assert engine.version == UNTRAINED
    assert (await engine.decide(seen(2 * RECENT))).policy == "1"
    assert threads == ["inference_0"]
    await swapping


@pytest.mark.usefixtures("any_machine")
async def test_weights_that_are_no_numbers_raise_wherever_they_decide(engine: CompiledEngine) -> None:
    await decide(engine, 0, 2 * RECENT)
    network = engine._live.policy
    for each in vars(network).values():
        for part in each if isinstance(each, list) else [each]:
            if hasattr(part, "_out"):
                part._out["bias"] = np.full_like(part._out["bias"], np.nan)
    with pytest.raises(ValueError, match="the scores of the choices are not finite"):
        await engine.decide(seen(100))


def test_a_median_of_the_newest_decides() -> None:
    times = DecisionTimes()
    for _ in range(ENOUGH - 1):
        times.add("a", SHORT_S / 2)
    assert not times.is_short("a")
    times.add("a", SHORT_S / 2)
    assert times.is_short("a")
    assert not times.is_short("b")
    for count in range(1, ENOUGH):  # fewer than half of them were too long
        times.add("a", SHORT_S * 3)
        assert times.is_short("a"), count
    times.add("a", SHORT_S * 3)
    assert not times.is_short("a")
    for _ in range(RECENT):
        times.add("a", SHORT_S)
    assert times.is_short("a")
    times.add("a", STALL_S * 1.01)
    assert not times.is_short("a")
    for _ in range(RECENT):
        times.add("a", SHORT_S)
    times.add("a", float("nan"))
    assert not times.is_short("a"), "what is no number is no short time"
    times.forget("a")
    times.forget("never")
    assert not times.is_short("a")
