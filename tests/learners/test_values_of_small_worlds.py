"""What is learned in small worlds behind the real gate is their exact solution: values, choices and motions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gate_world import GateWorld

from actuators.actions import ActionSpace, Choice
from actuators.config import ChoiceSettings, GateSettings
from learners.experience.transition import Transition
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.algorithm import Algorithm
from learners.rl.dqn import Dqn
from learners.rl.replay_buffer import ReplayBuffer

MOVES = ("left", "right", "jump")
PLACES = 4
GOAL, STEP = 5.0, -0.5


def move(place: int, action: str) -> tuple[int, float, bool]:
    """Return next place, reward and whether the goal is reached; the goal is right of the last place."""
    following = place + (1 if action == "right" else -1)
    if following == PLACES:
        return 0, GOAL, True
    return max(0, following), STEP, False


def exact(gamma: float, steps: int) -> np.ndarray[Any, Any]:
    """Return the values [place, value in force, proposal] that sums of `steps` rewards under random proposals converge to.

    The gate never allows `jump`, so it repeats the value in force.
    """

    def outcome(place: int, held: int, proposal: int) -> tuple[int, int, float, bool]:
        held = held if MOVES[proposal] == "jump" else proposal
        following, reward, done = move(place, MOVES[held])
        return following, held, reward, done

    def total(place: int, held: int, proposal: int, left: int) -> float:
        following, now_held, reward, done = outcome(place, held, proposal)
        if done:
            return reward
        if left == 1:
            return reward + gamma * float(values[following, now_held].max())
        return reward + gamma * float(np.mean([total(following, now_held, p, left - 1) for p in range(3)]))

    values = np.zeros((PLACES, 2, 3))
    for _ in range(40):
        values = np.array(
            [[[total(s, h, p, steps) for p in range(3)] for h in range(2)] for s in range(PLACES)]
        )  # the closure reads the values of the round before
    return values


def observation(place: int, held: int) -> np.ndarray[Any, Any]:
    """Return place and value in force, one-hot."""
    return np.concatenate((np.eye(PLACES)[place], np.eye(2)[held])).astype(np.float32)


def train(algorithm: Algorithm, replay: ReplayBuffer, updates: int, seed: int) -> None:
    for part in algorithm.parts:
        if isinstance(part, Dqn):
            part.settings = replace(part.settings, track=0.1, rate=3e-3)
    algorithm.optimiser.groups = [replace(group, rate=3e-3) for group in algorithm.optimiser.groups]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        algorithm.update(replay.sample(64, generator))


@pytest.mark.parametrize(("gamma", "steps"), [(0.8, 1), (0.5, 4)])
def test_the_values_of_a_corridor_are_exact(gamma: float, steps: int) -> None:
    """With late rewards, time limits, restarts within an episode and a move that the gate never allows."""
    stream = StreamSpec("s", "telemetry", 1, PLACES + 2)
    spec = PolicySpec((stream,), ActionSpace((Choice("move", MOVES),)), history=1, gamma=gamma, hidden=(48, 48))
    choice = ChoiceSettings(kind="choice", choices=MOVES, safe="left")
    world = GateWorld({"move": choice}, GateSettings(forbid=("move == 'jump'",)))
    replay, rng = ReplayBuffer(spec, max_bytes=1 << 24, steps=steps), np.random.default_rng(0)
    place = held = session = 0
    for k in range(4_000):
        row = world.tick({"move": MOVES[rng.integers(3)]}, observation(place, held), probability=1 / 3)
        executed = str(row.actions["move"])
        place, reward, done = move(place, executed)
        held = int(executed == "right")
        ends = "done" if done else str(rng.choice(["", "truncated", "restart"], p=[0.96, 0.02, 0.02]))
        place = 0 if ends else place
        is_late = rng.random() < 0.3
        row = replace(row, session=str(session), reward=0.0 if is_late else reward)
        replay.append(replace(row, done=done and not is_late, truncated=ends == "truncated"), k)
        if is_late:
            flags = {"done": done, "truncated": ends == "truncated", "failure": False, "intervention": False}
            assert replay.change(k, {"reward": reward, "demonstration": False, **flags})
        session += ends == "restart"
    torch.manual_seed(0)
    policy = Policy(spec).eval()
    algorithm = Algorithm(policy, torch.Generator().manual_seed(0))
    train(algorithm, replay, 1_200, 0)

    everywhere = [(s, h) for s in range(PLACES) for h in range(2)]
    tokens = {"s": torch.tensor(np.array([observation(s, h) for s, h in everywhere]))[:, None, None]}
    seen = replay.newest(1)
    assert seen is not None
    batch = len(everywhere)
    features = replace(
        seen, tokens=tokens, present=seen.present.repeat(batch, 1, 1), ages=seen.ages.repeat(batch, 1, 1)
    )
    with torch.no_grad():
        found = policy.heads.choice(policy.encode(features))[0].mean(-1).numpy()
    wanted = exact(gamma, steps).reshape(batch, 3)
    reached = [i for i, (s, h) in enumerate(everywhere) if not (s == PLACES - 1 and h == 0)]
    np.testing.assert_allclose(found[reached], wanted[reached], atol=0.3)


def test_a_rare_end_has_the_value_that_the_loss_gives_it() -> None:
    """`risky` earns half as much again and ends the episode once in 200 times: the risk is worth it.

    The quantile Huber loss is robust: far outliers pull a quantile at level t down by (1 - t) / t times their odds, so that the mean
    of the quantiles is a little above the mean. Ends that were drawn more often and not corrected would be far below both.
    """
    stream = StreamSpec("s", "telemetry", 1, 1)
    spec = PolicySpec(
        (stream,), ActionSpace((Choice("act", ("safe", "risky")),)), history=1, gamma=0.9, hidden=(16, 16)
    )
    replay, rng = ReplayBuffer(spec, max_bytes=1 << 24), np.random.default_rng(0)
    risky = ended = 0
    for k in range(8_000):
        name = "risky" if rng.random() < 0.5 else "safe"
        done = name == "risky" and bool(rng.random() < 0.005)
        risky, ended = risky + (name == "risky"), ended + done
        row = Transition(
            "s", k, str(k), 0.0, "p", {"s": np.ones((1, 1), np.float32)}, {}, {"s": True}, {"s": 0.0}, {"act": name}
        )
        replay.append(replace(row, reward=0.0 if done else 1.5 if name == "risky" else 1.0, done=done), k)
    levels = (np.arange(16) + 0.5) / 16
    odds = ended / (risky - ended)
    best = (1.5 - odds * float(((1 - levels) / levels).mean())) / (1 - 0.9)
    torch.manual_seed(0)
    policy = Policy(spec).eval()
    train(Algorithm(policy, torch.Generator().manual_seed(0)), replay, 1_200, 0)
    seen = replay.newest(1)
    assert seen is not None
    with torch.no_grad():
        safe, chosen = policy.heads.choice(policy.encode(seen))[0].mean(-1)[0].tolist()
    assert chosen == pytest.approx(best, abs=0.1)
    assert safe == pytest.approx(1 + 0.9 * best, abs=0.1)
    assert chosen > safe
