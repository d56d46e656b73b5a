"""Whatever the gate makes of a proposal, a row says what the devices got and credits who is responsible for it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from gate_world import GateWorld

from actuators.actions import Value
from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings, GateSettings
from actuators.safety.decisions import ActuatorDecision
from learners.experience.transition import PROPOSAL_RULES, Transition

FORBID = ("heat == 'ON' and fan == 'OFF'", "head == 'left' and leg[0] > 0.5")
TICKS = 60


def mixed_world(rng: np.random.Generator) -> GateWorld:
    """Five actuators of every kind, in any order: paced, clamped, refused, and coupled by a rule."""
    rate, hold_s = (float(rng.choice([2.0, 50.0])),), float(rng.choice([0.0, 0.25]))
    every: dict[str, AnyActuator] = {
        "head": ChoiceSettings(kind="choice", choices=("left", "stay", "right"), safe="stay", min_hold_s=hold_s),
        "arm": ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,), max_rate=rate),
        "leg": ContinuousSettings(
            kind="continuous", low=(-1.0,), high=(1.0,), max_rate=rate, safe=(0.0,), out_of_range="refuse",
            min_interval_s=float(rng.choice([0.0, 0.15])),
        ),
        "heat": ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF", requires=("camera",)),
        "fan": ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF", requires=("draught",)),
    }  # fmt: skip
    return GateWorld({str(name): every[name] for name in rng.permutation(list(every))}, GateSettings(forbid=FORBID))


def draw(world: GateWorld, rng: np.random.Generator, name: str) -> Value:
    settings = world.actuators[name]
    if isinstance(settings, ChoiceSettings):
        return str(rng.choice(settings.choices))
    return (float(rng.uniform(-1.3, 1.3)),)


def disturb(world: GateWorld, rng: np.random.Generator) -> list[ActuatorDecision]:
    """Do what a person does between two ticks."""
    gate, now_s, name = world.gate, world.now_s - 0.0003, str(rng.choice(list(world.actuators)))
    what = rng.choice(
        ["", "override", "release", "stop", "go", "disarm", "arm"], p=[0.6, 0.2, 0.04, 0.02, 0.06, 0.02, 0.06]
    )
    if what == "override":
        value = draw(world, rng, name)
        body = [float(np.clip(value[0], -1, 1))] if isinstance(value, tuple) else value
        return [gate.override(name, body, float(rng.choice([0.02, 0.25, 0.8])), now_s)]
    if what == "release":
        return gate.end_hold(name, now_s)
    if what in {"stop", "go"}:
        return gate.stop(now_s, engaged=what == "stop")
    if what == "arm":
        gate.arm(now_s)
    return gate.disarm(now_s) if what == "disarm" else []


def sent(rulings: Iterable[ActuatorDecision]) -> dict[str, Value]:
    """Return the last value that each device got."""
    return {each.actuator: each.value for each in rulings if each.value is not None}


def credited(row: Transition, world: GateWorld, name: str) -> Value | None:
    """Return what learning credits, read slowly from the gate's decisions in their order."""
    decisions = [each for each in world.rulings if each.actuator == name]
    rules = [each.rule for each in decisions if each.rule is not None]
    movers = [each.by for each in decisions if each.value is not None]
    if not row.armed:
        return None
    if world.gate.holds[name] is not None:
        return row.actions[name] if row.by[name] == "override" else None
    is_own = bool(rules) and rules[-1] in PROPOSAL_RULES
    if movers and movers[-1] == "gate":
        return row.proposed[name] if is_own else None
    return row.proposed[name] if not rules or is_own else None


@pytest.mark.parametrize("seed", range(12))
def test_a_row_has_what_the_devices_got_and_credits_who_is_responsible(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world, devices = mixed_world(rng), dict[str, Value]()
    for _ in range(TICKS):
        devices |= sent(disturb(world, rng))
        missing = tuple(stream for stream in ("camera", "draught") if rng.random() < 0.12)
        row = world.tick({name: draw(world, rng, name) for name in world.actuators}, np.zeros(1), stale=missing)
        devices |= sent(world.rulings)
        for name in world.actuators:
            assert name not in devices or row.actions.get(name, devices[name]) == devices[name]
            assert row.credited(name) == credited(row, world, name), (name, row)


def test_an_actuator_at_rest_because_of_another_one_is_no_act_of_the_policy() -> None:
    """The heater may not run without the fan. The fan stops, because its stream is missing, and the heater with it."""
    settings = {
        "heat": ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF"),
        "fan": ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF", requires=("draught",)),
    }
    world = GateWorld(settings, GateSettings(forbid=FORBID[:1]))
    world.tick({"heat": "OFF", "fan": "ON"}, np.zeros(1))
    running = world.tick({"heat": "ON", "fan": "ON"}, np.zeros(1))
    resting = world.tick({"heat": "ON", "fan": "ON"}, np.zeros(1), stale=("draught",))
    assert (running.credited("heat"), running.credited("fan")) == ("ON", "ON")
    assert resting.actions == {"heat": "OFF", "fan": "OFF"}
    assert (resting.credited("heat"), resting.credited("fan")) == (None, None)
