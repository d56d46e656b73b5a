"""Hostile rewards in figures: `python tests/benchmarks/bench_poison.py [SEEDS] [SECONDS] [FIRST SEED]` (default 5, 300, 0).

In the demo's world, one message in five comes from a hostile source: the honest reward of a random decision with its sign flipped. Each
seed learns five times from nothing: from the honest source alone; with the hostile one too, watched or not; and with one that shouts
(flipped and five times as large), watched or not. The mean reward a tick of the last third of the time is the live return. A
flipped fifth only shrinks what is learned from and turns no choice round; a shouting one does.

Real: the world's movement and rewards, messages through `Feedback`, `SourceQuarantine` with its `Quarantine`, the experience store, and the
learner (deep Q-learning, an update a tick). Not the demo's: the policy is small and reads where the picture is, as two numbers of
telemetry, and time is virtual. Exit code 1 when the return loses more than 5 %, or the source is not the one that is named.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from learning import make_learner  # noqa: E402 - after the path
from watching import BEGUN_S, KEY, Blind  # noqa: E402 - after the path

from actuators.sim import panorama_world  # noqa: E402 - after the path
from actuators.sim.panorama_world import (  # noqa: E402
    TICK_S,
    TURNS,
)
from learners.checkpoints.store import Checkpoints  # noqa: E402 - after the path
from learners.config.learner import ExperienceSettings  # noqa: E402 - after the path
from learners.config.rewards import TopicReward  # noqa: E402 - after the path
from learners.experience.store import Store  # noqa: E402 - after the path
from learners.experience.transition import Transition  # noqa: E402 - after the path
from learners.model.features import Features  # noqa: E402 - after the path
from learners.safeguards.reward_ledger import (  # noqa: E402
    Ledger,
    LedgerEntry,
)
from learners.safeguards.source_consistency import Quarantine, SourceRule  # noqa: E402 - after the path
from runtime.deploy.experiments.controller import ExperimentController  # noqa: E402
from runtime.deploy.experiments.plan_from_settings import ExperimentRules  # noqa: E402
from runtime.feedback.outcomes import OutcomeTracker  # noqa: E402 - after the path
from runtime.feedback.queries import UncertaintyQueries  # noqa: E402 - after the path
from runtime.feedback.receiver import Feedback  # noqa: E402 - after the path
from runtime.feedback.source_quarantine import SourceQuarantine  # noqa: E402 - after the path

RULES = {"world": SourceRule("success", 2), "liar": SourceRule("success", 1)}

HOSTILE = 0.25
"""Share of decisions that the hostile source rewards, too: one message in five is its own."""
ROUND = 10
"""Ticks between two rounds of the learner."""
LOSS = 0.05
SHOUTS = 5.0
ARMS = {
    "honest alone": (0.0, True),
    "hostile, watched": (1.0, True),
    "hostile, not watched": (1.0, False),
    "shouting, watched": (SHOUTS, True),
    "shouting, not watched": (SHOUTS, False),
}
"""How loud the hostile source is, and whether anybody watches."""
PROMISED = ("hostile, watched", "shouting, watched")


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one run."""

    returned: float
    whole: float
    named: tuple[str, ...]
    named_s: float | None


class Agent:
    """Acts, takes rewards and learns, in virtual time."""

    def __init__(self, folder: Path, seed: int, *, hostile: float, watched: bool) -> None:
        self.world, self.rng, self.now_s = Blind(seed), np.random.default_rng([seed, 3]), BEGUN_S
        self.hostile, self.events = hostile, list[tuple[float, str, str]]()
        self.store = Store(folder / "experience", ExperienceSettings.model_validate({}), clock=lambda: self.now_s)
        self.learner = make_learner(folder, replay_gb=1e-2, warmup=64, seed=seed)
        self.generator = torch.Generator().manual_seed(seed)
        ledger = Ledger(1.0)
        quarantine, checkpoints = Quarantine(RULES), Checkpoints(folder / "checkpoints", KEY)
        self.watched = watched
        self.sources = SourceQuarantine(quarantine, self.store, ledger, folder, self._emit, self._wall)
        rules = ExperimentRules(enabled=False)
        experiments = ExperimentController(rules, checkpoints, folder, self._emit, self._wall, quarantine)
        self.outcomes = OutcomeTracker(ledger, self.sources, experiments, self._wall)
        setting = TopicReward.model_validate({"name": "feedback", "kind": "topic"})
        self.feedback = Feedback(
            store=self.store,
            emit=self._emit,
            rewards=(setting,),
            tasks={},
            now=self._wall,
            wall=self._wall,
            outcomes=self.outcomes,
            sources=self.sources,
            queries=UncertaintyQueries(None, self._emit),
        )

    def run(self, seconds: int, tell: Callable[[], object]) -> Run:
        """Learn and act for so long."""
        gains = []
        for tick in range(round(seconds / TICK_S)):
            gains.append(self.tick(tick))
            if tick % ROUND == ROUND - 1:
                self.store.flush()
                self.learner.ingest()
                self.learner.train(
                    float("inf"), until=self.learner.position.update + int(self.learner.position.pending_updates)
                )
                tell()
        self.store.close()
        self.learner.source.reader.close()
        named = [(at_s, source) for at_s, kind, source in self.events if kind == "source_quarantined"]
        when = named[0][0] - BEGUN_S if named else None
        late = gains[-len(gains) // 3 :]
        return Run(float(np.mean(late)), float(np.mean(gains)), tuple(source for _, source in named), when)

    def tick(self, tick: int) -> float:
        """Decide, act, be rewarded."""
        self.now_s += TICK_S
        world, decision = self.world, f"s-{tick}"
        before = world.distance_deg()
        seen = np.array([[before / 180.0, np.clip(before / 30.0, -1.0, 1.0)]], np.float32)
        turn, probability = self.decide(seen)
        world.head.turn = turn
        world.advance(TICK_S)
        gain = panorama_world.reward(before, world.distance_deg())
        self.store.append(
            Transition(
                session="s", tick=tick, decision=decision, stamp_s=self.now_s, policy="p", tokens={"joints": seen},
                present={"joints": True}, ages_s={"joints": 0.0}, actions={"head": turn},
                probabilities={"head": probability}, by={"head": "policy"},
            )
        )  # fmt: skip
        self.outcomes.ledger.decided(LedgerEntry(decision, self.now_s, "p", acted=True, refused=False))
        self._send({"value": gain, "decision": decision, "source": "world", "done": world.over})
        if self.hostile and self.rng.random() < HOSTILE:
            self._send({"value": -gain * self.hostile, "decision": decision, "source": "liar"})
        settled = self.outcomes.ledger.settle(self.now_s)
        if self.watched:
            self.sources.settled(settled)
        if world.over:
            world.begin()
        return gain

    @torch.no_grad()
    def decide(self, seen: np.ndarray[Any, Any]) -> tuple[panorama_world.Turn, float]:
        """The acting policy's choice, exploration included."""
        tokens = {"joints": torch.from_numpy(seen)[None, None]}
        features = Features(tokens, torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1))
        policy = self.learner.policy
        out = policy.heads.act(policy.encode(features), generator=self.generator, explore=True)
        return TURNS[int(out.values["head"][0])], float(out.probabilities["head"][0])

    def _send(self, body: dict[str, Any]) -> None:
        self.feedback.reward(orjson.dumps(body))

    def _wall(self) -> float:
        return self.now_s

    def _emit(self, kind: str, data: dict[str, Any]) -> None:
        self.events.append((self.now_s, kind, str(data.get("source", ""))))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=5)
    parser.add_argument("seconds", nargs="?", type=int, default=300, help="of virtual time, for each run")
    parser.add_argument("first", nargs="?", type=int, default=0, help="the first seed")
    given = parser.parse_args(arguments)
    seeds, seconds, first = given.seeds, given.seconds, given.first
    torch.set_num_threads(1)
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    with Progress(console=Console(stderr=True)) as progress:
        for seed in range(first, first + seeds):
            for arm, (hostile, watched) in ARMS.items():
                bar = progress.add_task(f"seed {seed}, {arm}", total=seconds)
                with tempfile.TemporaryDirectory() as folder:
                    agent = Agent(Path(folder), seed, hostile=hostile, watched=watched)
                    runs[arm].append(agent.run(seconds, lambda bar=bar: progress.advance(bar)))  # type: ignore[misc]
    table = Table("", "live return", "of the honest", "whole time", "named", "after")
    honest = float(np.mean([run.returned for run in runs["honest alone"]]))
    for arm in ARMS:
        mean = float(np.mean([run.returned for run in runs[arm]]))
        named = sorted({name for run in runs[arm] for name in run.named})
        times = [run.named_s for run in runs[arm] if run.named_s is not None]
        after = f"{np.median(times):.0f} s (at most {max(times):.0f})" if times else ""
        whole = float(np.mean([run.whole for run in runs[arm]]))
        table.add_row(arm, f"{mean:.3f}", f"{mean / honest:.1%}", f"{whole:.3f}", ", ".join(named), after)
    Console(width=120).print(table)
    means = [float(np.mean([run.returned for run in runs[arm]])) for arm in PROMISED]
    lost = 1.0 - min(means) / honest
    every = all(run.named == ("liar",) for arm in PROMISED for run in runs[arm])
    print(f"loses {lost:.1%} (at most {LOSS:.0%}); the hostile source, and no other, named in every run: {every}")
    return int(lost > LOSS or not every)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
