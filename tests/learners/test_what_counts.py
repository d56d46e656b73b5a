"""What the learner makes of ticks behind the real gate: which rows are demonstrations, and which count at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gate_world import GateWorld

from actuators.actions import ActionSpace, Continuous
from actuators.config import ContinuousSettings
from actuators.safety.decisions import Mode
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.replay_buffer import ReplayBuffer

HELD_TICKS = range(100, 110)
"""A hold of 1 s that begins just before tick 100."""


def arm(**fields: Any) -> ContinuousSettings:
    return ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,), **fields)


def taught_ticks(safe: Any, mode: Mode, later: tuple[int, Callable[[GateWorld], object]] | None) -> list[int]:
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
    assert taught_ticks(safe, mode, later) == list(inside)
