"""The collapse that ends off-policy runs: DQN on CartPole-v1, the return of the policy that acts, with the gate and without it.

    python tests/benchmarks/bench_collapse.py [--seeds 10] [--steps 50000] [--jobs 2]

One learner in lock-step, an update a step. Every 1,000 steps its policy is a candidate: without the gate it acts from then on. With it
only if it passes `integrity`, `latency`, `sanity`, `held_out` and `ope` on the newest 2,048 logged decisions, and then it is on probation, at 50
ticks a second, during which no other is tried; one that fails is taken out at once and the learner goes on from the one before, as
in the daemon. There is no shadow in lock-step. What acts explores with its own epsilon; its return is the mean of ten greedy
episodes. Counted are the evaluations after the first of at least 475 that are below 400, and the longest row of them.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from evaluating import Logged, evaluate

from actuators.actions import Value
from learners.checkpoints.manifest import Manifest
from learners.config import PromotionSettings
from learners.experience.transition import Transition
from learners.gym.episodes import ReturnSummary
from learners.gym.observations import Tokens
from learners.gym.trainer import EVALUATION_SEED, GymTrainer
from learners.model.heads import actuator_values
from learners.promotion.context import EvaluationContext
from learners.promotion.steps import STEPS
from learners.rl.algorithm import Algorithm
from learners.safeguards.probation import Probation
from learners.safeguards.reward_ledger import LedgerEntry

SETTINGS = PromotionSettings.model_validate({})
BEFORE_SHADOW = ("integrity", "latency", "sanity", "held_out", "ope")
REACHED, FALLEN = 475.0, 400.0
RATE_HZ = 50.0
"""Of CartPole itself: 0.02 s a step."""


class Run(GymTrainer):
    """A learner, and beside it the versions that act."""

    def __init__(self, seed: int, *, gated: bool) -> None:
        super().__init__(lambda: gymnasium.make("CartPole-v1"), seed=seed)
        self.gated = gated
        self.versions: dict[str, Any] = {"initial": copy.deepcopy(self.policy)}
        self.live = "initial"
        self.probation = Probation(SETTINGS.probation_s, SETTINGS.margin, 1 - SETTINGS.confidence)
        self.rows: list[Transition] = []
        self.returns: list[float] = []
        self.promoted = self.rolled_back = 0
        self._probability = 1.0

    @property
    def acting(self) -> Any:
        """The policy that acts."""
        return self.versions[self.live]

    @torch.no_grad()
    def _decide(self) -> dict[str, Value]:
        context_BC = self.acting.encode(self.window.features())
        output = self.acting.heads.act(context_BC, generator=self.generator, explore=True)
        self._probability = float(next(iter(output.probabilities.values()))[0])
        return actuator_values(self.spec.actions, output, 0)

    def _begin(self, observation: Any) -> Tokens:
        """The episode before is over, by itself or by its time limit."""
        if self.rows and self.gated:
            self._settle(ended=True)
        return super()._begin(observation)

    def _keep(self, transition: Transition) -> None:
        """The row as the daemon logs it: with a decision, and the probability it was drawn with."""
        names = tuple(transition.actions)
        row = replace(
            transition, decision=str(transition.tick), policy=self.live,
            probabilities=dict.fromkeys(names, self._probability), by=dict.fromkeys(names, "policy"),
        )  # fmt: skip
        self.replay.append(row)
        if self.rows and self.gated and names and self.rows[-1].session == row.session:
            self._settle(ended=False)
        self.rows = [*self.rows[-SETTINGS.ope_decisions :], row]

    def _settle(self, *, ended: bool) -> None:
        """What came of the newest decision is known: probation hears of it, and its verdict is carried out."""
        row = next(row for row in reversed(self.rows) if row.actions)
        entry = LedgerEntry(
            row.decision, row.tick / RATE_HZ, row.policy, acted=True, refused=False, own=row.reward, done=ended
        )
        verdict = self.probation.observe([entry])
        if verdict is None:
            return
        if verdict.passed or verdict.before is None:
            self.probation.trust(verdict.version)
            return
        self.rolled_back += 1
        self.probation.trust(verdict.before)
        self.live = verdict.before
        self.policy.load_state_dict(self.acting.state_dict())
        self.algorithm = Algorithm(self.policy, self.generator, self.algorithm.updates)
        self.policy.eval()

    def evaluate(self, step: int) -> ReturnSummary:
        candidate = copy.deepcopy(self.policy)
        if not self.gated or (self.probation.trial is None and self._passes(candidate)):
            self.live = str(step)
            kept = {self.live, self.probation.good}
            self.versions = {name: policy for name, policy in self.versions.items() if name in kept} | {
                self.live: candidate
            }
            self.probation.acts(self.live, self._tick / RATE_HZ)
            self.promoted += 1
        learner, self.policy = self.policy, self.acting
        score = ReturnSummary.of(self.play(EVALUATION_SEED, self.settings.evaluation_episodes))
        self.policy = learner
        self.returns.append(score.mean)
        return score

    def _passes(self, candidate: Any) -> bool:
        first = self.live == "initial"
        trial = EvaluationContext(
            manifest=Manifest("000002-00000000", None, 0.0, {}), spec=self.spec, candidate=candidate,
            live=None if first else self.acting, live_version=None if first else self.live,
            experience=Logged(self.rows), settings=SETTINGS, period_s=1 / RATE_HZ,
        )  # fmt: skip
        return evaluate(trial, STEPS, BEFORE_SHADOW).passed


def fallen(returns: list[float]) -> tuple[int | None, int, int]:
    """The evaluation that first reached the goal, how many below came after it, and the longest row of them."""
    first = next((n for n, value in enumerate(returns) if value >= REACHED), None)
    if first is None:
        return None, 0, 0
    low = [value < FALLEN for value in returns[first:]]
    longest = run = 0
    for is_low in low:
        run = run + 1 if is_low else 0
        longest = max(longest, run)
    return first + 1, sum(low), longest


def trial(job: tuple[int, bool, int]) -> tuple[str, ...]:
    """One run of a seed, with the gate or without; its row."""
    seed, gated, steps = job
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    run = Run(seed, gated=gated)
    run.run(steps)
    first, below, longest = fallen(run.returns)
    after = run.returns[(first or 1) - 1 :]
    return (
        "with" if gated else "without", str(seed), f"{first},000" if first else "never", str(below),
        str(longest), f"{np.mean(after):.0f}", f"{run.returns[-1]:.0f}",
        f"{run.promoted} of {len(run.returns)}", str(run.rolled_back),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    given = parser.parse_args()
    console = Console(width=140)
    table = Table(
        "gate", "seed", "475 at", "below 400 after", "longest row", "mean after", "last", "promoted", "taken out"
    )
    jobs = [(seed, gated, given.steps) for gated in (True, False) for seed in range(given.seeds)]
    with Progress(console=console) as progress, multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        bar = progress.add_task("CartPole-v1", total=len(jobs))
        for row in pool.imap(trial, jobs):
            table.add_row(*row)
            progress.console.print(" | ".join(row))  # an hour's work is not lost with the last seed
            progress.advance(bar)
    console.print(table)


if __name__ == "__main__":
    main()
