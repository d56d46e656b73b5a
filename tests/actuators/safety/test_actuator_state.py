"""One actuator inside the gate: which values it may have, when a safe action is due again, and which reports are believed."""

from __future__ import annotations

from typing import Any

import pytest

from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings
from actuators.safety.actuator_state import MAX_CHAIN, MAX_PENDING, Actuator, freshness_refusal, report_of
from actuators.safety.decisions import Proposal
from actuators.safety.limits import Refusal

HEAD = ChoiceSettings(kind="choice", choices=("left", "stay", "right"), safe="stay")
ARM = ContinuousSettings(kind="continuous", low=(-1.0, 0.0), high=(1.0, 10.0), safe=(0.0, 0.0))


def actuator(settings: AnyActuator = HEAD, requires: tuple[str, ...] = ()) -> Actuator:
    return Actuator("it", settings, frozenset(requires), "autonomous")


def test_repeats_of_a_safe_action_are_bounded_and_displace_no_value_that_may_be_in_force() -> None:
    it = actuator()
    for n in range(MAX_PENDING):
        it.issue("left" if n % 2 else "right", "policy", float(n))
    for n in range(10 * MAX_CHAIN):
        it.issue("stay", "gate", 10.0 + n)
    assert len(it.chain) == MAX_CHAIN
    assert set(it.possible) >= {"left", "stay", "right"}
    assert [each.serial for each in it.chain] == [*range(1, MAX_CHAIN), it.serial], (
        "the one before the newest is forgotten"
    )
    it.acknowledge(it.serial, 0.0, by_device=False)
    assert it.possible == ("stay",)


def test_the_acknowledgement_of_a_forgotten_command_changes_nothing() -> None:
    it = actuator()
    first = it.issue("left", "policy", 0.0)
    it.acknowledge(first, 0.0, by_device=False)
    second = it.issue("right", "policy", 1.0)
    it.acknowledge(0, 0.0, by_device=False)
    assert it.possible == ("left", "right")
    it.acknowledge(second, 0.0, by_device=False)
    it.acknowledge(first, 0.0, by_device=True)
    assert it.possible == ("right",)


def test_the_interval_of_repeats_begins_again_after_an_acknowledgement() -> None:
    it = actuator()
    it.issue("stay", "gate", 0.0)
    it.repeat_s = 1.6
    it.acknowledge(it.serial - 1, 0.0, by_device=False)
    assert not it.must_repeat(1.5), "that acknowledgement was of an older one"
    it.acknowledge(it.serial, 0.0, by_device=False)
    it.issue("stay", "gate", 2.0)
    assert not it.must_repeat(2.0625)
    assert it.must_repeat(2.125)


def test_a_repeat_is_due_exactly_after_its_interval() -> None:
    it = actuator()
    it.issue("stay", "gate", 0.0)
    assert not it.must_repeat(0.09)
    assert it.must_repeat(0.1)


def test_after_a_reconnect_a_safe_action_is_due_and_then_soon_again() -> None:
    it = actuator()
    it.issue("stay", "gate", 0.0)
    it.repeat_s = 2.0
    it.forget_commands()
    assert it.must_repeat(0.0)
    it.issue("stay", "gate", 0.0)
    assert not it.must_repeat(0.05)
    assert it.must_repeat(0.1)


def test_after_a_reconnect_the_values_from_before_are_still_possible_until_the_device_acknowledges() -> None:
    it = actuator()
    it.acknowledge(it.issue("left", "policy", 0.0), 0.0, by_device=False)
    it.issue("right", "policy", 1.0)
    it.forget_commands()
    assert set(it.possible) == {"left", "right"}, "not `stay`, which was never commanded"
    serial = it.issue("stay", "gate", 2.0)
    assert set(it.possible) == {"left", "right", "stay"}
    it.acknowledge(serial, 0.0, by_device=False)
    assert it.possible == ("stay",)


def test_a_safe_action_that_never_left_is_still_what_the_actuator_shall_do() -> None:
    it = actuator()
    it.acknowledge(it.issue("left", "policy", 0.0), 0.0, by_device=False)
    it.withdraw(it.issue("stay", "gate", 1.0))
    assert it.value == "stay"
    assert it.must_repeat(1.0)


def test_an_actuator_that_holds_does_not_count_a_command_that_never_left() -> None:
    it = actuator(ARM.model_copy(update={"safe": "hold"}))
    it.acknowledge(it.issue((0.5, 0.0), "policy", 0.0), 0.0, by_device=False)
    second = it.issue((0.7, 0.0), "policy", 1.0)
    it.in_safe_state = True  # the connection is lost: it holds, and then it is known that the second one never left
    it.withdraw(second)
    assert it.value == (0.5, 0.0)
    it.forget_commands()
    assert [value for value, _ in it.steps_from()] == [(0.5, 0.0)]


def test_a_proposal_names_the_streams_and_the_age_it_was_refused_for() -> None:
    it = actuator(requires=("b", "a"))
    assert freshness_refusal(it, Proposal(0, "d", "p", 1.0, stale=("a",)), 1.0) == Refusal(
        "stale", "required stream a stale"
    )
    assert freshness_refusal(it, Proposal(0, "d", "p", 1.0, stale=("b", "c", "a")), 1.0) == Refusal(
        "stale", "required streams a, b stale"
    )
    assert freshness_refusal(it, Proposal(0, "d", "p", 1.0), 1.6) == Refusal(
        "expired", "observed 600 ms ago; at most 300"
    )
    assert freshness_refusal(it, Proposal(0, "d", "p", 1.0, stale=("c",)), 1.0) is None
    it = actuator(requires=("a", "a.x < 1", "a.y < 1"))
    assert freshness_refusal(it, Proposal(0, "d", "p", 1.0, stale=("a.y < 1", "a.x < 1")), 1.0) == Refusal(
        "stale", "a.x < 1, a.y < 1 does not hold"
    )


@pytest.mark.parametrize(
    ("reported", "wanted"),
    [
        ([0.5, 5], (0.5, 5.0)),
        ([1.02, 10.1], (1.0, 10.0)),
        ([-1.02, -0.1], (-1.0, 0.0)),
        ([1.03, 0], Refusal("out_of_range", "[1.03, 0.0] is not between [-1.0, 0.0] and [1.0, 10.0]")),
        ([0, -0.11], Refusal("out_of_range", "[0.0, -0.11] is not between [-1.0, 0.0] and [1.0, 10.0]")),
        ([0, 10.11], Refusal("out_of_range", "[0.0, 10.11] is not between [-1.0, 0.0] and [1.0, 10.0]")),
        ([0], Refusal("wrong_type", "expected 2 numbers, got 1")),
    ],
)
def test_a_report_may_be_one_percent_of_the_range_outside_the_limits(reported: Any, wanted: Any) -> None:
    assert report_of(ARM, reported) == wanted
