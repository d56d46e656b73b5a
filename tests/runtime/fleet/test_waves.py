"""A version spreads in waves as its devices' verdicts permit; these rules know no broker."""

from __future__ import annotations

import orjson
import pytest

from learners.fleet_data.device_verdict import VerdictState
from learners.fleet_data.policy_manifest import wave_position
from runtime.fleet.waves import VerdictReport, Wave, decide, next_stage, pooled, share_of

VERSION = "000003-0a1b2c3d"
AGENTS = [f"arm-{number}" for number in range(20)]
RUNNING = Wave(learner_version="000009-aaaaaaaa", version=VERSION, state="running", share=0.1, since_s=100.0)


def reported(
    *states: VerdictState, worse: float = 1.0, pairs: int = 0, version: str = VERSION
) -> dict[str, VerdictReport]:
    reports = (
        VerdictReport(agent=f"arm-{number}", version=version, state=state, worse=worse, pairs=pairs, reason="why")
        for number, state in enumerate(states)
    )
    return {report.agent: report for report in reports}


@pytest.mark.parametrize(
    ("verdicts", "now_s", "step"),
    [
        ({}, 1e6, "wait"),
        (reported("live", "live"), 150.0, "wait"),
        (reported("live"), 200.0, "wait"),
        (reported("live", "live"), 200.0, "advance"),
        (reported("live", "live", version="000002-00000000"), 200.0, "wait"),
        (reported("live", "live", "worse"), 200.0, "stop"),
        (reported("live", "live", "rolled_back"), 200.0, "stop"),
        (reported("rejected"), 200.0, "wait"),
        (reported("rejected", "undecided", "rejected"), 200.0, "end"),
        (reported("on_trial", "on_trial", "on_trial", worse=5.0, pairs=9), 200.0, "wait"),
        (reported("on_trial", "on_trial", "on_trial", worse=30.0, pairs=9), 200.0, "stop"),
        (reported("withdrawn", "examining"), 200.0, "wait"),
    ],
)
def test_a_wave_follows_the_verdicts(verdicts: dict[str, VerdictReport], now_s: float, step: str) -> None:
    assert decide(RUNNING, AGENTS[:4], verdicts, now_s, hold_s=100.0, alpha=0.01).step == step


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
    assert tried_by(canary) <= tried_by(tenth) < tried_by(everyone) == set(AGENTS)
    assert tenth >= 0.1
    assert share_of("canary", "arms", VERSION, AGENTS[:1], 2) == 1.0
    assert [next_stage("canary"), next_stage("tenth"), next_stage("all")] == ["tenth", "all", None]
    assert Wave.model_validate_json(orjson.dumps(RUNNING.model_dump())) == RUNNING
