"""Switches that say which command they answer, each as slow as it likes, behind a broker that loses, doubles and reorders acknowledgements.

While no safe action interferes, what the devices have breaks no rule, and each value stays for `min_hold_s`. The gate knows what a
device has by its numbers alone: a command is dropped when it is too old, or without a reason.
"""

from __future__ import annotations

import random
from collections import deque

import pytest

from actuators.config import ChoiceSettings, GateSettings
from actuators.safety.decisions import ActuatorDecision, Proposal
from actuators.safety.forbid_rules import Rule, known_names
from actuators.safety.gate import Gate

STEPS = 200
TTL_S = 0.3
SWITCH = ChoiceSettings(kind="choice", choices=("0", "1"), safe="0")
DIAL = ChoiceSettings(kind="choice", choices=("0", "1", "2"), safe="0", min_hold_s=0.25)
WORLDS = [
    ({"heater": SWITCH, "fan": SWITCH}, ("heater == '1' and fan == '0'",)),
    (
        {"a": DIAL, "b": SWITCH, "c": SWITCH},
        ("a == '2' and b == '0'", "b == '1' and c == '1'", "a == '1' and c == '1'"),
    ),
]


class Bench:
    """A gate, its devices, and the way between them."""

    def __init__(self, actuators: dict[str, ChoiceSettings], forbid: tuple[str, ...], seed: int) -> None:
        self.draw = random.Random(seed)
        self.now_s, self.changes = 100.0, 0
        self.actuators = actuators
        self.rules = [Rule(text, known_names(actuators)) for text in forbid]
        settings = GateSettings(forbid=forbid, reconcile_s=0.0, deadman_ms=10_000)
        self.gate = Gate(actuators, settings, period_s=0.1, now_s=self.now_s)
        self.has = dict.fromkeys(actuators, "0")
        self.changed_s = dict.fromkeys(actuators, 0.0)
        self.taken = dict.fromkeys(actuators, 0)
        self.newest = dict.fromkeys(actuators, 0)
        self.flight: dict[str, deque[ActuatorDecision]] = {name: deque() for name in actuators}
        self.sent_s: dict[tuple[str, int], float] = {}
        self.unacknowledged: list[ActuatorDecision] = []
        for name in actuators:
            assert self.gate.reconciled(name, "0", self.now_s) is None
            self.gate.device_answers(name)

    def broken(self) -> set[str]:
        return {each.text for each in self.rules if each.broken({name: [self.has[name]] for name in each.names})}

    def decide(self, number: int) -> None:
        draw = self.draw
        if draw.random() < 0.8:
            actions = {n: draw.choice(each.choices) for n, each in self.actuators.items() if draw.random() < 0.7}
            decisions = self.gate.judge(Proposal(number, "d", "p", self.now_s, actions), self.now_s)
        else:
            name = draw.choice(sorted(self.actuators))
            value, hold_s = draw.choice(self.actuators[name].choices), draw.choice([0.0, 0.3])
            decisions = [self.gate.override(name, value, hold_s, self.now_s), *self.gate.tick(self.now_s)]
        for each in decisions:
            if each.sent:
                assert each.by != "gate"
                self.flight[each.actuator].append(each)
                self.unacknowledged.append(each)
                self.sent_s[each.actuator, each.serial] = self.now_s
                self.newest[each.actuator] = each.serial

    def acknowledge(self) -> None:
        if self.draw.random() < 0.3:
            self.draw.shuffle(self.unacknowledged)
        while self.unacknowledged and self.draw.random() < 0.7:
            each = self.unacknowledged.pop(0)
            times = self.draw.choice([0, *[1] * 8, 2])
            for _ in range(times):
                self.gate.acknowledged(each.actuator, each.serial, self.now_s)
            if not times:
                self.gate.undelivered(each.actuator, each.serial)

    def take(self, name: str) -> None:
        if not self.flight[name]:
            return
        each = self.flight[name].popleft()
        is_late = self.now_s - self.sent_s[name, each.serial] > TTL_S
        if is_late or self.draw.random() < 0.05:
            return
        before = self.broken()
        if each.value != self.has[name]:
            assert self.now_s - self.changed_s[name] >= self.actuators[name].min_hold_s - 1e-9
            self.changed_s[name] = self.now_s
            self.changes += 1
        self.has[name], self.taken[name] = str(each.value), each.serial
        assert self.broken() <= before, (name, self.has)

    def report(self, name: str) -> None:
        if self.taken[name]:
            self.gate.acknowledged(name, self.taken[name], self.now_s, by_device=True)
            if self.taken[name] == self.newest[name]:  # the host leaves out what answers an older command
                self.gate.reconciled(name, self.has[name], self.now_s)


@pytest.mark.parametrize(("actuators", "forbid"), WORLDS)
@pytest.mark.parametrize("seed", range(3))
def test_what_slow_and_forgetful_switches_have_breaks_no_rule(
    actuators: dict[str, ChoiceSettings], forbid: tuple[str, ...], seed: int
) -> None:
    bench = Bench(actuators, forbid, seed)
    for number in range(STEPS):
        bench.now_s += bench.draw.choice([0.05, 0.1, 0.1, 0.2])
        bench.decide(number)
        bench.acknowledge()
        for name in actuators:
            for _ in range(bench.draw.choice([0, 1, 1, 3])):
                bench.take(name)
            if bench.draw.random() < 0.6:
                bench.report(name)
    assert bench.changes > STEPS / 20, "nothing moved, so nothing was tested"
