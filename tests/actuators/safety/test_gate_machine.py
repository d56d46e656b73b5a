"""Whatever happens in whatever order, nothing reaches a device that must not. A model of the few promises runs with the gate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actuators.actions import Value
from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings, GateSettings, UtteranceSettings
from actuators.safety.decisions import ActuatorDecision, Proposal
from actuators.safety.gate import Gate

ACTUATORS: dict[str, AnyActuator] = {
    "head": ChoiceSettings(kind="choice", choices=("left", "stay", "right"), safe="stay", min_interval_s=0.02),
    "lamp": ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF", min_hold_s=0.5),
    "arm": ContinuousSettings(
        kind="continuous", low=(-1.0, 0.0), high=(1.0, 2.0), max_rate=(2.0, 1.0), out_of_range="clamp", safe=(0.0, 0.5)
    ),
    "wheel": ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,)),
    "say": UtteranceSettings(kind="text", task="chat", max_chars=8),
}
FORBID = ("lamp == 'ON' and head == 'left'", "wheel[0] > 0.5 and arm[1] > 1.5")
NAMES = st.sampled_from([*ACTUATORS, "tail"])
NUMBERS = st.one_of(st.floats(), st.floats(-1.5, 2.5), st.integers(), st.booleans(), st.just(10**400))
VALUES = st.one_of(
    st.sampled_from(["left", "stay", "right", "OFF", "ON", "", "hello"]),
    st.text(max_size=12),
    NUMBERS,
    st.lists(NUMBERS, max_size=3).map(tuple),
    st.none(),
)


def offer(
    stamp_s: float, actions: Mapping[str, Any] | None = None, stale: tuple[str, ...] = (), ready: bool = True
) -> Proposal:
    """What the policy proposes at one tick."""
    return Proposal(0, "d", "p", stamp_s, actions or {}, stale, ready)


class GateMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0
        self.gate = Gate(ACTUATORS, GateSettings(forbid=FORBID, reconcile_s=0.5), ["cam"], period_s=0.1, now_s=100.0)
        self.device: dict[str, Value | None] = dict.fromkeys(ACTUATORS)
        self.moved_s: dict[str, float] = {}
        self.stopped = self.released = False
        self.commands = 0

    def apply(
        self, rulings: list[ActuatorDecision], *, people: bool = False, expired: bool = False, stale: bool = False
    ) -> None:
        for ruling in rulings:
            assert (ruling.value is None) == (ruling.by == "none")
            if ruling.value is None:
                continue
            self.commands += 1
            assert_fits(ACTUATORS[ruling.actuator], ruling.value)
            if ruling.by == "gate":
                assert ruling.value == ACTUATORS[ruling.actuator].safe
            else:
                self.check_moving(ruling, people=people, expired=expired, stale=stale)
            self.device[ruling.actuator] = ruling.value

    def check_moving(self, ruling: ActuatorDecision, *, people: bool, expired: bool, stale: bool) -> None:
        assert self.gate.armed
        assert not self.stopped
        assert not self.released, "after a stop, only a person's arming moves anything"
        if ruling.by == "policy":
            assert not people
            assert not expired
            assert not stale
            assert self.gate.modes[ruling.actuator] == "autonomous"
            assert self.gate.held_until_s(ruling.actuator) is None
        would = self.device | {ruling.actuator: ruling.value}
        if ruling.actuator in ("lamp", "head"):
            assert not (would["lamp"] == "ON" and would["head"] == "left")

    @rule(dt=st.sampled_from([0.0, 0.005, 0.05, 0.1, 0.2, 0.3, 1.0]))
    def wait(self, dt: float) -> None:
        self.now_s += dt
        self.apply(self.gate.tick(self.now_s), people=True)

    @rule(
        age_s=st.sampled_from([0.0, 0.01, 0.1, 0.29, 0.31, -0.1, math.nan, math.inf]),
        actions=st.dictionaries(NAMES, VALUES, max_size=6),
        stale=st.sampled_from([(), (), ("cam",), ("room",)]),
        ready=st.sampled_from([True, True, True, False]),
    )
    def propose(self, age_s: float, actions: dict[str, Any], stale: tuple[str, ...], ready: bool) -> None:
        rulings = self.gate.judge(offer(self.now_s - age_s, actions, stale, ready), self.now_s)
        if not ready:
            assert not any(ruling.by == "policy" for ruling in rulings)
        self.apply(rulings, expired=not 0 <= age_s <= 0.3, stale="cam" in stale)

    @rule(head=st.sampled_from(["left", "stay", "right"]), lamp=st.sampled_from(["OFF", "ON"]), x=st.floats(-1, 1))
    def propose_soundly(self, head: str, lamp: str, x: float) -> None:
        self.now_s += 0.1
        actions = {"head": head, "lamp": lamp, "arm": (x, 1.0), "wheel": (x,), "say": "hi"}
        self.apply(self.gate.judge(offer(self.now_s - 0.05, actions), self.now_s))

    @rule(name=NAMES, value=VALUES, hold_s=st.one_of(st.floats(), st.sampled_from([0.0, 0.5, 5.0])))
    def take_over(self, name: str, value: Any, hold_s: float) -> None:
        self.apply([self.gate.override(name, value, hold_s, self.now_s)], people=True)

    @rule(engaged=st.booleans())
    def stop(self, engaged: bool) -> None:
        self.released = (self.stopped and not engaged) or self.released
        self.stopped = engaged
        self.apply(self.gate.stop(self.now_s, engaged=engaged))

    @rule()
    def arm(self) -> None:
        refusal = self.gate.arm(self.now_s)
        assert (refusal is not None) == self.stopped
        if refusal is None:
            self.released = False

    @rule(what=st.sampled_from(["disarm", "lost", "go_safe", "disconnected"]))
    def fall(self, what: str) -> None:
        self.apply(getattr(self.gate, what)(self.now_s))
        assert not self.gate.armed

    @rule()
    def reconnect(self) -> None:
        self.gate.connected(self.now_s)

    @rule(name=NAMES, value=VALUES)
    def report(self, name: str, value: Any) -> None:
        if self.gate.reconciled(name, value, self.now_s) is None:
            self.device[name] = self.gate.last_command(name)[0]

    @rule()
    def report_rest(self) -> None:
        for name, value in {"head": "stay", "lamp": "OFF", "arm": [0, 0.5], "wheel": [0], "say": ""}.items():
            assert self.gate.reconciled(name, value, self.now_s) is None
            self.device[name] = self.gate.last_command(name)[0]

    @rule(mode=st.sampled_from(["shadow", "assist", "autonomous"]), name=st.sampled_from([None, *ACTUATORS]))
    def change_mode(self, mode: Any, name: str | None) -> None:
        self.apply(self.gate.set_mode(mode, self.now_s, name), people=True)

    @rule()
    def restart(self) -> None:
        """Another gate with the latches of this one; devices keep doing what they did."""
        latches = self.gate.latches
        self.gate = Gate(
            ACTUATORS, GateSettings(forbid=FORBID, reconcile_s=0.5), ["cam"], period_s=0.1, now_s=self.now_s
        )
        self.gate.restore(latches)
        self.device = dict.fromkeys(ACTUATORS)

    @invariant()
    def stopped_is_never_armed(self) -> None:
        assert self.gate.stopped == self.stopped
        assert not (self.gate.armed and self.gate.stopped)


def assert_fits(settings: AnyActuator, value: Value) -> None:
    if isinstance(settings, ContinuousSettings):
        assert isinstance(value, tuple)
        assert len(value) == len(settings.low)
        for low, number, high in zip(settings.low, value, settings.high, strict=True):
            assert type(number) is float
            assert math.isfinite(number)
            assert low <= number <= high
    else:
        assert isinstance(value, str)
        value.encode()
        if isinstance(settings, ChoiceSettings):
            assert value in settings.choices
        else:
            assert len(value) <= settings.max_chars


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = hypothesis_settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)
