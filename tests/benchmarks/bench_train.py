"""Learning in lock-step: every row of the published comparison, or algorithms against each other at equal CPU time.

    python tests/benchmarks/bench_train.py --rows CartPole-v1 --seeds 0 1 2 3 4 --out runs/train
    python tests/benchmarks/bench_train.py --plot docs/images/train-curves.png
    python tests/benchmarks/bench_train.py --compare HalfCheetah-v5 --minutes 5

Rows print the final deterministic evaluation (100 episodes) of each seed next to the published ones.
`--plot` draws the evaluations of all that is under `--out`, and prints the rows. A comparison runs
CrossQ, SAC and SAC on unit spheres (SimBaV2's normalisation) for the same CPU time and prints how far each came.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib as mpl
import numpy as np
import orjson
import torch

mpl.use("Agg")
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[2]))

from learners.gym.lock_step import GymTrainer, TrainSettings
from learners.gym.train import train
from learners.model.heads import Heads
from learners.rl.algorithm import Algorithm


@dataclass(frozen=True)
class Row:
    """One environment of the comparison: what it may take, what is to be reached, what others have reached."""

    steps: int
    goal: float
    published: float
    source: str


ROWS = {
    "CartPole-v1": Row(20_000, 475.0, 500.0, "SB3 zoo, DQN, 50k"),
    "Acrobot-v1": Row(30_000, -85.0, -77.0, "SB3 zoo, DQN, 100k; CleanRL -92, 500k"),
    "Pendulum-v1": Row(5_000, -165.0, -146.0, "SB3, SAC, 20k"),
    "MountainCarContinuous-v0": Row(12_000, 90.0, 94.7, "SB3 zoo, SAC, 50k"),
    "Hopper-v5": Row(100_000, 2_700.0, 2_764.0, "CrossQ ± 781, 100k; SAC 1,103"),
    "HalfCheetah-v5": Row(100_000, 7_500.0, 8_112.0, "CrossQ ± 896, 100k; SAC 6,156"),
}


def run(names: list[str], seeds: list[int], out: Path) -> None:
    """Train each seed and print what it came to."""
    for name in names:
        for seed in seeds:
            train(name, ROWS[name].steps, seed, out / f"{name}-{seed}", progress=sys.stderr.isatty())
            report(name, out, [seed])
        report(name, out)


def results(name: str, out: Path) -> dict[int, dict[str, Any]]:
    """Return the results of each seed; those of a seed that has not ended have `final` null."""
    paths = {int(path.parent.name.rpartition("-")[2]): path for path in out.glob(f"{name}-*/results.json")}
    return {seed: orjson.loads(paths[seed].read_bytes()) for seed in sorted(paths)}


def report(name: str, out: Path, seeds: list[int] | None = None) -> None:
    """Print a line for each of the seeds; without seeds one for all."""
    row, found = ROWS[name], results(name, out)
    for seed in seeds or ():
        one = found[seed]
        if one["final"] is None:
            print(f"{name:<26} seed {seed}  no result: {one['stopped']}", flush=True)
            continue
        print(
            f"{name:<26} seed {seed}  {one['final']['mean']:>9.1f} ± {one['final']['std']:<8.1f} {one['algorithm']:<7}"
            f" from step {one['delivered']['step']:>6}  {one['wall_s']:>6.0f} s",
            flush=True,
        )
    if seeds is None:
        means = [one["final"]["mean"] for one in found.values() if one["final"] is not None]
        if not means:
            print(f"{name:<26} none of {len(found)} seeds has a result", flush=True)
            return
        print(
            f"{name:<26} mean of {len(means)} of {len(found)} {np.mean(means):>9.1f}, lowest {min(means):.1f}; "
            f"wanted {row.goal:g}; published {row.published:g} ({row.source})",
            flush=True,
        )


def plot(path: Path, out: Path) -> None:
    """Every seed's evaluations, with what was wanted and published; prints the rows, too."""
    names = [name for name in ROWS if results(name, out)]
    if not names:
        sys.exit(f"{out}: no results.json of {', '.join(ROWS)} there; run them first with --rows")
    figure, panels = plt.subplots(-(-len(names) // 2), 2, figsize=(10, 3 * -(-len(names) // 2)), layout="constrained")
    for name, axes in zip(names, panels.flat, strict=False):
        row = ROWS[name]
        for seed, one in results(name, out).items():
            steps, means = [[e[key] for e in one["evaluations"]] for key in ("step", "mean")]
            end = f"delivers {one['final']['mean']:.5g}" if one["final"] else one["stopped"]
            axes.plot(steps, means, linewidth=1, label=f"seed {seed}: {end}")
        axes.axhline(row.goal, linestyle=":", color="black", label=f"wanted {row.goal:g}")
        axes.axhline(row.published, linestyle="--", color="grey", label=f"published {row.published:g} ({row.source})")
        axes.set(title=name, xlabel="steps", ylabel="return of 10 greedy episodes")
        axes.legend(fontsize=6)
        report(name, out, list(results(name, out)))
        report(name, out)
    for axes in list(panels.flat)[len(names) :]:
        axes.remove()
    figure.savefig(path, dpi=110)
    print(f"plot: {path}")


class OutOfTime(Exception):  # noqa: N818 - a signal, not a failure
    """The CPU time is spent."""


def spend(environment: str, algorithm: str, *, sphere: bool, seconds: float, seed: int) -> tuple[int, float, float]:
    """Train for so much CPU time; return steps, last and best evaluation."""
    began = time.process_time()
    trainer = GymTrainer(
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/train"))
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--compare", metavar="ENV")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if arguments.compare:
        compare(arguments.compare, arguments.minutes, arguments.seed)
    elif arguments.plot:
        plot(arguments.plot, arguments.out)
    else:
        run(arguments.rows, arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
