"""Learning in lock-step: every row of the published comparison, or algorithms against each other at equal CPU time.

    python tests/benchmarks/bench_train.py --rows CartPole-v1 --seeds 5 --out runs/train
    python tests/benchmarks/bench_train.py --compare HalfCheetah-v5 --minutes 5

Rows print the final deterministic evaluation (100 episodes) of each seed beside what was published. A comparison runs
CrossQ, SAC and SAC on unit spheres (SimBaV2's normalisation) for the same CPU time and prints how far each came.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from learners.algorithm import Algorithm
from learners.lockstep import Trainer, TrainSettings
from learners.model.heads import Heads
from learners.train import train

ROWS = {
    "CartPole-v1": (20_000, 475.0, "500 after 50k (SB3 zoo, DQN)"),
    "Acrobot-v1": (30_000, -85.0, "-77 after 100k (SB3 zoo, DQN), -92 after 500k (CleanRL)"),
    "Pendulum-v1": (5_000, -165.0, "-146 after 20k (SB3 SAC), -154 after 10k (CrossQ 256)"),
    "MountainCarContinuous-v0": (50_000, 90.0, "94.7 (SB3 zoo, SAC)"),
    "Hopper-v5": (100_000, 2_700.0, "CrossQ 2,764 ± 781; SAC 1,103"),
    "HalfCheetah-v5": (100_000, 7_500.0, "CrossQ 8,112 ± 896; SAC 6,156"),
}


def rows(names: list[str], seeds: int, out: Path) -> None:
    for name in names:
        steps, goal, published = ROWS[name]
        figures = []
        for seed in range(seeds):
            results = train(name, steps, seed, out / f"{name}-{seed}", progress=sys.stderr.isatty())
            final = results["final"]
            figures.append(final["mean"])
            print(
                f"{name:<26} seed {seed}  {final['mean']:>9.1f} ± {final['std']:<8.1f} {results['algorithm']:<7}"
                f" from step {results['delivered']['step']:>6}  {results['wall_s']:>6.0f} s",
                flush=True,
            )
        print(f"{name:<26} mean   {np.mean(figures):>9.1f}  goal {goal:g}  published {published}", flush=True)


class OutOfTime(Exception):  # noqa: N818 - a signal, not a failure
    """The CPU time is spent."""


def spend(environment: str, algorithm: str, *, sphere: bool, seconds: float, seed: int) -> tuple[int, float, float]:
    """Train for so much CPU time; return steps, last and best evaluation."""
    began = time.process_time()
    trainer = Trainer(
        lambda: gymnasium.make(environment),
        seed=seed,
        settings=TrainSettings(algorithm=algorithm),  # type: ignore[arg-type]
    )
    if sphere:
        spec, width = trainer.spec, trainer.policy.context_width
        trainer.policy.heads = Heads(spec.actions, width, spec.algorithm, gamma=spec.gamma, norm="sphere")
        trainer.algorithm = Algorithm(trainer.policy, trainer.generator)
    taken = 0

    def tick(step: int) -> None:
        nonlocal taken
        taken = step
        if time.process_time() - began > seconds:
            raise OutOfTime

    try:
        trainer.run(1 << 30, tick)
    except OutOfTime:
        trainer.evaluate(taken)
    means = [e["mean"] for e in trainer.evaluations]
    return taken, means[-1], max(means)


def compare(environment: str, minutes: float, seed: int) -> None:
    print(f"{environment}, {minutes:g} CPU minutes each, seed {seed}")
    print(f"{'':<16} {'steps':>7} {'last':>9} {'best':>9}")
    for name, algorithm, sphere in (("crossq", "crossq", False), ("sac", "sac", False), ("sac, spheres", "sac", True)):
        steps, last, best = spend(environment, algorithm, sphere=sphere, seconds=60 * minutes, seed=seed)
        print(f"{name:<16} {steps:>7} {last:>9.1f} {best:>9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", default=["CartPole-v1", "Pendulum-v1"], choices=list(ROWS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/train"))
    parser.add_argument("--compare", metavar="ENV")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if arguments.compare:
        compare(arguments.compare, arguments.minutes, arguments.seed)
    else:
        rows(arguments.rows, arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
