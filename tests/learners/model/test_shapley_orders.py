"""Orders lead an explanation when the order changes, in the demo's world with its truth in place of pictures and words.

Beside `test_explain_demo.py`, which does the same through the real encoders and takes long: here `front` gets the place of every
photograph, `orders` which one is asked for, and a policy learns both from random ticks in a few seconds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from actuators.actions import ActionSpace, Choice
from actuators.sim.panorama_env import Panorama
from actuators.sim.panorama_world import PHOTOGRAPHS, TURNS, World, oracle, wrapped
from learners.experience.transition import Transition
from learners.model.features import recorded
from learners.model.policy import Policy
from learners.model.shapley import StreamContribution, explain
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.algorithm import Algorithm
from learners.rl.replay_buffer import ReplayBuffer

NAMES = tuple(PHOTOGRAPHS)
SPEC = PolicySpec(
    (
        StreamSpec("front", "telemetry", 1, 8),
        StreamSpec("orders", "telemetry", 1, 4),
        StreamSpec("joints", "telemetry", 1, 1),
    ),
    ActionSpace((Choice("head", TURNS),)),
    history=1,
    width=16,
    latents=1,
    layers=1,
    heads=1,
    hidden=(64, 64),
    gamma=0.5,
    modality_dropout=0.0,
)
TICKS, UPDATES, WORLDS, BEFORE = 3_000, 800, range(100, 160), 10
IN_SIGHT_DEG = 100.0
Tokens = dict[str, NDArray[np.float32]]


class Blind(Panorama):
    """No client looks or listens: it is much faster."""

    def _hear(self, count: int) -> None:
        del count

    def _observe(self) -> dict[str, object]:
        return {}


def tokens_of(world: World) -> Tokens:
    way = np.deg2rad([wrapped(world.places[name] - world.head.angle_deg) for name in NAMES])
    return {
        "front": np.concatenate([np.sin(way), np.cos(way)])[None].astype(np.float32),
        "orders": np.eye(4, dtype=np.float32)[None, NAMES.index(world.target)],
        "joints": np.array([[world.head.angle_deg / 180]], np.float32),
    }


def tick(n: int, tokens: Tokens, action: str, reward: float = 0.0, *, done: bool = False) -> Transition:
    there = dict.fromkeys(tokens, True)
    return Transition(
        "s", n, str(n), n / 10, "p", tokens=tokens, present=there, ages_s=dict.fromkeys(tokens, 0.0),
        actions={"head": action}, by={"head": "policy"}, reward=reward, done=done,
    )  # fmt: skip


def greedy(policy: Policy, tokens: Tokens) -> str:
    there, ages = dict.fromkeys(tokens, True), dict.fromkeys(tokens, 0.0)
    features = recorded(SPEC, [tokens], [there], [ages]).map(lambda x: x.unsqueeze(0))
    out = policy.act(features, generator=torch.Generator(), explore=False)
    return TURNS[int(out.values["head"][0])]


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Learned from random ticks of one world."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = Policy(SPEC).eval()
    algorithm = Algorithm(made, torch.Generator().manual_seed(0))
    memory, draw = (
        ReplayBuffer(SPEC, max_bytes=100_000_000, demonstration_fraction=0.0, centre=True),
        torch.Generator().manual_seed(0),
    )
    world, rng = Blind(), np.random.default_rng(1)
    world.reset(seed=1)
    for n in range(TICKS):
        tokens, action = tokens_of(world.world), int(rng.integers(3))
        _, reward, _, over, _ = world.step(np.int64(action))
        memory.append(tick(n, tokens, TURNS[action], reward, done=over))
        if over:
            world.reset()
    for _ in range(UPDATES):
        algorithm.update(memory.sample(64, draw))
    return made.eval()


Case = tuple[Transition, list[list[Transition]], str]


def changed(policy: Policy, seed: int) -> Case | None:
    """The decision when the order becomes a photograph on the other side, the second before, and what would be right."""
    env = Blind()
    env.reset(seed=seed)
    past = []
    for n in range(BEFORE):
        tokens = tokens_of(env.world)
        past.append([tick(n, tokens, greedy(policy, tokens))])
        env.step(np.int64(TURNS.index(greedy(policy, tokens))))
    world = env.world
    before = oracle(world.distance_deg())
    for name, place_deg in world.places.items():
        way_deg = wrapped(place_deg - world.head.angle_deg)
        if oracle(way_deg) not in (before, "stay") and abs(way_deg) < IN_SIGHT_DEG:
            world.target = name
            tokens = tokens_of(world)
            return tick(BEFORE, tokens, greedy(policy, tokens)), past, oracle(way_deg)
    return None


@pytest.fixture(scope="module")
def cases(policy: Policy) -> list[Case]:
    return [case for seed in WORLDS if (case := changed(policy, seed)) is not None]


def part(policy: Policy, now: Transition, past: list[list[Transition]]) -> StreamContribution:
    return explain(policy, [now], past)["head"]


def test_orders_lead_when_the_order_changes(policy: Policy, cases: list[Case]) -> None:
    assert len(cases) >= 40
    assert np.mean([now.actions["head"] == right for now, _, right in cases]) >= 0.9, "it has learned to obey"
    found = [part(policy, now, past) for now, past, _ in cases]
    for one in found:
        assert sum(one.streams.values()) == pytest.approx(one.score - one.baseline, abs=1e-5)
    leads = np.mean([max(one.streams, key=lambda name: abs(one.streams[name])) == "orders" for one in found])
    assert leads >= 0.85
    size = {name: float(np.mean([abs(one.streams[name]) for one in found])) for name in SPEC.names}
    assert size["orders"] > 2 * max(size["front"], size["joints"]), size


def test_a_masked_and_an_unchanging_stream_get_nothing_from_a_policy_that_has_learned(
    policy: Policy, cases: list[Case]
) -> None:
    now, past, _ = cases[0]
    masked = replace(now, present={**now.present, "orders": False})
    assert part(policy, masked, past).streams["orders"] == 0.0
    same = {"front": now.tokens["front"]}
    still = [[replace(one, tokens={**one.tokens, **same})] for (one,) in past]
    assert part(policy, now, still).streams["front"] == pytest.approx(0.0, abs=1e-6)
