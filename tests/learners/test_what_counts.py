"""What the learner makes of ticks behind the real gate: which rows are demonstrations, and which count at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import learning
import numpy as np
import pytest
import torch
from gate_world import GateWorld

from actuators.actions import ActionSpace, Choice, Continuous
from actuators.config import ChoiceSettings, ContinuousSettings, GateSettings
from actuators.safety.decisions import Mode
from learners.experience.store import Store
from learners.experience.transition import Transition
from learners.gym.observations import FrameWindow
from learners.model.features import Features, recorded
from learners.model.policy import Policy
from learners.model.policy_graph import FlatPolicyModule
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.algorithm import Algorithm
from learners.rl.replay_buffer import ReplayBuffer
from runtime.inference.numpy_policy.history import ObservationHistory

HELD_TICKS = range(100, 110)
"""A hold of 1 s that begins just before tick 100."""


def arm(**fields: Any) -> ContinuousSettings:
    return ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,), **fields)


def demonstrated_ticks(safe: Any, mode: Mode, later: tuple[int, Callable[[GateWorld], object]] | None) -> list[int]:
    """Override at tick 100 for 1 s, act on `later`, and return the ticks that count as demonstrations."""
    world = GateWorld({"arm": arm(safe=safe)}, mode=mode)
    spec = PolicySpec(
        (StreamSpec("s", "telemetry", 1, 1),), ActionSpace((Continuous("arm", (-1.0,), (1.0,)),)), history=1
    )
    replay, rng = ReplayBuffer(spec, max_bytes=1 << 20), np.random.default_rng(0)
    for k in range(400):
        if k == HELD_TICKS.start:
            world.gate.override("arm", [0.7], 1.0, world.now_s)
        if later is not None and k == later[0]:
            later[1](world)
        replay.append(world.tick({"arm": (float(rng.uniform(-1, 1)),)}, np.array([k])), k)
    batch = replay.ordered(0, 400)
    if batch is None:
        return []
    numbers = batch.features.tokens["s"].flatten().int()
    return numbers[batch.is_expert["arm"]].tolist()


STOP = (115, lambda world: world.gate.stop(world.now_s, engaged=True))
STOP_INSIDE = (105, lambda world: world.gate.stop(world.now_s, engaged=True))
DISARM_INSIDE = (105, lambda world: world.gate.disarm(world.now_s))


@pytest.mark.parametrize("safe", ["hold", (0.0,)])
@pytest.mark.parametrize("mode", ["autonomous", "assist", "shadow"])
@pytest.mark.parametrize("later", [None, STOP, STOP_INSIDE, DISARM_INSIDE])
def test_demonstrations_are_the_ticks_inside_the_hold(
    safe: Any, mode: Mode, later: tuple[int, Callable[[GateWorld], object]] | None
) -> None:
    inside = HELD_TICKS if later is None else range(HELD_TICKS.start, min(later[0], HELD_TICKS.stop))
    assert demonstrated_ticks(safe, mode, later) == list(inside)


@pytest.mark.parametrize("seed", range(6))
def test_a_person_is_credited_inside_a_hold_and_nowhere_else(seed: int) -> None:
    """Two actuators, in every mode: holds that overlap, are released, or end with a stop or a disarm."""
    rng = np.random.default_rng(seed)
    choice = ChoiceSettings(kind="choice", choices=("l", "s", "r"), safe="s")
    mode: Mode = ("autonomous", "assist", "shadow")[seed % 3]  # type: ignore[assignment] # one of them
    world = GateWorld({"arm": arm(safe="hold" if seed % 2 else (0.0,)), "head": choice}, mode=mode)
    until, held = {"arm": -1.0, "head": -1.0}, 0
    for _ in range(150):
        before_s = world.now_s - 0.0003
        name = str(rng.choice(["arm", "head"]))
        event = rng.choice(
            ["", "override", "release", "stop", "go", "disarm", "arm"], p=[0.62, 0.18, 0.04, 0.02, 0.06, 0.02, 0.06]
        )
        if event == "override":
            hold_s, value = float(rng.choice([0.05, 0.25, 1.0])), [float(rng.uniform(-1, 1))] if name == "arm" else "r"
            if world.gate.override(name, value, hold_s, before_s).sent:
                until[name] = before_s + hold_s
        elif event == "release":
            world.gate.end_hold(name, before_s)
            until[name] = -1.0
        elif event in {"stop", "go"}:
            world.gate.stop(before_s, engaged=event == "stop")
        elif event == "disarm":
            world.gate.disarm(before_s)
        elif event == "arm":
            world.gate.arm(before_s)
        if event in {"stop", "disarm"}:
            until = dict.fromkeys(until, -1.0)
        judged_s = world.now_s + 0.001
        row = world.tick({"arm": (float(rng.uniform(-1, 1)),), "head": str(rng.choice(["l", "s", "r"]))}, np.zeros(1))
        for each, end_s in until.items():
            is_held = judged_s < end_s and row.armed
            held += is_held
            assert (row.by[each] == "override" and row.credited(each) is not None) == is_held
            assert is_held or mode == "autonomous" or row.credited(each) is None
    assert held > 3


MOVES = ("left", "stay", "right")
MOVE_SPEC = PolicySpec(
    (StreamSpec("s", "telemetry", 1, 2),), ActionSpace((Choice("move", MOVES),)), history=3, hidden=(16, 16)
)


def moves(world: GateWorld, rng: np.random.Generator, count: int, *, moving: bool) -> list[Transition]:
    """Tick with a random proposal; a machine at rest sees almost the same numbers all the time."""
    ticks = []
    for _ in range(count):
        seen = [rng.uniform(-1, 1), rng.normal() * 0.5] if moving else [0.2 + rng.normal() * 1e-3, rng.normal() * 1e-3]
        ticks.append(world.tick({"move": MOVES[rng.integers(3)]}, np.array(seen), probability=1 / 3))
    return ticks


def move_world() -> GateWorld:
    choice = ChoiceSettings(kind="choice", choices=MOVES, safe="stay")
    return GateWorld({"move": choice}, GateSettings(arm="request"))


def store(folder: Path, ticks: list[Transition]) -> None:
    into = Store(folder / "experience", limit=len(ticks) + 10)
    assert all(into.append(each) for each in ticks)
    assert into.flush(60.0)
    into.close()


def test_a_machine_at_rest_learns_nothing_and_is_not_blind_when_it_moves(tmp_path: Path) -> None:
    world, rng = move_world(), np.random.default_rng(0)
    learner = learning.make_learner(tmp_path, MOVE_SPEC, Policy, warmup=256, replay_gb=1e-3)
    store(tmp_path, moves(world, rng, 4_000, moving=False))
    assert not world.verdict.armed
    assert learner.ingest() == 4_000
    learner.train(float("inf"))
    assert (learner.replay.strata().sampleable, len(learner.replay), learner.position.update) == (0, 0, 0)
    assert float(learner.policy.heads.choice.epsilon) == 1.0

    world.gate.arm(world.now_s)
    store(tmp_path, moves(world, rng, 600, moving=True))
    learner.ingest()
    assert learner.replay.acting == 600
    x = torch.tensor(np.stack([rng.uniform(-1, 1, 2_000), rng.normal(size=2_000) * 0.5], -1), dtype=torch.float32)
    inputs = learner.policy.normalisers()["s"](x)
    assert float((inputs.abs() < 5).float().mean()) == 1.0


def test_the_ticks_before_the_first_action_are_its_history(tmp_path: Path) -> None:
    """And the tick after the last action is its successor; the rest in between is left out."""
    world, rng = move_world(), np.random.default_rng(0)
    ticks = moves(world, rng, 10, moving=False)
    world.gate.arm(world.now_s)
    ticks += moves(world, rng, 2, moving=True)
    world.gate.disarm(world.now_s)
    ticks += moves(world, rng, 10, moving=False)
    ticks = [replace(t, tokens={"s": np.full((1, 2), t.tick, np.float32)}) for t in ticks]
    store(tmp_path, ticks)
    learner = learning.make_learner(tmp_path, MOVE_SPEC, Policy)
    learner.ingest()
    assert len(learner.replay) == 5
    batch = learner.replay.ordered(0, 99)
    assert batch is not None
    assert batch.features.tokens["s"][..., 0, 0].tolist() == [[8, 9, 10], [9, 10, 11]]
    assert batch.next_features.tokens["s"][..., 0, 0].tolist() == [[10, 11, 12], [10, 11, 12]]


def test_a_crash_at_rest_changes_nothing(tmp_path: Path) -> None:
    def run(folder: Path, *, crash: bool) -> dict[str, torch.Tensor]:
        world, rng = move_world(), np.random.default_rng(0)
        learner = learning.make_learner(folder, MOVE_SPEC, Policy)
        learner.resume(dict)
        learner.save()
        for moving, count in ((False, 20), (True, 80), (False, 7), (True, 30)):
            if moving:
                world.gate.arm(world.now_s)
            else:
                world.gate.disarm(world.now_s)
            store(folder, moves(world, rng, count, moving=moving))
            learner.ingest()
            learner.train(
                float("inf"), until=learner.position.update + (10 if learner.position.pending_updates >= 1 else 0)
            )
            if not moving:
                learner.save()
            if crash:
                update = learner.position.update
                learner = learning.make_learner(folder, MOVE_SPEC, Policy)
                assert learner.resume(dict)
                learner.train(float("inf"), until=update)
        learner.train(float("inf"), until=40)
        return learning.weights(learner)

    learning.assert_identical(run(tmp_path / "crashed", crash=True), run(tmp_path / "whole", crash=False))


def test_a_slow_copy_has_the_statistics_of_its_source() -> None:
    streams = (StreamSpec("t", "telemetry", 1, 2), StreamSpec("u", "telemetry", 1, 1))
    spec = PolicySpec(streams, ActionSpace((Choice("a", ("l", "r")),)), history=1, width=32, hidden=(32, 32))
    replay, rng = ReplayBuffer(spec, max_bytes=1 << 22), np.random.default_rng(0)
    torch.manual_seed(0)
    policy = Policy(spec).eval()
    algorithm = Algorithm(policy, torch.Generator().manual_seed(0))
    for k in range(64):
        tokens = {
            "t": (np.array([[293.0, 1013.0]]) + rng.normal(size=(1, 2)) * [1, 3]).astype(np.float32),
            "u": rng.normal(size=(1, 1)).astype(np.float32),
        }
        there, ages = {"t": True, "u": True}, {"t": 0.0, "u": 0.0}
        tick = Transition("s", k, str(k), 0.0, "p", tokens, {}, there, ages, {"a": "lr"[k % 2]}, reward=1.0)
        replay.append(tick, k)
        algorithm.normalise(recorded(spec, [tokens], [there], [ages]))
    batch = replay.sample(32, torch.Generator().manual_seed(0))
    algorithm.update(batch)
    x = batch.features.tokens["t"]
    for slow in algorithm.target.normalisers()["t"](x), policy.normalisers()["t"](x):
        assert float(slow.abs().max()) < 5
    assert torch.equal(algorithm.target.normalisers()["t"](x), policy.normalisers()["t"](x))


CHOICES = ("a", "b", "c")


def test_a_choice_that_the_gate_forbids_is_no_longer_proposed() -> None:
    """`a` costs 1 where the first number is positive and 2 elsewhere, `b` the other way round; `c` is forbidden."""
    spec = PolicySpec(
        (StreamSpec("s", "telemetry", 1, 3),),
        ActionSpace((Choice("act", CHOICES),)),
        history=1,
        gamma=0.9,
        hidden=(32, 32),
    )
    choice = ChoiceSettings(kind="choice", choices=CHOICES, safe="a")
    world = GateWorld({"act": choice}, GateSettings(forbid=("act == 'c'",)))
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    policy = Policy(spec).eval()
    algorithm = Algorithm(policy, generator)
    replay, proposals = ReplayBuffer(spec, max_bytes=1 << 24, steps=3), []
    for k in range(2_200):
        x = rng.normal(size=3).astype(np.float32)
        seen = Features({"s": torch.tensor(x)[None, None]}, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1))
        out = policy.act(seen, generator=generator, explore=1.0 if k < 700 else 0.02)
        name = CHOICES[int(out.values["act"][0])]
        proposals.append(name)
        row = world.tick({"act": name}, x, probability=float(out.probabilities["act"][0]))
        assert row.credited("act") == name
        replay.append(replace(row, reward=-1.0 if (row.actions.get("act") == "a") == (x[0] > 0) else -2.0), k)
        if k > 256:
            algorithm.update(replay.sample(32, generator))
    assert proposals[-1_000:].count("c") <= 50


def test_a_step_that_is_too_large_is_shortened_and_the_proposal_is_learned() -> None:
    assert arm(max_rate=(4.0,)).out_of_range == "clamp"
    assert arm().out_of_range == "refuse"
    assert arm(max_rate=(4.0,), out_of_range="refuse").out_of_range == "refuse"
    world = GateWorld({"arm": arm(max_rate=(4.0,), safe=(0.0,))})
    row = [world.tick({"arm": (0.9,)}, np.zeros(1)) for _ in range(3)][1]
    assert row.by["arm"] == "policy"
    assert row.refused == {}
    assert row.credited("arm") == (0.9,)


def test_a_refused_step_is_learned_as_proposed_and_is_no_demonstration() -> None:
    world = GateWorld({"arm": arm(max_rate=(4.0,), safe=(0.0,), out_of_range="refuse")})
    row = [world.tick({"arm": (0.9,)}, np.zeros(1)) for _ in range(3)][1]
    assert row.refused == {"arm": "too_fast"}
    assert row.credited("arm") == (0.9,)
    replay = ReplayBuffer(
        PolicySpec(
            (StreamSpec("s", "telemetry", 1, 1),), ActionSpace((Continuous("arm", (-1.0,), (1.0,)),)), history=1
        ),
        max_bytes=1 << 16,
    )
    replay.append(replace(row, demonstration=True), 0)  # a person confirmed what was executed, which is another action
    replay.append(replace(row, tick=row.tick + 1), 1)
    batch = replay.ordered(0, 9)
    assert batch is not None
    assert batch.actions["arm"].tolist() == [[pytest.approx(0.9)]]
    assert not batch.is_expert["arm"].any()


@pytest.mark.parametrize("steps", [1, 3])
def test_rewards_that_are_only_the_cost_of_acting_start_excursions(steps: int) -> None:
    """As in MountainCarContinuous before the goal was reached; a sum over steps would hide it."""
    spec = PolicySpec(
        (StreamSpec("s", "telemetry", 1, 1),),
        ActionSpace((Continuous("arm", (-1.0,), (1.0,)),)),
        history=1,
        hidden=(16,),
    )
    replay, rng = ReplayBuffer(spec, max_bytes=1 << 20, steps=steps), np.random.default_rng(0)
    for k in range(300):
        a, x = float(rng.uniform(-1, 1)), rng.normal(size=(1, 1)).astype(np.float32)
        tick = Transition("s", k, str(k), 0.0, "p", {"s": x}, {}, {"s": True}, {"s": 0.0}, {"arm": (a,)})
        replay.append(replace(tick, reward=-0.1 * a * a), k)
    torch.manual_seed(0)
    algorithm = Algorithm(Policy(spec).eval(), torch.Generator().manual_seed(0))
    algorithm.update(replay.sample(128, torch.Generator().manual_seed(0)))
    assert float(algorithm.policy.heads.continuous.epsilon) == 1.0


@pytest.mark.parametrize("where", ["lock-step", "daemon"])
def test_training_sees_the_history_that_acting_saw(where: str) -> None:
    """Two episodes: sessions of their own in lock-step, one session in the daemon."""
    spec = PolicySpec(
        (StreamSpec("view", "image", 4, 16),),
        ActionSpace((Choice("a", ("l", "r")),)),
        history=4,
        width=32,
        hidden=(32, 32),
    )
    torch.manual_seed(0)
    policy, rng = Policy(spec).eval(), np.random.default_rng(0)
    replay, window, past = ReplayBuffer(spec, max_bytes=1 << 22), FrameWindow(spec), ObservationHistory(spec)
    acting, k = [], 0
    module = FlatPolicyModule(policy)

    def fuse(*arrays: Any) -> Any:
        return module(*(torch.as_tensor(array) for array in arrays)).detach().numpy()

    for episode in range(2):
        window.restart()
        for step in range(6):
            view = {"view": rng.normal(size=(4, 16)).astype(np.float16)}
            if where == "lock-step":
                acting.append(policy.encode(window.remember(view).features()))
            else:
                features = recorded(spec, [view], [{"view": True}], [{"view": 0.0}])
                acting.append(policy.context(torch.from_numpy(past.take(features, fuse))))
            session = str(episode) if where == "lock-step" else "s"
            there, ages = {"view": True}, {"view": 0.0}
            row = Transition(session, k, str(k), 0.0, "p", view, {}, there, ages, {"a": "l"}, done=step == 5)
            replay.append(row, k)
            k += 1
    batch = replay.ordered(0, 99)
    assert batch is not None
    trained = policy.encode(batch.features)
    seen = torch.cat(acting)
    assert len(trained) == len(seen) == 12
    torch.testing.assert_close(trained, seen, rtol=1e-5, atol=1e-5)
