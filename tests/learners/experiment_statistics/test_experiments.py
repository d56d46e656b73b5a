"""The live experiment: plan, schedule, pairing, confidence sequence, test, guard and alpha budget."""

from __future__ import annotations

import json

import numpy as np
import pytest

from learners.experiment_statistics.alpha_budget import AlphaBudget
from learners.experiment_statistics.confidence_sequence import ConfidenceSequence
from learners.experiment_statistics.experiment_test import ExperimentTest, short
from learners.experiment_statistics.level_watch import LevelWatch
from learners.experiment_statistics.live_version_guard import Guard, rare_harm_bound
from learners.experiment_statistics.paired_outcomes import HARMS, PairDifference, PairedOutcomes, TickOutcome
from learners.experiment_statistics.plan import ExperimentPlan, PlanError, block_design, margin
from learners.experiment_statistics.switchback import Switchback

NO_HARM = dict.fromkeys(HARMS, 0.0)


def plan(**changes: object) -> ExperimentPlan:
    fields: dict[str, object] = {
        "champion": "v1",
        "challenger": "v2",
        "anchor": "v1",
        "metric": "reward",
        "block_ticks": 4,
        "washout_ticks": 1,
        "share": 0.5,
        "delta": 0.1,
        "alpha": 0.025,
        "cap_pairs": 2_000,
        "seed": 7,
    }
    return ExperimentPlan(**(fields | changes))  # type: ignore[arg-type]


def pair(
    number: int, reward: float | None, opponent: str = "champion", kind: str = "challenge", **harms: float
) -> PairDifference:
    return PairDifference(number, kind, opponent, reward, NO_HARM | harms)  # type: ignore[arg-type]


def test_a_plan_survives_json_and_impossible_ones_are_refused() -> None:
    assert ExperimentPlan.of(json.loads(json.dumps(plan().dump()))) == plan()
    for changes in ({"share": 0.6}, {"washout_ticks": 4}, {"alpha": 0.0}, {"challenger": "v1"}, {"delta": -1.0}):
        with pytest.raises(PlanError):
            plan(**changes)
    with pytest.raises(PlanError, match="seed"):
        ExperimentPlan.of(plan().dump() | {"seed": "7"})
    with pytest.raises(PlanError, match="unknown"):
        ExperimentPlan.of(plan().dump() | {"more": 1})


def test_blocks_follow_the_carry_over() -> None:
    assert block_design(0.0).block_ticks == 1
    assert block_design(0.0, action_lag_ticks=2).washout_ticks == 2
    assert block_design(0.99).washout_ticks == 99
    assert block_design(0.99).block_ticks == 199
    assert block_design(0.99, episodic=True).episodic
    assert block_design(0.99, measured_ticks=3.0).washout_ticks == 3
    assert margin(2.0, 0.5) == 0.05
    assert margin(0.2, 1.0) == pytest.approx(0.01)
    assert margin(-1.0, 1.0) == 0.0


def test_every_pair_has_both_versions_and_the_coin_is_fair() -> None:
    schedule = Switchback(plan())
    found = [schedule.assignment(unit) for unit in range(8 * 500)]
    again = Switchback(plan())
    assert [again.assignment(unit) for unit in range(8 * 500)] == found
    coins = []
    for number in range(500):
        units = found[8 * number : 8 * number + 8]
        assert {one.arm for one in units} == {"champion", "challenger"}
        assert [one.washout for one in units] == [True, False, False, False] * 2
        assert len({one.coin for one in units}) == 1
        assert (units[0].arm == "champion") == (units[0].coin == 1)
        coins.append(units[0].coin)
    assert 210 < sum(c for c in coins if c is not None) < 290


def test_the_anchor_and_the_challenger_have_their_shares() -> None:
    schedule = Switchback(plan(anchor="v0", share=0.2, anchor_share=0.05, block_ticks=1, washout_ticks=0))
    arms = [schedule.assignment(unit).arm for unit in range(8_000)]
    assert arms.count("challenger") / 8_000 == pytest.approx(0.2, abs=0.02)
    assert arms.count("anchor") / 8_000 == pytest.approx(0.05, abs=0.012)
    without = Switchback(plan(anchor="v0", share=0.2, anchor_share=0.0, block_ticks=1, washout_ticks=0))
    assert all(without.assignment(unit).arm != "anchor" for unit in range(2_000))
    second = Switchback(plan(anchor="v0", anchor_share=0.0))
    assert {second.assignment(u, opponent="anchor").arm for u in range(8)} == {"challenger", "anchor"}


def test_the_opponent_of_a_slot_is_fixed_when_it_begins() -> None:
    schedule = Switchback(plan(anchor="v0", anchor_share=0.0))
    arms = [schedule.assignment(unit, opponent="champion" if unit < 3 else "anchor").arm for unit in range(8)]
    assert "anchor" not in arms
    assert "anchor" in {schedule.assignment(unit, opponent="anchor").arm for unit in range(8, 16)}


def run_pair(
    outcomes: PairedOutcomes, schedule: Switchback, slot: int, rewards: dict[str, float], **marks: bool
) -> None:
    """One slot of 8 ticks: each version has its reward at each tick; marks are the challenger's."""
    for unit in range(8 * slot, 8 * slot + 8):
        one = schedule.assignment(unit)
        outcomes.add(one, TickOutcome({"tick": rewards[one.arm]}, **(marks if one.arm == "challenger" else {})))


def test_a_pair_is_closed_when_late_rewards_can_no_longer_arrive() -> None:
    outcomes, schedule = PairedOutcomes(plan(), late_units=8), Switchback(plan())
    run_pair(outcomes, schedule, 0, {"champion": 1.0, "challenger": 1.5})
    late = next(
        u for u in range(8) if schedule.assignment(u).arm == "challenger" and not schedule.assignment(u).washout
    )
    assert outcomes.complete(8) == []
    assert outcomes.credit(late, "person", 3.0)
    (found,) = outcomes.complete(16)
    assert found.reward == pytest.approx(0.5 + 3.0 / 3)
    assert found.harms == NO_HARM
    assert not outcomes.credit(late, "person", 3.0)
    assert outcomes.counts["late"] == 1


def test_washout_does_not_count() -> None:
    outcomes, schedule = PairedOutcomes(plan()), Switchback(plan())
    for unit in range(8):
        one = schedule.assignment(unit)
        outcomes.add(one, TickOutcome({"tick": 100.0 if one.washout else 1.0}))
    assert outcomes.complete(8)[0].reward == 0.0


@pytest.mark.parametrize(("silence", "wanted"), [("zero", 2.0 / 3), ("unknown", 1.0)])
def test_silence_is_zero_or_unknown_as_the_setting_of_the_source(silence: str, wanted: float) -> None:
    outcomes = PairedOutcomes(plan(), silence=silence)  # type: ignore[arg-type]
    schedule = Switchback(plan())
    spoken = {"champion": 1, "challenger": 2}
    for unit in range(8):
        one = schedule.assignment(unit)
        speaks = not one.washout and spoken[one.arm] > 0
        spoken[one.arm] -= speaks
        value = 2.0 if one.arm == "challenger" else 1.0
        outcomes.add(one, TickOutcome({"person": value} if speaks else {}))
    (found,) = outcomes.complete(8)
    assert found.reward == pytest.approx(4.0 / 3 - 1.0 / 3 if silence == "zero" else wanted)


def test_an_unknown_pair_gives_no_reward_difference() -> None:
    outcomes, schedule = PairedOutcomes(plan(), silence="unknown"), Switchback(plan())
    for unit in range(8):
        outcomes.add(schedule.assignment(unit), TickOutcome())
    assert outcomes.complete(8)[0].reward is None


def test_a_takeover_counts_as_the_worst_and_as_harm() -> None:
    outcomes, schedule = PairedOutcomes(plan()), Switchback(plan())
    run_pair(outcomes, schedule, 0, {"champion": -2.0, "challenger": 1.0})
    run_pair(outcomes, schedule, 1, {"champion": 1.0, "challenger": 9.0}, takeover=True)
    _, found = outcomes.complete(16)
    assert found.reward == pytest.approx(-2.0 - 1.0)
    assert found.harms["takeover"] == 1.0


def test_a_rescued_episode_counts_as_the_worst_return() -> None:
    episodes = plan(block_ticks=1, washout_ticks=0, episodic=True, metric="return")
    outcomes, schedule = PairedOutcomes(episodes), Switchback(episodes)
    returns = [{"champion": 5.0, "challenger": 1.0}, {"champion": 5.0, "challenger": 50.0}]
    for unit in range(4):
        one = schedule.assignment(unit)
        value = returns[unit // 2][one.arm]
        rescued = unit >= 2 and one.arm == "challenger"
        outcomes.add(one, TickOutcome({"tick": value / 2}))
        outcomes.add(one, TickOutcome({"tick": value / 2}, takeover=rescued, done=True))
    first, second = outcomes.complete(4)
    assert first.reward == -4.0
    assert second.reward == 1.0 - 5.0
    assert second.harms["takeover"] == 1.0


def test_an_interrupted_episode_voids_its_pair() -> None:
    episodes = plan(block_ticks=1, washout_ticks=0, episodic=True)
    outcomes, schedule = PairedOutcomes(episodes), Switchback(episodes)
    outcomes.add(schedule.assignment(0), TickOutcome({"tick": 1.0}, done=True))
    outcomes.add(schedule.assignment(1), TickOutcome({"tick": 1.0}))
    assert outcomes.complete(2) == []
    assert outcomes.counts["void"] == 1


@pytest.mark.parametrize("tail", ["normal", "t1.5", "drift"])
def test_an_equal_version_is_rarely_proved_better_whatever_the_noise(tail: str) -> None:
    rng = np.random.default_rng(11)
    false = 0
    for _ in range(120):
        sequence = ConfidenceSequence(0.05, 0.05)
        noise = {
            "normal": rng.normal(size=150),
            "t1.5": rng.standard_t(1.5, size=150),
            "drift": np.linspace(-5, 5, 150) * rng.choice([-1.0, 1.0], 150),
        }[tail]
        for value in noise:
            sequence.update(float(value))
        false += sequence.is_above(0.0)
    assert false <= 120 * 0.05 + 6


def test_the_bounds_enclose_the_effect_and_shrink() -> None:
    rng = np.random.default_rng(3)
    sequence = ConfidenceSequence(0.025, 0.025)
    widths = []
    for i, value in enumerate(0.5 + rng.normal(size=400)):
        sequence.update(float(value))
        if i in (20, 399):
            widths.append(sequence.upper() - sequence.lower())
            assert sequence.lower() < 0.5 < sequence.upper()
    assert widths[1] < widths[0] / 2
    assert sequence.is_above(0.0)
    assert sequence.lower() > 0
    with pytest.raises(ValueError, match="finite"):
        sequence.update(float("nan"))


def test_a_doubling_is_proved_in_a_few_pairs() -> None:
    test = ExperimentTest(plan(delta=0.0))
    rng = np.random.default_rng(0)
    for number in range(40):
        test.update(pair(number, 1.0 + 0.3 * rng.normal()))
        if test.verdict is not None:
            break
    assert test.verdict is not None
    assert test.verdict.outcome == "live"
    assert test.verdict.better
    assert test.verdict.new_anchor
    assert test.pairs <= 15


def test_a_worse_challenger_is_out_and_an_undecided_one_leaves_the_champion() -> None:
    rng = np.random.default_rng(0)
    worse, equal = ExperimentTest(plan()), ExperimentTest(plan(delta=0.0, cap_pairs=60))
    for number in range(60):
        worse.update(pair(number, -1.0 + rng.normal()))
        equal.update(pair(number, float(rng.normal())))
    assert worse.verdict is not None
    assert (worse.verdict.outcome, worse.verdict.reason) == ("out", "worse than the champion")
    assert equal.verdict is not None
    assert equal.verdict.outcome == "cap"
    assert len(equal.looks) == 60


def test_an_equal_challenger_needs_the_anchor() -> None:
    rng = np.random.default_rng(0)
    test = ExperimentTest(plan(anchor="v0", delta=0.5))
    number = 0
    while test.opponent == "champion":
        test.update(pair(number, 0.3 * float(rng.normal())))
        number += 1
    assert test.verdict is None
    far = ExperimentTest.of(json.loads(json.dumps(test.dump())))
    assert (far.opponent, far.pairs) == ("anchor", test.pairs)
    while test.verdict is None:
        test.update(pair(number, 0.3 * float(rng.normal()), "anchor"))
        number += 1
    assert test.verdict.outcome == "live"
    assert not test.verdict.better
    while far.verdict is None:
        far.update(pair(number, -1.0 + 0.3 * float(rng.normal()), "anchor"))
        number += 1
    assert far.verdict.outcome == "out"


def test_more_takeovers_end_the_experiment_whatever_the_reward() -> None:
    test = ExperimentTest(plan())
    for number in range(40):
        test.update(pair(number, 0.0, takeover=0.4))
    assert test.verdict is not None
    assert test.verdict.reason == "more takeovers than the champion"


@pytest.mark.parametrize(("incidents", "passes"), [((), True), ((3,), True), ((3, 5), False)])
def test_a_gain_that_is_proved_waits_until_more_harm_than_one_incident_is_explained(
    incidents: tuple[int, ...], *, passes: bool
) -> None:
    test = ExperimentTest(plan())
    rng = np.random.default_rng(2)
    for number in range(12):
        test.update(pair(number, 5.0 + float(rng.normal()), refusal=0.3 if number in incidents else 0.0))
    assert test.rewards["champion"].is_above(0.0)
    assert (test.verdict is not None) is passes
    for number in range(12, 40):  # the champion has as many
        test.update(pair(number, 5.0 + float(rng.normal()), refusal=(0.3, -0.3)[number % 2]))
    assert test.verdict is not None
    assert test.verdict.outcome == "live"


def test_the_sentence_names_the_evidence_and_the_interval() -> None:
    test = ExperimentTest(plan(tick_s=0.5, delta=0.0))
    assert test.sentence() == "no pair is complete"
    rng = np.random.default_rng(1)
    for number in range(60):
        test.update(pair(number, 0.03 + 0.1 * float(rng.normal())))
    text = test.sentence()
    assert text.startswith("4 paired minutes; ")
    assert ", between " in text
    assert short(0.034) == ".034"
    assert short(-0.5) == "-.5"
    assert short(12.0) == "12"


def guard_pairs(guard: Guard, rewards: np.ndarray, **harms: float) -> int | None:  # type: ignore[type-arg]
    for number, value in enumerate(rewards):
        if guard.pair(pair(number, float(value), "anchor", "guard", **harms)) is not None:
            return number + 1
    return None


def test_the_guard_takes_back_after_months_of_honesty() -> None:
    rng = np.random.default_rng(0)
    guard = Guard(pair_s=48.0)
    assert guard_pairs(guard, rng.normal(size=3_000)) is None
    body = json.loads(json.dumps(guard.dump()))
    again = Guard(pair_s=48.0)
    again.restore(body)
    assert again.dump() == guard.dump()
    fallen = guard_pairs(again, rng.normal(size=200) - 10.0)
    assert fallen is not None
    assert fallen <= 40
    assert again.alarm is not None
    assert again.alarm.figure == "reward"
    held = guard_pairs(guard, rng.normal(size=200), takeover=0.4)
    assert held is not None
    assert guard.alarm is not None
    assert guard.alarm.figure == "takeover"


def test_a_fall_of_the_live_version_alone_raises_the_share_of_the_anchor() -> None:
    rng = np.random.default_rng(0)
    guard = Guard(pair_s=48.0)
    for _ in range(500):
        guard.block(float(rng.normal()), NO_HARM)
    assert guard.anchor_share == 0.05
    for _ in range(5):
        guard.block(float(rng.normal()) - 10, NO_HARM)
    assert guard.anchor_share == 0.5
    assert guard.alarm is None
    assert Guard(pair_s=48.0, base_share=0.0).anchor_share == 0.0
    assert guard.excluded_rate("failure") == pytest.approx(rare_harm_bound(505))
    assert rare_harm_bound(300) == pytest.approx(0.01, rel=0.01)


def test_alpha_does_not_vanish_and_promotions_earn_more() -> None:
    budget = AlphaBudget()
    first = budget.next_alpha()
    for _ in range(1_000):
        budget.record(promoted=False, alpha=budget.next_alpha())
    later = budget.next_alpha()
    assert first > 0.01
    assert 1e-4 < later < first / 20
    budget.record(promoted=True, alpha=later)
    assert budget.next_alpha() > 1.5 * later
    assert AlphaBudget.of(json.loads(json.dumps(budget.dump()))) == budget
    with pytest.raises(ValueError, match="format"):
        AlphaBudget.of(budget.dump() | {"format": 2})


def test_the_memory_of_the_alpha_budget_is_paid_for() -> None:
    budget = AlphaBudget(memory=20.0)
    rng = np.random.default_rng(0)
    for pattern in (np.zeros(300), np.ones(300), rng.random(300) < 0.5, np.arange(300) < 60):
        one, shares = AlphaBudget(memory=20.0), []
        for promoted in pattern:
            shares.append((one.next_alpha() / one.budget, one.decay * one.weight + 1.0))
            one.record(promoted=bool(promoted), alpha=0.0)
        for end in (20, 60, 100, 299):
            total = sum(
                share / size * min(1.0, budget.decay ** (end - i) * size)
                for i, (share, size) in enumerate(shares[: end + 1])
            )
            assert total <= 1.0


@pytest.mark.parametrize("credited", ["with the tick", "before the command is known", "after it"])
def test_a_correction_known_one_tick_later_takes_the_reward_back_and_counts_as_a_takeover(credited: str) -> None:
    each_tick = plan(block_ticks=1, washout_ticks=0)
    outcomes, schedule = PairedOutcomes(each_tick), Switchback(each_tick)
    found: dict[str, list[PairDifference]] = {}
    for corrected in (False, True):
        outcomes, schedule = PairedOutcomes(each_tick), Switchback(each_tick)
        for unit in range(80):
            one = schedule.assignment(unit)
            bad = one.arm == "challenger"
            reward = 1.0 if corrected or not bad else 0.0  # the person's action earns what the champion's does
            at_once = credited == "with the tick"
            outcomes.add(one, TickOutcome({"r": reward} if at_once else {}))
            if credited == "before the command is known":
                outcomes.credit(unit, "r", reward)
            if corrected and bad:
                outcomes.correct(one)
            if credited == "after it":
                outcomes.credit(unit, "r", reward)
        found[str(corrected)] = [one for one in outcomes.complete(80) if one.kind == "challenge"]
    assert {one.harms["takeover"] for one in found["False"]} == {0.0}
    assert {one.harms["takeover"] for one in found["True"]} == {1.0}
    assert all(one.reward is None or one.reward <= 0 for one in found["True"])


@pytest.mark.parametrize("harm", ["takeover", "failure"])
def test_a_harm_improves_no_reward_where_rewards_are_costs(harm: str) -> None:
    each = plan(block_ticks=4, washout_ticks=0)
    outcomes, schedule = PairedOutcomes(each), Switchback(each)
    for unit in range(320):
        one = schedule.assignment(unit)
        bad = one.arm == "challenger" and unit % 2 == 0
        if bad and harm == "takeover":
            for _ in range(10):
                outcomes.add(one, TickOutcome(takeover=True))
        outcomes.add(one, TickOutcome())
        assert outcomes.credit(unit, "cost", -1.0)
        if bad and harm == "failure":
            outcomes.fail(one)
    found = outcomes.complete(320)
    assert {pair.reward for pair in found} == {0.0}
    assert {round(pair.harms[harm], 3) for pair in found} == {0.833 if harm == "takeover" else 0.5}


def test_a_watch_suspects_no_slow_series_and_finds_a_fall() -> None:
    for seed in range(3):
        rng, watch, last, suspected = np.random.default_rng([71, seed]), LevelWatch(), 0.0, 0
        for _ in range(6_000):
            last = 0.97 * last + float(np.sqrt(1 - 0.97**2) * rng.normal())
            suspected += watch.update(last)
        assert suspected <= 20
        assert LevelWatch.of(json.loads(json.dumps(watch.dump()))) == watch
        assert any(watch.update(last + 20.0) for _ in range(4))


def test_a_watch_finds_the_same_falls_whatever_the_level_of_the_figure() -> None:
    series = np.random.default_rng(74).normal(size=400)
    series[100:] += 10.0  # deviations
    for offset in (0.0, 100.0, 500.0, -1e4):
        watch = LevelWatch()
        found = [block for block, value in enumerate(series.tolist()) if watch.update(value + offset)]
        assert found[0] == 100


def test_pairs_that_show_the_anchor_worse_end_a_suspicion_of_rewards() -> None:
    rng, guard = np.random.default_rng(72), Guard(pair_s=48.0)
    for _ in range(500):
        guard.block(float(rng.normal()), {})
    for _ in range(5):
        guard.block(float(rng.normal()) - 10, {})  # the world became harder
    assert guard.suspect == "reward"
    for number in range(6):
        guard.pair(pair(number, 5.0 + float(rng.normal()), "anchor", "guard"))
    assert guard.suspect is None
    guard.block(-10.0, {})
    assert guard.suspect is None


def test_the_state_of_a_guard_of_an_earlier_program_is_restored_without_its_count_of_harms() -> None:
    rng, guard = np.random.default_rng(73), Guard(pair_s=48.0)
    for number in range(30):
        guard.pair(pair(number, float(rng.normal()), "anchor", "guard"))
    body = guard.dump() | {
        "format": 1,
        "units": 900,
        "watches": {name: [9, 1.0, 1.0, *[1.0] * 4] for name in guard.watches},
    }
    again = Guard(pair_s=48.0)
    again.restore(body)
    assert (again.pairs, again.units) == (30, 0)
    assert again.excluded_rate("failure") is None
    assert again.dump()["detectors"] == guard.dump()["detectors"]
    guard.block(5.0, {})
    again.restore(guard.dump() | {"format": 2})  # its watches measured their first block from 0
    assert again.watches == Guard(pair_s=48.0).watches
    again.restore(guard.dump())
    assert again.watches == guard.watches


def harm_blocks(guard: Guard, probability: float, count: int, rng: np.random.Generator) -> int:
    """Give the guard blocks of 5 ticks, each tick harmed by chance; return how many of them it suspected something in."""
    found = 0
    for _ in range(count):
        found += guard.block(None, NO_HARM | {"takeover": float(rng.binomial(5, probability)) / 5}, 5)
        guard.block(float(rng.normal()), {}, 0)
    return found


@pytest.mark.parametrize("every", [100, 300, 1_800])
def test_rare_harms_at_a_steady_rate_raise_no_suspicion(every: int) -> None:
    guard = Guard(pair_s=40.0)
    assert harm_blocks(guard, 1 / every, 6_000, np.random.default_rng([74, every])) <= 6_000 * 0.05


@pytest.mark.parametrize(("before", "after", "within"), [(0.03, 0.43, 40), (0.001, 0.05, 200), (0.0, 0.1, 100)])
def test_a_harm_that_became_more_frequent_is_suspected(before: float, after: float, within: int) -> None:
    rng, guard = np.random.default_rng(75), Guard(pair_s=40.0)
    assert harm_blocks(guard, before, 2_000, rng) == 0
    again = Guard(pair_s=40.0)
    again.restore(json.loads(json.dumps(guard.dump())))
    assert again.rates == guard.rates
    assert harm_blocks(again, after, within, rng)
    assert again.suspect == "takeover"


def test_pairs_without_more_harm_end_a_suspicion_of_a_harm_and_pairs_with_more_do_not() -> None:
    for more in (0.0, 0.4):
        rng, guard = np.random.default_rng(76), Guard(pair_s=40.0)
        harm_blocks(guard, 0.001, 2_000, rng)
        harm_blocks(guard, 0.2, 40, rng)
        assert guard.suspect == "takeover"
        for number in range(100):
            value = more * float(rng.random() < 0.6)
            guard.pair(PairDifference(number, "guard", "anchor", 0.0, NO_HARM | {"takeover": value}, units=20))
        assert (guard.suspect is None) == (more == 0.0)


@pytest.mark.parametrize("value", [1e160, -1e300, float("inf"), float("nan")])
def test_a_watch_leaves_out_values_that_cannot_be_squared(value: float) -> None:
    watch = LevelWatch()
    for n in range(100):
        assert not watch.update(value if n % 2 else float(n % 3))
    assert np.isfinite(watch.dump()).all()
