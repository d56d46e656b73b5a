"""Repeated refusals are published once, then at intervals with their number; none is lost from the count."""

from __future__ import annotations

from actuators.config import ChoiceSettings, ContinuousSettings, GateSettings
from actuators.safety.decisions import ActuatorDecision, Proposal
from actuators.safety.gate import Gate
from runtime.gate.event_throttle import EVERY_S, EventThrottle


def refused(rule: str | None = "overridden", actuator: str = "head", *, rule_changed: bool = True) -> ActuatorDecision:
    return ActuatorDecision(actuator, None, rule, "none", "a person acts", rule_changed=rule_changed)


def test_the_first_is_reported_at_once_and_the_same_again_with_its_count() -> None:
    throttle = EventThrottle()
    received = [throttle.event(refused(), n * 0.1) for n in range(250)]  # 25 s at 10 Hz
    reported = [(n / 10, data["count"]) for n, data in enumerate(received) if data is not None]
    assert reported == [(0.0, 1), (10.0, 100), (20.0, 100)]
    assert received[0] == {"actuator": "head", "rule": "overridden", "reason": "a person acts", "count": 1}


def test_other_rules_and_actuators_are_reported_for_themselves() -> None:
    throttle = EventThrottle()
    assert throttle.event(refused(), 0.0)
    assert throttle.event(refused("stale"), 0.1)
    assert throttle.event(refused(actuator="arm"), 0.1)
    assert throttle.event(refused("stale"), 0.2) is None


def test_what_stays_in_force_is_counted_and_no_news() -> None:
    throttle = EventThrottle()
    assert throttle.event(refused(rule_changed=False), 0.0) is None
    assert throttle.event(refused(), 0.1)
    assert all(throttle.event(refused(rule_changed=False), 0.2) is None for _ in range(7))
    again = throttle.event(refused(), 0.1 + EVERY_S)
    assert again is not None
    assert again["count"] == 8
    assert throttle.event(refused(None), 50.0) is None


def test_names_that_are_not_configured_cannot_fill_the_memory() -> None:
    throttle = EventThrottle()
    received = [throttle.event(refused("unknown_actuator", f"x{n}"), 0.0) for n in range(1_000)]
    assert sum(data is not None for data in received) == 1
    assert len(throttle._kinds) == 1


def test_a_person_who_holds_on_brings_a_few_events_and_no_refusal_is_lost() -> None:
    """A hand on a slider while the policy goes on: 30 s at 20 Hz against the real gate."""
    actuators = {
        "head": ChoiceSettings(kind="choice", choices=("left", "right"), safe="left"),
        "arm": ContinuousSettings(
            kind="continuous", low=(-1.0,), high=(1.0,), max_rate=(0.5,), safe=(0.0,), out_of_range="clamp"
        ),
    }
    gate = Gate(actuators, GateSettings(reconcile_s=0.0), period_s=0.05)
    gate.reconciled("arm", [0.0], 0.0)
    throttle, events = EventThrottle(), []
    for n in range(1, 601):
        now_s = n * 0.05
        rulings = gate.judge(Proposal(n, f"s-{n}", "p", now_s, {"head": "left", "arm": (0.0,)}), now_s)
        if n > 10:
            rulings.append(gate.override("head", "right", 1.0, now_s))
            rulings.append(gate.override("arm", [1.0 if n % 40 < 20 else -1.0], 1.0, now_s))
        events += [data for ruling in rulings if (data := throttle.event(ruling, now_s)) is not None]
    kinds = {(data["actuator"], data["rule"]) for data in events}
    assert {("head", "overridden"), ("arm", "overridden")} <= kinds
    assert len(events) <= 4 * len(kinds)
    assert gate.refused["head", "overridden"] > 500
    assert sum(data["count"] for data in events if data["actuator"] == "head") > 300
