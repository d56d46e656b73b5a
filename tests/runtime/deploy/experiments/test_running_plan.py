"""What experiments cost: a challenger that loses acts rarely, however many come, and one that wins is not delayed."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from learners.experiment_statistics.paired_outcomes import TickOutcome
from learners.experiment_statistics.plan import SHARES, ExperimentPlan
from runtime.deploy.experiments.running_plan import (
    GIVE_UP_PAIRS,
    MOST_ALONE_S,
    RACE_PAIRS,
    ExperimentPhase,
    LossBudget,
    pairs_allowed,
)

TICK_S = 0.02


def phase_of(number: int, budget: LossBudget, *, share: float = SHARES[2]) -> ExperimentPhase:
    plan = ExperimentPlan(
        "live", f"c{number}", "live", "return", 1, 0, share, 2.0, 0.01, 1_000, number, episodic=True, tick_s=TICK_S
    )
    phase = ExperimentPhase(number, plan, budget=budget)
    phase.begun = True
    return phase


def episode(phase: ExperimentPhase, number: int, returns: dict[str, float]) -> tuple[str, float]:
    """One episode: who acts, its return, and the end."""
    found = phase.assign()
    assert found is not None
    version, assignment = found
    phase.add(f"d{number}", assignment, TickOutcome(), hold=False)
    phase.credit(f"d{number}", "world", returns[version])
    phase.episode_ended()
    phase.complete(late_units=1)
    return version, returns[version]


@pytest.mark.parametrize("race", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_bad_challengers_without_an_end_hardly_lower_the_mean(seed: int, *, race: bool) -> None:
    rng, budget, recent, lowest, number = np.random.default_rng(seed), LossBudget(480.0, 5.0), deque[float](), 500.0, 0
    phase, bad = phase_of(1_000 * seed, budget), 50.0
    phase.race = race
    for n in range(700):  # more than an hour at 50 Hz
        _, gained = episode(phase, n, {"live": 500.0, phase.plan.challenger or "": bad})
        recent.append(gained)
        while sum(recent) * TICK_S > 300.0:
            recent.popleft()
        if n > 40:
            lowest = min(lowest, sum(recent) / len(recent))
        if phase.verdict is not None:
            assert phase.verdict.outcome == "out"
            number, bad = number + 1, float(rng.uniform(10, 350))
            phase = phase_of(1_000 * seed + number, budget)
            phase.race = race
    assert number >= 4
    assert lowest >= 475.0


def test_a_better_challenger_is_never_delayed() -> None:
    budget = LossBudget(280.0, 20.0)
    phase, acted = phase_of(7, budget), []
    for n in range(400):
        acted.append(episode(phase, n, {"live": 300.0, "c7": 420.0})[0])
        if phase.verdict is not None:
            break
    assert phase.verdict is not None
    assert phase.verdict.better
    assert len(acted) <= 60
    assert budget.debt_ticks == 0


def test_without_a_known_gain_nothing_is_limited() -> None:
    budget = LossBudget()
    budget.pair(-100.0, 1)
    assert not budget.exhausted
    assert not budget.is_far(-1e9)


def test_noise_of_the_champions_own_size_costs_nothing_and_a_loss_is_earned_back() -> None:
    budget = LossBudget(100.0, 10.0)
    budget.pair(-14.0, 1)
    assert not budget.exhausted
    budget.pair(-64.142, 1)
    assert budget.units_alone == 25
    for _ in range(25):
        assert budget.exhausted
        budget.unit()
    assert not budget.exhausted


def test_a_version_that_a_person_made_live_is_not_delayed_by_the_budget() -> None:
    budget = LossBudget(100.0, 1.0, debt_ticks=1e6)
    phase = ExperimentPhase(1, phase_of(3, budget).plan, acts_in_plain="challenger", budget=budget)
    phase.begun = True
    acted = {episode(phase, n, {"live": 5.0, "c3": 5.0})[0] for n in range(30)}
    assert acted == {"live", "c3"}


@pytest.mark.parametrize("difference", [-1e9, float("-inf"), float("nan")])
def test_no_loss_keeps_the_champion_alone_for_ever(difference: float) -> None:
    budget = LossBudget(0.001, 0.0)
    budget.pair(difference, 200)
    assert budget.units_alone * budget.period_s <= MOST_ALONE_S
    for _ in range(budget.units_alone):
        budget.unit()
    assert not budget.exhausted
    assert budget.units_alone == 0


def test_the_champion_acts_alone_for_an_hour_at_most_also_where_episodes_are_long() -> None:
    budget = LossBudget(0.001, 0.0, unit_ticks=6_000.0)
    budget.pair(-50.0, 1)
    assert 6 <= budget.units_alone <= 7
    for _ in range(7):
        budget.unit()
    assert not budget.exhausted


def long_pair(*, rest: float, ends: bool, made_live: bool = False) -> tuple[ExperimentPhase, list[float | None]]:
    """Pairs in which the challenger earns 2 in an episode that takes too long, and `rest` in the rest of it; the champion earns 1."""
    plan = replace(phase_of(5, LossBudget()).plan, longest_ticks=4)
    phase = ExperimentPhase(5, plan, acts_in_plain="challenger" if made_live else "champion")
    phase.begun, number = True, 0
    pairs: list[float | None] = []
    while len(pairs) < 3:
        number += 1
        one = phase.assign()
        if one is None:
            phase.tick_alone(f"d{number}", TickOutcome())
            if phase.begun:
                pairs += [pair.reward for pair in phase.complete(late_units=0) if pair.kind == "challenge"]
                continue
            phase.credit(f"d{number}", "world", rest)
            if ends:
                phase.episode_ended()
        else:
            phase.add(f"d{number}", one[1], TickOutcome(), hold=False)
            if one[0] == "live":
                phase.credit(f"d{number}", "world", 1.0)
                phase.episode_ended()
            elif phase.ticks == 1:
                phase.credit(f"d{number}", "world", 2.0)
        pairs += [pair.reward for pair in phase.complete(late_units=0) if pair.kind == "challenge"]
    return phase, pairs


def test_the_rest_of_a_challengers_long_episode_counts_only_where_it_costs() -> None:
    assert long_pair(rest=-9.0, ends=True)[1] == pytest.approx([-8.0] * 3)
    assert long_pair(rest=5.0, ends=True)[1] == pytest.approx([1.0] * 3)


def test_a_live_challenger_earns_the_rest_of_its_long_episode_itself() -> None:
    assert long_pair(rest=5.0, ends=True, made_live=True)[1] == pytest.approx([6.0] * 3)


def test_a_challengers_episode_without_any_end_is_no_proof_for_it_but_may_be_one_against_it() -> None:
    phase, pairs = long_pair(rest=0.0, ends=False)
    assert pairs == [None] * 3
    assert phase.test.unknown == 3
    assert long_pair(rest=-9.0, ends=False)[1] == pytest.approx([-26.0] * 3)


def test_a_takeover_in_the_rest_of_a_long_episode_counts_for_its_unit() -> None:
    plan = replace(phase_of(5, LossBudget()).plan, longest_ticks=2, share=0.5)
    phase, number, harms = ExperimentPhase(5, plan), 0, []
    phase.begun = True
    while not harms:
        number += 1
        one = phase.assign()
        if one is None:
            phase.tick_alone(f"d{number}", TickOutcome(takeover=True))
            phase.episode_ended()
        else:
            phase.add(f"d{number}", one[1], TickOutcome(), hold=False)
            if one[0] == "live":
                phase.episode_ended()
        harms += [pair.harms["takeover"] for pair in phase.complete(late_units=0) if pair.kind == "challenge"]
    assert harms == [1.0]


def test_a_unit_that_begins_in_the_middle_of_an_episode_counts_for_no_version() -> None:
    plan = replace(phase_of(5, LossBudget()).plan, longest_ticks=2, share=0.5)
    phase, number, endless = ExperimentPhase(5, plan), 0, False
    phase.begun = True
    while phase.pairs.counts["void"] < 3:
        number += 1
        one = phase.assign()
        if one is None:
            phase.tick_alone(f"d{number}", TickOutcome())
            endless |= phase.begun
        else:
            phase.add(f"d{number}", one[1], TickOutcome(), hold=False)
            if one[0] == "live":
                phase.credit(f"d{number}", "world", -1_000.0 if endless else 1.0)  # the disaster of the episode before
                phase.episode_ended()
                endless = False
        assert all(pair.reward is None or pair.reward < 0 for pair in phase.complete(late_units=0))


def test_a_gain_that_shrinks_makes_no_debt_longer_and_an_hour_has_as_many_ticks_as_the_period_says() -> None:
    budget = LossBudget(1.0, 0.0, period_s=1.0)
    budget.pair(-50.0, 20)
    assert budget.units_alone == MOST_ALONE_S
    budget.gain = 1e-6
    assert budget.units_alone == MOST_ALONE_S
    for _ in range(int(MOST_ALONE_S)):
        budget.tick()
    assert not budget.exhausted


def test_the_champion_also_earns_back_in_the_rest_of_an_episode_that_took_too_long() -> None:
    budget = LossBudget(1.0, 0.0, debt_ticks=5.0)
    phase = phase_of(1, budget)
    for _ in range(5):
        assert budget.exhausted
        phase.tick_alone("d", TickOutcome())
    assert not budget.exhausted


def with_differences(*found: float, race: bool = False) -> ExperimentPhase:
    phase = phase_of(1, LossBudget())
    phase.race, phase.differences = race, list(found)
    return phase


def test_the_pairs_of_a_challenger_double_with_each_undecided_one() -> None:
    assert [pairs_allowed(n, 1_000) for n in range(5)] == [12, 24, 48, 96, 192]
    assert pairs_allowed(10_000, 1_000) == 1_000


@pytest.mark.parametrize(
    ("found", "allowance", "gives_way"),
    [
        ([-1.0, 1.0] * 6, 48, True),  # no gain
        ([-1.0, 1.0] * 5, 48, False),  # no gain yet
        ([-1.0, 1.2] * 6, 12, True),  # a gain that is not in sight
        ([-1.0, 1.2] * 6, 24, False),
        ([0.5, 1.2] * 6, 12, False),  # close to a proof
        ([-1.0, -2.0, -1.0, -2.0, 1.0], 48, True),  # looks worse, and would act rarely for long
        ([-1.0, -2.0, -1.0, -2.0], 48, False),
    ],
)
def test_a_challenger_gives_way_to_a_newer_one(found: list[float], allowance: int, *, gives_way: bool) -> None:
    assert with_differences(*found).give_up(allowance) is gives_way


def test_a_persons_version_gives_way_only_without_a_gain() -> None:
    phase = with_differences(*[-1.0, 1.2] * 6)
    phase.acts_in_plain = "challenger"
    assert not phase.give_up(12)
    phase.differences = [-1.0, 1.0] * 6
    assert phase.give_up(12)


def test_a_race_is_lost_after_few_pairs_without_a_gain() -> None:
    assert with_differences(*[1.0, -1.0] * (RACE_PAIRS // 2), race=True).give_up(GIVE_UP_PAIRS)
    assert not with_differences(1.0, -1.0, race=True).give_up(GIVE_UP_PAIRS)


@pytest.mark.parametrize("pairs", range(RACE_PAIRS, GIVE_UP_PAIRS))
def test_one_incident_decides_no_race_and_two_do(pairs: int) -> None:
    for incidents in (1, 2):
        phase = phase_of(8, LossBudget())
        phase.race, phase.differences = True, [1.0 + n % 2 for n in range(pairs)]
        phase.harms = {"refusal": [0.37 * (n >= pairs - incidents) for n in range(pairs)]}
        phase._follow_estimate()
        assert (phase.verdict is not None) is (incidents == 1)


def test_a_race_is_won_after_few_pairs_and_survives_a_restart() -> None:
    phase = phase_of(8, LossBudget())
    phase.race = True
    for n in range(100):
        episode(phase, n, {"live": 300.0, "c8": 400.0 + n % 5})
        if phase.verdict is not None:
            break
        assert ExperimentPhase.of(phase.dump(), "zero").race
    assert phase.verdict is not None
    assert (phase.verdict.outcome, phase.verdict.better) == ("live", False)
    assert len(phase.differences) == RACE_PAIRS
    body = phase.dump()
    del body["race"]
    assert not ExperimentPhase.of(body, "zero").race, "an earlier program knew no races"
