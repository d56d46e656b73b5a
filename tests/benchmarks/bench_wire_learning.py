"""Learning curves over the wire and in lock-step: the same environment, seeds and budget.

    python tests/benchmarks/bench_wire_learning.py --env CartPole-v1 --steps 10000 --seeds 0 1 2 3 4
    python tests/benchmarks/bench_wire_learning.py --env Pendulum-v1 --steps 4000 --arms wire wire-5

Arms: `lock-step` is `reflexd train`. `late` is the same with the one delay that a daemon has: updates come once a second, all that are
owed, and the weights that act are replaced every two seconds. `wire` is a daemon in virtual time behind a simulated device, with the settings that
`reflexd plant --config` prints, except that each candidate goes live within a second, as in lock-step. `wire-1` and `wire-5` have 1 %
and 5 % of the commands one to two periods late. `daemon` is a daemon that promotes as often as the settings allow.

At every quarter of the budget the greedy policy plays the same 20 episodes. Each run is a file under `--out`; a second call skips
the runs that exist, and prints the table of all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gymnasium  # noqa: E402 - after the path
import orjson  # noqa: E402
import structlog  # noqa: E402
import torch  # noqa: E402
from virtual_daemon import virtual_daemon  # noqa: E402

from actuators.actions import Value  # noqa: E402
from actuators.sim.registry import plant_settings  # noqa: E402
from learners.gym.lock_step import EVALUATION_SEED, GymTrainer, TrainSettings  # noqa: E402

QUARTERS, EPISODES = 4, 20
OVERRUNS = {"wire": 0.0, "wire-1": 0.01, "wire-5": 0.05, "daemon": 0.0}
LOCK_STEP = ("lock-step", "late")
AT_ONCE: dict[str, Any] = {
    "learner": {"promote_every_s": 1.0},
    "promotion": {"steps": ["integrity"], "experiments": False},
}
"""A candidate goes live at once, as the policy that acts in lock-step is always the newest."""
NEVER = 1 << 60
LATE_S = 2
"""Seconds after which the weights that act are replaced in the arm `late`, as the daemon of the arm `wire` does it."""


class LateTrainer(GymTrainer):
    """Trains in lock-step, but with a daemon's delays.

    Args:
        environment: a gymnasium id.
        seed: of everything random.
        settings: hyperparameters.
    """

    def __init__(self, environment: str, seed: int, settings: TrainSettings) -> None:
        super().__init__(lambda: gymnasium.make(environment), seed=seed, settings=settings)
        self.rate = round(plant_settings(environment, agent="late", rate_hz=None)["tick"]["rate_hz"])
        self.acting, self.owed = copy.deepcopy(self.policy), 0

    def _decide(self) -> dict[str, Value]:
        self.policy, newest = self.acting, self.policy
        try:
            return super()._decide()
        finally:
            self.policy = newest

    def _learn(self, step: int) -> None:
        self.owed += step >= self.warmup
        if step % self.rate == 0:
            self.owed -= self._updates(self.owed)
        if step % (LATE_S * self.rate) == 0:
            self.acting = copy.deepcopy(self.policy)


def play(environment: str, policy: Any) -> float:
    """Return the mean return of the greedy policy; nothing random outside is touched."""
    with torch.random.fork_rng(devices=[]):
        player = GymTrainer(lambda: gymnasium.make(environment), seed=0, settings=TrainSettings(memory_bytes=1 << 16))
        player.policy = policy
        return statistics.fmean(player.play(EVALUATION_SEED, EPISODES))


def lock_step(environment: str, steps: int, seed: int, *, late: bool) -> list[float]:
    """Train as `reflexd train` does, or with a daemon's delays; return the greedy returns at every quarter."""
    found: list[float] = []
    settings = TrainSettings(evaluate_every=NEVER, final_episodes=1)
    trainer = (
        LateTrainer(environment, seed, settings)
        if late
        else GymTrainer(lambda: gymnasium.make(environment), seed=seed, settings=settings)
    )
    trainer.evaluate = lambda _step: None  # type: ignore[assignment,method-assign,return-value] # below, at every quarter

    def tick(step: int) -> None:
        if step % (steps // QUARTERS) == 0:
            found.append(play(environment, trainer.policy))

    trainer.run(steps, tick)
    return found


async def wire(environment: str, steps: int, seed: int, arm: str, changes: dict[str, Any]) -> list[float]:
    """Train a daemon; return the greedy returns of the learner's policy at every quarter."""
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        merged = {name: dict(value) for name, value in changes.items()}
        for name, value in {} if arm == "daemon" else AT_ONCE.items():
            merged[name] = value | merged.get(name, {})
        async with virtual_daemon(Path(folder), environment, seed=seed, **merged) as daemon:
            daemon.overruns = OVERRUNS[arm]
            daemon.chance.seed(seed)
            assert daemon.learner is not None
            for _ in range(QUARTERS):
                await daemon.run(steps / QUARTERS * daemon.parts.config.tick.period_s)
                found.append(play(environment, daemon.learner.learner.policy))
            if daemon.reported("transition_rejected"):
                raise RuntimeError(f"the store rejected rows: {daemon.reported('transition_rejected')[0]}")
    return found


def run(environment: str, steps: int, seed: int, arm: str, changes: dict[str, Any]) -> dict[str, Any]:
    """One run."""
    began_s = time.process_time()
    if arm in LOCK_STEP:
        found = lock_step(environment, steps, seed, late=arm == "late")
    else:
        found = asyncio.run(wire(environment, steps, seed, arm, changes))
    return {"returns": found, "cpu_s": round(time.process_time() - began_s)}


def table(environment: str, steps: int, seeds: list[int], arms: list[str], read: Callable[..., Any]) -> None:
    """Print mean and standard deviation over seeds at every quarter."""
    print(f"{environment}, {steps} steps: mean return of {EPISODES} greedy episodes ± standard deviation over seeds")
    for arm in arms:
        rows = [one["returns"] for seed in seeds if (one := read(seed, arm)) is not None]
        cells = [
            f"{statistics.fmean(column):9.1f} ± {statistics.stdev(column) if len(column) > 1 else 0:<7.1f}"
            for column in zip(*rows, strict=True)
        ]
        print(f"  {arm:<10} {len(rows)} seeds  {'  '.join(cells)}", flush=True)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="a gymnasium id")
    parser.add_argument("--steps", type=int, default=10_000, help="of the environment, in each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=["lock-step", "wire"], choices=[*LOCK_STEP, *OVERRUNS])
    parser.add_argument("--changes", type=orjson.loads, default={}, help="settings of the daemon, as JSON by section")
    parser.add_argument("--out", type=Path, default=Path("runs/wire"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    given.out.mkdir(parents=True, exist_ok=True)

    def path(seed: int, arm: str) -> Path:
        return Path(given.out / f"{given.env}-{given.steps}-{seed}-{arm}.json")

    def read(seed: int, arm: str) -> dict[str, Any] | None:
        return orjson.loads(path(seed, arm).read_bytes()) if path(seed, arm).exists() else None

    for seed in given.seeds:
        for arm in given.arms:
            if read(seed, arm) is None:
                found = run(given.env, given.steps, seed, arm, given.changes)
                path(seed, arm).write_bytes(orjson.dumps(found))
                print(f"{given.env} seed {seed} {arm}: {found}", flush=True)
    table(given.env, given.steps, given.seeds, given.arms, read)


if __name__ == "__main__":
    main()
