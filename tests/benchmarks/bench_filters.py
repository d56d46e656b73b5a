"""What the promotion gate makes of good and bad candidates on logs of the demo's world, and whether learning starves behind it.

    python tests/benchmarks/bench_filters.py [--encoders cheap|real] [--seeds 10] [--ticks 4400] [--cache DIR] [--curves 2]

A learner learns the demo in lock-step, its latest version always acting (see demo_logs.py); the log is stored in `--cache`. A
trial takes a moment of the log: the version that acted until then is live, the ticks before are what was recorded, the
hundred ticks after are the shadow's. Every candidate goes through the real steps in their order:

- `negated`: the learner's policy of that moment, the last layer of its choice heads negated. It must fail at `ope`.
- `same`: the live version's own weights.
- `further`: the learner's policy of that moment where its return is within the margin of the live one's.
- `better`: where it is higher by more than the margin.
- `damaged`: noise on its choice heads, as little as takes it at least twice the margin below the live version.

Returns (all but `negated` and `same`) are measured by playing both in the same worlds, `--played` ticks. The second table is
learning itself: the same seeds with every candidate going live, with the gate in between, and with the gate and as long a pause
as shadow and probation take.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import pickle
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import demo_logs as demo  # noqa: E402 - the path comes first
from evaluating import Logged, evaluate  # noqa: E402 - the path comes first

from learners.checkpoints.manifest import Manifest  # noqa: E402 - the path comes first
from learners.config.learner import PromotionSettings  # noqa: E402 - the path comes first
from learners.experience.reader import Row  # noqa: E402 - the path comes first
from learners.experience.transition import Transition  # noqa: E402 - the path comes first
from learners.model.policy import Policy  # noqa: E402 - the path comes first
from learners.promotion.pipeline import PromotionResult  # noqa: E402 - the path comes first
from learners.promotion.step_types import EvaluationContext  # noqa: E402 - the path comes first
from learners.promotion.steps import STEPS  # noqa: E402 - the path comes first

SETTINGS = PromotionSettings.model_validate({})
FRESH = 100
FIRST = 600
KINDS = ("negated", "same", "further", "better", "damaged")
PACES = (("always promoted", 200, False), ("gated", 200, True), ("gated, with pauses", 900, True))
"""Ticks from one candidate to the next: every 20 s, and with shadow and a probation of 60 s in between."""
BEFORE_SHADOW = ("integrity", "latency", "sanity", "held_out", "ope")


@dataclass(slots=True)
class Tally:
    """What became of the candidates of one kind."""

    passed: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    decided: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def add(self, verdict: PromotionResult, seconds: float) -> None:
        fields = verdict.fields()
        ope = fields["steps"].get("ope", {})
        self.passed += not verdict.rejected
        self.failed.update([fields["step"]] if fields["step"] else [])
        self.decided.update([ope.get("estimator") or "inconclusive"])
        self.seconds.append(seconds)

    @property
    def count(self) -> int:
        return len(self.seconds)


def trial_of(
    candidate: Policy, live: Policy | None, log: demo.Log, rows: list[Transition], after: list[Transition]
) -> EvaluationContext:
    """A trial over logged rows; the clock ends the shadow when the fresh ones are through."""
    experience = Shown(rows, after)
    return EvaluationContext(
        manifest=Manifest("000002-00000000", None, 0.0, {}),
        spec=log.spec,
        candidate=candidate,
        live=live,
        live_version="000001-00000000" if live is not None else None,
        experience=experience,
        settings=SETTINGS,
        period_s=1 / demo.RATE_HZ,
        clock=lambda: SETTINGS.shadow_s if experience.through else 0.0,
    )


class Shown(Logged):
    """Logged rows, and fresh ones that the shadow step reads once."""

    def __init__(self, rows: list[Transition], after: list[Transition]) -> None:
        super().__init__(rows)
        self.fresh = [Row(len(rows) + 1 + n, t) for n, t in enumerate(after)]
        self.through = False

    def after(self, row: int) -> list[Row]:
        found = [each for each in self.fresh if each.row > row]
        self.through = not found
        return found


def negated(policy: Policy) -> Policy:
    worst = copy.deepcopy(policy)
    assert worst.heads.choice is not None
    with torch.no_grad():
        for parameter in worst.heads.choice.out.parameters():
            parameter.neg_()
    return worst


def noisy(policy: Policy, scale: float, seed: int) -> Policy:
    damaged = copy.deepcopy(policy)
    assert damaged.heads.choice is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in damaged.heads.choice.out.parameters():
            parameter.add_(scale * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return damaged


@dataclass(slots=True)
class Bench:
    """The trials over all logs."""

    inputs: demo.DemoInput
    logs: list[demo.Log]
    played: int
    tallies: dict[str, Tally] = field(default_factory=lambda: {kind: Tally() for kind in KINDS})
    returns: dict[tuple[int, str], float] = field(default_factory=dict)

    def worth(self, log: demo.Log, key: str, policy: Policy) -> float:
        """The reward a tick of a policy as it acts, in the worlds of this log's trials."""
        if (log.seed, key) not in self.returns:
            rewards = demo.played(policy, self.inputs, 10_000 + log.seed, self.played)
            self.returns[log.seed, key] = float(rewards.mean())
        return self.returns[log.seed, key]

    def moments(self, every: int) -> Iterator[tuple[demo.Log, int]]:
        for log in self.logs:
            for tick in range(FIRST, len(log.transitions) - FRESH + 1, every):
                yield log, tick

    def judge(self, kind: str, log: demo.Log, tick: int, candidate: Policy) -> None:
        live = log.policy(tick - log.every)
        started = time.thread_time()
        rows, after = log.transitions[:tick], log.transitions[tick : tick + FRESH]
        verdict = evaluate(trial_of(candidate, live, log, rows, after), STEPS, SETTINGS.steps)
        self.tallies[kind].add(verdict, time.thread_time() - started)

    def at(self, log: demo.Log, tick: int) -> None:
        """Every kind of candidate at one moment."""
        newest, live = log.policy(tick), log.policy(tick - log.every)
        self.judge("negated", log, tick, negated(newest))
        self.judge("same", log, tick, live)
        if not self.played:
            self.judge("further", log, tick, newest)
            return
        base = self.worth(log, str(tick - log.every), live)
        gain = self.worth(log, str(tick), newest) - base
        if abs(gain) <= SETTINGS.margin:
            self.judge("further", log, tick, newest)
        elif gain > 0:
            self.judge("better", log, tick, newest)
        for scale in (0.5, 1.0, 2.0, 4.0):
            damaged = noisy(newest, scale, tick)
            loss = float(demo.played(damaged, self.inputs, 10_000 + log.seed, self.played).mean()) - base
            if loss <= -2 * SETTINGS.margin:
                self.judge("damaged", log, tick, damaged)
                return

    def table(self) -> Table:
        table = Table("candidates", "trials", "passed", "failed at", "decided by", "CPU s a trial")
        for kind, tally in self.tallies.items():
            if tally.count:
                table.add_row(
                    kind, str(tally.count), f"{tally.passed} ({100 * tally.passed / tally.count:.0f} %)",
                    counted(tally.failed), counted(tally.decided), f"{np.median(tally.seconds):.2f}",
                )  # fmt: skip
        return table


def counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def gate(seed_log: dict[str, Any]) -> demo.Judge:
    """The steps before the shadow, as a decision while learning."""

    def judge(candidate: Policy, live: Policy | None, rows: list[Transition], tick: int) -> bool:
        log = demo.Log(candidate.spec, 0, 0)
        verdict = evaluate(trial_of(candidate, live, log, rows, []), STEPS, BEFORE_SHADOW)
        seed_log.setdefault("tried", []).append(tick)
        if not verdict.rejected:
            seed_log.setdefault("passed", []).append(tick)
        return not verdict.rejected

    return judge


def curve(make: Callable[[], demo.DemoInput], seeds: int, ticks: int, console: Console) -> Table:
    """Reward a tick while learning, in five parts, without and with the gate."""
    table = Table("learning", "seed", *(f"part {n + 1}" for n in range(5)), "promoted", "first at tick")
    with Progress(console=console) as progress:
        job = progress.add_task("learning curves", total=len(PACES) * seeds * ticks)
        means: dict[str, list[Any]] = {}
        for seed in range(seeds):
            for name, every, gated in PACES:
                record: dict[str, Any] = {}
                judge = gate(record) if gated else (lambda *_: True)
                log = demo.run(make(), seed, ticks, every=every, judge=judge, tell=lambda _: progress.advance(job))
                rewards = np.array([t.reward for t in log.transitions])
                parts = [float(part.mean()) for part in np.array_split(rewards, 5)]
                means.setdefault(name, []).append(parts)
                tried, acted = len(record.get("tried", log.weights)), list(log.acted)
                table.add_row(
                    name, str(seed), *(f"{part:.3f}" for part in parts), f"{len(acted)} of {tried}",
                    str(acted[0]) if acted else "",
                )  # fmt: skip
    for name, rows in means.items():
        table.add_row(f"mean, {name}", "", *(f"{value:.3f}" for value in np.mean(rows, axis=0)), "", "")
    return table


def logs(given: argparse.Namespace, make: Callable[[], demo.DemoInput], console: Console) -> list[demo.Log]:
    """One log a seed, from the cache where it is there."""
    inputs = make()
    spec = demo.PolicySpec(inputs.streams, demo.ACTIONS, history=inputs.history, gamma=demo.GAMMA)
    shapes = [(name, tuple(x.shape)) for name, x in Policy(spec).state_dict().items()]
    key = hashlib.sha256(repr((spec, shapes, given.ticks)).encode()).hexdigest()[:12]
    given.cache.mkdir(parents=True, exist_ok=True)
    found = []
    with Progress(console=console) as progress:
        job = progress.add_task("logs", total=given.seeds * given.ticks)
        for seed in range(given.seeds):
            path = given.cache / f"{given.encoders}-{key}-{seed}.pkl"
            if not path.exists():
                log = demo.run(inputs, seed, given.ticks, tell=lambda _: progress.advance(job))
                path.write_bytes(pickle.dumps(log))
            else:
                progress.advance(job, given.ticks)
            found.append(pickle.loads(path.read_bytes()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", choices=("cheap", "real"), default="cheap")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--ticks", type=int, default=4_400)
    parser.add_argument("--every", type=int, default=400, help="ticks from one trial to the next")
    parser.add_argument("--played", type=int, default=500, help="ticks that measure a return; 0: not measured")
    parser.add_argument("--cache", type=Path, default=Path("runs/promotion"))
    parser.add_argument("--curves", type=int, default=2, help="seeds of the second table; 0: none")
    given = parser.parse_args()
    if given.every % PACES[0][1]:
        parser.error(f"--every: weights are stored every {PACES[0][1]} ticks, so write a multiple of it")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    console = Console(width=160)
    make: Callable[[], demo.DemoInput] = demo.Cheap if given.encoders == "cheap" else demo.Real
    bench = Bench(make(), logs(given, make, console), given.played)
    moments = list(bench.moments(given.every))
    with Progress(console=console) as progress:
        for done, (log, tick) in enumerate(progress.track(moments, description=f"{len(moments)} moments"), 1):
            bench.at(log, tick)
            if not console.is_terminal and done % 10 == 0:
                print(f"{done} of {len(moments)} moments", flush=True)
    console.print(bench.table())
    if given.curves:
        console.print(curve(make, given.curves, given.ticks, console))


if __name__ == "__main__":
    main()
