"""Trials of the whole decision about the live version in virtual time, in worlds with a known truth.

    python tests/benchmarks/bench_experiments.py [--only hang,busy] [--runs 20] [--first 500]

`bench_promotion.py` measures the tests alone. Here the agent's `ExperimentController` decides: schedule, pairs, shares, loss budget,
verdicts, guard, and the moves of LIVE. A tick is a second, gamma is .9, and rewards of a tick have deviation 1. The live version earns 1
a tick, the untrained policy 0. Seeds 0 to 99 served for tuning. Each row prints what was wanted and what was seen.

`effects`, `pace` and `nothing` have whole episodes as units: a return has a deviation of 45 % and at most 500, a tick is .2 s and earns
10, and the learner proposes a version every 60 s. So an episode lasts as long as in CartPole at 50 Hz. `short` has episodes as in the
demo: 2.5 to 4 s, returns of 16 untrained and 38 at best with a deviation of 12, and a version every 20 s.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from promotion_world import PromotionWorld, World, WorldTick, noise  # noqa: E402 - the path comes first

from learners.experiment_statistics.alpha_budget import AlphaBudget  # noqa: E402
from learners.experiment_statistics.paired_outcomes import TickOutcome  # noqa: E402
from learners.experiment_statistics.plan import ExperimentPlan  # noqa: E402
from runtime.deploy.experiments.plan_from_settings import ExperimentRules  # noqa: E402
from runtime.deploy.experiments.running_plan import ExperimentPhase, LossBudget, pairs_allowed  # noqa: E402

RULES = ExperimentRules(period_s=1.0, gamma=0.9)
HOUR_S = 3_600.0
RHO = 0.9
EPISODES = ExperimentRules(period_s=0.2, gamma=0.9, cap_pairs=1_000)
TICK_REWARD, MOST = 10.0, 500.0
SPREAD = 0.45
"""Of the logarithm of a return."""
PROPOSED_S = 60.0
SHORT = ExperimentRules(period_s=0.1, gamma=0.5, cap_pairs=1_000)
SHORT_UNTRAINED, SHORT_BEST, SHORT_DEVIATION, SHORT_TICKS = 16.0, 38.0, 12.0, 32.0
"""Returns of short episodes, their deviation, and the mean number of their ticks."""


def row(name: str, wanted: str, seen: str) -> None:
    print(f"{name:<66} wanted {wanted:<24} seen {seen}", flush=True)


def times(found: list[float | None]) -> str:
    """Say how many ended, and after how long."""
    known = [value for value in found if value is not None]
    if not known:
        return f"0 of {len(found)}"
    return f"{len(known)} of {len(found)}, median {np.median(known) / 60:.0f} min, worst {max(known) / 60:.0f} min"


async def trusted(
    folder: str, world: World, versions: tuple[str, ...], *, rules: ExperimentRules = RULES
) -> PromotionWorld:
    """Return a world in which a person made the last of these versions the anchor, and trusts the one before as a way back."""
    one = PromotionWorld(Path(folder), world, rules=rules)
    await one.run(120.0)
    for version in versions:
        one.trust(version)
        one.experiments.state.trust.choose(version, "proof")
        one.experiments.endings.cancel("the trial begins")
        await one.run(400.0)
    one.experiments.state.renew_guard()
    one.events.clear()
    return one


async def worse(first: int, runs: int) -> None:
    """Challengers that lose 10, 25 and 50 %."""
    for loss, wanted in ((0.1, 5), (0.25, 1), (0.5, 0)):
        live, acted, ended = 0, [], []
        for seed in range(first, first + runs):
            draw, levels = noise(seed, RHO), {"untrained": 0.0, "old": 1.0, "good": 1.0, "worse": 1.0 - loss}
            with tempfile.TemporaryDirectory() as folder:
                one = await trusted(folder, lambda version, _: WorldTick(levels[version] + draw()), ("old", "good"))  # noqa: B023
                one.acted.clear()
                await one.propose("worse")
                ended.append(await one.run(24 * HOUR_S, until=lambda: "experiment_ended" in one.kinds()))  # noqa: B023
                live += one.live == "worse"
                acted.append(one.acted.count("worse") / len(one.acted))
        row(
            f"worse by {loss:.0%}, a day at most: live", f"<= {wanted} of 100",
            f"{live} of {runs}; verdict after median {np.median(ended) / 60:.0f} min; acted {np.mean(acted):.1%} of the time",
        )  # fmt: skip


async def fall(first: int, runs: int, kind: str, *, busy: bool, anchored: bool) -> list[float | None]:
    """Let every version but the reference fall after the live version acted well; return the seconds until it is taken back.

    Args:
        first: first seed.
        runs: number of runs.
        kind: `reward`, `takeover` or `success`.
        busy: the learner proposes an equal version whenever an experiment ended.
        anchored: the live version is the anchor; otherwise it was as good as the anchor.
    """
    found: list[float | None] = []
    for seed in range(first, first + runs):
        rng, draw, spared = np.random.default_rng([seed, 1]), noise(seed, RHO), [""]

        def world(version: str, _tick: int) -> WorldTick:
            bad = spared[0] not in ("", version)  # noqa: B023
            if kind == "takeover":
                held = bool(rng.random() < (0.43 if bad else 0.03))  # noqa: B023
                return WorldTick(1.0 + draw(), TickOutcome(takeover=held))  # noqa: B023
            if kind == "success":
                return WorldTick(float(rng.random() < (0.02 if bad else 0.2)) or None)  # noqa: B023
            level = 0.0 if version == "untrained" else 1.0
            return WorldTick(level + draw() - 10.0 * bad)  # noqa: B023

        with tempfile.TemporaryDirectory() as folder:
            one = await trusted(folder, world, ("old", "good"))
            if not anchored:
                one.experiments.state.trust.anchor, one.experiments.state.trust.previous = "old", None
            number = 0

            async def propose(seconds: float, one: PromotionWorld = one) -> float:
                nonlocal number
                begun_s = one.now_s
                while one.now_s - begun_s < seconds and "policy_rolled_back" not in one.kinds():
                    if busy and one.experiments.state.waiting is None:
                        number += 1
                        await one.propose(f"c{number}")
                    await one.run(300.0, until=lambda: "policy_rolled_back" in one.kinds())
                return one.now_s - begun_s

            await propose(1.5 * HOUR_S)
            early = "policy_rolled_back" in one.kinds()
            spared[0], before = one.experiments.state.reference() or "old", one.live
            took_s = await propose(6 * HOUR_S)
            out = one.live == spared[0] != before and not early
            found.append(took_s if out else None)
    return found


async def falls(first: int, runs: int) -> None:
    """Falls of the live version, with and without a busy learner, as the anchor and beside the anchor."""
    texts = {"reward": "-10 sd", "takeover": "takeovers 3 -> 43 %", "success": "successes .2 -> .02 a second"}
    for kind, text in texts.items():
        for anchored in (False, True):
            for busy in (False, True):
                found = await fall(first, runs, kind, busy=busy, anchored=anchored)
                where = "the anchor itself" if anchored else "as good as the anchor"
                row(f"{text}, {where}{', learner busy' if busy else ''}: out", ">= 95 %", times(found))


async def hang(first: int, runs: int) -> None:
    """Episodes of about 60 ticks that end with success; the challenger never ends one."""
    acted, ended, live = [], [], 0
    for seed in range(first, first + runs):
        rng = np.random.default_rng([seed, 2])

        def world(version: str, _tick: int) -> WorldTick:
            done = version != "hung" and rng.random() < (1 / 60 if version != "untrained" else 1 / 240)  # noqa: B023
            return WorldTick(1.0 if done else None, TickOutcome(done=bool(done)))

        with tempfile.TemporaryDirectory() as folder:
            one = await trusted(folder, world, ("old", "good"))
            one.acted.clear()
            await one.propose("hung")
            took_s = await one.run(6 * HOUR_S, until=lambda: "experiment_ended" in one.kinds())  # noqa: B023
            ended.append(took_s if "experiment_ended" in one.kinds() else None)
            acted.append(one.acted.count("hung") / len(one.acted))
            live += one.live == "hung"
    row(
        "a challenger that never ends an episode: verdict within 6 h", "all",
        f"{times(ended)}; acted {np.mean(acted):.0%} of the time, live {live}",
    )  # fmt: skip


def steady(draw: Callable[[], float]) -> World:
    """Return a world in which every trained version earns 1 a tick."""
    return lambda version, _tick: WorldTick(float(version != "untrained") + draw())


def harmed(seed: int, harm: str, every_s: int) -> World:
    """Return a world in which every trained version earns 1 a tick, and a tick is harmed by chance, whoever acts."""
    draw, rng = noise(seed, RHO), np.random.default_rng([seed, 3])
    marks = {True: TickOutcome(**{harm: True}), False: TickOutcome()}  # type: ignore[arg-type]
    return lambda version, _tick: WorldTick(
        float(version != "untrained") + draw(), marks[bool(rng.random() < 1 / every_s)]
    )


async def equal(first: int, runs: int) -> None:
    """A live version that equals the anchor for half a day: with strong memory in the rewards, and with rare harms."""
    for rho in (0.9, 0.99):
        await unchanged(f"AR(1) {rho}", "<= once a month", lambda seed, rho=rho: steady(noise(seed, rho)), first, runs)
    for harm, every_s in (("takeover", 300), ("takeover", 600), ("takeover", 1_800), ("refusal", 600)):
        await unchanged(
            f"{harm} every {every_s} s whoever acts", "0, the other <= 5 %",
            lambda seed, harm=harm, every_s=every_s: harmed(seed, harm, every_s), first, runs,
        )  # fmt: skip


async def unchanged(what: str, wanted: str, world_of: Callable[[int], World], first: int, runs: int) -> None:
    """Print how often an anchor as good as the version before was taken back in 12 h, and how much the other acted."""
    out, share = 0, []
    for seed in range(first, first + runs):
        with tempfile.TemporaryDirectory() as folder:
            one = await trusted(folder, world_of(seed), ("old", "good"))
            one.acted.clear()
            await one.run(12 * HOUR_S)
            out += one.live != "good"
            share.append(one.acted.count("old") / len(one.acted))
    row(
        f"{what}, nothing changes for 12 h: anchor taken back", wanted,
        f"{out} of {runs}; the version before acted {np.mean(share):.1%} of the time, at most {max(share):.1%}",
    )  # fmt: skip


class Episodes:
    """A world of episodes; `levels` gives by version the mean of a return before it is limited to `MOST`."""

    def __init__(self, seed: int, levels: dict[str, float]) -> None:
        self.levels, self.rng = levels, np.random.default_rng([seed, 4])
        self.returns: list[tuple[float, float]] = []
        """Seconds of the end, and return."""
        self._gained, self._luck = 0.0, self._draw()

    def __call__(self, version: str, tick: int) -> WorldTick:
        """Return what one tick earns; the version that acts at its end decides on the episode's length."""
        self._gained += TICK_REWARD
        done = self._gained >= min(MOST, self.levels[version] * self._luck)
        if done:
            self.returns.append((tick * EPISODES.period_s, self._gained))
            self._gained, self._luck = 0.0, self._draw()
        return WorldTick(TICK_REWARD, TickOutcome(done=done))

    def _draw(self) -> float:
        return float(np.exp(SPREAD * self.rng.normal() - SPREAD**2 / 2))

    def mean(self, first_s: float, last_s: float) -> float:
        """Return the mean return of the episodes that ended in an interval."""
        return float(np.mean([value for at_s, value in self.returns if first_s <= at_s < last_s]))


async def champion_of(folder: str, world: Episodes) -> PromotionWorld:
    """Return a world in which `good` is trusted by proof, so that challengers begin with half of the blocks."""
    one = PromotionWorld(Path(folder), world, rules=EPISODES)
    await one.run(60.0)
    one.trust("good")
    one.experiments.state.trust.choose("good", "proof")
    one.experiments.state.trust.pace = 2
    await one.run(60.0)
    one.events.clear()
    return one


async def effects(first: int, runs: int) -> None:
    """One challenger without a rival, which gains 10, 50 and 100 %."""
    for gain in (0.1, 0.5, 1.0):
        took, pairs = [], []
        for seed in range(first, first + runs):
            world = Episodes(seed, {"untrained": 22.0, "good": 150.0, "new": 150.0 * (1.0 + gain)})
            with tempfile.TemporaryDirectory() as folder:
                one = await champion_of(folder, world)
                await one.propose("new")
                seconds = await one.run(HOUR_S, until=lambda: "experiment_ended" in one.kinds())  # noqa: B023
                live = one.live == "new"
                took.append(seconds if live else None)
                pairs += [one.last("experiment_ended")["pairs"]] if live else []
        count = f", median {np.median(pairs):.0f} pairs" if pairs else ""
        row(f"150 a return, challenger better by {gain:.0%}: live in an hour", "", times(took) + count)


async def learning(
    folder: str, world: Episodes, minutes: int, level: Callable[[int], float], *, trusted: bool
) -> PromotionWorld:
    """Let a learner propose a version every minute; `level` says how good the version of a minute is."""
    if trusted:
        one = await champion_of(folder, world)
    else:
        one = PromotionWorld(Path(folder), world, rules=EPISODES)
    for minute in range(1, minutes + 1):
        await one.run(PROPOSED_S)
        world.levels[f"v{minute}"] = level(minute)
        await one.propose(f"v{minute}")
    return one


async def pace(first: int, runs: int) -> None:
    """A trusted version with a return of 283, and a version every minute; all of them gain as much, or each another amount."""
    for gain, swing in ((0.0, 0.0), (0.0, 0.3), (0.1, 0.0), (0.5, 0.0), (1.0, 0.0)):
        took, wrong, last = [], 0, []
        for seed in range(first, first + runs):
            world, rng = Episodes(seed, {"untrained": 22.0, "good": 283.0}), np.random.default_rng([seed, 5])
            with tempfile.TemporaryDirectory() as folder:
                one = await learning(
                    folder, world, 60, lambda _: 283.0 * (1 + gain) * float(np.exp(swing * rng.normal())), trusted=True  # noqa: B023
                )  # fmt: skip
            moves = [(at_s, data) for at_s, kind, data in one.events if kind == "policy_promoted"]
            took.append(moves[0][0] - 120.0 if moves else None)
            wrong += sum(world.levels[d["version"]] < 0.95 * world.levels[d["before"]] for _, d in moves)
            last.append(world.mean(3_300.0, 3_720.0))
        row(
            f"283 a return, a version a minute, better by {gain:.0%}, swing {swing:g}: first live", "",
            f"{times(took)}; worse ones live {wrong}; return at the end {np.mean(last):.0f}",
        )  # fmt: skip


def compare(phase: ExperimentPhase, factor: float, rng: np.random.Generator, allowance: int | None) -> int:
    """Let episodes pass until the challenger, with this multiple of the champion's return, has a verdict or gives way; return how many.

    Without an allowance no newer one waits.
    """
    phase.begun, count = True, 0
    while phase.verdict is None and not (allowance is not None and phase.give_up(allowance)):
        found = phase.assign()
        assert found is not None
        gained = float(np.exp(SPREAD * rng.normal())) * (factor if found[0] != "live" else 1.0)
        count += 1
        phase.add(f"d{count}", found[1], TickOutcome(), hold=False)
        phase.credit(f"d{count}", "world", gained)
        phase.episode_ended()
        phase.complete(late_units=1)
    return count


async def races(first: int, runs: int) -> None:
    """Races of a newer version against the leader, while nothing is trusted."""
    for factor in (0.5, 0.75, 0.9, 1.0, 1.1, 1.5, 2.0):
        won, took = 0, []
        for seed in range(first, first + runs):
            plan = ExperimentPlan("live", "new", None, "return", 1, 0, 0.5, 0.0, 0.02, 1_000, seed, episodic=True)
            phase = ExperimentPhase(1, plan, budget=LossBudget(1.0, SPREAD), race=True)
            rng = np.random.default_rng([seed, 8, round(100 * factor)])
            took.append(compare(phase, factor, rng, 1_000))
            won += phase.verdict is not None and phase.verdict.outcome == "live"
        row(
            f"race of a version with {factor:g} times the leader's return: it leads then",
            "0" if factor <= 0.5 else "all" if factor >= 2 else "",
            f"{won} of {runs}; median {np.median(took):.0f} episodes, worst {max(took)}",
        )  # fmt: skip


async def superseded(first: int, runs: int) -> None:
    """A trusted version with a return of 283; the first challenger equals it, and those after two minutes earn twice as much."""
    took = []
    for seed in range(first, first + runs):
        world = Episodes(seed, {"untrained": 22.0, "good": 283.0})
        with tempfile.TemporaryDirectory() as folder:
            one = await learning(folder, world, 30, lambda minute: 283.0 if minute <= 2 else 566.0, trusted=True)
        took.append(next((at_s - 120.0 for at_s, kind, _ in one.events if kind == "policy_promoted"), None))
    row("an equal challenger, then ones that earn twice as much: first live", "", times(took))


@dataclass(slots=True)
class Stream:
    """A champion and challengers without end, each of which gives way to the next one as the agent decides; no margin."""

    seed: int
    counts_all: bool = True
    """Challengers that gave way count in the error budget; False only to show why they have to."""
    alpha: AlphaBudget = field(default_factory=AlphaBudget)
    undecided: int = 0
    pairs: int = 0
    tried: int = 0

    def next(self, factor: float, *, rivals: bool = True) -> bool:
        """Try one challenger with this multiple of the champion's return; return whether it was promoted."""
        rng, number = np.random.default_rng([self.seed, 7, self.tried]), self.tried
        self.tried += 1
        alpha = self.alpha.next_alpha()
        plan = ExperimentPlan(
            "live", f"c{number}", "live", "return", 1, 0, 0.5, 0.0, alpha, 1_000,
            1_000_000 * self.seed + number, episodic=True,
        )  # fmt: skip
        phase = ExperimentPhase(number, plan, budget=LossBudget())
        compare(phase, factor, rng, pairs_allowed(self.undecided, plan.cap_pairs) if rivals else None)
        self.pairs += len(phase.differences)
        verdict = phase.verdict
        promoted, ahead = verdict is not None and verdict.outcome == "live", sum(phase.differences) > 0
        if self.counts_all or (verdict is not None and verdict.outcome != "cap"):
            self.alpha.record(promoted=promoted, alpha=alpha)
        gave_way = ahead and (verdict is None or verdict.outcome == "cap")
        self.undecided = 0 if promoted else self.undecided + int(gave_way)
        return promoted


async def streams(first: int, runs: int) -> None:
    """Challengers without end that are no better: whether one is promoted."""
    for counts_all in (True, False):
        for loss in (0.0, 0.1):
            wrong = [sum(one.next(1.0 - loss) for _ in range(100))
                     for one in (Stream(seed, counts_all) for seed in range(first, first + runs))]  # fmt: skip
            row(
                f"100 challengers worse by {loss:.0%}, {'each counts' if counts_all else 'only verdicts count'}: promoted",
                "<= 10 % of runs" if counts_all else "", f"in {sum(n > 0 for n in wrong)} of {runs} runs, {sum(wrong)} in all",
            )  # fmt: skip


async def gains(first: int, runs: int) -> None:
    """Challengers without end that are better: whether they are starved."""
    for gain in (0.1, 0.2, 0.5, 1.0):
        alone, needed, tried = [], [], []
        for seed in range(first, first + runs):
            one = Stream(seed)
            alone.append(one.pairs if one.next(1.0 + gain, rivals=False) else 1_000)
            one = Stream(seed)
            while not one.next(1.0 + gain) and one.pairs < 20_000:
                pass
            needed.append(one.pairs)
            tried.append(one.tried)
        row(
            f"challengers better by {gain:.0%}, a newer one always waits: pairs to a proof", "",
            f"median {np.median(needed):.0f}, worst {max(needed)}, of {np.median(tried):.0f} challengers; without rivals {np.median(alone):.0f}",
        )  # fmt: skip


async def nothing(first: int, runs: int) -> None:
    """From the untrained policy: a learner that climbs within 2 or 6 minutes, with versions that swing."""
    for minutes, swing in ((2, 0.25), (6, 0.25), (6, 0.5)):
        found, trusted_at = [], []
        for seed in range(first, first + runs):
            world, rng = Episodes(seed, {"untrained": 22.0}), np.random.default_rng([seed, 6])
            with tempfile.TemporaryDirectory() as folder:
                one = await learning(
                    folder, world, 30, lambda n: (700 - 640 * np.exp(-n / minutes)) * float(np.exp(swing * rng.normal())),  # noqa: B023
                    trusted=False,
                )  # fmt: skip
            found.append([world.mean(60.0 * a, 60.0 * b) for a, b in ((4, 8), (8, 14), (14, 22), (22, 30))])
            trusted_at.append(next((at_s for at_s, kind, _ in one.events if kind == "policy_trusted"), None))
        means, low = np.mean(found, 0), np.min(found, 0)
        row(
            f"from nothing, climbs in {minutes} min, swing {swing:g}: return to min 8, 14, 22, 30", "475",
            f"{', '.join(f'{value:.0f}' for value in means)}; lowest {', '.join(f'{value:.0f}' for value in low)}; trusted {times(trusted_at)}",
        )  # fmt: skip


async def leader(first: int, runs: int) -> None:
    """A leader that is not trusted yet falls by 10 deviations to below the untrained policy, or nothing happens; no newer version comes."""
    for loss in (10.0, 0.0):
        took, wrong = [], 0
        for seed in range(first, first + runs):
            draw, fallen = noise(seed, RHO), [False]
            worth = {"early": 3.0, "best": 6.0, "newer": 1.0}

            def world(version: str, _tick: int) -> WorldTick:
                falls = loss if fallen[0] and version == "best" else 0.0  # noqa: B023
                return WorldTick(worth.get(version, 0.0) - falls + draw())  # noqa: B023

            with tempfile.TemporaryDirectory() as folder:
                one = PromotionWorld(Path(folder), world, rules=RULES)
                await one.run(60.0)
                for version in worth:
                    await one.propose(version)
                    await one.run(60.0, until=lambda: one.experiments.state.racing)  # noqa: B023
                if one.live != "best" or one.experiments.state.trust.anchor is not None:
                    continue
                fallen[0] = True
                seconds = await one.run(HOUR_S, until=lambda: one.live != "best")  # noqa: B023
                took.append(seconds if one.live == "early" else None)
                wrong += one.live != "best"
        seen = times(took) if loss else f"{wrong} of {len(took)}"
        row(
            f"a leader falls by {loss:g} deviations before it is trusted: another one leads",
            "all" if loss else "0",
            seen,
        )


class ShortEpisodes:
    """A world of episodes of 25 to 40 ticks of .1 s. Returns vary by more than versions differ; `levels` as above."""

    def __init__(self, seed: int, levels: dict[str, float]) -> None:
        self.levels, self.rng = levels, np.random.default_rng([seed, 4])
        self.acted: list[tuple[float, float]] = []
        """Seconds of the end of an episode, and level of the version that acted then."""
        self._left, self._luck = 0, 0.0

    def __call__(self, version: str, tick: int) -> WorldTick:
        """Return what one tick earns."""
        if not self._left:
            self._left, self._luck = int(self.rng.integers(25, 41)), SHORT_DEVIATION * float(self.rng.normal())
        self._left -= 1
        if not self._left:
            self.acted.append((tick * SHORT.period_s, self.levels[version]))
        return WorldTick((self.levels[version] + self._luck) / SHORT_TICKS, TickOutcome(done=not self._left))


async def short(first: int, runs: int) -> None:
    """From nothing, with short episodes: how much of what the newest version would earn is earned."""
    span, marks = SHORT_BEST - SHORT_UNTRAINED, ((4, 5), (9, 10), (6, 12))
    for minutes, swing in ((2, 0.05), (4, 0.05), (4, 0.15), (8, 0.05)):
        found, newest = [], []
        for seed in range(first, first + runs):
            world, rng = ShortEpisodes(seed, {"untrained": SHORT_UNTRAINED}), np.random.default_rng([seed, 6])
            with tempfile.TemporaryDirectory() as folder:
                one = PromotionWorld(Path(folder), world, rules=SHORT)
                for number in range(1, 37):
                    await one.run(20.0)
                    share = 0.95 * (1 - np.exp(-number / 3 / minutes)) + swing * rng.normal()
                    world.levels[f"v{number}"] = SHORT_UNTRAINED + span * float(share)
                    await one.propose(f"v{number}")
            found.append([np.mean([x for at_s, x in world.acted if 60 * a <= at_s < 60 * b]) for a, b in marks])
            newest.append([np.mean([world.levels[f"v{n}"] for n in range(3 * a, 3 * b)]) for a, b in marks])
        shares, best = (np.array(found) - SHORT_UNTRAINED) / span, (np.array(newest) - SHORT_UNTRAINED) / span
        row(
            f"short episodes, climbs in {minutes} min, swing {swing:g}: share in min 5, 10, 7 to 12",
            ", ".join(f"{value:.2f}" for value in best.mean(0)),
            f"{', '.join(f'{value:.2f}' for value in shares.mean(0))}; lowest {', '.join(f'{value:.2f}' for value in shares.min(0))}",
        )


TRIALS: dict[str, Callable[[int, int], Awaitable[None]]] = {
    "worse": worse, "falls": falls, "hang": hang, "equal": equal, "effects": effects, "pace": pace, "nothing": nothing, "short": short,
    "superseded": superseded, "streams": streams, "gains": gains, "races": races, "leader": leader,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TRIALS), help="trials, separated by commas")
    parser.add_argument("--runs", type=int, default=20, help="runs of a trial")
    parser.add_argument("--first", type=int, default=500, help="first seed; 0 to 99 served for tuning")
    given = parser.parse_args(arguments)
    for name in given.only.split(","):
        started = time.monotonic()
        asyncio.run(TRIALS[name](given.first, given.runs))  # type: ignore[arg-type]
        print(f"  ({name}: {time.monotonic() - started:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
