"""Where timing is perfect, a daemon behind a device stores the rows that `reflexd train` stores, field by field."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from wire_world import Wire, comparable, lock_step

from actuators.sim.registry import plant_settings
from learners.gym.lock_step import GymTrainer, TrainSettings
from learners.rl.replay_buffer import ReplayBuffer
from runtime.config.schema import Config

TICKS = 700


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"])
def test_rows_and_batches_are_equal(tmp_path: Path, environment: str) -> None:
    spec, trained = lock_step(environment, 3, TICKS)
    wired = Wire(environment, 3, tmp_path).run(spec, TICKS)
    ours, theirs = comparable(wired), comparable(trained)
    assert len(ours) == len(theirs) == TICKS
    assert any(row.done or row.truncated for row in ours) or environment != "CartPole-v1"
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.tokens["state"], two.tokens["state"])
        for each in fields(one):
            if each.name not in {"tokens", "truncated"}:
                assert getattr(one, each.name) == getattr(two, each.name), each.name

    batches = []
    for rows in (wired, trained):
        replay = ReplayBuffer(spec, max_bytes=1 << 20)
        for row in rows:
            replay.append(row)
        batch = replay.ordered(0, len(rows))
        assert batch is not None
        batches.append(batch)
    cut = torch.tensor([row.truncated for row in wired])
    usable = ~cut[: len(cut) - int(not wired[-1].done and not wired[-1].truncated)]
    trained_batch, wired_batch = batches[1], batches[0]
    assert len(wired_batch) == int(usable.sum()), "only the states that a time limit hides are lost"
    for name in ("rewards", "discounts"):
        torch.testing.assert_close(getattr(trained_batch, name)[: len(usable)][usable], getattr(wired_batch, name))
    torch.testing.assert_close(
        trained_batch.next_features.tokens["state"][: len(usable)][usable & True],
        wired_batch.next_features.tokens["state"],
    )


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
