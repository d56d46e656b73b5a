"""In the demo's world, orders lead when the order changes: real pictures, words and sounds, through the real encoders.

A policy learns from logged ticks with the demo's settings. Then, in worlds it has not seen, the head moves under one order for a
second, and the order becomes another photograph on the other side. What did each stream bring to the decision, beside the ticks of
that second? Picture and angle changed too, as the head moved. About 80 s: `pytest tests/learners/model/test_shapley_demo.py -m slow -s`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from bench_demo_policy import encoders_of, learn, play, tokens_of

from actuators.sim.panorama_env import Panorama
from actuators.sim.panorama_world import ORDERS, TURNS, oracle, wrapped
from learners.experience.transition import Transition
from learners.model.encoders.base import Encoder
from learners.model.features import recorded
from learners.model.policy import Policy
from learners.model.shapley import StreamContribution, explain
from runtime.config.loader import load
from runtime.inference.build import build_spec

TICKS, UPDATES, WORLDS = 1_500, 800, 40
BEFORE = 10
"""Ticks under the first order."""
IN_SIGHT_DEG = 80.0


def tick_of(policy: Policy, world: Panorama, encoders: dict[str, Encoder], n: int) -> Transition:
    """What is seen now, and the policy's greedy action."""
    names = policy.spec.names
    tokens = tokens_of(world._observe(), encoders)
    there, ages = dict.fromkeys(names, True), dict.fromkeys(names, 0.05)
    features = recorded(policy.spec, [tokens], [there], [ages])
    out = policy.act(features.map(lambda x: x.unsqueeze(0)), generator=torch.Generator(), explore=False)
    action = TURNS[int(out.values["head"][0])]
    return Transition("s", n, str(n), n / 10, "p", tokens=tokens, present=there, ages_s=ages, actions={"head": action})


def changed(
    policy: Policy, encoders: dict[str, Encoder], seed: int
) -> tuple[Transition, list[list[Transition]]] | None:
    """The first decision under a new order, and the second before; None where no photograph is on the other side in sight."""
    world = Panorama()
    world.reset(seed=seed)
    if world.world.spoken:
        world.reset()
    past = []
    for n in range(BEFORE):
        past.append(tick_of(policy, world, encoders, n))
        world.step(np.int64(TURNS.index(str(past[-1].actions["head"]))))
    inner = world.world
    before = oracle(inner.distance_deg())
    for name, place_deg in inner.places.items():
        way_deg = wrapped(place_deg - inner.head.angle_deg)
        if oracle(way_deg) not in (before, "stay") and abs(way_deg) < IN_SIGHT_DEG:
            inner.target, inner.text = name, ORDERS[seed % len(ORDERS)].format(name)
            return tick_of(policy, world, encoders, BEFORE), [[one] for one in past]
    return None


def silenced(one: Transition) -> Transition:
    """The same tick with the microphone masked."""
    return replace(one, present={**one.present, "room": False})


def still(one: Transition, other: Transition) -> Transition:
    """The same tick with the picture of another."""
    return replace(one, tokens={**one.tokens, "front": other.tokens["front"]})


def parts_of(policy: Policy, now: Transition, past: list[list[Transition]]) -> StreamContribution:
    return explain(policy, [now], past)["head"]


@pytest.mark.slow
def test_orders_lead_when_the_order_changes() -> None:
    torch.set_flush_denormal(True)
    config = load(Path("configs/demo.yaml")).config
    encoders = encoders_of(config)
    spec = build_spec(config, encoders)
    log = play(1, TICKS, encoders, spec)
    policy = learn(spec, config, log, TICKS, UPDATES, mirror=True, centre=True)
    cases = [case for seed in range(100, 100 + WORLDS) if (case := changed(policy, encoders, seed))]
    found = [parts_of(policy, *case) for case in cases]
    assert len(found) >= WORLDS // 3
    for part in found:
        assert sum(part.streams.values()) == pytest.approx(part.score - part.baseline, abs=1e-5)
    size = {name: float(np.mean([abs(part.streams[name]) for part in found])) for name in spec.names}
    leads = np.mean([max(part.streams, key=lambda name: abs(part.streams[name])) == "orders" for part in found])
    print(f"orders lead in {leads:.0%} of {len(found)} changes; mean size", {n: round(x, 3) for n, x in size.items()})
    assert max(size, key=size.__getitem__) == "orders", size
    assert leads >= 0.6

    now, past = cases[0]
    assert parts_of(policy, silenced(now), past).streams["room"] == 0.0
    unmoved = parts_of(policy, still(now, past[0][0]), [[still(one, past[0][0])] for (one,) in past])
    assert unmoved.streams["front"] == pytest.approx(0.0, abs=1e-6)
