"""The decision about the live version over hours of virtual time: what is compared, what is taken back, and what never ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
from promotion_world import PromotionWorld, World, WorldTick, noise
from pydantic import ValidationError

from learners.checkpoints.experiment_records import EXPERIMENTS_FILE
from learners.config.rewards import LARGEST_REWARD, TopicReward
from learners.experiment_statistics.paired_outcomes import HARMS, TickOutcome
from runtime.deploy.experiments import controller
from runtime.deploy.experiments.plan_from_settings import ExperimentRules
from runtime.deploy.experiments.reward_lateness import RewardLateness
from runtime.deploy.experiments.reward_levels import RunningHarms

RULES = ExperimentRules(period_s=1.0, gamma=0.5)


async def two_trusted(folder: Path, world: World) -> PromotionWorld:
    """A world in which `good` is the anchor, and `old` was the anchor before it."""
    one = PromotionWorld(folder, world, rules=RULES)
    await one.run(60.0)
    one.trust("old")
    await one.run(60.0)
    one.versions.promote("good", by="experiment")
    one.experiments.state.trust.choose("good", "proof")
    one.experiments.became_live("good", "experiment")
    one.experiments.state.renew_guard()
    await one.run(300.0)
    one.events.clear()
    return one


def levels(seed: int, **found: float) -> World:
    draw = noise(seed)
    return lambda version, _tick: WorldTick(found.get(version, 0.0) + draw())


async def test_a_challenger_is_tried_while_the_live_version_has_a_reference(tmp_path: Path) -> None:
    one = await two_trusted(tmp_path, levels(0, old=1.0, good=1.0, better=6.0))
    await one.propose("better")
    await one.run(3_000.0, until=lambda: "experiment_ended" in one.kinds())
    assert one.last("experiment_started")["reference"] == "old"
    assert one.last("experiment_ended")["outcome"] == "live"
    assert one.live == "better"


async def test_a_rejected_challenger_does_not_restart_the_guard(tmp_path: Path) -> None:
    one = await two_trusted(tmp_path, levels(1, old=1.0, good=1.0, bad=-9.0))
    guard = one.experiments.state.guard
    await one.propose("bad")
    await one.run(6_000.0, until=lambda: "experiment_ended" in one.kinds())
    assert one.last("experiment_ended")["outcome"] == "out"
    assert one.experiments.state.guard is guard
    assert guard.units > 300


async def test_the_anchor_is_compared_with_the_version_before_during_an_experiment_once_it_looks_worse(
    tmp_path: Path,
) -> None:
    fallen = [False]
    draw = noise(2)
    one = await two_trusted(tmp_path, lambda version, _: WorldTick(draw() - 10.0 * (fallen[0] and version != "old")))
    await one.propose("equal")
    await one.run(300.0)
    assert "experiment_started" in one.kinds()
    assert "old" not in one.acted[-200:]
    fallen[0] = True
    await one.run(2_000.0, until=lambda: "policy_rolled_back" in one.kinds())
    suspected = one.last("policy_suspected")
    assert (suspected["version"], suspected["figure"], suspected["reference"]) == ("good", "reward", "old")
    assert (one.last("policy_rolled_back")["by"], one.live) == ("guard", "old")


@pytest.mark.parametrize("harm", ["takeover", "refusal", "failure"])
async def test_harms_of_the_anchor_are_watched_and_the_excluded_rate_counts_them(tmp_path: Path, harm: str) -> None:
    rng, bad = np.random.default_rng(3), [False]

    def world(version: str, _tick: int) -> WorldTick:
        return WorldTick(1.0, TickOutcome(**{harm: bool(bad[0] and version != "old" and rng.random() < 0.6)}))

    one = await two_trusted(tmp_path, world)
    figures = one.experiments.state.figures()["guard"]
    assert figures["decisions"] >= 290
    assert all(figures["excluded_rates"][name] == pytest.approx(3.0 / figures["decisions"], rel=0.01) for name in HARMS)
    bad[0] = True
    await one.run(100.0)
    assert one.last("policy_suspected")["figure"] == harm
    rates = one.experiments.state.figures()["guard"]["excluded_rates"]
    assert [name for name in HARMS if rates[name] is None] == [harm]
    await one.run(2_000.0, until=lambda: "policy_rolled_back" in one.kinds())
    assert one.last("policy_rolled_back")["figure"] == harm
    assert one.live == "old"


@pytest.mark.parametrize("late_ticks", [2, 5])
async def test_late_failures_count_for_the_version_of_their_decision(tmp_path: Path, late_ticks: int) -> None:
    rng, draw = np.random.default_rng(6), noise(6)

    def world(version: str, _tick: int) -> WorldTick:
        failed = version == "new" and rng.random() < 0.5
        return WorldTick(1.0 + 0.1 * draw() + (version == "new"), TickOutcome(failure=bool(failed)), late_ticks)

    one = await two_trusted(tmp_path, world)
    await one.propose("new")
    await one.run(2_000.0, until=lambda: "experiment_ended" in one.kinds())
    ended = one.last("experiment_ended")
    assert (ended["outcome"], ended["reason"]) == ("out", "more failures than the champion")
    assert one.experiments.state.guard.harmed["failure"] == 0
    assert "policy_suspected" not in one.kinds()


async def test_the_guard_counts_each_failure_and_each_short_takeover_once(tmp_path: Path) -> None:
    def world(_version: str, tick: int) -> WorldTick:
        failed, short = tick % 50 == 0, tick % 10 == 3
        return WorldTick(1.0, TickOutcome(failure=failed), 4, short, messages=3)

    one = PromotionWorld(tmp_path, world, rules=RULES)
    await one.run(59.0)
    one.trust("only")
    await one.run(600.0)
    harmed = one.experiments.state.guard.harmed
    assert (harmed["failure"], harmed["takeover"]) == (12.0, 60.0)


async def test_harms_that_become_known_together_are_all_counted() -> None:
    harms = RunningHarms()
    for number in range(10):
        assert harms.add(f"d-{number}", TickOutcome(), 20) is None
    for number in (*range(10), *range(10), 99):
        harms.late(f"d-{number}", "failure")
    counted = []
    for number in range(10, 30):
        block = harms.add(f"d-{number}", TickOutcome(), 4)
        counted.append(0.0 if block is None else block[0]["failure"] * block[1])
    assert sum(counted) == pytest.approx(10.0)


async def test_a_fall_without_another_trusted_version_is_reported(tmp_path: Path) -> None:
    fallen = [False]
    one = PromotionWorld(tmp_path, lambda _version, _tick: WorldTick(-9.0 if fallen[0] else 1.0), rules=RULES)
    one.trust("only")
    await one.run(300.0)
    assert "policy_suspected" not in one.kinds()
    fallen[0] = True
    await one.run(60.0)
    assert one.last("policy_suspected") == {"version": "only", "figure": "reward", "reference": None}
    assert one.live == "only"


async def test_a_fall_is_taken_back_however_much_more_the_version_earns_than_its_rewards_vary(tmp_path: Path) -> None:
    draw, fallen = noise(7), [False]

    def world(version: str, _tick: int) -> WorldTick:
        return WorldTick(500.0 * (version != "untrained") - 10.0 * (fallen[0] and version == "good") + draw())

    one = await two_trusted(tmp_path, world)
    fallen[0] = True
    await one.run(1_200.0, until=lambda: "policy_rolled_back" in one.kinds())
    assert one.last("policy_suspected")["figure"] == "reward"
    assert one.live == "old"


def episodes(seed: int, hung: Callable[[str], bool]) -> World:
    """Episodes of about 10 ticks that end with a success."""
    rng = np.random.default_rng(seed)

    def world(version: str, _tick: int) -> WorldTick:
        done = not hung(version) and rng.random() < 0.1
        return WorldTick(1.0 if done else None, TickOutcome(done=bool(done)))

    return world


async def test_a_challenger_that_never_ends_an_episode_acts_for_a_limited_time_and_is_out(tmp_path: Path) -> None:
    one = await two_trusted(tmp_path, episodes(4, lambda version: version == "hung"))
    one.acted.clear()
    await one.propose("hung")
    await one.run(20_000.0, until=lambda: "experiment_ended" in one.kinds())
    ended = one.last("experiment_ended")
    assert one.last("experiment_started")["longest_ticks"] > 40
    assert (ended["outcome"], one.live) == ("out", "good")
    longest = max(map(len, "".join("h" if version == "hung" else "g" for version in one.acted).split("g")))
    assert longest <= one.last("experiment_started")["longest_ticks"] + 1


def doomed(seed: int, *, doom_ticks: int) -> World:
    """Episodes of 10 ticks that earn 1; `doomed` earns 2 at once, and its episode ends with a loss of 3 whichever version acts by then."""
    draw, since, acted = noise(seed), [0], [0]

    def world(version: str, _tick: int) -> WorldTick:
        since[0] += 1
        acted[0] += version == "doomed"
        first = acted[0] == 1 and version == "doomed"
        done = since[0] >= (doom_ticks if acted[0] > 5 else 10)
        reward = (
            0.01 * draw() + 2.0 * first + ((-3.0 if acted[0] > 5 else float(version != "untrained")) if done else 0.0)
        )
        if done:
            since[0] = acted[0] = 0
        return WorldTick(reward, TickOutcome(done=done))

    return world


async def test_a_disaster_after_the_longest_counted_episode_still_counts(tmp_path: Path) -> None:
    one = await two_trusted(tmp_path, doomed(7, doom_ticks=120))
    await one.propose("doomed")
    await one.run(20_000.0, until=lambda: "experiment_ended" in one.kinds())
    assert one.last("experiment_started")["longest_ticks"] < 110
    assert (one.last("experiment_ended")["outcome"], one.live) == ("out", "good")


async def test_an_experiment_over_episodes_ends_where_no_episode_ends_any_more(tmp_path: Path) -> None:
    stuck = [False]
    one = await two_trusted(tmp_path, episodes(5, lambda _version: stuck[0]))
    await one.propose("equal")
    await one.run(60.0)
    stuck[0] = True
    await one.run(2_000.0, until=lambda: "experiment_ended" in one.kinds())
    ended, state = one.last("experiment_ended"), one.experiments.state
    assert (ended["outcome"], ended["reason"]) == ("cap", "no episode ends any more")
    assert one.live == "good"
    assert state.alpha.experiments == 1
    assert "equal" in state.trust.judged


@pytest.mark.parametrize("other", ["shadow", "assist"])
async def test_an_experiment_runs_while_the_policy_moves_one_of_its_actuators_alone(tmp_path: Path, other: str) -> None:
    one = await two_trusted(tmp_path, levels(0, old=1.0, good=1.0, better=6.0))
    one.modes = {"valve": "autonomous", "lamp": other}
    await one.propose("better")
    await one.run(3_000.0, until=lambda: "experiment_ended" in one.kinds())
    assert one.live == "better"


@pytest.mark.parametrize("confirmed", [False, True])
async def test_where_a_person_confirms_every_action_nothing_is_compared_and_the_newest_candidate_waits(
    tmp_path: Path, *, confirmed: bool
) -> None:
    draw, at_work = noise(9), [False]

    def world(version: str, _tick: int) -> WorldTick:
        held = at_work[0] and confirmed
        return WorldTick(
            1.0 * (version != "untrained") + draw(), TickOutcome(takeover=held), overridden=at_work[0] and not held
        )

    one = await two_trusted(tmp_path, world)
    at_work[0], one.modes = True, {"valve": "assist"}
    await one.run(2.0)
    for version in ("c1", "c2"):
        await one.propose(version)
        await one.run(600.0)
    assert (set(one.acted[-1_200:]), one.kinds()) == ({"good"}, [])
    at_work[0], one.modes = False, {"valve": "autonomous"}
    await one.run(60.0)
    assert one.last("experiment_started")["challenger"] == "c2"


async def test_while_a_person_holds_one_actuator_for_long_the_live_version_moves_the_others(tmp_path: Path) -> None:
    draw, until = noise(10), [-1]
    one: PromotionWorld

    def world(version: str, tick: int) -> WorldTick:
        if version == "c" and until[0] < 0:
            until[0] = tick + 7_200
        return WorldTick(1.0 * (version != "untrained") + draw(), TickOutcome(takeover=tick < until[0]))

    one = await two_trusted(tmp_path, world)
    one.modes = {"valve": "autonomous", "lamp": "autonomous"}
    one.experiments.state.trust.pace = 2
    await one.propose("c")
    await one.run(3_600.0)
    assert 60 <= one.acted.count("c") <= 62
    assert "policy_suspected" not in one.kinds(), "the hold began while the challenger acted"
    await one.run(4_200.0)
    assert one.acted.count("c") > 62
    phase = one.experiments.state.phase
    assert phase is not None
    assert phase.plan.challenger == "c"


async def test_a_few_rewards_after_an_outage_keep_no_pair_open_and_slow_people_do() -> None:
    late, found = RewardLateness(), 0.0
    for n in range(300):
        found = late.follow("sensor", 540.0 if n == 150 else 0.1, found)
        assert n < 150 or found == pytest.approx(0.15)
    for n in range(3_000):
        found = late.follow("sensor", 0.1, found)
        found = late.follow("person", 60.0, found) if n % 600 == 0 else found
    assert found == pytest.approx(90.0)
    for _ in range(120):
        found = late.follow("person", 400.0, found)
    for _ in range(1_000):
        found = late.follow("person", 60.0, found)
    assert found == pytest.approx(90.0)
    assert late.follow("person", 1e9, found) == found


async def test_the_largest_rewards_that_the_settings_allow_end_no_agent_and_survive_a_restart(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)

    def world(_version: str, _tick: int) -> WorldTick:
        return WorldTick(LARGEST_REWARD * float(rng.choice([-1.0, 1e-12, 1.0])), messages=int(rng.integers(1, 4)))

    one = await two_trusted(tmp_path, world)
    await one.propose("c")
    await one.run(1_200.0)
    one.restart()
    assert "experiment_started" in one.kinds()
    assert "experiment_state_unreadable" not in one.kinds()
    assert one.experiments.state.trust.anchor == "good"
    for clip in (1e13, float("inf"), float("nan")):
        with pytest.raises(ValidationError, match="clip"):
            TopicReward(name="a", kind="topic", clip=clip)


BLOCKS = ExperimentRules(period_s=1.0, gamma=0.0)


async def racing(folder: Path, world: World) -> PromotionWorld:
    """A world in which nothing is trusted and `best` leads, because the later `newer` was worse; `early` was before both."""
    one = PromotionWorld(folder, world, rules=BLOCKS)
    await one.run(20.0)
    for version in ("early", "best", "newer"):
        await one.propose(version)
        await one.run(20.0, until=lambda: one.experiments.state.racing)
    assert one.experiments.state.racing
    assert one.live == "best"
    one.events.clear()
    return one


async def test_a_leader_that_falls_before_it_is_trusted_gives_the_lead_to_the_best_of_the_others(
    tmp_path: Path,
) -> None:
    draw, fallen, earned = noise(21), [False], {"early": 5.0, "best": 8.0, "newer": 2.0}

    def world(version: str, _tick: int) -> WorldTick:
        return WorldTick((-5.0 if fallen[0] and version == "best" else earned.get(version, 0.0)) + draw())

    one = await racing(tmp_path, world)
    await one.run(30.0)
    fallen[0] = True
    took_s = await one.run(1_800.0, until=lambda: one.live != "best")
    assert one.last("policy_suspected") == {"version": "best", "figure": "reward", "reference": "early"}
    assert one.live == "early"
    assert took_s < 180.0
    await one.run(600.0)
    assert one.experiments.state.trust.anchor == "early"


async def test_a_leader_that_falls_where_no_other_version_is_better_is_trusted_only_once_it_earns_more_than_the_untrained(
    tmp_path: Path,
) -> None:
    draw, worth = noise(22), [0.0]
    earned = {"early": 5.0, "best": 8.0, "newer": 2.0}
    one = await racing(
        tmp_path, lambda version, _: WorldTick((earned[version] + worth[0] if version in earned else 0.0) + draw())
    )
    worth[0] = -20.0
    await one.run(1_800.0)
    raced = [data["version"] for _, kind, data in one.events if kind == "experiment_ended"]
    assert raced[:2] == ["early", "newer"]
    assert len(raced) <= 4
    assert (one.live, one.experiments.state.trust.anchor) == ("best", None)
    worth[0] = 0.0
    await one.run(1_800.0)
    assert one.experiments.state.trust.anchor == "best"


async def test_a_version_that_is_not_trusted_is_given_up_when_the_agent_dies_twice_with_it(tmp_path: Path) -> None:
    draw, earned = noise(23), {"early": 5.0, "best": 8.0, "newer": 2.0}
    one = await racing(tmp_path, lambda version, _: WorldTick(earned.get(version, 0.0) + draw()))
    one.restart(clean=False)
    assert one.live == "best"
    one.restart(clean=False)
    assert one.live == one.experiments.state.proof.leader == "early"
    assert one.experiments.state.trust.anchor is None
    assert one.last("policy_rolled_back")["to"] == "early"


async def test_while_versions_follow_freely_the_best_acts_again_when_the_agent_dies_twice_with_the_newest(
    tmp_path: Path,
) -> None:
    draw = noise(24)
    one = PromotionWorld(tmp_path, lambda version, _: WorldTick(1.0 * (version != "untrained") + draw()), rules=BLOCKS)
    for version in ("first", "second"):
        await one.propose(version)
        await one.run(20.0)
    for _ in range(2):
        assert one.live == "second"
        one.restart(clean=False)
    assert (one.live, one.experiments.state.trust.anchor) == ("first", None)


async def test_a_person_who_promotes_the_version_that_waits_makes_it_no_challenger_of_itself(tmp_path: Path) -> None:
    one = await two_trusted(tmp_path, levels(31, old=1.0, good=1.0, waits=1.0))
    one.experiments.state.waiting = "waits"
    one.trust("waits")
    assert one.experiments.state.waiting is None
    await one.run(600.0)
    one.roll_back()
    await one.run(60.0)
    assert one.live == "good"
    assert "waits" not in one.experiments.state.wanted()


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_people_and_crashes_do_no_version_that_was_rolled_back_is_trusted_tried_or_acts(
    tmp_path: Path, seed: int
) -> None:
    rng, worth = np.random.default_rng([32, seed]), {"untrained": 0.0}

    def world(version: str, tick: int) -> WorldTick:
        reward = worth.setdefault(version, float(rng.normal() * 2 + 1)) + float(rng.normal())
        harms = TickOutcome(
            takeover=rng.random() < 0.02, stop=rng.random() < 0.002, done=seed % 2 == 0 and tick % 7 == 0
        )
        return WorldTick(reward, harms, late_ticks=int(rng.integers(1, 4)), overridden=rng.random() < 0.01)

    one, number = PromotionWorld(tmp_path, world, rules=BLOCKS), 0
    for _ in range(80):
        act = rng.choice(
            ["run", "run", "propose", "propose", "promote", "roll back", "restart", "kill", "gone", "mode"]
        )
        state = one.experiments.state
        if act == "run":
            await one.run(float(rng.integers(5, 90)))
        elif act == "propose":
            number += 1
            await one.propose(f"v{number}")
        elif act == "promote" and (chosen := f"v{rng.integers(number + 1)}") not in {
            *one.versions.pointer.failed,
            "v0",
        }:
            one.trust(chosen)
        elif act == "roll back" and one.versions.pointer.version is not None:
            one.roll_back()
        elif act in ("restart", "kill"):
            one.restart(clean=act == "restart")
        elif act == "gone" and (names := sorted(state.wanted() - {one.live, "untrained"})):
            one.experiments.unloadable(str(rng.choice(names)), "gone")
        elif act == "mode":
            one.modes = {
                "valve": str(rng.choice(["autonomous", "assist"])),
                "lamp": str(rng.choice(["shadow", "assist"])),
            }
        await one.run(4.0)
        state, failed = one.experiments.state, one.versions.pointer.failed
        named = {*state.wanted(), state.trust.anchor, state.trust.previous, state.proof.leader, state.proof.rival}
        assert named.isdisjoint(failed)
        assert state.phase is None or state.phase.version_of(state.phase.acts_in_plain) == one.live
        assert "experiment_state_unreadable" not in one.kinds()


async def test_a_reward_for_a_decision_before_the_restart_says_nothing_of_how_late_rewards_are(tmp_path: Path) -> None:
    """Its tick was counted from the start of another run, and pairs stayed open for minutes."""
    one = PromotionWorld(tmp_path, lambda _version, _tick: WorldTick(1.0), rules=RULES)
    await one.run(300.0)
    before_s = one.experiments.state.late_s
    one.experiments.credit("person", 1.0, "earlier-20", done=False)
    assert one.experiments.state.late_s <= before_s
    one.experiments.credit("person", 1.0, "d-20", done=False)
    assert one.experiments.state.late_s > 300.0


@pytest.mark.parametrize("lost", ["deleted", "taken back"])
async def test_where_the_anchor_is_lost_the_version_that_was_as_good_is_trusted(tmp_path: Path, lost: str) -> None:
    """Nothing was trusted then, and the next candidate went live without an experiment."""
    one = PromotionWorld(tmp_path, levels(33, old=1.0, equal=1.0, bad=-9.0), rules=RULES)
    await one.run(60.0)
    one.trust("old")
    await one.run(60.0)
    one.versions.promote("equal", by="experiment")
    one.experiments.became_live("equal", "experiment")
    await one.run(200.0)
    if lost == "deleted":
        one.experiments.unloadable("old", "missing")
    else:
        one.versions.rollback(failing="old")
        one.experiments.forget_failed(one.versions.live())
    assert one.experiments.state.trust.anchor == "equal"
    assert one.last("policy_trusted") == {"version": "equal", "result": "old, with which it was compared, is lost"}
    await one.propose("bad")
    await one.run(600.0)
    assert one.live == "equal"
    assert one.acted.count("bad") < 60


async def test_a_version_that_a_person_made_live_does_not_inherit_trust_while_another_is_trusted(
    tmp_path: Path,
) -> None:
    one = await two_trusted(tmp_path, levels(34, old=1.0, good=1.0, chosen=1.0))
    one.trust("chosen")
    await one.run(10.0)
    one.experiments.unloadable("good", "missing")
    assert (one.live, one.experiments.state.trust.anchor) == ("chosen", "old")
    one.experiments.unloadable("old", "missing")
    assert one.experiments.state.trust.anchor == "chosen"


@pytest.mark.parametrize("late_ticks", [3, 20])
async def test_from_nothing_rewards_that_arrive_late_count(tmp_path: Path, late_ticks: int) -> None:
    """Each decision was taken for one without a reward, so no version was better, and the newest one acted for ever."""
    draw, bad = noise(35), {"v4", "v5", "v6"}

    def world(version: str, _tick: int) -> WorldTick:
        level = {"untrained": 0.0}.get(version, -5.0 if version in bad else 3.0)
        return WorldTick(level + 0.5 * draw(), late_ticks=late_ticks)

    one = PromotionWorld(tmp_path, world, rules=RULES)
    await one.run(100.0)
    for number in range(1, 7):
        await one.propose(f"v{number}")
        await one.run(120.0)
    assert one.live not in bad
    assert one.experiments.state.proof.leader == one.live
    assert one.experiments.state.proof.versions["v1"].mean == pytest.approx(3.0, abs=0.3)


async def test_an_end_that_another_source_reports_an_episode_later_ends_no_other_episode(tmp_path: Path) -> None:
    rules = ExperimentRules(period_s=1.0, gamma=0.9)
    one = PromotionWorld(tmp_path, lambda _v, tick: WorldTick(1.0, TickOutcome(done=tick % 10 == 9)), rules=rules)
    await one.run(200.0)
    one.trust("old")
    await one.run(200.0)
    await one.propose("c")
    await one.run(30.0)
    phase = one.experiments.state.phase
    assert phase is not None
    before = phase.unit
    for _ in range(200):
        await one.tick()
        if one.count % 10 == 5:
            one.outcomes.credit("person", 0.0, f"d-{one.count - 16}", done=True)
    assert phase.unit - before == 20


@pytest.mark.parametrize("requested", [False, True])
async def test_pairs_with_rewards_of_a_source_that_went_into_quarantine_prove_nothing(
    tmp_path: Path, *, requested: bool
) -> None:
    one = await two_trusted(tmp_path, levels(36, old=1.0, good=1.0, c=1.0))
    one.experiments.state.trust.pace = 2

    def lie() -> None:
        one.outcomes.credit("liar", 3.0 * (one.acted[-1] == "c"), f"d-{one.count}", done=False)

    if requested:
        one.trust("c")
    else:
        await one.propose("c")
    while (phase := one.experiments.state.phase) is None or len(phase.differences) < 6:
        await one.tick()
        lie()
    assert min(phase.differences) > 1.0
    one.experiments.quarantine.keep("label:liar", {})
    await one.run(5.0)
    assert one.experiments.state.phase is phase, "a source of labels gives no rewards"
    one.experiments.quarantine.keep("liar", {})
    await one.run(5.0)
    ended = one.last("experiment_ended")
    assert (ended["outcome"], ended["reason"]) == ("cap", "other sources of rewards count now")
    await one.run(200.0)
    again = one.experiments.state.phase
    assert again is not None
    assert (again.plan.challenger, again.acts_in_plain) == ("c", "challenger" if requested else "champion")
    assert again.number > phase.number
    assert not again.differences or max(again.differences) < 3.0
    assert one.experiments.state.guard.detectors["reward"].total < 20.0


@pytest.mark.parametrize(("champion", "untrained", "positive"), [(-10.0, 0.0, False), (-5.0, -10.0, True)])
async def test_a_champion_that_earns_less_than_the_untrained_policy_leaves_no_margin(
    tmp_path: Path, champion: float, untrained: float, *, positive: bool
) -> None:
    one = PromotionWorld(tmp_path, levels(37, untrained=untrained, old=champion, c=champion), rules=RULES)
    await one.run(200.0)
    one.trust("old")
    await one.run(200.0)
    await one.propose("c")
    await one.run(20.0)
    assert (one.last("experiment_started")["delta"] > 0) is positive


@pytest.mark.parametrize("rate", [0.1, 0.03])
@pytest.mark.parametrize("harm", ["takeover", "refusal"])
async def test_a_large_gain_does_not_buy_harm(tmp_path: Path, harm: str, rate: float) -> None:
    """A gain of two deviations is proved in 8 pairs, before any harm is. The version was its own past then, and remained for good."""
    rng, draw = np.random.default_rng(38), noise(38)

    def world(version: str, _tick: int) -> WorldTick:
        harmed = version == "c" and rng.random() < rate
        return WorldTick({"untrained": 0.0, "c": 3.0}.get(version, 1.0) + draw(), TickOutcome(**{harm: bool(harmed)}))

    one = await two_trusted(tmp_path, world)
    await one.run(5_400.0)
    one.experiments.state.trust.pace = 2
    await one.propose("c")
    await one.run(6_000.0, until=lambda: "experiment_ended" in one.kinds())
    if one.live == "c":
        await one.run(7_200.0, until=lambda: "policy_rolled_back" in one.kinds())
        assert one.last("policy_suspected")["figure"] == harm
        assert f"has more {harm}s than the anchor" in one.last("policy_rolled_back")["why"]
    assert one.live == "good"


@pytest.mark.parametrize("calm", [False, True])
async def test_a_death_of_the_agent_long_ago_does_not_count_against_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, calm: bool
) -> None:
    """Two deaths in a year took a good version back."""
    monkeypatch.setattr(controller, "CALM_S", 300.0)
    one = PromotionWorld(tmp_path, levels(39, old=1.0, equal=1.0), rules=RULES)
    one.trust("old")
    await one.run(60.0)
    one.versions.promote("equal", by="experiment")
    one.experiments.became_live("equal", "experiment")
    await one.run(60.0)
    one.restart(clean=False)
    await one.run(310.0 if calm else 200.0)
    one.restart(clean=False)
    await one.run(10.0)
    assert one.live == ("equal" if calm else "old")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("waiting", ["c"]), ("levels.episodes", 1e308), ("levels.ticks.old", [-1, 0.0, 0.0]), ("guard.units", -1),
        ("guard.suspected", 1e308), ("late_s", None), ("trust.pace", "x"), ("alpha.experiments", -1e308),
    ],
)  # fmt: skip
async def test_a_file_with_impossible_values_is_unreadable_and_ends_no_agent(
    tmp_path: Path, path: str, value: object
) -> None:
    one = PromotionWorld(tmp_path, levels(40, old=1.0), rules=RULES)
    one.trust("old")
    await one.run(60.0)
    one.experiments.close(clean=True)
    file = tmp_path / EXPERIMENTS_FILE
    body = orjson.loads(file.read_bytes())
    *folders, name = path.split(".")
    part = body
    for folder in folders:
        part = part[folder]
    part[name] = value
    file.write_bytes(orjson.dumps(body))
    again = PromotionWorld(tmp_path, one.world, rules=RULES)
    assert again.kinds() == ["experiment_state_unreadable"]
    await again.run(20.0)
