"""Where timing is perfect, a daemon behind a device stores the rows that `reflexd train` stores, field by field."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from wire_world import EveryEnding, Wire, comparable, lock_step

from actuators.sim.registry import plant_settings
from learners.experience.transition import Transition
from learners.gym.lock_step import GymTrainer, TrainSettings
from learners.model.spec import PolicySpec
from learners.rl.replay_buffer import ReplayBuffer
from runtime.config.schema import Config

TICKS = 700
LOCK_STEP_TICKS = 250
ENVIRONMENTS = {
    **dict.fromkeys(("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"), LOCK_STEP_TICKS),
    **{f"EveryEnding-{space}-v0": 200 for space in EveryEnding.SPACES},
}
STEPS = 3


@pytest.mark.parametrize(("environment", "ticks"), ENVIRONMENTS.items())
def test_rows_and_batches_are_equal(tmp_path: Path, environment: str, ticks: int) -> None:
    spec, trained = lock_step(environment, 3, ticks)
    wired = Wire(environment, 3, tmp_path).run(spec, ticks)
    ours, theirs = comparable(wired), comparable(trained)
    assert len(ours) == len(theirs) == ticks
    if environment.startswith("EveryEnding"):
        assert {(row.done, row.truncated) for row in ours} == {(False, False), (True, False), (False, True)}
    assert any(row.done or row.truncated for row in ours) or environment != "CartPole-v1"
    for one, two in zip(ours, theirs, strict=True):
        assert one.tokens.keys() == two.tokens.keys() == one.present.keys()
        for name in one.tokens:
            np.testing.assert_array_equal(one.tokens[name], two.tokens[name])
        for each in fields(one):
            if each.name not in {"tokens", "truncated"}:
                assert getattr(one, each.name) == getattr(two, each.name), each.name

    cut = np.array([row.truncated for row in wired])
    ends = np.array([row.done for row in wired]) | cut
    usable = np.flatnonzero(~cut[: ticks - int(not ends[-1])])  # what followed the last row has not come yet
    for steps in (1, STEPS):
        wire, other = (learned(spec, rows, steps) for rows in (wired, trained))
        assert len(wire["rewards"]) == len(usable), "only the states that a time limit hides are lost"
        is_short = np.array([cut[k : k + steps][: int(ends[k : k + steps].argmax()) + 1].any() for k in usable])
        assert not (is_short.any() and steps == 1)
        for name, theirs_B in other.items():
            rows = ~is_short if name.startswith(("rewards", "discounts", "next_features")) else slice(None)
            np.testing.assert_array_equal(wire[name][rows], theirs_B[usable][rows], err_msg=name)
        assert (wire["discounts"][is_short] > other["discounts"][usable][is_short]).all()


def learned(spec: PolicySpec, rows: list[Transition], steps: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return all that is drawn of rows, in their order, by name."""
    replay = ReplayBuffer(spec, max_bytes=1 << 20, steps=steps)
    for row in rows:
        replay.append(row)
    batch = replay.ordered(0, len(rows))
    assert batch is not None
    return {name: x.numpy() for name, x in batch.tensors().items()}


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
def test_the_printed_settings_train_as_lock_step_does(environment: str) -> None:
    printed = Config.model_validate(plant_settings(environment, agent="wire"))
    trainer = GymTrainer(lambda: gymnasium.make(environment), seed=0, settings=TrainSettings(memory_bytes=1 << 20))
    learner = printed.learner
    assert (learner.batch, learner.n_step) == (trainer.batch, trainer.replay.steps)
    assert learner.updates_per_step == trainer.settings.updates_per_step
    assert learner.demonstration_fraction == trainer.settings.demonstrations
    assert (printed.policy.gamma, printed.policy.history) == (trainer.spec.gamma, trainer.spec.history)
    assert learner.reward_delay_s * printed.tick.rate_hz == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("overruns", [0.01, 0.05])
def test_overruns_lose_ticks_and_no_reward(tmp_path: Path, overruns: float) -> None:
    spec, _ = lock_step("CartPole-v1", 0, 10)
    wire = Wire("CartPole-v1", 0, tmp_path, overruns)
    rows = wire.run(spec, TICKS)
    assert sum(row.reward for row in rows) == wire.earned == wire.steps
    assert len(rows) < wire.steps <= len(rows) * (1 + 3 * overruns)
