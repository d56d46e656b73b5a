"""Which choices the gate names before a proposal: by mode, hold, pace and the rules that actuators share."""

from __future__ import annotations

import pytest

from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings, GateSettings
from actuators.safety import allowed_choices as module
from actuators.safety.decisions import Proposal
from actuators.safety.gate import Gate

HEAD = ChoiceSettings(kind="choice", choices=("left", "stay", "right"), safe="stay")
LAMP = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF")
SLOW = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF", min_hold_s=0.5)
ARM = ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,), safe=(0.0,))
APART = "head == 'left' and lamp == 'ON'"


def armed(*forbid: str, report: bool = True, **actuators: AnyActuator) -> Gate:
    """Return an armed gate at 10 s; with reports, each actuator is in its safe state."""
    gate = Gate(actuators, GateSettings(forbid=forbid, reconcile_s=0.0), period_s=0.1, now_s=10.0,
                streams={"window": ("open",)})  # fmt: skip
    for name, each in actuators.items():
        if report and each.kind != "text":
            assert gate.reconciled(name, each.safe, 10.0) is None
    gate.judge(Proposal(0, "d", "p", 10.0, {}), 10.0)
    assert gate.armed
    return gate


def command(gate: Gate, now_s: float, readings: dict[str, dict[str, float]] | None = None, **actions: object) -> None:
    """Carry out what the policy proposes; the devices report it."""
    found = gate.judge(Proposal(0, "d", "p", now_s, dict(actions), readings=readings or {}), now_s)
    for each in found:
        if each.value is not None:
            gate.acknowledged(each.actuator, each.serial, 0.0)
            assert gate.reconciled(each.actuator, each.value, now_s) is None


def test_an_actuator_without_a_restriction_is_not_named() -> None:
    gate = armed(APART, head=HEAD, lamp=LAMP, arm=ARM)
    assert gate.allowed_choices(10.1) == {}, (
        "the lamp is off, so the head may turn; the head rests, so the lamp may light"
    )


def test_a_choice_that_a_rule_forbids_now_is_left_out_whichever_actuator_comes_first() -> None:
    gate = armed(APART, arm=ARM, head=HEAD, lamp=LAMP)
    command(gate, 10.1, lamp="ON")
    assert gate.allowed_choices(10.2) == {"head": ("stay", "right")}
    command(gate, 10.2, lamp="OFF")
    command(gate, 10.3, head="left")
    assert gate.allowed_choices(10.4) == {"lamp": ("OFF",)}


def test_a_command_that_is_not_acknowledged_yet_counts_as_carried_out() -> None:
    gate = armed(APART, head=HEAD, lamp=LAMP)
    command(gate, 10.1, lamp="ON")
    assert gate.allowed_choices(10.15) == {"head": ("stay", "right")}
    gate.judge(Proposal(0, "d", "p", 10.2, {"lamp": "OFF"}), 10.2)
    assert gate.allowed_choices(10.25) == {}, "the lamp is off at the next tick"


def test_every_rule_counts_and_one_of_other_actuators_does_not() -> None:
    gate = armed("arm[0] > 0.5", "head == 'left' and lamp == 'ON'", "head == 'right' and lamp == 'ON'",
                 head=HEAD, lamp=LAMP, arm=ARM)  # fmt: skip
    command(gate, 10.1, lamp="ON")
    assert gate.allowed_choices(10.2) == {"head": ("stay",)}


def test_an_actuator_that_every_choice_of_is_forbidden_is_not_named() -> None:
    gate = armed("lamp == 'ON' and head != 'up'", head=HEAD, lamp=LAMP)
    assert gate.allowed_choices(10.1) == {"lamp": ("OFF",)}
    nothing = armed("head != 'up'", head=HEAD)
    assert nothing.allowed_choices(10.1) == {}


def test_the_pace_holds_a_choice_until_its_time_is_over() -> None:
    gate = armed(lamp=SLOW)
    command(gate, 11.0, lamp="ON")
    assert gate.allowed_choices(11.4) == {"lamp": ("ON",)}
    assert gate.allowed_choices(11.5) == {}, "the time is over"


def test_a_short_interval_between_commands_leaves_every_choice() -> None:
    gate = armed(head=HEAD.model_copy(update={"min_interval_s": 5.0}))
    command(gate, 11.0, head="left")
    assert gate.allowed_choices(11.1) == {}


def test_one_that_the_policy_does_not_move_is_left_out_and_the_next_one_is_not() -> None:
    gate = armed(head=HEAD, lamp=SLOW, other=SLOW)
    command(gate, 11.0, lamp="ON", other="ON")
    gate.set_mode("shadow", 11.0, "head")
    assert gate.allowed_choices(11.1) == {"lamp": ("ON",), "other": ("ON",)}
    assert gate.override("lamp", "ON", 5.0, 11.1).rule is None
    assert gate.allowed_choices(11.2) == {"other": ("ON",)}
    gate.set_mode("assist", 11.2, "other")
    assert gate.allowed_choices(11.3) == {}


def test_nothing_is_named_while_nothing_may_move() -> None:
    gate = armed(lamp=SLOW)
    command(gate, 11.0, lamp="ON")
    assert gate.allowed_choices(11.1) == {"lamp": ("ON",)}
    gate.stop(11.1, engaged=True)
    assert gate.allowed_choices(11.1) == {}


def test_a_rule_with_an_actuator_of_unknown_value_is_not_searched_and_the_next_actuator_is() -> None:
    gate = armed(APART, report=False, head=HEAD, lamp=LAMP, arm=ARM, other=SLOW)
    assert gate.reconciled("head", "left", 10.0) is None
    assert gate.reconciled("other", "OFF", 10.05) is None
    assert gate.allowed_choices(10.1) == {"lamp": ("OFF",), "other": ("OFF",)}, "head: the lamp is unknown"


def test_no_more_rules_are_evaluated_than_the_bound_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = armed(APART, head=HEAD, lamp=LAMP)
    command(gate, 10.1, lamp="ON")
    for bound, expected in ((3, {}), (4, {"head": ("stay", "right")})):
        monkeypatch.setattr(module, "MOST_EVALUATIONS", bound)
        assert gate.allowed_choices(10.2) == expected, "three choices and the present one, by one rule"
    command(gate, 10.2, lamp="OFF")
    command(gate, 10.3, head="left")
    for bound, expected in ((6, {}), (7, {"lamp": ("OFF",)})):
        monkeypatch.setattr(module, "MOST_EVALUATIONS", bound)
        assert gate.allowed_choices(10.4) == expected, "the head took four of them"


def test_two_rules_take_twice_as_many_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = armed(APART, "head == 'right' and lamp == 'ON'", "lamp == 'off'", head=HEAD, lamp=LAMP)
    command(gate, 10.1, lamp="ON")
    for bound, expected in ((7, {}), (8, {"head": ("stay",)})):
        monkeypatch.setattr(module, "MOST_EVALUATIONS", bound)
        assert gate.allowed_choices(10.2) == expected


def test_the_telemetry_of_the_last_proposal_counts() -> None:
    gate = armed("lamp == 'ON' and window.open > 0.5", lamp=LAMP)
    command(gate, 10.1, {"window": {"open": 0.0}})
    assert gate.allowed_choices(10.2) == {}
    command(gate, 10.2, {"window": {"open": 1.0}})
    assert gate.allowed_choices(10.3) == {"lamp": ("OFF",)}


def test_a_step_out_of_a_forbidden_zone_may_be_proposed_and_with_telemetry_none_is() -> None:
    level = ChoiceSettings(kind="choice", choices=("low", "mid", "high"), safe="low")
    number = "(2 if level == 'high' else 1 if level == 'mid' else 0) + arm[0] > 0.5"
    gate = armed(number, report=False, level=level, arm=ARM)
    assert gate.reconciled("level", "high", 10.0) is None
    assert gate.reconciled("arm", [0.0], 10.0) is None
    assert gate.allowed_choices(10.1) == {"level": ("low", "mid")}
    seen = armed(f"window.open >= 0 and {number}", report=False, level=level, arm=ARM)
    assert seen.reconciled("level", "high", 10.0) is None
    assert seen.reconciled("arm", [0.0], 10.0) is None
    seen._forbidden.readings = {"window": {"open": 1.0}}
    assert seen.allowed_choices(10.1) == {"level": ("low",)}
