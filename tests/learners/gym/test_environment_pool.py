"""Several environments at once: what enters the replay equals what each environment returned, whichever of them ended when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from rl import Corridor

from actuators.actions import ActionSpace, Choice
from learners.experience.transition import Transition
from learners.gym.environment_pool import BlockRow, EnvironmentHost, EnvironmentStep, EpisodeBlocks, environment_seed
from learners.gym.lock_step import GymTrainer, TrainSettings
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.replay_buffer import ReplayBuffer

torch.set_num_threads(1)


class LocalPool:
    """All environments in this process; `begin` and `receive` as with actors."""

    def __init__(self, maker: Callable[[], gymnasium.Env[Any, Any]], seed: int, count: int) -> None:
        self.count = count
        self.host = EnvironmentHost(maker, [environment_seed(seed, number) for number in range(count)])
        self.begun: Sequence[Any] = ()

    def reset(self) -> list[Any]:
        return self.host.reset()

    def begin(self, actions: Sequence[Any]) -> None:
        self.begun = actions

    def receive(self) -> list[EnvironmentStep]:
        return self.host.step(self.begun)


def spec(history: int) -> PolicySpec:
    return PolicySpec(
        (StreamSpec("joints", "telemetry", 1, 1),),
        ActionSpace((Choice("head", ("left", "right")),)),
        history=history,
        width=16,
        gamma=0.9,
    )


def append(replay: ReplayBuffer, row: BlockRow) -> None:
    replay.append(
        Transition(
            session=row.session, tick=row.tick, decision="", stamp_s=0.0, policy="", tokens=row.frame,
            present={"joints": True}, ages_s={"joints": 0.0}, actions=row.values or {}, reward=row.reward, done=row.done,
        )
    )  # fmt: skip


def drawn(replay: ReplayBuffer) -> dict[float, tuple[Any, ...]]:
    """By the newest frame of each state that can be drawn: its history, the next one, n-step reward and discount."""
    batch = replay.ordered(0, 1 << 20)
    assert batch is not None
    frames, following = (f.tokens["joints"][..., 0, 0].tolist() for f in (batch.features, batch.next_features))
    rows = zip(frames, following, batch.rewards.tolist(), batch.discounts.tolist(), strict=True)
    found = {row[0][-1]: row for row in rows}
    assert len(found) == len(frames), "no state is there twice"
    return found


@pytest.mark.parametrize("history", [1, 3])
def test_blocks_of_interleaved_episodes_give_the_transitions_of_each_episode_alone(history: int) -> None:
    """Each frame is a number of its own. With one step, every transition is that of whole episodes in a row."""
    rng = np.random.default_rng(0)
    episodes = [(int(rng.integers(1, 40)), bool(rng.integers(2))) for _ in range(60)]
    whole = ReplayBuffer(spec(history), max_bytes=1 << 20)
    mixed = ReplayBuffer(spec(history), max_bytes=1 << 20)
    lanes = [EpisodeBlocks(history, size=8) for _ in range(3)]
    waiting = list(enumerate(episodes))
    running: list[Any] = [None] * 3

    def frame(episode: int, at: int) -> dict[str, Any]:
        return {"joints": np.full((1, 1), episode * 100 + at, np.float32)}

    for episode, (length, ends) in enumerate(episodes):
        for at in range(length):
            done = ends and at == length - 1
            append(whole, BlockRow(frame(episode, at), at + 1, str(episode), {"head": "left"}, float(at), done))
        if not ends:
            append(whole, BlockRow(frame(episode, length), length + 1, str(episode)))
    while waiting or any(running):
        for n, lane in enumerate(lanes):
            if running[n] is None:
                if not waiting:
                    continue
                episode, (length, ends) = waiting.pop(0)
                running[n] = (episode, length, ends, 0)
                lane.begin(str(episode))
            episode, length, ends, at = running[n]
            is_last = at == length - 1
            lane.add(frame(episode, at), {"head": "left"}, float(at), done=ends and is_last)
            reached = frame(episode, at + 1)
            for row in lane.take(reached, terminated=ends and is_last, truncated=not ends and is_last):
                append(mixed, row)
            running[n] = None if is_last else (episode, length, ends, at + 1)
    assert drawn(mixed) == drawn(whole)


def test_the_end_of_a_training_takes_what_waits() -> None:
    blocks = EpisodeBlocks(1)
    blocks.begin("a")
    blocks.add({}, {"head": "left"}, 1.0, done=False)
    assert blocks.take({}) == []
    assert [row.values is None for row in blocks.take({}, all_rows=True)] == [False, True]
    assert blocks.take({}, all_rows=True) == []


@pytest.mark.parametrize("count", [1, 3])
def test_several_environments_learn_the_corridor_with_the_updates_of_one(count: int) -> None:
    settings = TrainSettings(
        choice_warmup=100,
        evaluate_every=400,
        evaluation_episodes=2,
        selection_episodes=2,
        final_episodes=3,
        hidden=(32,),
    )
    trainer = GymTrainer(Corridor, seed=0, settings=settings)
    steps: list[int] = []
    trainer.run_pool(800, LocalPool(Corridor, 0, count), steps.append)
    assert steps[-1] == 800
    assert trainer.algorithm.updates == 800 - 100
    assert [e["step"] for e in trainer.evaluations] == [402 if count == 3 else 400, 800]
    assert trainer.deliver()[1].mean == 1.0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    find_spec("ray") is None, reason="needs Ray; imported before its settings are made, it has no token"
)
def test_actors_of_a_real_ray_give_the_training_of_one_process_and_a_fault_is_named() -> None:
    from actuators.sim.gym_env import EnvironmentFault, make
    from learners.gym.environment_pool import RayEnvironments
    from runtime.process.ray_cluster import start_ray

    def trained(pool: Any) -> list[dict[str, float]]:
        settings = TrainSettings(choice_warmup=100, evaluate_every=200, evaluation_episodes=2, hidden=(32,))
        trainer = GymTrainer(lambda: make("CartPole-v1"), seed=3, settings=settings)
        trainer.run_pool(400, pool)
        return trainer.evaluations

    here = trained(LocalPool(lambda: make("CartPole-v1"), 3, 3))
    ray = start_ray(None, 2, "reflexd-test", log_to_driver=False)
    try:
        pool = RayEnvironments(ray, "CartPole-v1", 3, count=3, workers=2)
        assert trained(pool) == here
        pool.begin([7, 7, 7])
        with pytest.raises(EnvironmentFault, match="CartPole-v1"):
            pool.receive()
        for actor in pool._actors:
            ray.kill(actor)
        pool.begin([0, 0, 0])
        with pytest.raises(EnvironmentFault, match="the process of environments 0 to 1 ended"):
            pool.receive()
    finally:
        ray.shutdown()
