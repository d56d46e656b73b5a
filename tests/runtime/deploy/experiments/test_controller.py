"""From reward messages to promotion, rejection and rollback: feedback, experiments, checkpoints and swaps, in the demo's world."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from watching import Script, Stage

from learners.checkpoints.experiment_records import EXPERIMENTS_FILE, PROBATION_FILE
from learners.checkpoints.manifest import CheckpointRefused
from learners.experiment_statistics.plan import SHARES
from runtime.cli import checkpoints
from runtime.deploy.experiments.controller import ExperimentController
from runtime.deploy.experiments.plan_from_settings import ExperimentRules
from runtime.mqtt.event_sentences import sentence

GOOD = Script(errors=0.12)
POLICIES = {
    "poor": Script(errors=0.6),
    "good": GOOD,
    "negated": replace(GOOD, sign=-1),
    "equal": replace(GOOD),
    "better": Script(errors=0.0),
    "confused": Script(errors=0.12, confused=0.6),
    "fair": Script(errors=0.4),
}
RULES = ExperimentRules(period_s=0.1, gamma=0.5)


def stage_of(folder: Path, seed: int, **fields: object) -> Stage:
    return Stage(folder, seed, {name: replace(script) for name, script in POLICIES.items()}, rules=RULES, **fields)  # type: ignore[arg-type]


async def trusted(folder: Path, seed: int, name: str = "good", seconds: float = 60.0, **fields: object) -> Stage:
    """A stage on which a person made a policy live, so that it is trusted."""
    stage = stage_of(folder, seed, **fields)
    await stage.promote(name)
    await stage.run(seconds)
    assert stage.experiments.state.trust.anchor == stage.version[name]
    stage.events.clear()
    return stage


async def verdict(stage: Stage, name: str, seconds: float = 1_500.0) -> dict[str, object]:
    stage.propose(name)
    await stage.run(seconds, until=lambda: "experiment_ended" in stage.kinds())
    return stage.event("experiment_ended")


async def test_a_better_challenger_goes_live_and_becomes_the_anchor(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 0, "poor")
    ended = await verdict(stage, "good")
    assert ended["outcome"] == "live"
    assert stage.kinds() == [
        "experiment_started", "policy_promoted", "experiment_ended", "policy_swapped",
    ]  # fmt: skip
    live = stage.checkpoints.live()
    assert (live.version, live.by) == (stage.version["good"], "experiment")
    assert stage.experiments.state.trust.anchor == stage.version["good"]
    assert stage.experiments.state.trust.previous == stage.version["poor"]
    assert "paired episodes; better by" in stage.experiments.state.sentence()
    await stage.run(20.0)
    assert set(stage.acted[-200:]) == {"good"}


@pytest.mark.parametrize("name", ["negated", "confused"])
async def test_a_worse_challenger_never_goes_live_and_acts_little(tmp_path: Path, name: str) -> None:
    stage = await trusted(tmp_path, 1)
    count = len(stage.acted)
    ended = await verdict(stage, name)
    assert ended["outcome"] in ("out", "cap")
    assert stage.checkpoints.live().version == stage.version["good"]
    assert stage.acted[count:].count(name) <= 0.25 * len(stage.acted[count:])
    both = {stage.version["good"], stage.version[name]}
    for arm in (one for one in stage.arms if one.assignment is not None and one.version in both):
        assert arm.assignment is not None
        assert (arm.other is None) == (arm.assignment.pair is None), "a pair compares two versions, a plain block none"
        assert arm.other is None or {arm.version, arm.other} == both
    assert "not live" in stage.experiments.state.trust.notes[stage.version[name]]
    stage.events.clear()
    stage.propose(name)
    await stage.run(30.0)
    assert "experiment_started" not in stage.kinds(), "a challenger with a verdict is not tried again"


async def test_the_list_of_versions_says_why_each_is_live_or_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    stage = await trusted(tmp_path, 18)
    await verdict(stage, "negated")
    stage.experiments.close(clean=True)
    checkpoints.list_versions(stage.checkpoints)
    lines = capsys.readouterr().out.splitlines()
    received = {name: next(line for line in lines if stage.version[name] in line) for name in ("good", "negated")}
    assert "a person made it live" in received["good"]
    assert "not live: " in received["negated"]
    assert "paired episodes; worse by" in received["negated"]


async def test_arms_change_at_the_ends_of_episodes_by_a_logged_coin(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 2)
    stage.experiments.state.trust.pace = len(SHARES) - 1
    stage.propose("equal")
    await stage.run(120.0)
    arms = [arm for arm in stage.arms if arm.assignment is not None]
    assert {arm.assignment.coin for arm in arms if arm.assignment is not None} >= {0, 1}
    units: dict[int, set[str]] = {}
    for arm in arms:
        assert arm.assignment is not None
        units.setdefault(arm.assignment.unit, set()).add(arm.version)
    assert all(len(versions) == 1 for versions in units.values())
    fields = arms[-1].fields()
    assert fields is not None
    assert set(fields) == {"number", "arm", "kind", "block", "pair", "coin", "unit", "washout"}
    started = stage.event("experiment_started")
    assert (started["metric"], started["episodic"], started["block_ticks"]) == ("return", True, 1)
    assert 0 < started["alpha"] < 0.05


async def test_nothing_is_trusted_before_the_first_proof_and_versions_follow_freely(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, 3)
    await stage.run(50.0)
    for name in ("poor", "good"):
        stage.propose(name)
        await stage.run(40.0)
        assert stage.checkpoints.live().version == stage.version[name]
        assert not stage.experiments.state.figures()["trusted"]
        assert stage.experiments.state.sentence().startswith("not yet trusted")
    stage.propose("negated")
    state = stage.experiments.state
    await stage.run(120.0, until=lambda: state.racing)
    assert stage.checkpoints.live().version == stage.version["good"]
    assert "a later version was worse" in state.trust.notes[stage.version["good"]]
    assert state.sentence() == "not yet trusted: it is the best version so far, and newer ones race against it"
    await stage.run(1.0)
    assert stage.acted[-1] == "good"


async def racing(folder: Path, seed: int) -> Stage:
    """A stage on which `fair` leads and nothing is trusted."""
    stage = stage_of(folder, seed)
    await stage.run(50.0)
    for name in ("fair", "negated"):
        stage.propose(name)
        await stage.run(120.0, until=lambda: stage.experiments.state.racing)
    assert stage.experiments.live == stage.version["fair"]
    stage.events.clear()
    return stage


async def test_a_newer_version_that_is_ahead_takes_the_lead_after_few_pairs_without_trust_and_without_alpha(
    tmp_path: Path,
) -> None:
    stage = await racing(tmp_path, 20)
    state = stage.experiments.state
    took_s = 0.0
    stage.propose("good")
    took_s = await stage.run(300.0, until=lambda: "policy_swapped" in stage.kinds())
    ended = stage.event("experiment_ended")
    assert (stage.event("experiment_started")["race"], ended["outcome"]) == (True, "live")
    assert ended["pairs"] <= 8
    assert took_s <= 150.0
    live = stage.checkpoints.live()
    assert (live.version, live.by) == (stage.version["good"], "untrusted")
    assert (state.trust.anchor, state.proof.leader, state.racing) == (None, stage.version["good"], True)
    assert state.alpha.experiments == 0


async def test_a_leader_that_newer_versions_do_not_overtake_is_trusted(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, 21)
    state = stage.experiments.state
    await stage.run(50.0)
    stage.propose("good")
    await stage.run(50.0)
    for name in ("negated", "confused", "poor", "equal"):
        stage.propose(name)
        await stage.run(600.0, until=lambda: "policy_trusted" in stage.kinds())
        if "policy_trusted" in stage.kinds():
            break
        assert stage.checkpoints.live().version in (stage.version["good"], stage.version["negated"])
    trusted = stage.event("policy_trusted")
    assert trusted["version"] == stage.version["good"] == state.trust.anchor
    assert ("did not overtake it" in trusted["result"]) or ("no version overtook it" in trusted["result"])
    assert not state.racing


async def test_a_race_goes_on_after_a_kill_and_its_challenger_is_given_up_after_two(tmp_path: Path) -> None:
    stage = await racing(tmp_path, 22)
    stage.propose("equal")
    state = stage.experiments.state
    await stage.run(300.0, until=lambda: state.phase is not None and len(state.phase.differences) >= 2)
    stage.experiments.state.proof.lost = 2
    await stage.experiments.file.save()  # and dies
    again = reopened(stage, tmp_path)
    assert again.state.phase is not None
    assert (again.state.phase.race, len(again.state.phase.differences)) == (True, 2)
    assert (again.state.racing, again.state.proof.lost) == (True, 2)
    again = reopened(stage, tmp_path)
    assert (again.state.phase, again.live) == (None, stage.version["fair"])
    assert stage.version["equal"] in again.state.trust.judged


async def test_a_persons_choice_ends_the_races(tmp_path: Path) -> None:
    stage = await racing(tmp_path, 23)
    stage.propose("negated")
    await stage.run(5.0)
    await stage.promote("better")
    state = stage.experiments.state
    assert (state.trust.anchor, state.racing) == (stage.version["better"], False)


async def test_a_cancelled_experiment_spends_its_alpha(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 24)
    stage.experiments.state.trust.pace = len(SHARES) - 1
    alpha = stage.experiments.state.alpha
    before, first = alpha.experiments, alpha.next_alpha()
    stage.propose("equal")
    await stage.run(
        300.0, until=lambda: bool(stage.experiments.state.phase and stage.experiments.state.phase.differences)
    )
    stage.experiments.endings.cancel("the mode changed")
    assert alpha.experiments == before + 1
    assert alpha.next_alpha() < first


async def test_a_version_that_a_person_makes_live_is_back_out_within_ten_seconds_if_it_is_far_worse(
    tmp_path: Path,
) -> None:
    stage = await trusted(tmp_path, 4)
    await stage.promote("negated")
    assert stage.acted[-1] == "negated", "a person's choice acts at once"
    took_s = await stage.run(60.0, until=lambda: stage.acted[-1] == "good")
    assert took_s <= 10.0
    received = stage.event("policy_rolled_back")
    assert (received["version"], received["to"], received["by"]) == (
        stage.version["negated"],
        stage.version["good"],
        "experiment",
    )
    live = stage.checkpoints.live()
    assert (live.version, live.failed) == (stage.version["good"], (stage.version["negated"],))
    with pytest.raises(CheckpointRefused, match="not tried again"):
        stage.checkpoints.promote(stage.version["negated"])


async def test_the_trusted_version_acts_while_the_disk_refuses_the_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await trusted(tmp_path, 17)
    roll_back = stage.checkpoints.rollback

    def full(**_how: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage.checkpoints, "rollback", full)
    await stage.promote("negated")
    await stage.run(20.0)
    assert set(stage.acted[-50:]) == {"good"}
    assert stage.checkpoints.live().version == stage.version["negated"]
    assert stage.kinds().count("rollback_failed") == 1
    monkeypatch.setattr(stage.checkpoints, "rollback", roll_back)
    await stage.run(2.0)
    assert stage.kinds()[-2:] == ["policy_rolled_back", "policy_swapped"]
    assert stage.checkpoints.live().version == stage.version["good"]
    assert set(stage.acted[-50:]) == {"good"}


async def test_a_good_version_that_a_person_makes_live_stays(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 5, "poor")
    await stage.promote("better")
    await stage.run(900.0, until=lambda: "experiment_ended" in stage.kinds())
    assert stage.event("experiment_ended")["outcome"] == "live"
    assert stage.checkpoints.live().version == stage.version["better"]
    assert stage.experiments.state.trust.anchor == stage.version["better"]
    assert "policy_rolled_back" not in stage.kinds()


def reopened(stage: Stage, folder: Path) -> ExperimentController:
    """The next agent's controller over the same state."""
    again = ExperimentController(RULES, stage.checkpoints, folder, stage._emit, lambda: stage.now_s, stage.quarantine)
    again.start()
    return again


async def test_an_experiment_goes_on_after_a_restart(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 6)
    stage.experiments.state.trust.pace = len(SHARES) - 1
    stage.propose("equal")
    await stage.run(100.0)
    stage.experiments.close(clean=True)
    before = stage.experiments.state.phase
    assert before is not None
    assert before.test.pairs > 2
    again = reopened(stage, tmp_path)
    assert again.state.phase is not None
    assert again.state.phase.plan == before.plan
    assert again.state.phase.test.pairs == before.test.pairs
    assert again.state.phase.unit >= before.unit
    assert again.state.phase.unit % again.state.phase.plan.pair_units == 0, "the pair that was open is void"
    assert again.state.trust.crashes == {}


async def test_the_pairs_of_the_next_challenger_survive_a_kill(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 19)
    stage.experiments.state.trust.undecided = 3
    await stage.experiments.file.save()  # and dies
    assert reopened(stage, tmp_path).state.trust.undecided == 3


async def test_a_killed_agent_goes_on_once_and_returns_to_the_trusted_version_the_second_time(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 7)
    stage.checkpoints.promote(stage.version["equal"])
    await stage.run(5.0)
    await stage.experiments.file.save()  # and dies
    assert reopened(stage, tmp_path).state.trust.crashes == {stage.version["equal"]: 1}
    assert stage.checkpoints.live().version == stage.version["equal"]
    again = reopened(stage, tmp_path)
    assert stage.checkpoints.live().version == stage.version["good"] == again.live
    assert stage.event("policy_rolled_back")["why"] == "crashes"
    assert again.state.phase is None


async def test_an_agent_that_dies_twice_with_the_only_version_ever_live_returns_to_the_untrained_policy(
    tmp_path: Path,
) -> None:
    stage = stage_of(tmp_path, 7)
    stage.propose("poor")
    await stage.run(2.0)
    version = stage.version["poor"]
    assert stage.checkpoints.live().version == version
    await stage.experiments.file.save()  # and dies
    assert reopened(stage, tmp_path).live == version
    again = reopened(stage, tmp_path)
    live = stage.checkpoints.live()
    assert (live.version, live.failed, again.live) == (None, (version,), "untrained")
    rolled_back = stage.event("policy_rolled_back")
    assert (rolled_back["version"], rolled_back["to"], rolled_back["why"]) == (version, None, "crashes")
    assert "was rolled back to the untrained policy" in sentence("policy_rolled_back", rolled_back).text
    assert stage.checkpoints.load_live(lambda _refused: None) is None
    third = reopened(stage, tmp_path)  # the agent dies with the untrained policy, too
    assert (third.live, third.state.trust.crashes) == ("untrained", {version: 2})


async def test_a_power_cut_is_no_fault_of_the_version_that_acted(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 7)
    stage.checkpoints.promote(stage.version["equal"])
    await stage.run(5.0)
    await stage.experiments.file.save()
    for boot in ("second", "third", "fourth"):
        again = ExperimentController(
            RULES,
            stage.checkpoints,
            tmp_path,
            stage._emit,
            lambda: stage.now_s,
            stage.quarantine,
            lambda boot=boot: boot,
        )
        again.start()
        assert (again.live, again.state.trust.crashes) == (stage.version["equal"], {})


async def test_a_challenger_with_which_the_agent_dies_twice_is_given_up(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 8)
    stage.propose("equal")
    await stage.run(10.0)
    await stage.experiments.file.save()
    reopened(stage, tmp_path)
    again = reopened(stage, tmp_path)
    assert again.state.phase is None
    assert stage.version["equal"] in again.state.trust.judged
    assert stage.checkpoints.live().version == stage.version["good"]
    assert "died" in again.state.trust.notes[stage.version["equal"]]


async def test_the_guard_takes_back_a_version_that_turns_bad_after_its_proof(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 9, "poor")
    assert (await verdict(stage, "good"))["outcome"] == "live"
    await stage.run(400.0)
    stage.policies["good"].sign = -1  # such as a camera that was mounted upside down
    took_s = await stage.run(1_800.0, until=lambda: "policy_rolled_back" in stage.kinds())
    received = stage.event("policy_rolled_back")
    assert (received["by"], received["version"], received["to"]) == (
        "guard",
        stage.version["good"],
        stage.version["poor"],
    )
    assert took_s <= 1_200.0
    await stage.run(1.0)
    assert stage.acted[-1] == "poor"


async def test_a_challenger_that_cannot_be_loaded_is_given_up(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 10)
    load = stage.engine.load

    async def refuse(version: str) -> None:
        if version == stage.version["equal"]:
            raise CheckpointRefused(version, "wrong_shapes", "too wide")
        await load(version)

    stage.engine.load = refuse  # type: ignore[method-assign]
    stage.propose("equal")
    await stage.run(5.0)
    assert stage.kinds() == ["checkpoint_refused"]
    assert stage.experiments.state.phase is None
    assert set(stage.acted[-20:]) == {"good"}


async def test_a_challenger_that_is_better_and_cannot_be_loaded_any_more_becomes_no_anchor(tmp_path: Path) -> None:
    """Its files are lost while it acts from memory."""
    stage = await trusted(tmp_path, 11, "poor")
    before = stage.experiments.live
    stage.propose("good")
    await stage.run(20.0)
    shutil.rmtree(stage.checkpoints.folder / stage.version["good"])
    await stage.run(1_500.0, until=lambda: "experiment_ended" in stage.kinds())
    ended = stage.event("experiment_ended")
    assert (ended["outcome"], ended["reason"]) == ("cap", f"{stage.version['good']} cannot be loaded")
    assert stage.kinds().count("experiment_ended") == 1
    assert stage.kinds().count("checkpoint_refused") == 1
    state = stage.experiments.state
    assert (state.live, state.trust.anchor, state.phase) == (before, before, None)


async def test_late_rewards_count_for_the_block_of_their_decision(tmp_path: Path) -> None:
    waiting: list[dict[str, object]] = []

    def late(_stage: Stage, decision: str, gain: float) -> list[dict[str, object]]:
        waiting.append({"value": gain, "decision": decision, "source": "world"})
        return [waiting.pop(0)] if len(waiting) > 50 else [{"value": 0.0, "decision": decision, "source": "clock"}]

    stage = await trusted(tmp_path, 11, "poor", sends=late)
    assert stage.experiments.state.late_s >= 5.0
    ended = await verdict(stage, "good")
    assert ended["outcome"] == "live"


async def test_while_the_policy_may_not_act_nothing_alternates(tmp_path: Path) -> None:
    stage = await trusted(tmp_path, 12)
    stage.mode = "shadow"
    stage.propose("better")
    await stage.run(60.0)
    assert set(stage.acted[-500:]) == {"good"}
    assert all(arm.assignment is None for arm in stage.arms[-500:])


@pytest.mark.parametrize("short", [False, True])
async def test_takeovers_are_outcomes(tmp_path: Path, *, short: bool) -> None:
    stage = await trusted(tmp_path, 13, takeovers={"equal": 0.5})
    stage.short_takeovers = short
    stage.experiments.state.trust.pace = len(SHARES) - 1
    ended = await verdict(stage, "equal")
    assert ended["outcome"] != "live"
    assert ended["reason"] == "more takeovers than the champion"
    assert stage.checkpoints.live().version == stage.version["good"]


async def test_without_experiments_what_passes_the_steps_goes_live(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 14, {"good": GOOD, "negated": replace(GOOD, sign=-1)}, rules=replace(RULES, enabled=False))
    for name in ("good", "negated"):
        stage.propose(name)
        await stage.run(60.0)
        assert stage.checkpoints.live().version == stage.version[name]
    assert "experiment_started" not in stage.kinds()


@pytest.mark.parametrize(
    ("by", "trusted"),
    [("request", True), ("import", True), ("experiment", True), ("guard", True), ("drift", True), ("untrusted", False)],
)
def test_a_broken_file_is_reported_and_the_live_version_trusted_unless_it_went_live_without_a_proof(
    tmp_path: Path, by: str, trusted: bool
) -> None:
    stage = stage_of(tmp_path, 15)
    stage.checkpoints.promote(stage.version["good"], by=by)
    (tmp_path / EXPERIMENTS_FILE).write_bytes(orjson.dumps({"format": 1}))
    again = reopened(stage, tmp_path)
    assert stage.kinds() == ["experiment_state_unreadable"]
    assert again.state.trust.anchor == (stage.version["good"] if trusted else None)
    assert again.state.sentence().startswith("live and trusted" if trusted else "not yet trusted")


def test_a_version_on_probation_of_an_earlier_program_is_trusted_and_the_one_before_stays_as_a_way_back(
    tmp_path: Path,
) -> None:
    stage = stage_of(tmp_path, 16)
    good, newer = stage.version["good"], stage.version["equal"]
    stage.checkpoints.promote(good)
    stage.checkpoints.promote(newer)
    (tmp_path / EXPERIMENTS_FILE).unlink()
    (tmp_path / PROBATION_FILE).write_bytes(orjson.dumps({"good": good, "trial": {"version": newer, "before": good}}))
    again = reopened(stage, tmp_path)
    assert (again.state.trust.anchor, again.state.trust.previous) == (newer, good)


@pytest.mark.parametrize("taken_back", ["equal", "good"])
async def test_an_experiment_ends_at_once_where_one_of_its_versions_is_taken_back(
    tmp_path: Path, taken_back: str
) -> None:
    """As a fleet withdraws them. A challenger went on acting in half of the blocks."""
    stage = await trusted(tmp_path, 20)
    stage.experiments.state.trust.pace = len(SHARES) - 1
    stage.propose("equal")
    await stage.run(60.0)
    phase = stage.experiments.state.phase
    assert phase is not None
    assert phase.plan.challenger == stage.version["equal"]
    stage.checkpoints.promote(stage.version["fair"], by="experiment")
    await stage.run(1.0)
    stage.experiments.state.waiting = stage.version["equal"]
    await stage.run(20.0)
    assert stage.experiments.state.phase is not None
    assert stage.experiments.state.phase.plan.challenger == stage.version["equal"]
    stage.checkpoints.rollback(failing=stage.version[taken_back], by="fleet")
    await stage.run(0.3)
    count = len(stage.acted)
    await stage.run(60.0)
    assert taken_back not in stage.acted[count:]
    assert stage.event("experiment_ended")["reason"] == "a version in it was taken back"
    assert stage.checkpoints.live().version == stage.version["fair"]
    assert stage.experiments.state.trust.anchor == stage.version["fair" if taken_back == "good" else "good"]
