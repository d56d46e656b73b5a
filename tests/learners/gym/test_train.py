"""`reflexd train`: it learns, it says what it did, and what it leaves can be loaded."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import orjson
import pytest
import torch
from rl import Corridor, Shrink, Tiles

from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints
from learners.gym.demonstrations import SCRIPTS, demonstrate
from learners.gym.lock_step import FINAL_SEED, GymTrainer, TrainSettings
from learners.gym.train import train
from learners.model.policy import build

SMALL = TrainSettings(
    batch=32,
    choice_batch=32,
    warmup=64,
    choice_warmup=64,
    evaluate_every=200,
    evaluation_episodes=3,
    selection_episodes=3,
    final_episodes=5,
)


def test_cart_pole_is_learned_in_two_thousand_steps() -> None:
    """Falling takes about 9 steps when pushed one way and 22 at random; only what has learned lasts five times that."""
    settings = TrainSettings(evaluate_every=500, selection_episodes=5, final_episodes=20)
    trainer = GymTrainer(lambda: gymnasium.make("CartPole-v1"), seed=0, settings=settings)
    trainer.run(2_000)
    _, final = trainer.deliver()
    assert final.mean > 110
    assert trainer.algorithm.updates == 2_000 - settings.choice_warmup + 1


def test_what_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = train("CartPole-v1", 450, 3, tmp_path / "run", settings=SMALL, progress=True)
    written = orjson.loads((tmp_path / "run" / "results.json").read_bytes())
    assert written == results
    assert {"environment", "algorithm", "steps", "seed", "updates", "wall_s", "evaluations", "final"} <= written.keys()
    assert (written["environment"], written["algorithm"], written["steps"], written["seed"]) == (
        "CartPole-v1",
        "dqn",
        450,
        3,
    )
    assert [e["step"] for e in written["evaluations"]] == [200, 400, 450]
    assert set(written["final"]) == {"mean", "std", "min", "max", "episodes"}
    assert written["final"]["episodes"] == 5
    assert written["delivered"]["step"] in (200, 400, 450)
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    received = capsys.readouterr().err
    assert all(f"after {step} of 450 steps" in received for step in (200, 400, 450))


def test_mujoco_warns_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mujoco")
    once = replace(SMALL, evaluation_episodes=1, selection_episodes=1, final_episodes=2)
    with warnings.catch_warnings(record=True) as received:
        warnings.simplefilter("always")
        # its model uses an attribute that MuJoCo warns of
        train("HalfCheetah-v5", 30, 0, tmp_path, settings=once, progress=False)
    reported = [str(one.message) for one in received if str(one.message).startswith("MuJoCo")]
    assert len(reported) == 1
    assert "WARNING" not in capfd.readouterr().err


def test_the_checkpoint_is_the_policy_that_was_measured(tmp_path: Path) -> None:
    results = train("CartPole-v1", 400, 0, tmp_path, settings=SMALL, progress=False)
    checkpoints = Checkpoints(tmp_path / "checkpoints", load_key(tmp_path))
    assert checkpoints.live().version == results["checkpoint"]
    loaded = checkpoints.load(results["checkpoint"])
    trainer = GymTrainer(lambda: gymnasium.make("CartPole-v1"), seed=77, settings=SMALL)
    assert orjson.loads(trainer.spec.to_json()) == loaded.documents["spec"]
    trainer.policy = build(trainer.spec, loaded.tensors["policy"])
    assert np.mean(trainer.play(FINAL_SEED, 5)) == results["final"]["mean"]


def test_a_continuous_actuator_is_written_too(tmp_path: Path) -> None:
    results = train("Pendulum-v1", 220, 0, tmp_path, settings=SMALL, progress=False, demonstrations=2)
    assert results["algorithm"] == "crossq"
    assert results["delivered"]["demonstrated_transitions"] == 400
    spec = Checkpoints(tmp_path / "checkpoints", load_key(tmp_path)).load(results["checkpoint"]).documents["spec"]
    assert spec["actions"] == [{"kind": "continuous", "name": "action", "low": [-2.0], "high": [2.0]}]


def test_the_same_seed_gives_the_same_run() -> None:
    def curve(seed: int) -> list[dict[str, float]]:
        trainer = GymTrainer(lambda: gymnasium.make("Pendulum-v1"), seed=seed, settings=SMALL)
        trainer.run(200)
        return trainer.evaluations

    assert curve(1) == curve(1)
    assert curve(1) != curve(2)


def test_looking_does_not_disturb_training() -> None:
    def weights(every: int) -> torch.Tensor:
        trainer = GymTrainer(
            lambda: gymnasium.make("CartPole-v1"), seed=0, settings=replace(SMALL, evaluate_every=every)
        )
        trainer.run(160)
        assert trainer.policy.heads.choice is not None
        return trainer.policy.heads.choice.out.weight.detach().clone()

    assert torch.equal(weights(40), weights(160))


def test_time_limits_bootstrap_and_ends_do_not() -> None:
    trainer = GymTrainer(Corridor, seed=0, settings=replace(SMALL, choice_warmup=10_000, choice_steps=1))
    trainer.run(400)
    batch = trainer.replay.sample(400, torch.Generator().manual_seed(0))
    place = batch.features.tokens["state"].flatten(1).argmax(1)
    following = batch.next_features.tokens["state"].flatten(1).argmax(1)
    ended = following == 10
    assert bool((batch.discounts[ended & (batch.rewards == 1)] == 0).all())
    # every other transition, those at the time limit included, keeps its discount and leads to a neighbour
    torch.testing.assert_close(
        batch.discounts[batch.rewards == 0], torch.full_like(batch.discounts, 0.99)[batch.rewards == 0]
    )
    assert int((following - place).abs().max()) <= 1


def test_demonstrations_are_drawn_and_marked() -> None:
    trainer = GymTrainer(lambda: gymnasium.make("CartPole-v1"), seed=0, settings=SMALL)
    episodes = demonstrate(trainer.env, SCRIPTS["CartPole-v1"], range(2))
    assert trainer.load_demonstrations(episodes) == sum(len(e.actions) for e in episodes)
    trainer.run(120)
    trained = trainer.replay.sample(64, torch.Generator().manual_seed(0)).is_expert["action"]
    assert int(trained.sum()) >= 32
    assert trainer.metrics["dqn_imitation"] >= 0


def test_a_teacher_gets_a_corridor_solved_at_once() -> None:
    settings = replace(SMALL, evaluate_every=150)
    trainer = GymTrainer(Corridor, seed=0, settings=settings)
    trainer.load_demonstrations(demonstrate(trainer.env, lambda _: 1, range(4)))
    trainer.run(300)
    assert trainer.deliver()[1].mean == 1.0


def test_pictures_are_learned_through_the_policy() -> None:
    """Guessing the bright side pays 10 of 20; the encoder's tokens say it."""
    settings = replace(SMALL, gamma=0.5, choice_steps=1, evaluate_every=250, width=32)
    trainer = GymTrainer(Tiles, seed=0, settings=settings, encoder=Shrink())  # type: ignore[arg-type]
    trainer.run(500)
    assert trainer.deliver()[1].mean > 17


def test_one_step_feedback_is_a_bandit() -> None:
    trainer = GymTrainer(Tiles, seed=0, settings=replace(SMALL, gamma=0.0, width=32), encoder=Shrink())  # type: ignore[arg-type]
    assert trainer.algorithm_name == "bandit"
    trainer.run(200)
    assert trainer.deliver()[1].mean > 18


def test_an_unknown_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no environment 'Nowhere-v0'"):
        train("Nowhere-v0", 10, 0, tmp_path, progress=False)
