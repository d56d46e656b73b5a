"""Trials of promotion in virtual time: what the experiment, the guard and the filters do in worlds with a known truth.

    python tests/benchmarks/bench_promotion.py [--only creep,noise] [--runs 100] [--first 100]

Every trial uses the real classes of `learners`. Seeds 0 to 9 served for tuning; reports use other seeds (`--first`). Rewards of a tick have
deviation 1, the champion earns 1 a tick, and a tick is a second, so "10 % worse" is .1 deviations. Blocks follow from gamma .9:
19 ticks with a wash-out of 9. Each row prints what was wanted and what was seen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import norm

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from learners.config.tasks import FinetuneSettings  # noqa: E402 - the path comes first
from learners.continual.acceptance import anchor_confidence, paired_bounds, rejection_reason  # noqa: E402
from learners.experiment_statistics.alpha_budget import AlphaBudget  # noqa: E402
from learners.experiment_statistics.experiment_test import ExperimentTest, ExperimentVerdict  # noqa: E402
from learners.experiment_statistics.live_version_guard import Guard  # noqa: E402
from learners.experiment_statistics.paired_outcomes import HARMS, PairDifference  # noqa: E402
from learners.experiment_statistics.plan import ExperimentPlan, block_design  # noqa: E402
from learners.promotion.ope.estimator_inputs import Evidence, Side  # noqa: E402
from learners.promotion.ope.evaluator import judge  # noqa: E402
from learners.safeguards.reward_ledger import LedgerEntry  # noqa: E402
from learners.safeguards.source_consistency import Quarantine, SourceRule  # noqa: E402

Array = NDArray[np.float64]
DESIGN = block_design(0.9)
PAIR_S = 2 * DESIGN.block_ticks
NO_HARM = dict.fromkeys(HARMS, 0.0)
ALPHA = 0.025
DELTA = 0.05


def ar1(rng: np.random.Generator, count: int, rho: float) -> Array:
    """A stationary series of deviation 1."""
    draws = rng.normal(size=count + 1_000) * np.sqrt(1 - rho * rho)
    return np.asarray(lfilter([1.0], [1.0, -rho], draws)[1_000:], np.float64)


def differences(
    rng: np.random.Generator,
    count: int,
    effect: float | Array,
    *,
    rho: float = 0.0,
    world: Array | None = None,
    block: int = DESIGN.block_ticks,
    wash: int = DESIGN.washout_ticks,
) -> Array:
    """Pair differences of a version that earns `effect` more; the noise of the world goes on through the blocks."""
    noise = ar1(rng, count * 2 * block, rho) if world is None else world[: count * 2 * block]
    means = noise.reshape(count, 2, block)[:, :, wash:].mean(-1)
    coin = rng.random(count) < 0.5
    return np.asarray(np.where(coin, means[:, 0] - means[:, 1], means[:, 1] - means[:, 0]) + effect, np.float64)


def plan(seed: int, *, cap: int, delta: float = DELTA, alpha: float = ALPHA, anchored: bool = True) -> ExperimentPlan:
    return ExperimentPlan(
        "champion", "challenger", "champion" if anchored else "anchor", "reward", DESIGN.block_ticks,
        DESIGN.washout_ticks, 0.5, delta, alpha, cap, seed,
    )  # fmt: skip


def decide(test: ExperimentTest, against: dict[str, Array]) -> tuple[ExperimentVerdict | None, int]:
    """Feed pairs until the verdict; return it with the number of pairs."""
    used = dict.fromkeys(against, 0)
    while test.verdict is None and used[test.opponent] < len(against[test.opponent]):
        number = used[test.opponent]
        value = float(against[test.opponent][number])
        used[test.opponent] += 1
        test.update(PairDifference(number, "challenge", test.opponent, value, NO_HARM))
    return test.verdict, sum(used.values())


def alone(seed: int, values: Array, **changes: float) -> tuple[str, bool, int]:
    """Return outcome, whether it was proved better, and the pairs of an experiment with the anchor as its champion."""
    test = ExperimentTest(plan(seed, cap=len(values), **changes))  # type: ignore[arg-type]
    verdict, pairs = decide(test, {"champion": values})
    return ("none", False, pairs) if verdict is None else (verdict.outcome, verdict.better, pairs)


def row(name: str, wanted: str, seen: str) -> None:
    print(f"{name:<58} wanted {wanted:<34} seen {seen}", flush=True)


def creep(first: int, runs: int) -> None:
    """200 versions, each a tenth of a deviation worse than the champion it meets; margin as large as the loss."""
    levels, promoted = [], []
    for seed in range(first, first + max(runs // 5, 4)):
        rng = np.random.default_rng([seed, 1])
        budget, level, anchor, lives = AlphaBudget(), 0.0, 0.0, 0
        for version in range(200):
            alpha = budget.next_alpha()
            test = ExperimentTest(plan(version, cap=400, delta=0.1, alpha=alpha, anchored=level == anchor))
            new = level - 0.1
            values = {
                "champion": differences(rng, 400, new - level),
                "anchor": differences(rng, 400, new - anchor),
            }
            verdict, _ = decide(test, values)
            live = verdict is not None and verdict.outcome == "live"
            budget.record(promoted=live, alpha=alpha)
            if verdict is not None and live:
                level, lives = new, lives + 1
                anchor = level if verdict.new_anchor else anchor
        levels.append(level)
        promoted.append(lives)
    row(
        "200 versions each .1 sd worse: level after them",
        ">= -.2 sd",
        f"worst {min(levels):+.2f} sd, promotions {np.mean(promoted):.2f}",
    )


def noise(first: int, runs: int) -> None:
    """40 candidates that differ by nothing, while the learner goes on: alpha from the budget."""
    better, live = [], []
    for seed in range(first, first + max(runs // 10, 4)):
        rng = np.random.default_rng([seed, 2])
        budget, found, passed = AlphaBudget(), 0, 0
        for version in range(40):
            alpha = budget.next_alpha()
            outcome, proved, _ = alone(version, differences(rng, 400, 0.0, rho=0.9), alpha=alpha)
            budget.record(promoted=outcome == "live", alpha=alpha)
            found, passed = found + proved, passed + (outcome == "live")
        better.append(found)
        live.append(passed)
    row(
        "pure noise, 40 candidates: proved better",
        "<= 2 of 40",
        f"mean {np.mean(better):.2f}, most {max(better)} of 40; live as equal {np.mean(live):.1f}",
    )


def worse(first: int, runs: int) -> None:
    """Candidates that lose 10, 25 and 50 %: live for good."""
    for loss, wanted in ((0.1, 5), (0.25, 1), (0.5, 0)):
        found = [
            alone(seed, differences(np.random.default_rng([seed, 3]), 600, -loss, rho=0.9))
            for seed in range(first, first + runs)
        ]
        lives = sum(outcome == "live" for outcome, _, _ in found)
        outs = [pairs for outcome, _, pairs in found if outcome == "out"]
        row(
            f"worse by {loss:.0%}: live",
            f"<= {wanted} of 100",
            f"{lives} of {runs}; out {len(outs)}, median {np.median(outs) * PAIR_S / 60:.0f} min",
        )


def slow(first: int, runs: int) -> None:
    """Rewards with memory: equal versions, and one that is 10 % better."""
    for rho in (0.9, 0.99):
        sd = float(differences(np.random.default_rng(0), 20_000, 0.0, rho=rho).std())
        fixed = int(np.ceil((norm.isf(ALPHA) + norm.isf(0.2)) ** 2 * sd**2 / 0.1**2))
        for effect in (0.0, 0.1):
            cap = 2 * fixed if effect else 8 * fixed
            found = [
                alone(seed, differences(np.random.default_rng([seed, 4]), cap, effect, rho=rho))
                for seed in range(first, first + (runs if effect else max(runs // 2, 10)))
            ]
            counts = {name: sum(outcome == name for outcome, _, _ in found) for name in ("live", "out", "cap")}
            median = np.median([pairs for _, _, pairs in found]) * PAIR_S / 3600
            wanted = f">= 80 % within {cap} pairs" if effect else f"proved better <= {ALPHA:.1%}, out <= 5 %"
            proved = sum(better for _, better, _ in found) / len(found)
            name = f"AR(1) {rho}, better by 10 %: live" if effect else f"AR(1) {rho}, equal"
            row(name, wanted, f"{counts} of {len(found)}, better {proved:.1%}, median {median:.1f} h")


Draw = Callable[[np.random.Generator], float]


def guarded(rng: np.random.Generator, pair_s: float, good: Draw, bad: Draw, harm: str | None = None) -> float:
    """Let a version act like the anchor for 200 blocks, then fall; return seconds from the fall to the alarm."""
    one = Guard(pair_s)
    for slot in range(20_000):
        live = good if slot < 100 else bad
        trial, other = live(rng), good(rng)
        if rng.random() < 2 * one.anchor_share:
            harms = NO_HARM | ({harm: trial - other} if harm else {})
            if one.pair(PairDifference(slot, "guard", "anchor", 0.0 if harm else trial - other, harms)) is not None:
                return (slot - 99) * pair_s
        else:
            for value in (trial, live(rng)):
                one.block(None if harm else value, NO_HARM | ({harm: value} if harm else {}))
    return float("inf")


def guard(first: int, runs: int) -> None:
    """Falls after a version was trusted: rewards, takeovers, successes, long episodes; and the false alarms of a month."""
    ticks = DESIGN.block_ticks - DESIGN.washout_ticks
    falls: dict[str, tuple[float, Draw, Draw, str | None]] = {
        "-10 sd after it was trusted": (
            PAIR_S, lambda rng: float(ar1(rng, ticks, 0.9).mean()), lambda rng: float(ar1(rng, ticks, 0.9).mean()) - 10, None,
        ),
        "takeovers 3 -> 43 % of ticks": (
            PAIR_S, lambda rng: rng.binomial(ticks, 0.03) / ticks, lambda rng: rng.binomial(ticks, 0.43) / ticks, "takeover",
        ),
        "successes down tenfold (.2 to .02 a second)": (
            PAIR_S, lambda rng: rng.poisson(0.2 * ticks) / ticks, lambda rng: rng.poisson(0.02 * ticks) / ticks, None,
        ),
        "episodes of 10 minutes, successes .9 -> 0": (1_200.0, lambda rng: float(rng.random() < 0.9), lambda _: 0.0, None),
    }  # fmt: skip
    for name, (pair_s, good, bad, harm) in falls.items():
        seen = np.array(
            [guarded(np.random.default_rng([seed, 5]), pair_s, good, bad, harm) for seed in range(first, first + runs)]
        )
        found, early = np.isfinite(seen) & (seen > 0), int((seen <= 0).sum())
        times = f"median {np.median(seen) / 3600:.2f} h, 95 % within {np.quantile(seen, 0.95) / 3600:.2f} h"
        row(name, "out in >= 95 of 100", f"{found.sum()} of {runs}, {times}, before the fall {early}")
    months, alarms = max(runs // 10, 4), 0
    count = int(30 * 86_400 / PAIR_S * 0.1)
    for seed in range(first, first + months):
        one = Guard(PAIR_S)
        for value in differences(np.random.default_rng([seed, 6]), count, 0.0, rho=0.9):
            if one.pair(PairDifference(0, "guard", "anchor", float(value), NO_HARM)) is not None:
                alarms += 1
                break
    row("equal to the anchor for a month: taken out", "<= once a month", f"{alarms} alarms in {months} months")


def worlds(rng: np.random.Generator, kind: str, ticks: int) -> Array:
    """The common part of the rewards, the same for both versions."""
    time_T = np.arange(ticks, dtype=np.float64)
    base = ar1(rng, ticks, 0.9)
    found = {
        "slow drift": base - 5.0 * time_T / ticks,
        "seasons": base + 3.0 * np.sin(2 * np.pi * (time_T / 3_600 + rng.random())),
        "rare failures": base - 20.0 * (rng.random(ticks) < 1 / 500),
        "delayed rewards": np.where(np.arange(ticks) % 10 == 0, base * 3, 0.0),
        "two tasks in turn": base + np.where((np.arange(ticks) // 300) % 2 == 0, 2.0, -2.0),
        "scale x100": base * np.where(np.arange(ticks) > ticks // 2, 100.0, 1.0),
    }
    return np.asarray(found[kind], np.float64)


KINDS = ("slow drift", "seasons", "rare failures", "delayed rewards", "two tasks in turn", "scale x100")


def disturbed(first: int, runs: int) -> None:
    """A version that loses 3 deviations, and an equal one, in worlds that change: share in which it goes live or stays."""
    for kind in KINDS:
        not_rejected, false, times = 0, 0, []
        for seed in range(first, first + runs):
            rng = np.random.default_rng([seed, 7])
            pairs = 60
            world = worlds(rng, kind, pairs * PAIR_S)
            scale = np.where(np.arange(pairs) >= pairs // 2, 100.0, 1.0) if kind == "scale x100" else np.ones(pairs)
            outcome, _, used = alone(seed, differences(rng, pairs, -3.0 * scale, world=world), delta=0.05)
            not_rejected += outcome != "out"
            times.append(used)
            equal, _, _ = alone(seed, differences(rng, pairs, 0.0, world=world), delta=0.05)
            false += equal == "out"
        evidence = np.quantile(times, 0.95) * 2 * (DESIGN.block_ticks - DESIGN.washout_ticks)
        row(
            f"{kind}: 3 sd worse not out; equal out",
            "<= 5 %; alpha 5 %",
            f"{not_rejected / runs:.0%}; {false / runs:.0%}; 95 % out within {np.quantile(times, 0.95):.0f} pairs ({evidence:.0f} s of counted ticks)",
        )


REWARD = np.array([[0.0, 0.2], [1.0, -0.5], [0.3, 0.9]])
NEXT = np.array([[0, 1], [1, 2], [2, 0]])
ACTED = np.array([[0.5, 0.5], [0.7, 0.3], [0.4, 0.6]])
LIVE = np.array([[0.6, 0.4], [0.5, 0.5], [0.5, 0.5]])
CANDIDATE = np.array([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]])


def chain_value(policy: Array, gamma: float) -> Array:
    """Values of the three states."""
    step = np.zeros((3, 3))
    for state in range(3):
        for choice in range(2):
            step[state, NEXT[state, choice]] += policy[state, choice]
    return np.asarray(np.linalg.solve(np.eye(3) - gamma * step, (policy * REWARD).sum(1)), np.float64)


def chain(rng: np.random.Generator, count: int, gamma: float, acted: Array, noise: Array) -> tuple[Evidence, float]:
    """Log `count` ticks of a chain of three states; return the evidence and the true difference per tick."""
    state, choice = np.zeros(count, int), np.zeros(count, int)
    for n in range(count):
        choice[n] = int(rng.random() < acted[state[n], 1])
        if n + 1 < count:
            state[n + 1] = NEXT[state[n], choice[n]]
    follows = np.ones(count, bool)
    follows[-1] = False

    def features(chances: Array) -> Array:
        cells = np.zeros((count, 3, 2))
        cells[np.arange(count), state] = chances
        return np.hstack([np.ones((count, 1)), cells.reshape(count, -1)])

    sides = [Side(policy[state, choice], features(policy[state])) for policy in (CANDIDATE, LIVE)]
    gap = (1 - gamma) * (chain_value(CANDIDATE, gamma) - chain_value(LIVE, gamma))
    evidence = Evidence(
        REWARD[state, choice] + noise, np.zeros(count, bool), follows, follows, np.ones(count, bool),
        acted[state, choice], features(np.eye(2)[choice]), sides[0], sides[1], gamma,
    )  # fmt: skip
    return evidence, float(gap[state[follows]].mean())


def ope(first: int, runs: int) -> None:
    """Coverage of the lower bound of off-policy evaluation, and candidates with actions that the log does not contain."""
    for gamma in (0.0, 0.8, 0.99):
        for rho in (0.0, 0.9, 0.99):
            held, decided = 0, 0
            for seed in range(first, first + runs):
                rng = np.random.default_rng([seed, 8])
                evidence, truth = chain(rng, 2_048, gamma, ACTED, ar1(rng, 2_048, rho))
                judged = judge(evidence, confidence=0.95, min_effective_samples=30)
                if judged.decides is not None:
                    decided, held = decided + 1, held + (judged.decides.lower <= truth)
            row(
                f"off-policy bound, gamma {gamma}, AR(1) {rho}: coverage",
                ">= .93",
                f"{held / max(decided, 1):.3f} of {decided} decided",
            )
    rare = np.array([[0.9995, 0.0005], [0.7, 0.3], [0.4, 0.6]])
    passed = 0
    for seed in range(first, first + runs):
        rng = np.random.default_rng([seed, 9])
        evidence, _ = chain(rng, 2_048, 0.0, rare, rng.normal(size=2_048))
        judged = judge(evidence, confidence=0.95, min_effective_samples=30)
        passed += judged.decides is not None and judged.decides.lower > -0.05
    row("candidate with an action that the log hardly contains: passed", "0", f"{passed} of {runs}")


def finetunes(first: int, runs: int) -> None:
    """200 equal fine-tunes against one file of 400 examples (four fifths of the answers as before), then a better one."""
    settings = FinetuneSettings()
    shown, better = [], []

    def answers(rng: np.random.Generator, before: Array | None, share: float) -> Array:
        fresh = (rng.random(400) < share).astype(np.float64)
        return fresh if before is None else np.where(rng.random(400) < 0.8, before, fresh)

    def passes(after: Array, live: Array, anchor: Array) -> bool:
        figures = {
            "all_after": after.mean(), "all_before": live.mean(), "all_anchor": anchor.mean(),
            "before_upper": paired_bounds(after.tolist(), live.tolist())[1],
            "anchor_upper": paired_bounds(after.tolist(), anchor.tolist())[1],
        }  # fmt: skip
        return rejection_reason(figures, settings) is None

    for seed in range(first, first + runs):
        rng = np.random.default_rng([seed, 10])
        live = anchor = answers(rng, None, 0.8)
        for question in range(1, 201):
            after = answers(rng, live, 0.8)
            if passes(after, live, anchor):
                live = after
                if paired_bounds(after.tolist(), anchor.tolist(), anchor_confidence(question))[0] > 0:
                    anchor = after
        shown.append(float(live.mean()))
        better.append(passes(answers(rng, None, 0.82), live, anchor))
    row(
        "200 equal fine-tunes: the file says of the live one",
        "within .01 of .80",
        f"{np.mean(shown):.3f} (se {np.std(shown) / len(shown) ** 0.5:.3f})",
    )
    row("then one 2 points better: accepted", ">= 60 %", f"{np.mean(better):.0%}")


def sources(first: int, runs: int) -> None:
    """Sources of rewards that rate the same thing, or not; two ticks a second for eight hours."""
    count = 8 * 3_600 * 2
    kinds: dict[str, tuple[str, Callable[[np.random.Generator, Array], tuple[dict[str, Array], dict[str, SourceRule]]]]] = {
        "honest person against a faulty dense sensor: person silenced": ("0", lambda rng, u: (
            {"sensor": -u, "person": np.where(rng.random(count) < 0.05, np.sign(u), np.nan)},
            {"sensor": SourceRule("comfort", 1), "person": SourceRule("comfort", 3)})),
        "gain and price: one of them silenced": ("0", lambda rng, u: (
            {"comfort": u, "energy": np.where(rng.random(count) < 0.2, -0.3 * u, np.nan)},
            {"comfort": SourceRule("comfort", 1), "energy": SourceRule("energy", 1)})),
        "lies half of the time: named": (">= 9 of 10", lambda rng, u: (
            {"world": u, "liar": np.where(rng.random(count) < 0.25, np.where(rng.random(count) < 0.5, -u, u), np.nan)},
            {"world": SourceRule("comfort", 2), "liar": SourceRule("comfort", 1)})),
        "honest with noise as large as .5 of the signal: named": ("0", lambda rng, u: (
            {"world": u + 0.5 * rng.normal(size=count), "liar": u + 0.5 * rng.normal(size=count)},
            {"world": SourceRule("comfort", 2), "liar": SourceRule("comfort", 1)})),
    }  # fmt: skip
    watched = {
        "honest person against a faulty dense sensor: person silenced": "person",
        "gain and price: one of them silenced": "",
    }
    for name, (wanted, make) in kinds.items():
        hit, when = 0, []
        total = max(runs // 10, 4)
        for seed in range(first, first + total):
            rng = np.random.default_rng([seed, 11])
            series, rules = make(rng, ar1(rng, count, 0.9))
            court, found = Quarantine(rules), None
            for n in range(count):
                rewards = {source: float(values[n]) for source, values in series.items() if not np.isnan(values[n])}
                for finding in court.observe(
                    LedgerEntry(str(n), 1e6 + n / 2, "v", acted=True, refused=False, rewards=rewards)
                ):
                    if finding.kind == "contradicts":
                        found = finding.source
                        when.append(n / 7_200)
                if found is not None:
                    break
            hit += found is not None and found == (watched.get(name, "liar") or found)
        row(name, wanted, f"{hit} of {total}" + (f", first finding after {np.median(when):.1f} h" if when else ""))


TRIALS: dict[str, Callable[[int, int], None]] = {
    "creep": creep, "noise": noise, "worse": worse, "slow": slow, "guard": guard, "disturbed": disturbed,
    "ope": ope, "finetunes": finetunes, "sources": sources,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TRIALS), help="trials, separated by commas")
    parser.add_argument("--runs", type=int, default=100, help="runs of a trial; long trials take a part of them")
    parser.add_argument("--first", type=int, default=100, help="first seed; 0 to 9 served for tuning")
    given = parser.parse_args(arguments)
    for name in given.only.split(","):
        started = time.monotonic()
        TRIALS[name](given.first, given.runs)
        print(f"  ({name}: {time.monotonic() - started:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
