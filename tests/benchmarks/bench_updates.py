"""Updates per second against Stable-Baselines3: same sizes, same batch, one thread, alternating in one run.

DQN 2 x 256, batch 64, on CartPole's shapes; SAC 2 x 256, two critics, batch 256, on HalfCheetah's. An update is drawing the
batch, every optimiser step and the target. "same network" has neither LayerNorm nor quantiles, as theirs; "as shipped" is
what `reflexd train` and the daemon use. The figure is CPU time of this process, so that other load on the machine counts
on neither side; the ratio is the median over rounds.

    python tests/benchmarks/bench_updates.py [--rounds 15] [--updates 60]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from learners.gym.lock_step import GymTrainer, TrainSettings
from learners.model.heads import Heads
from learners.rl.algorithm import Algorithm

FILL = 5_000
ENVIRONMENTS = ("CartPole-v1", "HalfCheetah-v5")


def ours(environment: str, algorithm: str, *, plain: bool) -> Callable[[int], None]:
    trainer = GymTrainer(
        lambda: gymnasium.make(environment),
        seed=0,
        settings=TrainSettings(
            algorithm=algorithm,
            warmup=1 << 30,
            choice_warmup=1 << 30,
            evaluate_every=1 << 30,
            evaluation_episodes=1,
            choice_batch=64,
            batch=256,
            choice_steps=1 if plain else 3,
        ),  # type: ignore[arg-type]
    )
    if plain:
        spec = trainer.spec
        width = trainer.policy.context_width
        trainer.policy.heads = Heads(spec.actions, width, spec.algorithm, gamma=spec.gamma, quantiles=1, norm="none")
        trainer.algorithm = Algorithm(trainer.policy, trainer.generator)
    trainer.run(FILL)

    def run(updates: int) -> None:
        for _ in range(updates):
            trainer.algorithm.update(trainer.replay.sample(trainer.batch, trainer.generator))

    return run


def theirs(environment: str, algorithm: str) -> Callable[[int], None]:
    import stable_baselines3 as sb3
    from stable_baselines3.common.logger import Logger

    env = gymnasium.make(environment)
    policy = {"net_arch": [256, 256]}
    shared = {"learning_starts": FILL + 10, "device": "cpu", "seed": 0, "policy_kwargs": policy}
    if algorithm == "dqn":
        model = sb3.DQN("MlpPolicy", env, batch_size=64, target_update_interval=1, tau=0.005, **shared)
    else:
        model = sb3.SAC("MlpPolicy", env, batch_size=256, **shared)
    model.learn(FILL)
    model.set_logger(Logger(None, []))

    def run(updates: int) -> None:
        if algorithm == "dqn":  # SB3 moves DQN's target while it steps, not while it trains
            from stable_baselines3.common.utils import polyak_update

            for _ in range(updates):
                model.train(1, 64)
                polyak_update(model.q_net.parameters(), model.q_net_target.parameters(), 0.005)
        else:
            for _ in range(updates):
                model.train(1, 256)

    return run


def cpu_ms(run: Callable[[int], None], updates: int) -> float:
    began = time.process_time()
    run(updates)
    return (time.process_time() - began) / updates * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--only", nargs="+", default=ENVIRONMENTS, choices=ENVIRONMENTS, help="environments to measure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(f"{'':<22} {'SB3 ms':>8} {'ours ms':>8} {'ratio':>6} {'range':>12}")
    rows = (
        ("CartPole-v1", "dqn", True),
        ("CartPole-v1", "dqn", False),
        ("CartPole-v1", "xqc", False),
        ("HalfCheetah-v5", "sac", True),
        ("HalfCheetah-v5", "sac", False),
        ("HalfCheetah-v5", "crossq", False),
        ("HalfCheetah-v5", "xqc", False),
    )
    for environment, algorithm, plain in (row for row in rows if row[0] in arguments.only):
        reference = "dqn" if environment == "CartPole-v1" else "sac"
        sides = (theirs(environment, reference), ours(environment, algorithm, plain=plain))
        for side in sides:
            side(20)
        taken = np.array([[cpu_ms(side, arguments.updates) for side in sides] for _ in range(arguments.rounds)])
        ratios = taken[:, 0] / taken[:, 1]
        name = f"{algorithm} {'same network' if plain else 'as shipped'}"
        their_ms, our_ms = np.median(taken, axis=0)
        print(
            f"{name:<22} {their_ms:>8.2f} {our_ms:>8.2f} {np.median(ratios):>6.2f} {ratios.min():>5.2f}-{ratios.max():.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
