"""From reward messages to a rollback: feedback, probation, checkpoints and swap together, in the demo's world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from watching import Script, Stage

from learners.checkpoints.manifest import CheckpointRefused
from learners.safeguards.probation import FILE, Probation
from learners.safeguards.source_consistency import Quarantine
from runtime.deploy.probation_monitor import ProbationMonitor

GOOD = Script(errors=0.12)
POLICIES = {"good": GOOD, "negated": replace(GOOD, sign=-1), "equal": replace(GOOD)}


async def acting_well(folder: Path, seed: int, seconds: float = 90.0, lasts_s: float = 30.0, **fields: object) -> Stage:
    stage = Stage(folder, seed, {name: replace(script) for name, script in POLICIES.items()}, lasts_s=lasts_s, **fields)  # type: ignore[arg-type]
    await stage.promote("good")
    await stage.run(seconds)
    assert stage.kinds() == ["policy_on_probation", "policy_swapped", "policy_confirmed"]
    assert "no earlier version" in stage.event("policy_confirmed")["not_compared"]
    stage.events.clear()
    return stage


async def test_a_negated_policy_forced_live_is_back_out_within_ten_seconds(tmp_path: Path) -> None:
    stage = await acting_well(tmp_path, 0)
    await stage.promote("negated")
    took_s = await stage.run(60.0, until=lambda: stage.acted[-1] == "good")
    assert took_s <= 10.0
    assert stage.kinds() == ["policy_on_probation", "policy_swapped", "policy_rolled_back", "policy_swapped"]
    told = stage.event("policy_rolled_back")
    assert (told["version"], told["to"], told["by"], told["why"]) == (
        *(stage.version["negated"], stage.version["good"]), "probation", "rewards",
    )  # fmt: skip
    assert told["mean_now"] < told["bound"] < told["mean_before"]
    live = stage.checkpoints.live()
    assert (live.version, live.failed) == (stage.version["good"], (stage.version["negated"],))
    with pytest.raises(CheckpointRefused, match="not tried again"):
        stage.checkpoints.promote(stage.version["negated"])
    await stage.run(30.0)
    assert set(stage.acted[-250:]) == {"good"}
    assert "policy_on_probation" not in stage.kinds()[3:]  # the good one needs none


async def test_an_equal_policy_is_confirmed(tmp_path: Path) -> None:
    stage = await acting_well(tmp_path, 1)
    await stage.promote("equal")
    await stage.run(45.0)
    assert stage.kinds() == ["policy_on_probation", "policy_swapped", "policy_confirmed"]
    assert stage.event("policy_confirmed")["n"] == 30
    assert stage.probation.probation.good == stage.version["equal"]


async def test_refused_by_the_gate_it_is_back_out(tmp_path: Path) -> None:
    stage = await acting_well(tmp_path, 2, refusals={"equal": 0.7})
    await stage.promote("equal")
    await stage.run(30.0, until=lambda: stage.acted[-1] == "good")
    assert stage.event("policy_rolled_back")["why"] in ("refusals", "rewards")


def reopened(stage: Stage, folder: Path) -> ProbationMonitor:
    """The next agent's watch over the same state."""
    watch = ProbationMonitor(Probation(30.0), stage.checkpoints, folder, stage._emit, lambda: stage.now_s, Quarantine())
    watch.start()
    return watch


async def test_probation_goes_on_after_a_restart(tmp_path: Path) -> None:
    stage = await acting_well(tmp_path, 3)
    await stage.promote("equal")
    await stage.run(10.0)
    stage.probation.close(clean=True)
    before = stage.probation.figures()
    watch = reopened(stage, tmp_path)
    assert watch.figures() == before
    assert before["crashes"] == 0
    await watch.before_activation(stage.version["equal"])
    assert stage.kinds().count("policy_on_probation") == 1


async def test_an_agent_that_dies_twice_on_probation_comes_up_with_the_good_version(tmp_path: Path) -> None:
    stage = await acting_well(tmp_path, 4)
    await stage.probation.before_activation(stage.version["good"])
    stage.checkpoints.promote(stage.version["negated"])
    await stage.probation.before_activation(stage.version["negated"])  # and dies before the first decision
    assert reopened(stage, tmp_path).figures()["crashes"] == 1
    assert stage.checkpoints.live().version == stage.version["negated"]
    assert reopened(stage, tmp_path).figures() == {}
    assert stage.checkpoints.live().version == stage.version["good"]
    assert stage.event("policy_rolled_back")["why"] == "crashes"


async def test_an_end_by_an_exception_is_a_death_too(tmp_path: Path) -> None:
    stage = await acting_well(tmp_path, 9)
    stage.checkpoints.promote(stage.version["negated"])
    await stage.probation.before_activation(stage.version["negated"])
    stage.probation.close(clean=False)
    assert reopened(stage, tmp_path).figures()["crashes"] == 1


async def test_no_way_back_is_said_and_the_version_stays(tmp_path: Path) -> None:
    stage = await acting_well(tmp_path, 5)
    await stage.promote("negated")
    manifest = stage.checkpoints.folder / stage.version["good"] / "manifest.json"
    manifest.write_bytes(b"{}")
    await stage.run(15.0)
    assert (
        "wrong_signature" in stage.event("rollback_failed")["reason"]
        or "loadable" in stage.event("rollback_failed")["reason"]
    )
    assert stage.acted[-1] == "negated"
    assert stage.checkpoints.live().version == stage.version["negated"]


async def test_a_version_that_cannot_be_loaded_is_not_on_probation(tmp_path: Path) -> None:
    stage = await acting_well(tmp_path, 6)

    async def refuse(version: str) -> None:
        raise CheckpointRefused(version, "wrong_shapes", "too wide")

    stage.engine.load = refuse  # type: ignore[method-assign]
    stage.checkpoints.promote(stage.version["equal"])
    await stage.run(1.0)
    assert stage.kinds() == ["policy_on_probation", "checkpoint_refused"]
    assert stage.probation.figures() == {}


async def test_another_version_in_the_meantime_is_not_the_one_that_is_taken_out(tmp_path: Path) -> None:
    stage = await acting_well(tmp_path, 7)
    await stage.promote("negated")
    stage.checkpoints.promote(stage.version["equal"])
    live = stage.checkpoints.rollback(to=stage.version["good"], failing=stage.version["negated"])
    assert (live.version, live.failed) == (stage.version["equal"], (stage.version["negated"],))
    assert stage.version["negated"] not in live.promoted


def test_a_broken_file_is_said_and_the_live_version_trusted(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 8, {"good": Script()})
    stage.checkpoints.promote(stage.version["good"])
    (tmp_path / FILE).write_bytes(orjson.dumps({"format": 1}))
    watch = reopened(stage, tmp_path)
    assert stage.kinds() == ["probation_state_unreadable"]
    assert watch.probation.good == stage.version["good"]
