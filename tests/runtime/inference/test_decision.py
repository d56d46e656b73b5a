"""Decisions tell the probability of every choice, exploration included, and older recordings without them still compare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
import torch

from actuators.actions import Action, ActionSpace, Choice, Continuous
from learners.model.heads import Heads
from learners.model.spec import Algorithm, PolicySpec, StreamSpec
from runtime.inference.decision import InferenceResult, actions_of, choices_of
from runtime.recording.replay import ReplayReport, _compare

SPEC = PolicySpec(
    (StreamSpec("joints", "telemetry", 1, 4),),
    ActionSpace((Choice("head", ("left", "stay", "right")), Choice("lamp", ("OFF", "ON")), Continuous("arm", (-1,), (1,)))),
    history=1,
)  # fmt: skip


@pytest.mark.parametrize(("algorithm", "gamma"), [("dqn", 0.9), ("bandit", 0.0)])
@pytest.mark.parametrize("explore", [True, False, 0.3])
def test_the_probabilities_of_all_choices_sum_to_one_and_hold_that_of_the_chosen(
    algorithm: Algorithm, gamma: float, explore: bool | float
) -> None:
    torch.manual_seed(0)
    heads = Heads(SPEC.actions, 4, algorithm, gamma=gamma)
    for seed in range(20):
        out = heads.act(torch.randn(1, 4), generator=torch.Generator().manual_seed(seed), explore=explore)
        choices, (actions, _) = choices_of(SPEC, out), actions_of(SPEC, out)
        assert set(choices) == {"head", "lamp"}
        for name, received in choices.items():
            assert sum(received.values()) == pytest.approx(1.0, abs=1e-6)
            assert received[str(actions[name].value)] == actions[name].probability
        if algorithm == "dqn" and explore == 0.3:
            assert min(choices["head"].values()) == pytest.approx(0.1), "exploration is part of it"


def decided(**changes: Any) -> InferenceResult:
    actions = {"head": Action("left", 0.5), "arm": Action((0.25,), 1.5)}
    made = InferenceResult(
        "v", actions, 0.5, {}, {}, {}, 0.0, choices={"head": {"left": 0.5, "stay": 0.25, "right": 0.25}}
    )
    return replace(made, **changes)


def test_the_message_carries_them_beside_value_and_probability() -> None:
    assert decided().actions_message() == {
        "head": {"value": "left", "probability": 0.5, "probabilities": {"left": 0.5, "stay": 0.25, "right": 0.25}},
        "arm": {"value": (0.25,), "probability": 1.5},
    }


def compared(recorded: dict[str, Any], now: InferenceResult) -> bool:
    report = ReplayReport()
    _compare(report, {"id": "s-1", "value": 0.5, "actions": orjson.loads(orjson.dumps(recorded))}, now)
    return report.same


def test_a_replay_compares_them_where_they_were_recorded() -> None:
    received = decided().actions_message()
    assert compared(received, decided())
    assert compared(
        {name: {k: action[k] for k in ("value", "probability")} for name, action in received.items()}, decided()
    )
    assert not compared(received, decided(choices={"head": {"left": 0.5, "stay": 0.3, "right": 0.2}}))
    assert not compared({"head": received["head"]}, decided()), "an action that was not recorded"
    assert not compared(received, decided(actions={"head": Action("left", 0.5), "arm": Action((0.5,), 1.5)}))
