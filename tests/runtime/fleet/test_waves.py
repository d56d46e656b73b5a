"""A version spreads in waves as its devices' verdicts permit; these rules know no broker."""

from __future__ import annotations

import orjson
import pytest

from learners.fleet_data.device_verdict import VerdictState
from learners.fleet_data.policy_manifest import wave_position
from runtime.fleet.waves import VerdictReport, Wave, decide, next_stage, pooled, share_of

VERSION = "000003-0a1b2c3d"
AGENTS = [f"arm-{number}" for number in range(20)]
RUNNING = Wave(learner_version="000009-aaaaaaaa", version=VERSION, state="running", share=0.1)


def reported(
    *states: VerdictState, worse: float = 1.0, pairs: int = 0, version: str = VERSION
) -> dict[str, VerdictReport]:
    reports = (
        VerdictReport(agent=f"arm-{number}", version=version, state=state, worse=worse, pairs=pairs, reason="why")
        for number, state in enumerate(states)
    )
    return {report.agent: report for report in reports}


@pytest.mark.parametrize(
    ("verdicts", "held_s", "step"),
    [
        ({}, 1e6, "wait"),
        (reported("live", "live", pairs=9), 50.0, "wait"),
        (reported("live", pairs=9), 200.0, "wait"),
        (reported("live", "live", pairs=9), 200.0, "advance"),
        (reported("live", "live"), 200.0, "wait"),
        (reported("live", "live", worse=12.0, pairs=9), 200.0, "wait"),
        (reported("live", "live", version="000002-00000000", pairs=9), 200.0, "wait"),
        (reported("live", "live", "worse"), 200.0, "stop"),
        (reported("live", "live", "rolled_back"), 200.0, "stop"),
        (reported("rejected"), 200.0, "wait"),
        (reported("rejected", "undecided", "rejected"), 200.0, "end"),
        (reported("on_trial", "on_trial", "on_trial", worse=5.0, pairs=9), 200.0, "wait"),
        (reported("on_trial", "on_trial", "on_trial", worse=30.0, pairs=9), 200.0, "stop"),
        (reported("withdrawn", "examining"), 200.0, "wait"),
    ],
)
def test_a_wave_follows_the_verdicts(verdicts: dict[str, VerdictReport], held_s: float, step: str) -> None:
    assert decide(RUNNING, AGENTS[:4], verdicts, held_s, hold_s=100.0, alpha=0.01).step == step


@pytest.mark.parametrize("state", ["live", "worse", "rolled_back", "rejected", "undecided", "on_trial"])
@pytest.mark.parametrize("online", [0, 2])
def test_verdicts_of_agents_outside_of_the_wave_do_not_count(state: VerdictState, online: int) -> None:
    outsiders = reported(*[state] * 5, worse=1e15, pairs=9)
    agents = AGENTS[10 : 10 + online]
    assert decide(RUNNING, agents, outsiders, 200.0, hold_s=100.0, alpha=0.01).step == "wait"


@pytest.mark.parametrize("state", ["worse", "rolled_back"])
def test_what_an_agent_found_before_it_left_stops_the_wave(state: VerdictState) -> None:
    decision = decide(RUNNING, AGENTS[1:3], reported(state), 0.0, hold_s=100.0, alpha=0.01, away=AGENTS[:1])
    assert (decision.step, decision.lone) == ("stop", AGENTS[0])


def test_two_agents_beside_the_canary_have_to_make_a_version_live_where_the_group_has_them() -> None:
    tenth = RUNNING.model_copy(update={"stage": "tenth", "canaries": ("arm-0",)})
    for size, live, step in ((1, 1, "advance"), (2, 1, "wait"), (2, 2, "advance"), (4, 2, "wait"), (4, 3, "advance")):
        verdicts = reported(*["live"] * live, pairs=9)  # type: ignore[arg-type]
        assert decide(tenth, AGENTS[:size], verdicts, 200.0, hold_s=100.0, alpha=0.01).step == step
    away = decide(tenth, AGENTS[:1], reported("live", pairs=9), 200.0, hold_s=100.0, alpha=0.01, away=AGENTS[1:3])
    assert away.step == "wait"


@pytest.mark.parametrize("others", [0, 1, 30])
@pytest.mark.parametrize("state", ["on_trial", "live"])
def test_strong_evidence_of_one_agent_is_outvoted_by_no_number_of_live_ones(state: VerdictState, others: int) -> None:
    verdicts = reported(state, *["live"] * others, pairs=9)  # type: ignore[arg-type]
    verdicts["arm-0"] = verdicts["arm-0"].model_copy(update={"worse": 1e5})
    decision = decide(RUNNING, [f"arm-{n}" for n in range(others + 1)], verdicts, 200.0, hold_s=100.0, alpha=0.01)
    assert (decision.step, decision.lone) == ("stop", "arm-0")


def test_a_p_value_that_is_no_number_stops_the_wave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.fleet.waves.pooled", lambda _evidence: float("nan"))
    assert decide(RUNNING, AGENTS[:1], reported("live", pairs=9), 200.0, hold_s=100.0, alpha=0.01).step == "stop"


def test_evidence_of_many_devices_is_pooled_without_overflow() -> None:
    previous = 1.0
    for devices in (1, 10, 300, 1_000, 5_000):
        p_value = pooled([10.0] * devices)
        assert 0 <= p_value <= previous
        previous = p_value
    assert pooled([2.0] * 1_000) > 0.01 > pooled([1e15] * 5_000)


def test_evidence_of_several_devices_is_pooled_by_fishers_method() -> None:
    assert pooled([]) == 1.0
    assert pooled([20.0]) == pytest.approx(0.05)
    assert pooled([20.0, 20.0]) == pytest.approx(0.0175, abs=1e-4)  # 1 - chi2(4).cdf(-4 ln .05)
    assert pooled([1.0, 1.0, 1.0]) == 1.0


def test_stages_grow_from_the_canaries_to_all() -> None:
    def tried_by(share: float) -> set[str]:
        return {agent for agent in AGENTS if wave_position("arms", VERSION, agent) < share}

    canary, tenth, everyone = (share_of(stage, "arms", VERSION, AGENTS, 2) for stage in ("canary", "tenth", "all"))
    assert len(tried_by(canary)) == 2
    assert len(tried_by(tenth)) >= 4
    assert tried_by(canary) <= tried_by(tenth) < tried_by(everyone) == set(AGENTS)
    assert tenth >= 0.1
    assert share_of("canary", "arms", VERSION, AGENTS[:1], 2) == 1.0
    assert [next_stage("canary"), next_stage("tenth"), next_stage("all")] == ["tenth", "all", None]
    assert Wave.model_validate_json(orjson.dumps(RUNNING.model_dump())) == RUNNING
