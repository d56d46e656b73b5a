"""Probation in figures: `python tests/benchmarks/bench_probation.py [TRIALS] [RUNS]` (default 100 and 10,000).

1. Coverage by simulation, RUNS each: how often the confidence sequence of `learners/promotion/ope/bounds.py` ever loses the true mean, how
   often `MixtureSprt` ever sees a fall where there is none (rewards that depend on each other within episodes of 6 to 10 s), how often
   `BettingTest` is won though the mean is at its limit. Bound: alpha.
2. Trials in the demo's world in virtual time, TRIALS each (`tests/watching.py` says what of it is real): a good version acts for
   `REFERENCE_S`, then a candidate is forced live. Its scores negated: rolled back, and the good one acting again, within 10 s of its
   first decision in at least 95 of 100; an equal one: rolled back in at most 5 of 100.

The policies are scripted: right in 88 % of ticks, or, as a harder case that is only reported for the bad one, right in 95 % of ticks but
after another picture in 10 % of episodes: there one bad episode says little, and no test can be both quick and sure.
Exit code 1 when a bound is missed.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from confidence_sequence import ConfidenceSequence  # noqa: E402 - after the path
from watching import Script, Stage  # noqa: E402 - after the path

from learners.safeguards.sequential_tests import (  # noqa: E402
    Baseline,
    BettingTest,
    MixtureSprt,
)
from learners.safeguards.version_comparison import (  # noqa: E402
    EPISODE_RHO,
    SHARES,
)
from learners.safeguards.version_statistics import LEAST_EPISODES  # noqa: E402 - after the path

ALPHA = 0.05
REFERENCE_S = 120.0
LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result."""

    what: str
    found: str
    bound: str
    held: bool | None
    """None where nothing is promised."""


def losing_the_mean(rng: np.random.Generator) -> bool:
    """Whether a confidence sequence of 300 values ever leaves their true mean."""
    a, b = rng.uniform(0.3, 5.0, 2)
    values = rng.beta(a, b, 300) if rng.random() < 0.5 else (rng.random(300) < a / (a + b)).astype(float)
    sequence = ConfidenceSequence(ALPHA)
    for value in values:
        low, high = sequence.update(float(value))
        if not low <= a / (a + b) <= high:
            return True
    return False


def episodes(rng: np.random.Generator, seconds: int, bad: float) -> Iterator[float]:
    """Rewards of each second: a level for each episode of 6 to 10 s, a way to go at its begin, noise; within [-1, 2]."""
    while True:
        level = float(rng.normal(1.0, 0.1)) - (0.8 if rng.random() < bad else 0.0)
        way = int(rng.integers(0, 3))
        for second in range(int(rng.integers(6, 11))):
            yield float(np.clip(level + (0.5 if second < way else 0.0) + rng.normal(0.0, 0.15), -1.0, 2.0))
            seconds -= 1
            if not seconds:
                return


def seeing_a_fall(rng: np.random.Generator, reference: int, bad: float) -> bool:
    """Whether a minute of the same rewards ever looks like a fall."""
    blocks = list(episodes(rng, reference + 60, bad))
    known = Baseline.of(blocks[:reference])
    assert known is not None
    drop = MixtureSprt(known, ALPHA / 2, margin=0.0)
    drop.replay(blocks[reference:])
    return drop.crossed


def seeing_returns_fall(known: int, returns: Callable[[int], np.ndarray]) -> bool:
    """Whether sixty more episodes of the same returns ever look like a fall."""
    reference = Baseline.of(list(returns(known)), least=LEAST_EPISODES, memory=1)
    assert reference is not None
    drop = MixtureSprt(reference, ALPHA * SHARES["returns"], 0.0, EPISODE_RHO)
    drop.replay(float(x) for x in returns(60))
    return drop.crossed


def poles(rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    """Returns of a pole that falls in one episode of ten, somewhere before the limit of 500."""
    return lambda count: np.where(rng.random(count) < 0.1, rng.uniform(50, 500, count), 500.0)


def walks(rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    """Returns that vary by a fifth."""
    return lambda count: rng.normal(300.0, 60.0, count)


def winning_the_bet(rng: np.random.Generator) -> bool:
    """Whether a bet is won on 300 values whose mean is at the limit."""
    limit = float(rng.uniform(0.1, 0.9))
    bet = BettingTest(limit, ALPHA / 2)
    bet.replay(float(x) for x in rng.random(300) < limit)
    return bet.crossed


COVERAGE: dict[str, tuple[Callable[[np.random.Generator], bool], float]] = {
    "confidence sequence leaves the mean": (losing_the_mean, ALPHA),
    "fall seen, 120 s known": (lambda rng: seeing_a_fall(rng, 120, 0.0), ALPHA / 2),
    "fall seen, 120 s known, 1 in 10 episodes bad": (lambda rng: seeing_a_fall(rng, 120, 0.1), ALPHA / 2),
    "fall seen, 30 s known, 1 in 10 episodes bad": (lambda rng: seeing_a_fall(rng, 30, 0.1), ALPHA / 2),
    "fall of returns seen, 5 episodes known": (lambda rng: seeing_returns_fall(5, walks(rng)), ALPHA / 4),
    "the same, 1 in 10 episodes falls early": (lambda rng: seeing_returns_fall(5, poles(rng)), ALPHA / 4),
    "fall of returns seen, 20 episodes known": (lambda rng: seeing_returns_fall(20, walks(rng)), ALPHA / 4),
    "bet won at its limit": (winning_the_bet, ALPHA / 2),
}


def coverage(runs: int, progress: Progress) -> list[Row]:
    """How often each goes wrong."""
    rows = []
    for what, (wrong, alpha) in COVERAGE.items():
        bar = progress.add_task(what, total=runs)
        count = 0
        for run in range(runs):
            count += wrong(np.random.default_rng([run, len(what)]))
            progress.advance(bar)
        rows.append(Row(what, f"{count} of {runs:,} ({count / runs:.4f})", f"<= {alpha}", count / runs <= alpha))
    return rows


@dataclass(frozen=True, slots=True)
class Case:
    """What goes live."""

    what: str
    good: Script
    candidate: Script
    bad: bool
    refused: float = 0.0
    promised: bool = True
    reference_s: float = REFERENCE_S


EASY, HARD = Script(errors=0.12), Script(errors=0.05, confused=0.1)
CASES = (
    Case("negated", EASY, replace(EASY, sign=-1), bad=True),
    Case("equal", EASY, EASY, bad=False),
    Case("negated, 40 s known", EASY, replace(EASY, sign=-1), bad=True, promised=False, reference_s=40.0),
    Case("equal, 40 s known", EASY, EASY, bad=False, reference_s=40.0),
    Case("equal, but 60 % refused by the gate", EASY, EASY, bad=True, refused=0.6),
    Case("negated, confused in 1 of 10 episodes", HARD, replace(HARD, sign=-1), bad=True, promised=False),
    Case("equal, confused in 1 of 10 episodes", HARD, HARD, bad=False),
)


async def trial(case: Case, seed: int, folder: Path) -> float | None:
    """Seconds from the candidate's first decision until the good one acts again; None when it was confirmed."""
    policies = {"good": replace(case.good), "candidate": replace(case.candidate)}
    stage = Stage(folder, seed, policies, refusals={"candidate": case.refused})
    await stage.promote("good")
    await stage.run(case.reference_s)
    stage.events.clear()
    await stage.promote("candidate")
    took_s = await stage.run(90.0, until=lambda: "policy_confirmed" in stage.kinds() or stage.acted[-1] == "good")
    return None if "policy_confirmed" in stage.kinds() else took_s


def trials(count: int, progress: Progress) -> list[Row]:
    """Every case, `count` times."""
    rows = []
    for case in CASES:
        bar = progress.add_task(case.what, total=count)
        took = []
        for seed in range(count):
            with tempfile.TemporaryDirectory() as folder:
                took.append(asyncio.run(trial(case, seed, Path(folder))))
            progress.advance(bar)
        rows.append(judged(case, took))
    return rows


def judged(case: Case, took: list[float | None]) -> Row:
    """A case's line."""
    back = [seconds for seconds in took if seconds is not None]
    if not case.bad:
        found = f"rolled back {len(back)} of {len(took)}"
        return Row(case.what, found, "<= 5 %", len(back) <= 0.05 * len(took) if case.promised else None)
    quick = sum(seconds <= LIMIT_S for seconds in back)
    worst = f", {statistics.median(back):.1f} s in the middle, {max(back):.1f} s at most" if back else ""
    found = f"{quick} of {len(took)} within {LIMIT_S:g} s, {len(back)} at all{worst}"
    return Row(
        case.what, found, ">= 95 %" if case.promised else "", quick >= 0.95 * len(took) if case.promised else None
    )


def main(arguments: list[str]) -> int:
    count, runs = (int(arguments[0]) if arguments else 100), (int(arguments[1]) if len(arguments) > 1 else 10_000)
    with Progress(console=Console(stderr=True)) as progress:
        rows = coverage(runs, progress) + trials(count, progress)
    table = Table("what", "found", "bound", "")
    for row in rows:
        table.add_row(row.what, row.found, row.bound, "" if row.held is None else "held" if row.held else "MISSED")
    Console(width=150).print(table)
    return int(any(row.held is False for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
