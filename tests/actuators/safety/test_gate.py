"""The gate: every rule by hand, then whatever sequence hypothesis can think of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from actuators.actions import Value
from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings, GateSettings, UtteranceSettings
from actuators.expressions import ExpressionError
from actuators.safety import limits
from actuators.safety.actuator_state import Actuator
from actuators.safety.decisions import ActuatorDecision, By, Proposal
from actuators.safety.forbid_rules import known_names
from actuators.safety.gate import Gate
from actuators.safety.limits import Refusal

HEAD = ChoiceSettings(kind="choice", choices=("left", "stay", "right"), safe="stay")
LAMP = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF", min_hold_s=0.5, requires=())
ARM = ContinuousSettings(
    kind="continuous", low=(-1.0, -1.0), high=(1.0, 1.0), max_rate=(2.0, 2.0), safe=(0.0, 0.0), out_of_range="refuse"
)
LOOSE = ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,), out_of_range="clamp")
SAY = UtteranceSettings(kind="text", task="chat", max_chars=5)


def offer(
    stamp_s: float, actions: Mapping[str, Any] | None = None, stale: tuple[str, ...] = (), ready: bool = True
) -> Proposal:
    """What the policy proposes at one tick."""
    return Proposal(0, "d", "p", stamp_s, actions or {}, stale, ready)


class AckedActuator(Actuator):
    """An actuator with commands that are acknowledged at once."""

    __slots__ = ()

    def issue(self, value: Value, by: By, now_s: float) -> int:
        serial = super().issue(value, by, now_s)
        self.acknowledge(serial, now_s, by_device=False)
        return serial


class AckedGate(Gate):
    """A gate of such actuators."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        for each in self._actuators.values():
            each.__class__ = AckedActuator


def make(*, now_s: float = 10.0, arm: bool = True, **actuators: AnyActuator) -> Gate:
    """An armed gate with reconciled actuators at rest."""
    gate = AckedGate(actuators or {"head": HEAD}, GateSettings(), ["cam"], period_s=0.1, now_s=now_s)
    for name, each in (actuators or {"head": HEAD}).items():
        rest: object = "" if each.kind == "text" else each.safe
        if each.kind == "continuous" and each.safe == "hold":
            rest = [0.0] * len(each.low)
        assert gate.reconciled(name, rest, now_s) is None
    if arm:
        gate.judge(offer(now_s), now_s)
        assert gate.armed
    return gate


def one(gate: Gate, now_s: float, actuator: str, value: Any, **more: Any) -> ActuatorDecision:
    """The ruling on one action, observed 50 ms ago."""
    if gate._alive_s is not None:
        gate._alive_s = now_s  # the agent has not been silent since the last one
    rulings = gate.judge(offer(now_s - 0.05, {actuator: value}, **more), now_s)
    return next(ruling for ruling in rulings if ruling.actuator == actuator)


def received(rulings: list[ActuatorDecision]) -> dict[str, tuple[Value | None, str | None, str]]:
    return {ruling.actuator: (ruling.value, ruling.rule, ruling.by) for ruling in rulings}


def test_a_sound_action_passes() -> None:
    gate = make()
    ruling = one(gate, 11.0, "head", "left")
    assert ruling == ActuatorDecision("head", "left", None, "policy", "", rule_changed=False)
    assert ruling.sent
    assert gate.last_command("head") == ("left", "policy")
    assert not gate.counters
    assert gate.modes == {"head": "autonomous"}


def test_an_actuator_without_action_is_left_alone() -> None:
    gate = make(head=HEAD, lamp=LAMP)
    assert received(gate.judge(offer(11.0, {"head": "left"}), 11.0)) == {
        "head": ("left", None, "policy"),
        "lamp": (None, None, "none"),
    }
    assert gate.last_command("lamp") == ("OFF", "none")


@pytest.mark.parametrize(
    ("settings", "value", "rule"),
    [
        (HEAD, "up", "unknown_choice"),
        (HEAD, 1.0, "wrong_type"),
        (HEAD, ("left",), "wrong_type"),
        (HEAD, None, "wrong_type"),
        (ARM, "left", "wrong_type"),
        (ARM, (0.0,), "wrong_type"),
        (ARM, (0.0, 0.0, 0.0), "wrong_type"),
        (ARM, (True, 0.0), "wrong_type"),
        (ARM, (math.nan, 0.0), "not_finite"),
        (ARM, (0.0, -math.inf), "not_finite"),
        (ARM, (10**400, 0.0), "not_finite"),
        (ARM, (0.0, 1.000001), "out_of_range"),
        (ARM, (-1.000001, 0.0), "out_of_range"),
        (LOOSE, (math.nan,), "not_finite"),
        (LOOSE, math.inf, "not_finite"),
        (ARM, (0.5, 0.0), "too_fast"),
        (SAY, "toolong", "too_long"),
        (SAY, "\ud800", "wrong_type"),
        (SAY, 3.0, "wrong_type"),
    ],
)
def test_what_no_device_may_get(settings: AnyActuator, value: Any, rule: str) -> None:
    gate = make(it=settings)
    ruling = one(gate, 11.0, "it", value)
    assert ruling.rule == rule
    assert ruling.reason
    assert ruling.rule_changed
    assert gate.counters == {rule: 1}
    assert gate.refused == {("it", rule): 1}
    assert ruling.value != value


def test_garbage_does_not_leave_the_last_action_standing() -> None:
    gate = make(it=ARM)
    one(gate, 11.0, "it", (0.1, 0.0))
    first = one(gate, 11.1, "it", (math.nan, 0.0))
    assert (first.value, first.by, first.rule, first.rule_changed) == ((0.0, 0.0), "gate", "not_finite", True)
    second = one(gate, 11.2, "it", (math.nan, 0.0))
    assert (second.value, second.by, second.rule, second.rule_changed) == (None, "none", "not_finite", False)
    assert gate.counters["not_finite"] == 2
    assert one(gate, 11.3, "it", (0.1, 0.0)).by == "policy"
    assert one(gate, 11.4, "it", (math.nan, 0.0)).value == (0.0, 0.0)


def test_a_refusal_of_range_or_pace_leaves_the_last_action_standing() -> None:
    gate = make(it=ARM)
    one(gate, 11.0, "it", (0.1, 0.0))
    assert one(gate, 11.1, "it", (2.0, 0.0)).value is None
    assert one(gate, 11.2, "it", (1.0, 0.0)).value is None
    assert gate.last_command("it") == ((0.1, 0.0), "policy")


def test_bounds_themselves_are_inside() -> None:
    still = ARM.model_copy(update={"max_rate": None})
    gate = make(it=still)
    assert one(gate, 11.0, "it", (1.0, -1.0)).value == (1.0, -1.0)
    assert one(gate, 11.1, "it", [-1, 1]).value == (-1.0, 1.0)


def test_out_of_range_is_clamped_where_set_so() -> None:
    gate = make(it=LOOSE)
    assert one(gate, 11.0, "it", (7.0,)).value == (1.0,)
    assert one(gate, 11.1, "it", (-7.0,)).value == (-1.0,)
    assert one(gate, 11.2, "it", 0.25).value == (0.25,)
    assert not gate.counters


def test_a_step_may_be_as_large_as_rate_times_time() -> None:
    gate = make(it=ARM)
    assert one(gate, 11.0, "it", (0.4, 0.4)).value == (0.4, 0.4)  # two periods of 0.1 s, at most, at 2 a second
    assert one(gate, 11.1, "it", (0.61, 0.4)).rule == "too_fast"
    assert one(gate, 11.1, "it", (0.6, 0.2)).value == (0.6, 0.2)
    assert one(gate, 30.0, "it", (1.0, -0.2)).value == (1.0, -0.2)
    assert one(gate, 60.0, "it", (1.0, -0.7)).rule == "too_fast"  # a pause saves nothing up


def test_a_step_is_shortened_where_clamping_is_set() -> None:
    gate = make(it=ARM.model_copy(update={"out_of_range": "clamp"}))
    assert one(gate, 11.0, "it", (9.0, 0.1)).value == (0.4, 0.1)
    assert one(gate, 11.1, "it", (-9.0, 0.1)).value == pytest.approx((0.2, 0.1))


def test_from_an_unknown_position_the_approach_is_from_the_safe_value() -> None:
    loose = ARM.model_copy(update={"out_of_range": "clamp"})
    gate = AckedGate({"it": loose}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=10.0)
    assert one(gate, 10.0, "it", (1.0, 1.0)).value == (0.4, 0.4)


def test_without_a_safe_value_an_unknown_position_is_refused() -> None:
    held = ARM.model_copy(update={"out_of_range": "clamp", "safe": "hold"})
    gate = AckedGate({"it": held}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=10.0)
    refused = one(gate, 10.0, "it", (1.0, 1.0))
    assert (refused.value, refused.rule) == (None, "unknown_state")
    assert "the present value is unknown" in refused.reason
    assert gate.override("it", (0.1, 0.0), 1.0, 10.1).rule == "unknown_state"
    assert gate.reconciled("it", [0.5, 0.0], 10.2) is None
    assert one(gate, 10.3, "it", (1.0, 1.0)).value == (0.9, 0.4)


@pytest.mark.parametrize(
    "report", [[0.0], [0.0, 0.0, 0.0], "left", [1e308, 0.0], [math.nan, 0.0], [-1.03, 0.0], True, None]
)
def test_a_report_that_does_not_fit_changes_nothing(report: Any) -> None:
    loose = ARM.model_copy(update={"out_of_range": "clamp"})
    gate = make(it=loose)
    assert one(gate, 11.0, "it", (-0.4, 0.0)).value == (-0.4, 0.0)
    assert gate.reconciled("it", report, 11.05) is not None
    assert gate.last_command("it") == ((-0.4, 0.0), "policy")
    assert one(gate, 11.1, "it", (1.0, 0.0)).value == pytest.approx((-0.2, 0.0)), "max_rate holds"


@pytest.mark.parametrize("report", [[1.0, 1.0], [-1.0, -1.0], [1.02, 0.0], [-1.02, 0.0]])
def test_no_report_makes_the_step_between_commands_larger(report: list[float]) -> None:
    loose = ARM.model_copy(update={"out_of_range": "clamp"})
    gate = make(it=loose)
    one(gate, 11.0, "it", (0.1, 0.0))
    assert gate.reconciled("it", report, 11.05) is None
    assert one(gate, 11.1, "it", (1.0, 0.0)).value == pytest.approx((0.3, 0.0))


def test_a_noisy_report_at_the_end_stop_is_taken_as_the_end_stop() -> None:
    gate = make(it=ARM)
    assert gate.reconciled("it", [1.02, -1.02], 11.0) is None
    assert gate.last_command("it") == ((1.0, -1.0), "none")


def test_a_retained_report_counts_until_the_device_is_commanded_or_reports() -> None:
    gate = AckedGate({"it": ARM}, GateSettings(), period_s=0.1, now_s=10.0)
    assert gate.reconciled("it", [0.5, 0.5], 10.0, retained=True) is None
    assert gate.last_command("it") == ((0.5, 0.5), "none")
    assert gate.is_reconciled(10.0)
    assert gate.reconciled("it", [0.1, 0.1], 10.1) is None
    assert gate.reconciled("it", [0.9, 0.9], 10.2, retained=True) is None
    assert gate.last_command("it") == ((0.1, 0.1), "none")
    gate.connected(10.3)
    gate.go_safe(10.3)
    assert gate.reconciled("it", [0.9, 0.9], 10.4, retained=True) is None
    assert gate.last_command("it") == ((0.0, 0.0), "gate")
    assert gate.is_reconciled(10.4)


def test_steps_are_measured_from_every_command_that_may_be_in_force() -> None:
    loose = ARM.model_copy(update={"out_of_range": "clamp"})
    gate = Gate({"it": loose}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=10.0)
    assert gate.reconciled("it", [0.0, 0.0], 10.0) is None
    first = one(gate, 10.0, "it", (1.0, 0.0))
    assert first.value == (0.4, 0.0)
    gate.acknowledged("it", first.serial, 0.0)
    second = one(gate, 10.1, "it", (1.0, 0.0))
    third = one(gate, 10.2, "it", (1.0, 0.0))
    assert (second.value, third.value) == (pytest.approx((0.6, 0.0)), pytest.approx((0.8, 0.0)))
    stuck = [one(gate, 10.3 + n / 10, "it", (1.0, 0.0)).value for n in range(4)]
    assert stuck[-1] == pytest.approx((0.8, 0.0)), "no further than one step from what was acknowledged"
    back = one(gate, 10.7, "it", (-1.0, 0.0))
    assert back.value is not None
    assert back.value[0] >= 0.6 - 1e-9, "and one step from the newest"  # type: ignore[operator]


def test_commands_wait_for_the_broker() -> None:
    gate = Gate({"it": LOOSE}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=10.0)
    sent = [one(gate, 10.0 + n / 10, "it", (n / 100,)) for n in range(9)]
    assert [ruling.sent for ruling in sent] == [True] * 8 + [False]
    assert sent[-1].rule == "unacknowledged"
    gate.acknowledged("it", sent[3].serial, 0.0)
    assert one(gate, 11.0, "it", (0.0,)).sent
    gate.unsent("it", sent[7].serial)
    assert one(gate, 11.1, "it", (0.5,)).sent


def test_a_broker_that_lost_many_acknowledgements_gets_the_newest_command_again() -> None:
    """Eight values that may be in force are enough; without another try, nothing would move until the next connection."""
    gate = Gate({"it": LOOSE}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=10.0)
    for n in range(8):
        gate.undelivered("it", one(gate, 10.0 + n / 10, "it", (n / 100,)).serial)
    again = one(gate, 11.0, "it", (0.5,))
    assert again.value == (0.07,), "no ninth value"
    assert one(gate, 11.1, "it", (0.5,)).rule == "unacknowledged", "that one may still be acknowledged"
    gate.acknowledged("it", again.serial, 11.2)
    assert one(gate, 11.3, "it", (0.5,)).value == (0.5,)


def test_a_lost_command_is_not_sent_again_where_a_rule_forbids_it_now() -> None:
    gate = Gate(
        {"it": LOOSE, "lamp": PLAIN},
        GateSettings(reconcile_s=0.0, forbid=("it[0] > 0.5 and lamp == 'ON'",)),
        now_s=10.0,
    )
    assert gate.reconciled("lamp", "OFF", 10.0) is None
    for n in range(8):
        gate.undelivered("it", one(gate, 10.0 + n / 10, "it", (0.6 + n / 100,)).serial)
    again = one(gate, 10.8, "it", (0.1,))
    assert again.value == pytest.approx((0.67,))
    gate.undelivered("it", again.serial)
    assert gate.reconciled("lamp", "ON", 10.9) is None
    assert one(gate, 11.0, "it", (0.1,)).rule == "unacknowledged"


def test_a_safe_action_is_repeated_until_it_is_acknowledged() -> None:
    gate = Gate({"head": HEAD}, GateSettings(), period_s=0.1, now_s=10.0)
    first = gate.go_safe(10.0)[0]
    assert gate.tick(10.05) == []
    assert gate.owed() == ["head"]
    times, now_s = [], 10.0
    while now_s < 18.0:
        now_s += 0.01
        times += [now_s] * len(gate.tick(now_s))
    gaps = [b - a for a, b in zip([10.0, *times], times, strict=False)]
    assert gaps == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0], abs=0.02)
    assert gate.repeats == 7
    gate.acknowledged("head", first.serial, 0.0)
    assert gate.owed() == ["head"], "that was an older one"
    gate.acknowledged("head", first.serial + 7, 0.0)
    assert gate.owed() == []
    assert gate.tick(30.0) == []


def test_a_safe_action_that_did_not_leave_is_repeated_at_once() -> None:
    gate = Gate({"head": HEAD}, GateSettings(), period_s=0.1, now_s=10.0)
    first = gate.go_safe(10.0)[0]
    gate.unsent("head", first.serial)
    again = gate.tick(10.01)
    assert [ruling.value for ruling in again] == ["stay"]
    assert again[0].reason == "the safe action was not acknowledged; sending it again"
    gate.undelivered("head", again[0].serial)
    assert len(gate.tick(10.02)) == 1
    gate.undelivered("head", first.serial)
    assert gate.tick(10.03) == [], "an older one does not matter"
    gate.disconnected(10.04)
    assert gate.tick(15.0) == []
    gate.connected(15.0)
    assert [ruling.value for ruling in gate.tick(15.01)] == ["stay"], "first thing after a reconnect"


def test_a_device_that_answers_must_have_it_itself() -> None:
    gate = Gate({"head": HEAD}, GateSettings(), period_s=0.1, now_s=10.0)
    assert gate.reconciled("head", "left", 10.0) is None
    gate.device_answers("head")
    sent = gate.go_safe(10.0)[0]
    gate.acknowledged("head", sent.serial, 0.0)
    assert gate.owed() == ["head"]
    again = gate.tick(10.11)[0]
    gate.acknowledged("head", again.serial, 0.0, by_device=True)
    assert gate.owed() == []


def test_a_policy_command_ends_what_was_owed() -> None:
    gate = Gate({"head": HEAD}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=10.0)
    gate.go_safe(10.0)
    assert one(gate, 10.05, "head", "left").by == "policy"
    assert gate.owed() == []


@pytest.mark.parametrize("arm", ["auto", "request"])
@pytest.mark.parametrize("ended_by", ["disarm", "end_request", "stop", "lost"])
def test_a_request_to_arm_that_waited_ends_with_what_came_after_it(arm: str, ended_by: str) -> None:
    settings = GateSettings.model_validate({"arm": arm, "reconcile_s": 0.0})
    gate = AckedGate({"head": HEAD}, settings, period_s=0.1, now_s=10.0)
    gate.judge(offer(10.0), 10.0)
    assert gate.arm(10.0, 9.0) is None, "nothing has ended a request yet"
    if ended_by == "stop":
        gate.stop(11.0, engaged=True)
        gate.stop(11.2, engaged=False)
    else:
        getattr(gate, ended_by)(11.0)
    refused = gate.arm(11.5, 10.9)
    if (arm, ended_by) == ("auto", "lost"):
        assert refused is None, "armed without a request, nothing ends one"
        return
    assert refused == Refusal("disarmed", "a stop or a disarming came after this request; send it again")
    assert gate.latches["wanted"] is False
    assert gate.arm(11.5, 11.0) is not None, "at one instant: the order is unknown"
    assert gate.latches["wanted"] is False
    assert gate.arm(11.5, 11.1) is None
    assert gate.latches["wanted"] is True
    gate.end_request(12.0)
    assert gate.arm(12.5) is None, "one that did not wait"


def test_arming_on_request_ends_with_every_disarming() -> None:
    for disarm in ("disarm", "lost", "go_safe", "disconnected"):
        gate = make(arm=False, head=HEAD)
        gate = AckedGate({"head": HEAD}, GateSettings(arm="request", reconcile_s=0.0), period_s=0.1, now_s=10.0)
        gate.judge(offer(10.0), 10.0)
        assert gate.arm(10.0) is None
        assert gate.armed
        getattr(gate, disarm)(10.1)
        gate.connected(10.2)
        gate.judge(offer(10.3), 10.3)
        assert not gate.armed, disarm
        assert gate.arm(10.4) is None
        assert gate.armed


COUPLED = "heater == 'ON' and fan == 'OFF'"


def warm(heater_safe: str = "OFF") -> AckedGate:
    """A heater that may be on while the fan is on, and is; the fan needs a stream of its own."""
    heater = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe=heater_safe)
    fan = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF", requires=("air",))
    gate = AckedGate(
        {"heater": heater, "fan": fan}, GateSettings(forbid=(COUPLED,), reconcile_s=0.0), period_s=0.1, now_s=10.0
    )
    for name in ("heater", "fan"):
        assert gate.reconciled(name, "OFF", 10.0) is None
    for n in range(2):
        gate.judge(offer(10.0 + n / 10, {"heater": "ON", "fan": "ON"}), 10.0 + n / 10)
    assert (gate.last_command("heater")[0], gate.last_command("fan")[0]) == ("ON", "ON")
    return gate


def test_where_one_rests_the_other_goes_first() -> None:
    gate = warm()
    rulings = gate.judge(offer(10.2, {"heater": "ON", "fan": "ON"}, ("air",)), 10.2)
    sent = [(ruling.actuator, ruling.value) for ruling in rulings if ruling.sent]
    assert sent == [("heater", "ON"), ("heater", "OFF"), ("fan", "OFF")]
    assert "a rule forbids the combination" in rulings[1].reason
    again = gate.judge(offer(10.3, {"heater": "ON", "fan": "ON"}, ("air",)), 10.3)
    assert received(again) == {"heater": (None, "forbidden", "none"), "fan": (None, "stale", "none")}


def test_a_mode_takes_the_other_along_and_ends_a_hold() -> None:
    gate = warm()
    assert gate.override("heater", "ON", 60.0, 10.2).sent
    sent = [(ruling.actuator, ruling.value) for ruling in gate.set_mode("shadow", 10.3, "fan") if ruling.sent]
    assert sent == [("heater", "OFF"), ("fan", "OFF")]
    assert gate.held_until_s("heater") is None


def test_a_stop_takes_the_harmless_order() -> None:
    gate = warm()
    assert [ruling.actuator for ruling in gate.stop(10.2, engaged=True)] == ["heater", "fan"]
    gate = warm()
    assert [ruling.actuator for ruling in gate.lost(10.2)] == ["heater", "fan"]


def test_a_forbidden_zone_may_be_left() -> None:
    one_each = ContinuousSettings(
        kind="continuous", low=(0.0,), high=(1.0,), max_rate=(1.0,), safe=(0.0,), out_of_range="clamp"
    )
    for by in ("policy", "override"):
        gate = AckedGate(
            {"a": one_each, "b": one_each}, GateSettings(forbid=("a[0] + b[0] > 1",)), period_s=0.1, now_s=10.0
        )
        for name in ("a", "b"):
            assert gate.reconciled(name, [0.9], 10.0) is None  # moved by hand
        gate.judge(offer(10.0), 10.0)
        assert one(gate, 10.1, "a", (1.0,)).rule == "forbidden", "not deeper into it"
        if by == "policy":
            assert one(gate, 10.1, "a", (0.0,)).value == pytest.approx((0.7,))
        else:
            assert gate.override("a", (0.0,), 5.0, 10.1).value == pytest.approx((0.7,))
        assert one(gate, 10.2, "b", (0.0,)).value == pytest.approx((0.7,))


def test_frames_that_are_no_proposal_are_no_heartbeat() -> None:
    gate = make(it=ARM)
    bad: list[dict[str, Any]] = [{"it": (math.nan, 0.0)}, {"nose": "up"}, {"it": "left"}, {"it": (0.0,)}]
    for n, actions in enumerate(bad):
        gate.judge(offer(10.05 * 1 + n * 0.05, actions), 10.05 + n * 0.05)
    assert gate.armed
    assert gate.tick(10.26)[0].rule == "lost"
    gate.judge(offer(10.3, {"nose": "up"}), 10.3)
    assert not gate.armed
    assert math.isinf(gate.deadline_s)
    gate.judge(offer(10.4, {"it": (0.0, 0.0)}), 10.4)
    assert gate.armed


def test_the_mode_is_the_more_careful_of_settings_and_latch() -> None:
    for configured, latched, written_under, expected in (
        ("shadow", "autonomous", "autonomous", "shadow"),
        ("shadow", "autonomous", None, "shadow"),
        ("autonomous", "shadow", "autonomous", "shadow"),
        ("autonomous", "assist", "shadow", "assist"),
        ("autonomous", "shadow", "shadow", "autonomous"),  # no operator requested it: the settings have changed since
        ("assist", "shadow", "assist", "shadow"),
        ("autonomous", "wild", "autonomous", "autonomous"),
    ):
        gate = Gate({"head": HEAD}, GateSettings(), now_s=10.0, mode=configured)  # type: ignore[arg-type]
        gate.restore({"stopped": False, "wanted": True, "modes": {"head": latched}, "configured": written_under})
        assert gate.modes == {"head": expected}
        assert gate.restricted == ({} if expected == configured else {"head": expected})


def test_commands_keep_their_distance() -> None:
    gate = make(head=HEAD.model_copy(update={"min_interval_s": 0.25}))
    assert one(gate, 11.0, "head", "left").sent
    assert one(gate, 11.2, "head", "left").rule == "too_soon"
    assert one(gate, 11.25, "head", "left").sent


def test_a_value_is_held_long_enough() -> None:
    gate = make(now_s=0.0, lamp=LAMP)
    assert one(gate, 11.0, "lamp", "ON").sent
    assert one(gate, 11.4, "lamp", "ON").sent
    assert one(gate, 11.4375, "lamp", "OFF").rule == "min_hold"
    assert one(gate, 11.5, "lamp", "OFF").sent
    assert gate.counters == {"min_hold": 1}


def test_a_report_of_another_value_restarts_the_hold() -> None:
    gate = make(lamp=LAMP)
    assert gate.reconciled("lamp", "ON", 20.0) is None
    assert gate.last_command("lamp") == ("ON", "none")
    assert one(gate, 20.25, "lamp", "OFF").rule == "min_hold"
    assert gate.reconciled("lamp", "ON", 20.3) is None  # nothing new
    assert one(gate, 20.5, "lamp", "OFF").sent


def forbidding(*texts: str, **actuators: AnyActuator) -> Gate:
    gate = AckedGate(actuators, GateSettings(forbid=texts, reconcile_s=0.0), period_s=0.1, now_s=10.0)
    gate.judge(offer(10.0), 10.0)
    return gate


def test_forbidden_combinations_are_seen_with_what_the_others_do() -> None:
    lamp = LAMP.model_copy(update={"min_hold_s": 0.0})
    gate = forbidding("lamp == 'ON' and head == 'left'", lamp=lamp, head=HEAD)
    first = received(gate.judge(offer(11.0, {"lamp": "ON", "head": "left"}), 11.0))
    assert first == {"lamp": (None, "forbidden", "none"), "head": (None, "forbidden", "none")}, "nothing is known"
    second = received(gate.judge(offer(11.1, {"lamp": "OFF", "head": "left"}), 11.1))
    assert second == {"lamp": ("OFF", None, "policy"), "head": ("left", None, "policy")}
    third = received(gate.judge(offer(11.2, {"lamp": "ON", "head": "right"}), 11.2))
    assert third == {"lamp": (None, "forbidden", "none"), "head": ("right", None, "policy")}, "one after the other"
    assert one(gate, 11.3, "lamp", "ON").sent
    refused = gate.override("head", "left", 1.0, 11.4)
    assert refused.rule == "forbidden"
    assert "lamp == 'ON' and head == 'left'" in refused.reason
    assert gate.held_until_s("head") is None, "a hold that may never act does not keep the policy out"


def test_only_expressions_about_the_actuator_are_asked() -> None:
    gate = forbidding("lamp == 'ON'", "head == 'left'", "it[0] > 0.5", lamp=LAMP, head=HEAD, it=LOOSE)
    gate.reconciled("lamp", "ON", 10.5)
    assert one(gate, 11.0, "head", "right").sent
    assert one(gate, 11.1, "head", "left").rule == "forbidden"
    assert one(gate, 11.2, "it", (0.6,)).rule == "forbidden"
    assert one(gate, 11.3, "it", (0.5,)).sent


def test_the_safe_action_is_never_forbidden() -> None:
    gate = forbidding("head == 'stay'", head=HEAD)
    assert gate.override("head", "left", 0.0, 11.0).sent
    assert received(gate.stop(11.1, engaged=True)) == {"head": ("stay", "stopped", "gate")}


def test_an_expression_without_known_names_is_refused_at_once() -> None:
    with pytest.raises(ExpressionError, match="unknown name 'lmap'"):
        AckedGate({"head": HEAD}, GateSettings(forbid=("lmap == 'ON'",)))
    assert known_names({"head": HEAD, "arm": ARM, "say": SAY}) == {"head": None, "arm": 2, "say": None}


@pytest.mark.parametrize(
    ("age_s", "passes"),
    [(0.0, True), (0.125, True), (0.25, True), (0.2578125, False), (-0.0078125, False), (math.nan, False)],
)
def test_a_proposal_expires(age_s: float, passes: bool) -> None:
    gate = make(now_s=0.0, head=HEAD.model_copy(update={"ttl_ms": 250}))
    gate.override("head", "left", 0.0, 0.5)
    gate._alive_s = 0.95  # a stamp that is no number is no heartbeat
    rulings = gate.judge(offer(1.0 - age_s, {"head": "right"}), 1.0)
    expected = ("right", None, "policy") if passes else ("stay", "expired", "gate")
    assert received(rulings) == {"head": expected}


def test_a_stale_required_stream_makes_safe_once() -> None:
    gate = make(head=HEAD, lamp=LAMP)
    one(gate, 11.0, "head", "left")
    first = one(gate, 11.1, "head", "left", stale=("cam", "room"))
    assert (first.value, first.rule, first.by, first.rule_changed) == ("stay", "stale", "gate", True)
    assert "cam" in first.reason
    assert "room" not in first.reason
    assert one(gate, 11.2, "head", "left", stale=("cam",)) == ActuatorDecision(
        "head", None, "stale", "none", first.reason, rule_changed=False
    )
    assert one(gate, 11.3, "lamp", "ON", stale=("cam",)).sent, "it requires nothing"
    assert one(gate, 11.4, "head", "left", stale=("room",)).by == "policy"
    assert one(gate, 11.5, "head", "left", stale=("cam",)).rule_changed


def test_an_actuator_acts_while_its_conditions_hold() -> None:
    """A condition alone leaves the required streams in force; with streams beside it, these replace them."""
    closed = "window.open == 0"
    heater = LAMP.model_copy(update={"requires": (closed,), "min_hold_s": 0.0})
    valve = LAMP.model_copy(update={"requires": (closed, "room"), "min_hold_s": 0.0})
    gate = make(heater=heater, valve=valve)
    assert one(gate, 11.0, "heater", "ON").sent
    unmet = one(gate, 11.1, "heater", "ON", stale=(closed,))
    assert (unmet.value, unmet.rule, unmet.by, unmet.reason) == ("OFF", "stale", "gate", f"{closed} does not hold")
    assert one(gate, 11.2, "heater", "ON").sent
    assert one(gate, 11.3, "heater", "ON", stale=("cam",)).rule == "stale"
    assert one(gate, 11.4, "valve", "ON", stale=("cam",)).sent
    assert one(gate, 11.5, "valve", "ON", stale=("room",)).rule == "stale"
    assert one(gate, 11.6, "valve", "ON", stale=(closed,)).rule == "stale"


PLAIN = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF")


def windowed(rule: str = "heater == 'ON' and window.open", **actuators: AnyActuator) -> Gate:
    """A gate with a rule that names the stream window, armed, with the heater off."""
    actuators = actuators or {"heater": PLAIN}
    settings = GateSettings(forbid=(rule,), reconcile_s=0.0)
    gate = AckedGate(actuators, settings, period_s=0.1, now_s=10.0, streams={"window": ("open",)})
    gate.judge(dataclasses.replace(offer(10.0), readings={}), 10.0)
    assert gate.armed
    return gate


def with_window(gate: Gate, now_s: float, actions: dict[str, Any], value: float | None, age_s: float = 0.0) -> Any:
    readings = {} if value is None else {"window": {"open": value}}
    return received(gate.judge(dataclasses.replace(offer(now_s - age_s, actions), readings=readings), now_s))


def test_no_heating_while_the_window_is_open() -> None:
    gate = windowed()
    on: dict[str, Any] = {"heater": "ON"}
    assert with_window(gate, 11.0, on, 1.0) == {"heater": (None, "forbidden", "none")}
    assert with_window(gate, 11.1, on, 0.0) == {"heater": ("ON", None, "policy")}
    proposal = dataclasses.replace(offer(11.2, on), readings={"window": {"open": 1.0}})
    first, second = gate.judge(proposal, 11.2)
    assert (first.value, first.rule, first.by, first.rule_changed) == ("OFF", "forbidden", "gate", True)
    assert first.reason == "heater == 'ON' and window.open would hold"
    assert (second.value, second.rule) == (None, "forbidden"), "the policy proposes it still"
    assert gate.refused["heater", "forbidden"] == 3
    assert with_window(gate, 11.3, {}, 1.0) == {"heater": (None, None, "none")}, "sent once"
    assert with_window(gate, 11.4, {"heater": "OFF"}, 1.0) == {"heater": ("OFF", None, "policy")}
    assert with_window(gate, 11.5, on, 0.0) == {"heater": ("ON", None, "policy")}


@pytest.mark.parametrize(("value", "age_s"), [(None, 0.0), (0.0, 1.001), (math.nan, 0.0)])
def test_a_window_that_is_unknown_counts_as_open(value: float | None, age_s: float) -> None:
    gate = windowed(heater=PLAIN.model_copy(update={"ttl_ms": 60_000}))
    assert with_window(gate, 11.1, {"heater": "ON"}, 0.0, 1.0) == {"heater": ("ON", None, "policy")}
    assert with_window(gate, 12.2, {}, value, age_s) == {"heater": (None, None, "none")}
    assert gate.last_command("heater") == ("OFF", "gate")
    assert gate.override("heater", "ON", 5.0, 12.2).rule == "forbidden"


def test_a_rule_with_telemetry_ends_the_hold_of_a_person_and_outlives_the_agent() -> None:
    gate = windowed()
    with_window(gate, 11.0, {}, 0.0)
    assert gate.override("heater", "ON", 60.0, 11.0).sent
    assert with_window(gate, 11.1, {}, 0.0) == {"heater": (None, None, "none")}
    assert with_window(gate, 11.2, {}, 1.0) == {"heater": (None, None, "none")}
    assert gate.holds["heater"] is None
    assert gate.last_command("heater") == ("OFF", "gate")
    with_window(gate, 11.3, {}, 0.0)
    gate.lost(11.4)
    gate.arm(11.4)
    gate.judge(dataclasses.replace(offer(11.5), readings={}), 11.5)
    assert gate.armed
    assert gate.override("heater", "ON", 5.0, 11.5).rule == "forbidden", "what the lost agent saw does not count"


def test_a_rule_with_telemetry_has_no_steps_out_and_takes_all_its_actuators_along() -> None:
    arm = LOOSE.model_copy(update={"safe": (0.0,)})
    gate = windowed("arm[0] > 0.5 and lamp == 'OFF' and window.open", arm=arm, lamp=PLAIN, other=PLAIN)
    moved: dict[str, Any] = {"arm": (0.9,), "lamp": "OFF", "other": "ON"}
    assert {n: r[2] for n, r in with_window(gate, 11.0, moved, 0.0).items()} == dict.fromkeys(moved, "policy")
    after = with_window(gate, 12.0, {"arm": (0.8,)}, 1.0)
    assert after["arm"] == (None, "forbidden", "none")
    assert gate.last_command("arm") == ((0.0,), "gate")
    assert gate.last_command("other") == ("ON", "policy")
    assert with_window(gate, 12.1, {"arm": (0.4,)}, 1.0)["arm"] == ((0.4,), None, "policy"), "this is allowed"


def test_with_telemetry_no_step_is_a_step_out_of_a_forbidden_zone() -> None:
    arm = LOOSE.model_copy(update={"safe": (0.0,)})
    settings = GateSettings(forbid=("arm[0] > 0.2 and window.open",), reconcile_s=0.0)
    gate = Gate({"arm": arm}, settings, period_s=0.1, now_s=10.0, streams={"window": ("open",)})
    gate.acknowledged("arm", gate.go_safe(10.0)[0].serial, 0.0)
    with_window(gate, 10.0, {}, 0.0)
    assert with_window(gate, 10.1, {"arm": (0.9,)}, 0.0)["arm"][2] == "policy"
    assert with_window(gate, 10.2, {"arm": (0.5,)}, 1.0)["arm"] == (None, "forbidden", "none")
    assert gate.last_command("arm") == ((0.0,), "gate"), "less far inside, and inside nevertheless"


def test_each_rule_with_telemetry_counts_and_one_without_ends_nothing() -> None:
    settings = GateSettings(
        forbid=("lamp == 'ON' and window.open > 5", "valve == 'ON' and fan == 'OFF'", "heater == 'ON' and window.open"),
        reconcile_s=0.0,
    )
    names = ("lamp", "heater", "fan", "valve")
    gate = AckedGate(dict.fromkeys(names, PLAIN), settings, period_s=0.1, now_s=10.0, streams={"window": ("open",)})
    with_window(gate, 10.0, {}, 0.0)
    with_window(gate, 10.1, {"fan": "ON"}, 0.0)
    with_window(gate, 10.2, {"valve": "ON", "lamp": "ON", "heater": "ON"}, 0.0)
    assert gate.reconciled("fan", "OFF", 10.3) is None, "someone switched it off by hand"
    proposal = dataclasses.replace(offer(10.4), readings={"window": {"open": 1.0}})
    decisions = gate.judge(proposal, 10.4)
    assert [(each.actuator, each.value) for each in decisions if each.sent] == [("heater", "OFF")]


def test_what_rests_along_with_a_rule_with_telemetry_is_no_new_refusal() -> None:
    forbid = ("heater == 'ON' and window.open", "heater == 'OFF' and fan == 'ON'")
    gate = AckedGate(
        {"heater": PLAIN, "fan": PLAIN},
        GateSettings(forbid=forbid, reconcile_s=0.0),
        period_s=0.1,
        now_s=10.0,
        streams={"window": ("open",)},
    )
    with_window(gate, 10.0, {}, 0.0)
    with_window(gate, 10.1, {"heater": "ON"}, 0.0)
    with_window(gate, 10.2, {"fan": "ON"}, 0.0)
    proposal = dataclasses.replace(offer(10.3), readings={"window": {"open": 1.0}})
    sent = [(each.actuator, each.value, each.rule_changed) for each in gate.judge(proposal, 10.3) if each.sent]
    assert sent == [("fan", "OFF", False), ("heater", "OFF", True)]
    assert sent[0][2] is False


def test_rest_before_the_first_proposal_takes_telemetry_as_unknown() -> None:
    forbid = ("heater == 'ON' and window.open",)
    gate = Gate({"heater": PLAIN}, GateSettings(forbid=forbid), now_s=10.0, streams={"window": ("open",)})
    assert gate.short_overrides == {}
    assert [(each.actuator, each.value) for each in gate.go_safe(10.0)] == [("heater", "OFF")]


def test_a_release_of_a_stop_that_is_not_engaged_changes_nothing() -> None:
    gate = make(head=HEAD)
    assert gate.stop(10.1, engaged=False) == []
    gate.lost(10.2)
    one(gate, 10.3, "head", "left")
    assert gate.armed, "`arm: auto` arms again"
    gate.disarm(10.4)
    assert gate.stop(10.5, engaged=False) == []
    one(gate, 10.6, "head", "left")
    assert not gate.armed, "an operator has disarmed"
    assert gate.latches["wanted"] is False


def test_an_override_that_began_and_ended_between_two_proposals_is_named_once() -> None:
    gate = make(head=HEAD, lamp=LAMP)
    assert gate.short_overrides == {}
    one(gate, 10.5, "head", "stay")
    assert gate.override("head", "left", 0.0, 10.6).sent
    assert gate.override("head", "up", 0.0, 10.6).rule == "unknown_choice"
    assert gate.override("lamp", "ON", 5.0, 10.6).sent
    assert gate.override("lamp", "OFF", 5.0, 10.61).rule == "min_hold", "nothing was sent"
    gate.tick(10.65)
    one(gate, 10.7, "head", "stay")
    assert gate.short_overrides == {"head": "left"}, "that of the lamp is still in force"
    one(gate, 10.8, "head", "stay")
    assert gate.short_overrides == {}
    assert gate.override("lamp", "OFF", 0.0, 11.11).sent
    assert gate.override("lamp", "ON", 0.0, 11.12).rule == "min_hold"
    gate.end_hold("lamp", 11.13)
    one(gate, 11.2, "head", "stay")
    assert gate.short_overrides == {"lamp": "OFF"}, "what was sent, not what was refused after it"


def test_while_disarmed_a_rule_with_telemetry_sends_nothing() -> None:
    gate = windowed()
    with_window(gate, 11.0, {"heater": "ON"}, 0.0)
    gate.disarm(11.1)
    assert with_window(gate, 11.2, {}, 1.0) == {"heater": (None, "disarmed", "none")}


def test_missing_everything_from_the_start_acts_safe() -> None:
    gate = make(head=HEAD)
    assert received(gate.judge(offer(11.0, {}, stale=("cam",)), 11.0)) == {"head": ("stay", "stale", "gate")}


def test_an_agent_that_is_not_ready_moves_nothing() -> None:
    gate = make(arm=False)
    assert received(gate.judge(offer(10.0, {"head": "left"}, ready=False), 10.0)) == {
        "head": (None, "disarmed", "none")
    }
    assert not gate.armed
    assert one(gate, 10.1, "head", "left").sent
    assert one(gate, 10.2, "head", "left", ready=False).rule == "not_ready"
    assert gate.last_command("head") == ("stay", "gate")
    assert gate.armed, "draining is not death"


def test_an_unknown_actuator_is_reported() -> None:
    gate = make()
    ruling = one(gate, 11.0, "tail", "wag")
    assert (ruling.rule, ruling.value, ruling.rule_changed) == ("unknown_actuator", None, True)
    assert gate.override("tail", "wag", 1.0, 11.0).rule == "unknown_actuator"
    assert gate.set_mode("shadow", 11.0, "tail")[0].rule == "unknown_actuator"
    assert gate.modes == {"head": "autonomous"}
    refusal = gate.reconciled("t" * 100, "wag", 11.0)
    assert refusal == Refusal("unknown_actuator", f"{'t' * 64!r} is not configured")
    assert gate.counters == {"unknown_actuator": 3}
    assert not gate.refused


# Arming and the dead-man.


def test_arming_waits_for_every_report() -> None:
    gate = AckedGate({"head": HEAD, "lamp": LAMP}, GateSettings(), period_s=0.1, now_s=10.0)
    assert one(gate, 10.1, "head", "left").rule == "disarmed"
    gate.reconciled("head", "right", 10.2)
    assert one(gate, 10.3, "head", "left").rule == "disarmed"
    assert not gate.is_reconciled(10.3)
    gate.reconciled("lamp", "OFF", 10.4)
    assert gate.is_reconciled(10.4)
    assert gate.last_command("head") == ("right", "none")
    assert one(gate, 10.5, "head", "left").sent


def test_arming_waits_no_longer_than_set() -> None:
    gate = AckedGate({"head": HEAD}, GateSettings(reconcile_s=2.0), period_s=0.1, now_s=10.0)
    assert one(gate, 11.9, "head", "left").rule == "disarmed"
    assert one(gate, 12.0, "head", "left").sent


def test_without_an_agent_nothing_arms() -> None:
    gate = make(arm=False)
    assert gate.tick(20.0) == []
    assert not gate.armed
    assert gate.deadline_s == math.inf


def test_the_dead_man_acts_after_period_and_grace() -> None:
    gate = make(now_s=0.0)
    one(gate, 1.0, "head", "left")
    assert gate.deadline_s == pytest.approx(1.25)
    assert gate.tick(1.24) == []
    assert gate.armed
    late = gate.deadline_s
    assert gate.tick(late) == [ActuatorDecision("head", "stay", "lost", "gate", "agent heartbeat lost")]
    assert not gate.armed
    assert gate.counters == {"lost": 1}
    assert gate.tick(late + 1) == []
    assert gate.deadline_s == math.inf


def test_the_agent_comes_back_and_auto_arms() -> None:
    gate = make()
    gate.override("head", "left", 5.0, 11.0)
    assert received(gate.lost(11.1)) == {"head": ("stay", "lost", "gate")}
    assert gate.held_until_s("head") is None
    assert gate.override("head", "left", 5.0, 11.2).rule == "disarmed"
    assert gate.tick(11.3) == []
    assert not gate.armed
    assert one(gate, 12.0, "head", "right").by == "policy"


def test_arming_on_request() -> None:
    gate = AckedGate({"head": HEAD}, GateSettings(arm="request", reconcile_s=0.0), period_s=0.1, now_s=10.0)
    assert one(gate, 10.1, "head", "left").rule == "disarmed"
    assert gate.arm(10.2) is None
    assert gate.armed
    assert one(gate, 10.3, "head", "left").sent
    gate.lost(10.4)
    assert one(gate, 10.5, "head", "left").rule == "disarmed", "a person decides again"
    assert gate.arm(10.6) is None
    assert gate.armed


def test_arming_ahead_of_the_agent_takes_effect_when_it_comes() -> None:
    gate = AckedGate({"head": HEAD}, GateSettings(arm="request", reconcile_s=0.0), period_s=0.1, now_s=10.0)
    assert gate.arm(10.1) is None
    assert not gate.armed
    assert one(gate, 10.2, "head", "left").sent


def test_a_person_disarms() -> None:
    gate = make(head=HEAD, say=SAY)
    one(gate, 11.0, "head", "left")
    assert received(gate.disarm(11.1)) == {"head": ("stay", "disarmed", "gate"), "say": (None, "disarmed", "none")}
    assert one(gate, 11.2, "head", "left").rule == "disarmed"
    gate.lost(11.3)
    assert one(gate, 11.4, "head", "left").rule == "disarmed", "auto does not overrule a person"
    assert gate.arm(11.5) is None
    assert one(gate, 11.6, "head", "left").sent


def test_the_hosts_own_rest_arms_again() -> None:
    gate = make()
    assert gate.go_safe(11.0) == [ActuatorDecision("head", "stay", "disarmed", "gate", "start or end of the daemon")]
    assert not gate.armed
    assert one(gate, 11.1, "head", "left").sent
    assert gate.go_safe(11.2, "why")[0].reason == "why"


@pytest.mark.parametrize("arm", ["auto", "request"])
def test_nothing_arms_after_the_end(arm: Literal["auto", "request"]) -> None:
    gate = AckedGate({"head": HEAD}, GateSettings(arm=arm, reconcile_s=0.0), ["cam"], period_s=0.1, now_s=10.0)
    gate.judge(offer(10.0), 10.0)
    assert gate.arm(10.0) is None
    assert gate.armed
    (decision,) = gate.end(11.0, "SIGTERM")
    assert received([decision]) == {"head": ("stay", "disarmed", "gate")}
    assert decision.reason == "SIGTERM"
    assert gate._actuators["head"].sent_s == 11.0
    gate.end_hold("head", 11.1)
    gate.connected(11.1)
    gate.tick(11.2)
    refusal = gate.arm(11.2)
    assert refusal is not None
    assert refusal.reason == "the daemon is ending"
    decision = gate.override("head", "left", 2.0, 11.3)
    assert (decision.value, decision.rule, decision.reason) == (None, "disarmed", "the daemon is ending")
    assert one(gate, 11.4, "head", "left").rule == "disarmed"
    assert not gate.armed
    assert gate.stop(11.5, engaged=True)[0].value == "stay", "a stop counts to the last"


def test_a_lost_broker_disarms_and_all_devices_must_report_again() -> None:
    gate = make()
    one(gate, 11.0, "head", "left")
    assert received(gate.disconnected(11.1)) == {"head": ("stay", "disarmed", "gate")}
    assert one(gate, 11.2, "head", "left").rule == "disarmed"
    gate.connected(20.0)
    assert not gate.is_reconciled(21.9)
    assert one(gate, 20.1, "head", "left").rule == "disarmed"
    gate.reconciled("head", "stay", 20.2)
    assert one(gate, 20.3, "head", "left").sent


@pytest.mark.parametrize("arm", ["auto", "request"])
def test_a_gate_that_hears_no_stop_is_not_armed_until_it_does(arm: Literal["auto", "request"]) -> None:
    gate = make()
    gate._settings = GateSettings(arm=arm)
    one(gate, 11.0, "head", "left")
    (rest,) = gate.hears_stop(11.1, heard=False)
    assert (rest.actuator, rest.value, rest.rule, rest.by) == ("head", "stay", "disarmed", "gate")
    assert rest.reason == "the gate cannot hear a stop"
    assert not gate.armed
    assert gate.hears_stop(11.15, heard=False) == [], "it is at rest"
    assert gate.arm(11.2) is None, "the request waits"
    refused = one(gate, 11.2, "head", "left")
    assert (refused.value, refused.rule) == (None, "disarmed")
    assert gate.hears_stop(11.3, heard=True) == []
    assert not gate.armed, "nothing moves before the next proposal"
    assert one(gate, 11.4, "head", "left").sent
    assert gate.armed
    assert gate.hears_stop(11.5, heard=True) == []
    assert gate.armed


def test_a_request_to_arm_ends_when_the_gate_hears_no_stop() -> None:
    gate = make()
    gate._settings = GateSettings(arm="request")
    gate.hears_stop(11.0, heard=False)
    gate.hears_stop(11.1, heard=True)
    assert one(gate, 11.2, "head", "left").rule == "disarmed"
    assert gate.arm(11.1) is None, "asked after it"
    assert one(gate, 11.3, "head", "left").sent


def test_what_was_proposed_before_the_machine_was_suspended_is_older_by_that_time() -> None:
    gate = make(head=HEAD, lamp=LAMP)
    gate.override("lamp", "ON", 60.0, 10.9)
    one(gate, 11.0, "head", "left")
    rests = gate.woke(11.1, 30.0)
    assert received(rests) == {"head": ("stay", "disarmed", "gate"), "lamp": ("OFF", "disarmed", "gate")}
    assert {each.reason for each in rests} == {"the machine was suspended"}
    assert (gate.armed, gate.holds["lamp"]) == (False, None)
    (old, _) = gate.judge(offer(11.1, {"head": "left"}), 11.11)
    assert (old.value, old.rule, old.reason) == (None, "expired", "observed 30010 ms ago; at most 300")
    (young, _) = gate.judge(offer(11.1001, {"head": "left"}), 11.2)
    assert (young.value, young.rule) == ("left", None), "a proposal from after it"


def test_a_short_suspension_makes_no_proposal_older_than_it_is() -> None:
    gate = make()
    gate.woke(11.1, 0.15)
    (ruling,) = gate.judge(offer(11.05, {"head": "left"}), 11.1)
    assert (ruling.value, ruling.rule) == ("left", None), "0.2 s old"
    gate.woke(11.2, 0.15)
    (ruling,) = gate.judge(offer(11.0, {"head": "right"}), 11.2)
    assert ruling.rule == "expired", "0.35 s old"


def test_a_proposal_that_waited_through_two_suspensions_is_older_by_both() -> None:
    gate = make()
    gate.woke(11.1, 30.0)
    gate.woke(11.2, 0.1)
    (ruling,) = gate.judge(offer(11.1, {"head": "left"}), 11.2)
    assert (ruling.rule, ruling.reason) == ("expired", "observed 30200 ms ago; at most 300")
    (ruling,) = gate.judge(offer(11.15, {"head": "left"}), 11.25)
    assert (ruling.value, ruling.rule) == ("left", None), "made between them, 0.2 s old"


def test_telemetry_from_before_the_machine_was_suspended_is_unknown() -> None:
    gate = AckedGate(
        {"head": HEAD},
        GateSettings(forbid=("head == 'left' and room.door > 0",), reconcile_s=0.0),
        period_s=0.1,
        now_s=10.0,
        streams={"room": ("door",)},
    )
    calm = dataclasses.replace(offer(10.0), readings={"room": {"door": 0.0}})
    gate.judge(calm, 10.0)
    assert gate.override("head", "left", 0.0, 10.01).sent
    gate.woke(10.05, 30.0)
    gate.judge(calm, 10.06)
    assert gate.armed
    assert gate.override("head", "left", 0.0, 10.07).rule == "forbidden"
    gate.judge(dataclasses.replace(calm, stamp_s=10.08), 10.08)
    assert gate.override("head", "left", 0.0, 10.09).sent
    gate.woke(10.1, 30.0)
    gate._arming.armed = True  # before any proposal
    assert gate.override("head", "left", 0.0, 10.11).rule == "forbidden"


# Stop.


def test_stop_is_latched_and_release_moves_nothing() -> None:
    gate = make(head=HEAD, say=SAY)
    gate.set_mode("shadow", 10.5)
    gate.override("head", "left", 5.0, 11.0)
    assert received(gate.stop(11.1, engaged=True)) == {
        "head": ("stay", "stopped", "gate"),
        "say": (None, "stopped", "none"),
    }
    assert gate.stopped
    assert gate.override("head", "left", 5.0, 11.2).rule == "stopped"
    refusal = gate.arm(11.3)
    assert refusal is not None
    assert refusal.rule == "stopped"
    gate.set_mode("autonomous", 11.35)
    assert one(gate, 11.4, "head", "left").rule == "stopped"
    assert gate.stop(11.5, engaged=False) == []
    assert one(gate, 11.6, "head", "left").rule == "disarmed"
    gate.lost(11.7)
    assert one(gate, 11.8, "head", "left").rule == "disarmed"
    assert gate.arm(11.9) is None
    assert one(gate, 12.0, "head", "left").sent


def test_latches_survive_a_restart() -> None:
    gate = make()
    assert gate.latches == {
        "stopped": False,
        "wanted": True,
        "modes": {"head": "autonomous"},
        "configured": "autonomous",
        "moved": [],
    }
    gate.judge(offer(11.0, {"head": "left"}), 11.0)
    assert gate.latches["moved"] == ["head"]
    gate.stop(11.0, engaged=True)
    gate.set_mode("assist", 11.0)
    saved = gate.latches
    assert saved == {
        "stopped": True,
        "wanted": False,
        "modes": {"head": "assist"},
        "configured": "autonomous",
        "moved": [],
    }
    again = make(arm=False)
    again.restore(saved)
    assert again.stopped
    assert again.modes == {"head": "assist"}
    again.stop(11.0, engaged=False)
    released = again.latches
    third = make(arm=False)
    third.restore(released)
    assert not third.stopped
    third.judge(offer(12.0), 12.0)
    assert not third.armed, "release alone moves nothing, a restart included"


@pytest.mark.parametrize(
    "latches",
    [
        {},
        {"stopped": False},
        {"stopped": False, "modes": 3},
        {"stopped": "no", "modes": {}},
        {"stopped": 0, "modes": {}},
    ],
)
def test_unreadable_latches_count_as_stopped(latches: dict[str, object]) -> None:
    gate = make()
    gate.restore(latches)
    assert gate.stopped
    assert not gate.armed
    gate.stop(11.0, engaged=False)
    gate.judge(offer(11.0), 11.0)
    assert not gate.armed


@pytest.mark.parametrize(
    ("moved", "rests"),
    [
        (["head", "gone", 7], ["head"]),
        ([], []),
        ("head", ["head", "lamp"]),
        (None, ["head", "lamp"]),
        ({}, ["head", "lamp"]),
    ],
)
def test_what_the_run_before_moved_rests_in_shadow_and_an_unreadable_list_means_all(
    moved: object, rests: list[str]
) -> None:
    actuators = {"head": HEAD, "lamp": LAMP, "say": SAY, "loose": LOOSE}
    gate = AckedGate(actuators, GateSettings(), mode="shadow")
    gate.restore({"stopped": False, "wanted": True, "modes": {}, "moved": moved})
    assert gate.moved == rests
    assert [each.actuator for each in gate.go_safe(1.0) if each.sent] == rests
    assert gate.moved == []


def test_what_only_the_gate_has_commanded_is_not_moved() -> None:
    gate = Gate({"head": HEAD}, GateSettings(), now_s=1.0)
    assert [each.sent for each in gate.go_safe(1.0)] == [True]
    assert gate.moved == []


def test_readable_latches() -> None:
    gate = make()
    gate.restore({"stopped": False, "wanted": True, "modes": {"head": "shadow", "gone": "shadow"}})
    assert not gate.armed
    assert gate.moved == [], "a file of before does not say"
    assert gate.modes == {"head": "shadow"}
    gate.judge(offer(11.0), 11.0)
    assert gate.armed
    gate.restore({"stopped": False, "wanted": 1, "modes": {"head": "loud"}})
    assert gate.modes == {"head": "shadow"}
    gate.judge(offer(11.1), 11.1)
    assert not gate.armed
    request = AckedGate({"head": HEAD}, GateSettings(arm="request", reconcile_s=0.0), now_s=0.0)
    request.restore({"stopped": False, "wanted": True, "modes": {}})
    request.judge(offer(1.0), 1.0)
    assert not request.armed, "a request does not outlive the process"


# Modes.


@pytest.mark.parametrize("mode", ["shadow", "assist"])
def test_only_people_act_outside_autonomous(mode: Any) -> None:
    gate = AckedGate({"head": HEAD}, GateSettings(reconcile_s=0.0), ["cam"], period_s=0.1, now_s=10.0, mode=mode)
    assert received(gate.judge(offer(11.0, {"head": "left"}), 11.0)) == {"head": (None, "mode", "none")}
    assert received(gate.judge(offer(11.1, {}, stale=("cam",)), 11.1)) == {"head": (None, None, "none")}
    assert gate.override("head", "left", 0.5, 11.2) == ActuatorDecision("head", "left", None, "override")
    assert gate.judge(offer(11.6, {}), 11.6) == [ActuatorDecision("head", None, None, "none")]
    assert gate.tick(11.7) == [ActuatorDecision("head", "stay", None, "gate", "the override has ended")]
    assert gate.tick(11.8) == []


@pytest.mark.parametrize("mode", ["shadow", "assist", "autonomous"])
def test_a_stop_from_the_run_before_brings_every_device_to_rest_in_any_mode(
    mode: Literal["shadow", "assist", "autonomous"],
) -> None:
    """Its safe actions may have been lost with the connection, and the next gate does not know what the policy had commanded."""
    for latches in ({"stopped": True, "wanted": False, "modes": {"head": mode}}, {}):
        gate = Gate({"head": HEAD, "say": SAY}, GateSettings(), mode=mode)
        gate.start_offline()
        gate.restore(latches)
        gate.connected(1.0)
        assert gate.reconciled("head", "left", 1.0) is None
        sent = [(each.actuator, each.value) for each in gate.go_safe(1.0, "connected to the broker") if each.sent]
        assert sent == [("head", "stay")]
        gate.stop(2.0, engaged=False)
        released = gate.lost(2.0)
        assert [each.actuator for each in released if each.sent] == ["head"], "it has commanded it"


def test_in_shadow_the_dead_man_speaks_only_where_the_gate_has_acted() -> None:
    gate = make(head=HEAD, lamp=LAMP)
    gate.set_mode("shadow", 10.1)
    gate.override("lamp", "ON", 5.0, 10.6)
    assert received(gate.lost(10.7)) == {"lamp": ("OFF", "lost", "gate")}
    assist = make(head=HEAD)
    assist.set_mode("assist", 10.1)
    assert received(assist.lost(10.7)) == {"head": ("stay", "lost", "gate")}


def test_leaving_autonomous_leaves_no_motion_behind() -> None:
    gate = make(head=HEAD, lamp=LAMP)
    gate.judge(offer(11.0, {"head": "left", "lamp": "ON"}), 11.0)
    assert received(gate.set_mode("assist", 11.1, "head")) == {"head": ("stay", "mode", "gate")}
    assert gate.modes == {"head": "assist", "lamp": "autonomous"}
    assert gate.last_command("lamp") == ("ON", "policy")
    assert gate.set_mode("assist", 11.2, "head") == []
    gate.override("lamp", "ON", 5.0, 11.3)
    assert gate.set_mode("shadow", 11.4) == [], "a person's hold outlives the change"
    assert gate.last_command("lamp") == ("ON", "override")
    assert gate.set_mode("autonomous", 11.5) == []
    assert gate.modes == {"head": "autonomous", "lamp": "autonomous"}


def test_leaving_autonomous_ends_the_policys_action_whatever_the_device_reports() -> None:
    """A report with noise takes the place of the command, and bears no name."""
    gate = make(tail=ARM, lamp=LAMP)
    gate.judge(offer(11.0, {"tail": (0.2, 0.0), "lamp": "ON"}), 11.0)
    assert gate.reconciled("tail", [0.2001, 0.0], 11.05) is None
    assert gate.reconciled("lamp", "OFF", 11.05) is None, "switched by hand"
    assert gate.last_command("tail") == ((0.2001, 0.0), "none")
    rested = gate.set_mode("shadow", 11.1)
    assert received(rested) == {"tail": ((0.0, 0.0), "mode", "gate"), "lamp": ("OFF", "mode", "gate")}
    assert gate.set_mode("assist", 11.2) == [], "at rest already"


def test_leaving_autonomous_ends_what_a_person_held_before() -> None:
    """The hold is over and the policy has not commanded since: its change comes too soon for `min_hold_s`."""
    gate = make(lamp=LAMP)
    gate.override("lamp", "ON", 0.1, 11.0)
    assert one(gate, 11.2, "lamp", "OFF").rule == "min_hold"
    assert gate.holds == {"lamp": None}
    assert received(gate.set_mode("assist", 11.25)) == {"lamp": ("OFF", "mode", "gate")}


def test_commands_that_were_lost_with_the_connection_save_up_no_jump() -> None:
    """With `safe: hold`, a device that reports nothing may have any of the commands that were not acknowledged."""
    wheel = ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,), max_rate=(1.0,))
    gate = Gate({"wheel": wheel}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=10.0)
    assert gate.reconciled("wheel", 0.0, 10.0) is None
    gate.judge(offer(10.0), 10.0)
    lost = [one(gate, 10.1 + 0.1 * n, "wheel", [1.0]) for n in range(6)]
    gate.acknowledged("wheel", lost[0].serial, 0.0)
    held = lost[0].value
    assert isinstance(held, tuple)
    gate.disconnected(10.7)
    for each in lost[1:]:
        gate.undelivered("wheel", each.serial)
    gate.connected(12.0)
    gate.go_safe(12.0)
    gate.judge(offer(12.1), 12.1)
    again = [one(gate, 12.2 + 0.1 * n, "wheel", [1.0]) for n in range(4)]
    reached = [each.value[0] - held[0] for each in again if isinstance(each.value, tuple)]
    assert len(reached) == 4
    assert max(reached) == pytest.approx(0.2), "one step from the command that the device has"
    gate.acknowledged("wheel", again[-1].serial, 0.0)
    assert one(gate, 12.6, "wheel", [1.0]).value == (pytest.approx(held[0] + 0.3),)


def test_a_device_that_reported_since_the_last_command_moves_on_from_there_after_a_reconnect() -> None:
    wheel = ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,), max_rate=(1.0,))
    gate = AckedGate({"wheel": wheel}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=10.0)
    assert gate.reconciled("wheel", 0.0, 10.0) is None
    gate.judge(offer(10.0), 10.0)
    assert one(gate, 10.1, "wheel", [0.1]).sent
    assert gate.reconciled("wheel", -0.9, 10.2) is None, "moved by hand"
    gate.disconnected(10.3)
    gate.connected(12.0)
    gate.judge(offer(12.1), 12.1)
    assert one(gate, 12.2, "wheel", [-0.8]).value == (-0.8,)


def test_mode_change_to_the_same_mode_keeps_acting() -> None:
    gate = make()
    one(gate, 11.0, "head", "left")
    assert gate.set_mode("autonomous", 11.1) == []
    assert gate.last_command("head") == ("left", "policy")


# Overrides.


def test_a_person_gives_an_override_back() -> None:
    gate = make()
    gate.override("head", "left", 60.0, 10.05)
    assert gate.holds["head"] is not None
    assert gate.end_hold("head", 10.06) == []
    assert gate.holds["head"] is None
    assert one(gate, 10.1, "head", "right") == ActuatorDecision("head", "right", None, "policy")
    assert gate.end_hold("head", 10.11) == [], "nothing is held"
    assert [ruling.rule for ruling in gate.end_hold("nose", 10.12)] == ["unknown_actuator"]


def test_outside_autonomous_mode_an_override_given_back_ends_in_the_safe_action() -> None:
    gate = make()
    assert gate.set_mode("assist", 10.04) == []
    gate.override("head", "left", 60.0, 10.05)
    assert [(ruling.actuator, ruling.value, ruling.by) for ruling in gate.end_hold("head", 10.06)] == [
        ("head", "stay", "gate")
    ]


def test_the_policy_yields_and_control_returns() -> None:
    gate = make()
    assert gate.override("head", "left", 0.5, 11.0) == ActuatorDecision("head", "left", None, "override")
    assert gate.held_until_s("head") == 11.5
    ruling = one(gate, 11.1, "head", "right")
    assert (ruling.value, ruling.rule, ruling.by, ruling.rule_changed) == (None, "overridden", "none", True)
    assert gate.last_command("head") == ("left", "override")
    assert not one(gate, 11.4, "head", "right").rule_changed
    assert one(gate, 11.5, "head", "right") == ActuatorDecision("head", "right", None, "policy")
    assert gate.held_until_s("head") is None
    assert gate.counters == {"overridden": 2}


def test_without_a_proposal_of_the_policy_nothing_is_overridden() -> None:
    gate = make()
    gate.override("head", "left", 0.5, 11.0)
    assert gate.judge(offer(11.1), 11.1) == [ActuatorDecision("head", None, None, "none")]
    assert not gate.counters


def test_an_override_waits_until_it_may_act() -> None:
    gate = make(lamp=LAMP)
    gate.override("lamp", "ON", 0.0, 11.0)
    assert gate.override("lamp", "OFF", 5.0, 11.1).rule == "min_hold"
    assert gate.held_until_s("lamp") == pytest.approx(16.1)
    assert one(gate, 11.2, "lamp", "ON").rule == "overridden"
    assert gate.last_command("lamp") == ("ON", "override")
    ruling = one(gate, 11.6, "lamp", "ON")
    assert (ruling.value, ruling.rule, ruling.by) == ("OFF", "overridden", "override")
    slow = make(head=HEAD.model_copy(update={"min_interval_s": 1.0}))
    slow.override("head", "left", 5.0, 11.0)
    assert slow.override("head", "right", 5.0, 11.5).rule == "too_soon"
    assert slow.judge(offer(12.0), 12.0) == [ActuatorDecision("head", "right", None, "override")]


@pytest.mark.parametrize(("out_of_range", "wanted"), [("clamp", 9.0), ("refuse", 1.0)])
def test_an_override_approaches_its_value_at_the_allowed_pace(out_of_range: str, wanted: float) -> None:
    gate = make(it=ARM.model_copy(update={"out_of_range": out_of_range}))
    assert gate.override("it", [wanted, 0.0], 5.0, 11.0).value == (0.4, 0.0)
    seen = [one(gate, 11.0 + 0.1 * tick, "it", (0.0, 0.0)).value for tick in range(1, 5)]
    assert seen == [pytest.approx((0.6, 0.0)), pytest.approx((0.8, 0.0)), pytest.approx((1.0, 0.0)), None]


@pytest.mark.parametrize(
    ("value", "hold_s", "rule"),
    [
        ("up", 1.0, "unknown_choice"),
        (2.0, 1.0, "wrong_type"),
        ("left", -1.0, "wrong_type"),
        ("left", math.nan, "wrong_type"),
        ("left", 3_600.5, "wrong_type"),
    ],
)
def test_bad_overrides_change_nothing(value: Any, hold_s: float, rule: str) -> None:
    gate = make()
    one(gate, 11.0, "head", "right")
    assert gate.override("head", value, hold_s, 11.05).rule == rule
    assert gate.held_until_s("head") is None
    assert gate.last_command("head") == ("right", "policy")
    assert gate.counters == {rule: 1}


def test_the_longest_hold() -> None:
    gate = make()
    assert gate.override("head", "left", 3_600.0, 11.0).sent
    assert gate.held_until_s("head") == 3_611.0


def test_a_momentary_override_ends_at_the_next_proposal() -> None:
    gate = make()
    assert gate.override("head", "left", 0.0, 11.0).sent
    assert one(gate, 11.0, "head", "right").by == "policy"


def test_a_stale_stream_does_not_stop_a_person() -> None:
    gate = make()
    gate.override("head", "left", 0.5, 11.0)
    assert one(gate, 11.1, "head", "right", stale=("cam",)).rule == "overridden"
    assert gate.last_command("head") == ("left", "override")
    assert one(gate, 11.5, "head", "right", stale=("cam",)).value == "stay"


# Safe actions that send nothing, and a choice that is called hold.


def test_hold_sends_nothing() -> None:
    still = HEAD.model_copy(update={"safe": "hold"})
    gate = AckedGate({"head": still, "it": LOOSE}, GateSettings(), now_s=10.0)
    assert received(gate.lost(10.0)) == {"head": (None, "lost", "none"), "it": (None, "lost", "none")}
    named = ChoiceSettings(kind="choice", choices=("hold", "go"), safe="hold")
    assert received(make(it=named).lost(10.0)) == {"it": ("hold", "lost", "gate")}


# What the gate reports to people.


def test_reasons_say_what_happened() -> None:
    gate = make(head=HEAD, say=SAY, lamp=LAMP, slow=HEAD.model_copy(update={"min_interval_s": 9.0}))
    assert one(gate, 11.0, "say", "\udfff").reason == "unpaired surrogate: not valid UTF-8"
    assert one(gate, 11.0, "say", "\ud800a").rule == "wrong_type"
    assert one(gate, 11.0, "say", "12345").sent
    assert one(gate, 11.0, "say", 3.0).reason == "expected a string, got float"  # type: ignore[arg-type]
    long = one(gate, 11.0, "head", "x" * 50)
    assert long.reason == f"{'x' * 40!r} is not one of ['left', 'stay', 'right']"
    assert gate.override("head", "left", -1.0, 11.0).reason == "hold_s must be between 0 and 3600"
    one(gate, 11.0, "lamp", "ON")
    assert one(gate, 11.25, "lamp", "OFF").reason == "'ON' is held for 0.5 s"
    one(gate, 11.0, "slow", "left")
    assert one(gate, 11.5, "slow", "left").reason == "0.500 s after the last command; at least 9"
    gate.override("head", "left", 1.0, 12.0)
    assert one(gate, 12.1, "head", "right").reason == "held by an operator override"
    gate.tick(13.5)
    gate.judge(offer(14.0), 14.0)
    gate.set_mode("assist", 14.0)
    assert one(gate, 14.0, "head", "right").reason == "the mode is assist"
    unknown = one(gate, 14.0, "t" * 70, "wag")
    assert unknown.reason == f"{'t' * 64!r} is not configured; there are ['head', 'lamp', 'say', 'slow']"
    assert unknown.by == "none"


def test_reasons_of_rest() -> None:
    gate = make()
    one(gate, 11.0, "head", "left")
    assert gate.set_mode("shadow", 11.1)[0].reason == "the mode is now shadow"
    gate.set_mode("autonomous", 11.1)
    assert gate.disconnected(11.2)[0].reason == "no connection to the broker"
    assert one(gate, 11.3, "head", "left").reason == "not armed"
    assert gate.disarm(11.4)[0].reason == "disarmed by an operator"
    assert gate.stop(11.5, engaged=True)[0].reason == "the software stop is engaged"
    assert one(gate, 11.6, "head", "left").reason == "the software stop is engaged"
    refusal = gate.arm(11.7)
    assert refusal is not None
    assert refusal.reason == "release the stop first, then arm"
    assert one(make(), 11.0, "head", "left", ready=False).reason == "the agent is starting or draining"
    late = make().judge(offer(10.0, {"head": "left"}), 10.5)[0]
    assert late.reason == "observed 500 ms ago; at most 300"
    big = ContinuousSettings(kind="continuous", low=(0.0,), high=(1.0,))
    assert one(make(it=big), 11.0, "it", 10**400).reason == "a number is beyond a double"


def test_safe_actions_keep_time_for_what_comes_after() -> None:
    held = LAMP.model_copy(update={"safe": "OFF", "min_interval_s": 0.25})
    gate = make(lamp=held)
    one(gate, 11.0, "lamp", "ON")
    assert gate.tick(12.0)[0].rule == "lost"
    assert one(gate, 12.125, "lamp", "ON").rule == "too_soon"
    assert one(gate, 13.0, "lamp", "ON").sent
    gate.set_mode("assist", 14.0)
    assert gate.override("lamp", "ON", 1.0, 14.125).rule == "too_soon"
    gate.override("lamp", "ON", 0.5, 15.0)
    gate.judge(offer(15.5), 15.5)
    assert gate.last_command("lamp") == ("OFF", "gate")
    assert gate.override("lamp", "ON", 0.5, 15.625).rule == "too_soon"
    gate.lost(16.0)
    gate.judge(offer(17.0), 17.0)
    gate.lost(17.0)
    assert gate.counters["lost"] == 3


def test_by_default_the_clock_starts_at_zero_and_ticks_at_ten_hertz() -> None:
    gate = AckedGate({"head": HEAD}, GateSettings())
    assert gate.armed is False
    assert gate.is_reconciled(2.0)
    assert not gate.is_reconciled(1.9)
    gate.judge(offer(0.5), 0.5)
    assert gate.deadline_s == pytest.approx(0.75)


WIDE = ContinuousSettings(
    kind="continuous", low=(-1.0, -1.0), high=(1.0, 1.0), max_rate=(1.0, 2.0), safe=(0.0, 0.0), out_of_range="refuse"
)


def paced(
    value: tuple[float, ...], *steps: tuple[tuple[float, ...], float], approach: bool = False, clamp: bool = False
) -> Value | Refusal:
    settings = WIDE.model_copy(update={"out_of_range": "clamp"}) if clamp else WIDE
    newest = steps[-1] if steps else (None, math.inf)
    last = limits.LastCommand(newest[0], newest[1], newest[1], steps)
    return limits.pace(settings, value, last, 0.2, approach=approach)


def test_a_step_is_measured_in_each_component_from_every_value() -> None:
    assert paced((0.1, 0.2), ((0.0, 0.0), 0.1)) == (0.1, 0.2)
    assert paced((-0.1, -0.2), ((0.0, 0.0), 0.1)) == (-0.1, -0.2)
    assert paced((0.5, -0.5), ((0.0, 0.0), 0.1), clamp=True) == pytest.approx((0.1, -0.2))
    assert paced((0.5, -0.5), ((0.0, 0.0), 0.1), approach=True) == pytest.approx((0.1, -0.2))
    assert paced((0.5, 0.9), ((0.0, 0.0), 9.0), clamp=True) == pytest.approx((0.2, 0.4)), "a pause saves nothing up"
    two = (((0.0, 0.0), 0.2), ((0.1, 0.3), 0.1))
    assert paced((1.0, 1.0), *two, clamp=True) == pytest.approx((0.2, 0.4))
    assert paced((-1.0, -1.0), *two, clamp=True) == pytest.approx((0.0, 0.1))
    assert paced((0.15, 0.35), *two) == (0.15, 0.35)
    assert paced((1.0, 1.0), ((0.95, 0.9), 0.2), clamp=True) == (1.0, 1.0)
    assert paced((1.0 + 5e-10, 0.0), ((1.0, 0.0), 0.2), clamp=True) == (1.0 + 5e-10, 0.0)


def test_reasons_of_pace() -> None:
    assert paced((0.5, 0.0), ((0.0, 0.0), 0.1)) == Refusal(
        "too_fast", "from [0.0, 0.0] to [0.5, 0.0] in 0.100 s; at most [1.0, 2.0] a second"
    )
    assert paced((0.5, 0.0), ((0.4, 0.0), 0.2), ((0.3, 0.0), 0.1)) == Refusal(
        "too_fast", "from [0.3, 0.0] to [0.5, 0.0] in 0.100 s; at most [1.0, 2.0] a second"
    )
    assert paced((0.5, 0.0)) == Refusal(
        "unknown_state",
        "max_rate cannot be applied: the present value is unknown; let the device report, or give the actuator a safe value",
    )
    apart = (((0.0, 0.0), 0.1), ((0.9, 0.0), 0.1))
    nowhere = Refusal("too_fast", "no value is within one step of every command that is not yet acknowledged")
    assert paced((0.5, 0.0), *apart, clamp=True) == nowhere
    assert paced((0.5, 0.0), ((0.0, 0.0), 0.1), ((0.2, 0.0), 0.1), clamp=True) == pytest.approx((0.1, 0.0))


def test_a_command_that_never_left_is_forgotten() -> None:
    gate = Gate({"it": LOOSE}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=10.0)
    assert gate.reconciled("it", [0.0], 10.0) is None
    first = one(gate, 10.0, "it", (0.25,))
    second = one(gate, 10.1, "it", (0.5,))
    gate.unsent("it", second.serial)
    assert gate.last_command("it") == ((0.25,), "policy")
    gate.unsent("it", first.serial)
    assert gate.last_command("it") == ((0.0,), "policy")
    third = one(gate, 10.2, "it", (0.75,))
    gate.unsent("it", first.serial)
    assert gate.last_command("it") == ((0.75,), "policy"), "an older one changes nothing"
    gate.acknowledged("it", third.serial, 0.0)
    gate.go_safe(10.3)
    assert gate.owed() == [], "hold sends nothing"


def test_an_actuator_that_holds_keeps_a_waiting_command_from_leaving() -> None:
    gate = make(it=LOOSE, head=HEAD)
    assert {ruling.actuator: ruling.cancels for ruling in gate.stop(11.0, engaged=True)} == {"it": True, "head": False}


def test_three_actuators_of_two_rules_rest_together() -> None:
    switch = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF")
    gate = AckedGate(
        {"a": switch, "b": switch, "c": switch, "d": switch},
        GateSettings(forbid=("a == 'ON' and b == 'OFF'", "b == 'ON' and c == 'OFF'"), reconcile_s=0.0),
        period_s=0.1,
        now_s=10.0,
    )
    for name in "abcd":
        assert gate.reconciled(name, "OFF", 10.0) is None
    for n in range(4):
        gate.judge(offer(10.0 + n / 10, dict.fromkeys("abcd", "ON")), 10.0 + n / 10)
    assert [gate.last_command(name)[0] for name in "abcd"] == ["ON"] * 4
    rested = gate.set_mode("shadow", 10.5, "c")
    assert [(ruling.actuator, ruling.value, ruling.rule) for ruling in rested] == [
        ("a", "OFF", None),
        ("b", "OFF", None),
        ("c", "OFF", "mode"),
    ]
    assert rested[0].reason == "c at rest: a rule forbids the combination"
    assert gate.last_command("d") == ("ON", "policy")


# What a person reads as false is false, and not merely nothing.


def test_a_gate_that_does_not_move_says_false() -> None:
    gate = make(arm=False)
    gate.tick(10.0)
    assert gate.armed is False
    gate.judge(offer(10.0, {"tail": "wag"}), 10.0)
    assert gate.armed is False, "an unsound frame is no sign of life"
    gate = make()
    gate.lost(11.0)
    gate.tick(11.0)
    assert gate.armed is False
    gate = make()
    gate.disconnected(11.0)
    gate.judge(offer(11.1), 11.1)
    assert gate.armed is False
    gate = make()
    gate.disarm(11.0)
    gate.judge(offer(11.1), 11.1)
    assert gate.armed is False
    assert gate.latches["wanted"] is False
    gate.restore({"stopped": False, "wanted": False, "modes": {}})
    assert gate.armed is False
    gate.go_safe(12.0)
    assert gate.armed is False


def test_nothing_arms_before_the_broker_is_there() -> None:
    gate = Gate({"head": HEAD}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=10.0)
    gate.start_offline()
    gate.judge(offer(10.0), 10.0)
    assert gate.armed is False
    gate.connected(10.1)
    gate.judge(offer(10.1), 10.1)
    assert gate.armed is True


def test_new_settings_change_the_mode_of_every_actuator_at_once() -> None:
    gate = make(head=HEAD, lamp=LAMP)
    one(gate, 11.0, "head", "left")
    gate.set_mode("shadow", 11.0, "lamp")
    assert gate.restricted == {"lamp": "shadow"}
    rested = gate.configure("assist", 11.5)
    assert received(rested) == {"head": ("stay", "mode", "gate")}
    assert gate.modes == {"head": "assist", "lamp": "shadow"}
    assert gate.restricted == {"lamp": "shadow"}, "an operator's request holds through a reload, as through a restart"
    gate.set_mode("assist", 11.5, "lamp")
    assert gate.configure("assist", 11.5) == []
    assert gate.restricted == {}
    assert gate.latches["configured"] == "assist"
    assert gate.override("head", "left", 0.0, 11.6).sent
    assert gate.configure("autonomous", 12.0) == []


def test_back_in_autonomous_mode_an_actuator_that_holds_is_left_alone() -> None:
    gate = make(it=LOOSE)
    assert one(gate, 11.0, "it", (0.5,)).sent
    (resting,) = gate.set_mode("assist", 11.1)
    assert (resting.value, resting.cancels) == (None, True)
    assert gate.set_mode("autonomous", 11.2) == []


def test_after_a_hold_no_one_commands_the_actuator_although_its_value_may_be_in_force() -> None:
    gate = make()
    assert gate.override("head", "left", 1.0, 11.0).sent
    assert gate.last_command("head") == ("left", "override")
    gate._alive_s = 12.5
    gate.tick(12.5)
    assert gate.last_command("head") == ("left", "none")


def test_each_step_of_an_override_has_a_number_of_its_own() -> None:
    gate = make(it=ARM.model_copy(update={"out_of_range": "clamp"}))
    first = gate.override("it", (1.0, 0.0), 5.0, 11.0)
    second = one(gate, 11.1, "it", (0.0, 0.0))
    assert (second.by, second.rule) == ("override", "overridden")
    assert second.serial == first.serial + 1


def test_a_full_pipeline_says_how_many_commands_wait() -> None:
    gate = Gate({"it": LOOSE}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=10.0)
    sent = [one(gate, 10.0 + n / 10, "it", (n / 100,)) for n in range(9)]
    assert sent[-1].reason == "8 commands await the broker's acknowledgement"


def test_a_rule_that_does_not_concern_the_actuator_does_not_hide_the_next_one() -> None:
    gate = forbidding("lamp == 'ON'", "head == 'left'", lamp=LAMP, head=HEAD)
    gate.reconciled("lamp", "OFF", 10.5)
    assert one(gate, 11.0, "head", "left").rule == "forbidden"
    gate = forbidding("head == 'left' and lamp == 'ON'", "head == 'left'", lamp=LAMP, head=HEAD)
    gate.reconciled("lamp", "OFF", 10.5)
    assert one(gate, 11.0, "head", "left").rule == "forbidden", "the first rule allows it, the second does not"


def test_only_the_distrusted_actuator_has_a_new_rule_when_another_rests_with_it() -> None:
    gate = warm()
    rested = gate.judge(offer(10.2, {"heater": "ON", "fan": "ON"}, stale=("air",)), 10.2)
    by_name = {ruling.actuator: (ruling.value, ruling.rule, ruling.rule_changed) for ruling in rested if ruling.sent}
    assert by_name == {"heater": ("OFF", None, False), "fan": ("OFF", "stale", True)}


def test_an_actuator_that_holds_is_held_once() -> None:
    gate = make(it=LOOSE)
    one(gate, 11.0, "it", (0.5,))
    assert one(gate, 11.1, "it", (0.5,), stale=("cam",)).cancels is True
    again = one(gate, 11.2, "it", (0.5,), stale=("cam",))
    assert (again.rule, again.cancels, again.rule_changed) == ("stale", False, False)
    assert gate.refused == {("it", "stale"): 2}


SWITCH = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF")


def switches(*rules: str, on: str = "", **changes: Any) -> AckedGate:
    """Four switches of which some are on."""
    gate = AckedGate(
        {name: changes.get(name, SWITCH) for name in "abcd"},
        GateSettings(forbid=rules, reconcile_s=0.0),
        period_s=0.1,
        now_s=10.0,
    )
    for name in "abcd":
        assert gate.reconciled(name, "OFF", 10.0) is None
    for n in range(4):
        gate.judge(offer(10.0 + n / 10, dict.fromkeys(on, "ON")), 10.0 + n / 10)
    assert [name for name in "abcd" if gate.last_command(name)[0] == "ON"] == list(on)
    return gate


def test_an_actuator_at_rest_does_not_keep_a_later_one_from_resting() -> None:
    gate = switches("b == 'ON' and d == 'OFF'", on="abd")
    gate.set_mode("shadow", 10.4, "a")
    rested = gate.set_mode("shadow", 10.5, "d")
    assert [(ruling.actuator, ruling.value) for ruling in rested] == [("b", "OFF"), ("d", "OFF")]
    gate = switches("(a == 'ON' or b == 'ON') and d == 'OFF'", on="abd")
    gate.set_mode("shadow", 10.4, "a")
    rested = gate.set_mode("shadow", 10.5, "d")
    assert [(ruling.actuator, ruling.value) for ruling in rested] == [("b", "OFF"), ("d", "OFF")]


def test_two_actuators_at_rest_are_both_named_to_the_third() -> None:
    gate = switches("a == 'ON' and b == 'OFF' and c == 'OFF'", on="abc")
    rested = gate.set_mode("shadow", 10.5)
    assert {ruling.reason for ruling in rested} == {"the mode is now shadow"}
    gate = switches("a == 'ON' and b == 'OFF' and c == 'OFF'", on="abc")
    gate.override("a", "ON", 10.0, 10.45)
    rested = gate.set_mode("shadow", 10.5)
    assert {ruling.actuator: ruling.reason for ruling in rested}["a"] == (
        "b, c at rest: a rule forbids the combination"
    )


def test_a_rule_without_a_resting_actuator_moves_nothing() -> None:
    gate = switches("c == 'ON' and d == 'OFF'", on="a")
    assert gate.reconciled("c", "ON", 10.4) is None, "by hand, into the forbidden zone"
    rested = gate.set_mode("shadow", 10.5, "a")
    assert [ruling.actuator for ruling in rested] == ["a"]
    assert gate.last_command("c") == ("ON", "none")


def test_a_text_of_small_letters_passes() -> None:
    gate = make(say=SAY)
    assert one(gate, 11.0, "say", "a\u00e9z").value == "a\u00e9z"


def test_a_rounding_error_is_no_step_too_far() -> None:
    assert paced((1e-9, 0.0), ((0.0, 0.0), 0.0)) == (1e-9, 0.0)
    assert paced((0.0, 0.0), ((0.0, 0.0), 0.0), ((1e-9, 0.0), 0.0), clamp=True) == (0.0, 0.0)


SWITCH = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF", refresh_s=5.0, requires=())
HEATER = ContinuousSettings(kind="continuous", low=(0.0,), high=(1.0,), safe=(0.0,), refresh_s=5.0, requires=())


def sent(gate: Gate, actuator: str, value: Any, *moments_s: float) -> list[Value | None]:
    """What goes out when the policy proposes the same at each of these moments."""
    return [one(gate, moment_s, actuator, value).value for moment_s in moments_s]


def test_a_command_that_does_not_change_is_sent_again_after_refresh_s() -> None:
    gate = make(lamp=SWITCH, heat=HEATER)
    assert sent(gate, "lamp", "ON", 11.0, 11.1, 15.9, 16.0, 16.1) == ["ON", None, None, "ON", None]
    assert sent(gate, "heat", [0.5], 21.0, 25.9, 26.0) == [(0.5,), None, (0.5,)]
    assert gate.last_command("lamp") == ("ON", "policy")
    assert not gate.counters
    assert sent(gate, "lamp", "OFF", 26.1, 26.2) == ["OFF", None]


def test_without_refresh_s_every_tick_sends() -> None:
    assert sent(make(), "head", "left", 11.0, 11.1, 11.2) == ["left"] * 3


def test_a_command_that_has_not_arrived_is_sent_at_every_tick() -> None:
    gate = Gate({"lamp": SWITCH}, GateSettings(), period_s=0.1, now_s=10.0)
    gate.reconciled("lamp", "OFF", 10.0)
    gate.judge(offer(10.0), 10.0)
    first = one(gate, 11.0, "lamp", "ON")
    second = one(gate, 11.1, "lamp", "ON")
    assert (first.value, second.value) == ("ON", "ON")
    gate.acknowledged("lamp", first.serial, 0.0)
    third = one(gate, 11.2, "lamp", "ON")
    assert third.value == "ON"
    gate.acknowledged("lamp", third.serial, 0.0)
    assert one(gate, 11.3, "lamp", "ON").value is None


def test_where_the_device_answers_the_acknowledgement_of_the_broker_does_not_count() -> None:
    gate = make(lamp=SWITCH)
    gate.device_answers("lamp")
    assert sent(gate, "lamp", "ON", 11.0, 11.1) == ["ON", "ON"]
    gate.acknowledged("lamp", one(gate, 11.2, "lamp", "ON").serial, 0.0, by_device=True)
    assert sent(gate, "lamp", "ON", 11.3) == [None]


def test_what_a_device_reports_otherwise_is_commanded_at_once() -> None:
    gate = make(lamp=SWITCH)
    assert sent(gate, "lamp", "ON", 11.0, 11.1) == ["ON", None]
    gate.reconciled("lamp", "OFF", 11.2)
    assert sent(gate, "lamp", "ON", 11.3, 11.4) == ["ON", None]
    gate.reconciled("lamp", "ON", 11.5)
    assert sent(gate, "lamp", "ON", 11.6) == [None]


def test_after_a_person_the_gate_or_a_lost_broker_the_policy_commands_again() -> None:
    gate = make(lamp=SWITCH)
    assert sent(gate, "lamp", "ON", 11.0) == ["ON"]
    assert gate.override("lamp", "ON", 0.0, 11.1).value == "ON"
    gate.tick(11.1)
    assert sent(gate, "lamp", "ON", 11.2, 11.3) == ["ON", None]
    gate.disconnected(11.4)
    gate.connected(11.5)
    gate.reconciled("lamp", "ON", 11.5)
    gate.arm(11.5)
    assert sent(gate, "lamp", "ON", 11.6, 11.7) == ["ON", None]
    gate.stop(11.8, engaged=True)
    gate.stop(11.8, engaged=False)
    gate.arm(11.8)
    assert sent(gate, "lamp", "ON", 11.9) == ["ON"]


def test_a_forbidden_value_is_refused_although_it_is_in_force() -> None:
    """The other actuator moved where this one may not stay as it is."""
    gate = AckedGate(
        {"lamp": SWITCH, "fan": LAMP}, GateSettings(forbid=("lamp == 'ON' and fan == 'ON'",)), period_s=0.1, now_s=10.0
    )
    for name in ("lamp", "fan"):
        gate.reconciled(name, "OFF", 10.0)
    gate.judge(offer(10.0), 10.0)
    assert sent(gate, "lamp", "ON", 11.0, 11.1) == ["ON", None]
    gate.reconciled("fan", "ON", 11.2)
    assert one(gate, 11.3, "lamp", "ON").rule == "forbidden"


def test_the_gate_says_when_time_brings_the_next_decision() -> None:
    gate = Gate({"head": HEAD, "lamp": LAMP}, GateSettings(), period_s=0.1, now_s=10.0)
    assert gate.due_s() == 10.0 + GateSettings().reconcile_s
    for name, rest in (("head", "stay"), ("lamp", "OFF")):
        gate.reconciled(name, rest, 10.0)
    gate.tick(10.0)
    assert gate.due_s() == math.inf, "there is no agent, and every device has reported"
    gate.judge(offer(10.0), 10.0)
    assert gate.due_s() == gate.deadline_s == pytest.approx(10.25)
    gate.override("lamp", "ON", 0.05, 10.01)
    assert gate.due_s() == pytest.approx(10.06)
    gate.lost(10.3)
    assert gate.due_s() == pytest.approx(10.4), "the safe actions are not acknowledged"
    assert gate.tick(10.399) == []
    assert [each.actuator for each in gate.tick(10.401)] == ["head", "lamp"]
    assert gate.due_s() == pytest.approx(10.601)
    gate.disconnected(10.45)
    assert gate.due_s() == math.inf, "nothing can be sent"
    gate.connected(10.5)
    assert gate.due_s() == -math.inf, "what did not arrive is due"


# Late commands.

HELD = HEAD.model_copy(update={"min_hold_s": 1.0})
PLAIN = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF")


def holding(*, answers: bool) -> Gate:
    """An armed gate that has just commanded `left`, at 10.0, which has not arrived."""
    gate = Gate({"head": HELD}, GateSettings(reconcile_s=0.0), period_s=0.1, now_s=5.0)
    assert gate.reconciled("head", "stay", 5.0) is None
    if answers:
        gate.device_answers("head")
    assert one(gate, 10.0, "head", "left").sent
    return gate


@pytest.mark.parametrize(
    ("answers", "by_device", "arrives_s", "free_s"),
    [
        (False, False, 10.0, 11.0),
        (False, False, 10.6, 11.6),
        (True, True, 10.6, 11.6),
        (True, False, 10.6, 12.0),  # the broker has it, and the device may get it for as long as the command lives
        (False, False, None, 12.0),
        (False, False, 11.5, 12.0),  # the device had dropped it before
    ],
)
def test_a_value_is_held_from_its_arrival(
    answers: bool, by_device: bool, arrives_s: float | None, free_s: float
) -> None:
    gate = holding(answers=answers)
    serial = gate._actuators["head"].serial
    for tenth in range(1, 22):
        now_s = 10.0 + tenth / 10
        if arrives_s is not None and now_s >= arrives_s:
            gate.acknowledged("head", serial, arrives_s, by_device=by_device)
        decision = one(gate, now_s, "head", "right")
        assert decision.sent == (now_s >= free_s - 1e-9), now_s
        if decision.sent:
            return
        assert decision.rule == "min_hold"
    raise AssertionError("it is never free")


def test_a_report_of_the_value_says_that_it_has_arrived_and_a_later_acknowledgement_changes_nothing() -> None:
    gate = holding(answers=False)
    assert gate.reconciled("head", "left", 10.3) is None
    gate.acknowledged("head", gate._actuators["head"].serial, 10.9)
    assert not one(gate, 11.25, "head", "right").sent
    assert one(gate, 11.3, "head", "right").sent


def test_a_safe_action_is_held_from_its_arrival_for_as_long_as_it_may_come() -> None:
    gate = holding(answers=False)
    (rest,) = gate.disarm(10.1)
    gate.acknowledged("head", rest.serial, 40.0)
    gate.arm(40.0)
    assert one(gate, 40.9, "head", "left").rule == "min_hold"
    assert one(gate, 41.0, "head", "left").sent


def test_a_choice_that_its_device_did_not_take_counts_for_the_rules_until_it_answers() -> None:
    """The broker has the command, and the device drops it as too old: it says so with the number of the one before."""
    gate = Gate(
        {"heater": PLAIN, "fan": PLAIN},
        GateSettings(reconcile_s=0.0, forbid=("heater == 'ON' and fan == 'OFF'",)),
        period_s=0.1,
        now_s=9.0,
    )
    for name in ("heater", "fan"):
        assert gate.reconciled(name, "OFF", 9.0) is None
        gate.device_answers(name)

    def command(now_s: float, name: str, value: str, *, takes: bool = True) -> ActuatorDecision:
        decision = one(gate, now_s, name, value)
        if decision.sent:
            gate.acknowledged(name, decision.serial, now_s)
            if takes:
                gate.acknowledged(name, decision.serial, now_s, by_device=True)
        return decision

    assert command(10.0, "fan", "ON").sent
    on = command(10.1, "heater", "ON")
    assert command(10.2, "heater", "OFF", takes=False).sent
    gate.acknowledged("heater", on.serial, 10.25, by_device=True)
    assert command(10.3, "fan", "OFF").rule == "forbidden"
    assert command(10.4, "heater", "OFF").sent
    assert command(10.5, "fan", "OFF").sent


def test_a_report_without_a_number_is_what_a_choice_has() -> None:
    """A device that named its commands once, and does so no longer, blocks no rule for ever."""
    it = AckedActuator("it", PLAIN, frozenset(), "autonomous", answers=True)
    for value in ("ON", "OFF"):
        it.issue(value, "policy", 0.0)
    assert set(it.possible) == {"ON", "OFF"}
    assert it.report("ON", 1.0, retained=False) is None
    it.issue("ON", "policy", 2.0)
    assert it.possible == ("ON",)
    it.issue("OFF", "policy", 3.0)
    assert set(it.possible) == {"ON", "OFF"}, "what it has reported, until it answers"
    waits = Actuator("it", PLAIN, frozenset(), "autonomous", answers=True)
    waits.issue("OFF", "policy", 0.0)
    assert waits.report("ON", 1.0, retained=False) is None
    assert set(waits.possible) == {"ON", "OFF"}, "the command may still come"
