"""Twelve small worlds of devices that obey: whatever happens in whatever order, their true values break no rule of the settings.

Unlike the other machines, this one judges by what the devices have. Commands arrive in the order in which they left, some ticks late.
`WORLD_SEEDS` sets how many random orders each world sees.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Iterable

import pytest

from actuators.actions import Value
from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings, GateSettings, UtteranceSettings
from actuators.safety.decisions import MODES, ActuatorDecision, Mode, Proposal
from actuators.safety.forbid_rules import Rule, known_names, safe_is_hold, unsafe_rests
from actuators.safety.gate import Gate

SEEDS = int(os.environ.get("WORLD_SEEDS", "4"))
STEPS = 120
PERIOD_S = 0.1
LIFE_S = 1.0
"""For so long a command of the policy may arrive late."""
STREAMS = {"room": {"load", "window"}, "cam": {"x"}}
QUIET = {"room": {"load": 0.0, "window": 0.0}}
SWITCH = ("OFF", "ON")


def choice(choices: tuple[str, ...], safe: str, **more: float) -> ChoiceSettings:
    return ChoiceSettings(kind="choice", choices=choices, safe=safe, **more)  # type: ignore[arg-type]


def numbers(low: tuple[float, ...], high: tuple[float, ...], **more: object) -> ContinuousSettings:
    return ContinuousSettings(kind="continuous", low=low, high=high, **more)  # type: ignore[arg-type]


def chain(count: int) -> dict[str, AnyActuator]:
    return {f"n{i}": choice(SWITCH, "OFF" if i % 3 else "ON") for i in range(count)}


def at(index: int, *, rest: bool) -> str:
    return f"n{index} == '{'OFF' if bool(index % 3) == rest else 'ON'}'"


WORLDS: dict[str, tuple[dict[str, AnyActuator], tuple[str, ...]]] = {
    "pace": ({"valve": choice(("a", "b", "c"), "b", min_hold_s=0.35, min_interval_s=0.03)}, ()),
    "a shared actuator": (
        {"a": choice(SWITCH, "OFF"), "b": choice(SWITCH, "OFF", min_hold_s=0.25), "c": choice(SWITCH, "hold")},
        ("a == 'ON' and b == 'OFF' and c == 'ON'", "c == 'OFF' and a == 'ON' and b == 'ON'"),
    ),
    "own limits of each component": (
        {
            "arm": numbers((-1, 0, 2), (1, 0.5, 5), max_rate=(1, 0.2, 3), safe=(0, 0.25, 3)),
            "lamp": choice(SWITCH, "OFF"),
        },
        ("arm[0] > 0.5 and arm[2] > 4", "arm[1] > 0.4 and lamp == 'ON'", "arm[0] + arm[2] > 5.2 and lamp == 'OFF'"),
    ),
    "numbers that hold": (
        {"leg": numbers((-2, -1), (0, 3), max_rate=(2, 4)), "pump": choice(SWITCH, "OFF")},
        ("leg[0] < -1 and pump == 'ON'", "leg[1] > 2 and pump == 'ON'"),
    ),
    "rules with a stream": (
        {
            "heater": ChoiceSettings(kind="choice", choices=SWITCH, safe="OFF", requires=("cam",)),
            "fan": choice(SWITCH, "OFF"),
            "gate": numbers((0,), (1,), max_rate=(1,), safe=(0,)),
        },
        (
            "heater == 'ON' and room.window > 0.5",
            "heater == 'ON' and fan == 'OFF'",
            "gate[0] > 0.5 and room.load > 0.5",
        ),
    ),
    "a text": (
        {
            "say": UtteranceSettings(kind="text", task="t", max_chars=5),
            "heater": choice(SWITCH, "OFF"),
            "fan": choice(SWITCH, "ON"),
        },
        ("heater == 'ON' and fan == 'OFF'",),
    ),
    "a distance": (
        {
            "x": numbers((-1,), (1,), max_rate=(1,), safe=(0,)),
            "y": numbers((-1,), (1,), max_rate=(0.5,), safe=(0,), out_of_range="refuse"),
        },
        ("abs(x[0] - y[0]) > 0.6",),
    ),
    "all hold": (
        {"x": numbers((-1,), (1,), max_rate=(2,)), "k": choice(("l", "m", "r"), "hold", min_hold_s=0.15)},
        ("x[0] > 0.4 and k == 'r'", "x[0] < -0.4 and k == 'l'"),
    ),
    "rest is ON": (
        {"fan": choice(SWITCH, "ON"), "vent": choice(SWITCH, "ON", min_hold_s=0.3), "burner": choice(SWITCH, "hold")},
        ("burner == 'ON' and fan == 'OFF' and vent == 'OFF'", "fan == 'OFF' and vent == 'ON'"),
    ),
    "a choice named hold": (
        {
            "grip": choice(("close", "hold", "open"), "hold", min_hold_s=0.2),
            "z": numbers((0,), (1,), max_rate=(1,), safe=(0,)),
        },
        ("z[0] > 0.5 and grip == 'open'",),
    ),
    "refreshed rarely": (
        {
            "p": choice(SWITCH, "OFF", refresh_s=1.0, min_interval_s=0.15),
            "q": numbers((0, 0), (1, 2), max_rate=(1, 1), safe=(0, 0), refresh_s=0.5),
        },
        ("p == 'ON' and q[1] > 1",),
    ),
    "a chain of rules": (
        chain(8),
        tuple(f"{at(i, rest=False)} and {at(i + 1, rest=True)}" for i in range(7)),
    ),
}


class Home:
    """The gate of one world, its devices, and what happens to them."""

    def __init__(self, name: str, seed: int) -> None:
        self.draw = random.Random(seed)
        self.actuators, forbid = WORLDS[name]
        problems = unsafe_rests(self.actuators, GateSettings(forbid=forbid), STREAMS)
        rules = [text for index, text in enumerate(forbid) if index not in problems]
        arm = self.draw.choice(["auto", "request"])
        self.settings = GateSettings.model_validate({"forbid": rules, "reconcile_s": 0.3, "arm": arm})
        self.rules = [Rule(text, known_names(self.actuators), STREAMS) for text in rules]
        self.mode: Mode = "autonomous"
        self.now_s, self.tick_number, self.moves = 100.0, 0, 0
        self.has = {name: self.rest(name) or self.any(name) for name in self.actuators}
        while self.forbidden():
            self.has |= {name: self.any(name) for name in self.actuators if self.rest(name) is None}
        self.flight: deque[tuple[str, ActuatorDecision, Value, float]] = deque()
        self.changed_s = dict.fromkeys(self.actuators, float("-inf"))
        self.left_moving = set[str]()
        self.telemetry = QUIET
        self.stopped = self.released = False
        self.start(None)

    def rest(self, name: str) -> Value | None:
        settings = self.actuators[name]
        return None if safe_is_hold(settings) else settings.safe

    def any(self, name: str) -> Value:
        settings, draw = self.actuators[name], self.draw
        if isinstance(settings, ChoiceSettings):
            return draw.choice(settings.choices)
        if isinstance(settings, ContinuousSettings):
            return tuple(
                draw.choice([a, b, draw.uniform(a, b)]) for a, b in zip(settings.low, settings.high, strict=True)
            )
        return draw.choice(["hi", "", "abc"])

    def forbidden(self) -> set[str]:
        """The rules without telemetry that the devices' true values break."""
        plain = [rule for rule in self.rules if not rule.streams]
        return {rule.text for rule in plain if rule.broken({name: [self.has[name]] for name in rule.names}) is not None}

    def start(self, latches: dict[str, object] | None) -> None:
        """A new run of the gate, which finds the broker at once."""
        self.gate = Gate(
            self.actuators,
            self.settings,
            ["cam"],
            period_s=PERIOD_S,
            now_s=self.now_s,
            mode=self.mode,
            streams=STREAMS,
        )
        self.gate.start_offline()
        if latches is not None:
            self.gate.restore(latches)
        self.online = False
        self.last: dict[str, tuple[Value, float]] = {}
        self.connect()

    def apply(self, decisions: Iterable[ActuatorDecision]) -> None:
        for each in decisions:
            if each.value is None:
                continue
            if each.by == "gate":
                assert each.value == self.rest(each.actuator)
            else:
                self.check_move(each.actuator, each.value, each.by)
            self.last[each.actuator] = each.value, self.now_s
            if self.online:
                self.flight.append((each.actuator, each, each.value, self.now_s))
            else:
                self.gate.unsent(each.actuator, each.serial)

    def check_move(self, name: str, value: Value, by: str) -> None:
        settings = self.actuators[name]
        self.moves += by == "policy"
        assert self.gate.armed
        assert not self.stopped
        assert not self.released
        assert by == "override" or (self.gate.modes[name] == "autonomous" and self.gate.holds[name] is None)
        if isinstance(settings, ContinuousSettings):
            assert isinstance(value, tuple)
            assert all(a <= x <= b for a, x, b in zip(settings.low, value, settings.high, strict=True))
            before = self.last.get(name, (self.has[name], float("-inf")))
            span_s = min(2 * PERIOD_S, self.now_s - before[1]) + 1e-6
            assert isinstance(before[0], tuple)
            steps = zip(value, before[0], settings.max_rate or (), strict=False)
            assert all(abs(x - y) <= rate * span_s for x, y, rate in steps), (name, before, value)
        elif name in self.last:
            assert self.now_s - self.last[name][1] >= settings.min_interval_s - 1e-9

    def arrive(self, count: int = 99) -> None:
        """The next commands reach their devices, which the broker acknowledges."""
        while self.flight and count > 0:
            count -= 1
            name, decision, value, sent_s = self.flight.popleft()
            before = self.forbidden()
            if value != self.has[name]:
                self.check_hold(name, decision.by, late_s=self.now_s - sent_s)
            self.has[name] = value
            (self.left_moving.discard if decision.by == "gate" else self.left_moving.add)(name)
            assert self.forbidden() <= before, (name, value, self.has)
            self.gate.acknowledged(name, decision.serial, self.now_s)

    def check_hold(self, name: str, by: str, late_s: float) -> None:
        """A device has each value for `min_hold_s`, from its arrival; one that comes after its life is none of the gate's."""
        held_s, least_s = self.now_s - self.changed_s[name], getattr(self.actuators[name], "min_hold_s", 0.0)
        assert by == "gate" or late_s > LIFE_S or held_s >= least_s - 1e-9, (name, held_s, late_s)
        self.changed_s[name] = self.now_s + max(0.0, late_s - LIFE_S)

    def report(self) -> None:
        self.arrive()
        for name, value in self.has.items():
            self.gate.reconciled(name, list(value) if isinstance(value, tuple) else value, self.now_s)

    def connect(self) -> None:
        if not self.online:
            self.online = True
            self.gate.connected(self.now_s)
            self.apply(self.gate.go_safe(self.now_s, "connected"))
            self.report()

    def disconnect(self) -> None:
        self.arrive()
        self.online = False
        self.apply(self.gate.disconnected(self.now_s))

    def storm(self) -> None:
        for _ in range(self.draw.randint(1, 3)):
            self.disconnect()
            self.now_s += self.draw.choice([0.0, 0.01, 0.5])
            self.connect()

    def propose(
        self, actions: dict[str, Value], stale: tuple[str, ...] = (), age_s: float = 0.0
    ) -> list[ActuatorDecision]:
        self.tick_number += 1
        stamp_s = self.now_s - age_s
        proposal = Proposal(self.tick_number, "d", "p", stamp_s, actions, stale, readings=self.telemetry)
        decisions = self.gate.judge(proposal, self.now_s)
        doubtful = age_s > 0.3 or "cam" in stale
        assert not doubtful or not any(each.by == "policy" for each in decisions)
        self.apply(decisions)
        return decisions

    def act(self) -> None:
        draw = self.draw
        for _ in range(draw.randint(1, 6)):
            self.now_s += PERIOD_S * draw.choice([0.5, 1.0, 1.0, 1.2])
            actions = {name: self.any(name) for name in self.actuators if draw.random() < 0.7}
            stale = draw.choice([(), (), (), (), ("cam",), ("room",)])
            self.propose(actions, stale, draw.choice([0.0, 0.05, 0.05, 0.29, 0.31]))
            self.arrive(draw.choice([0, 1, 2, 99, 99]))

    def override(self) -> None:
        name = self.draw.choice(list(self.actuators))
        self.apply([self.gate.override(name, self.any(name), self.draw.choice([0.0, 0.15, 0.5, 3.0]), self.now_s)])

    def end_hold(self) -> None:
        self.apply(self.gate.end_hold(self.draw.choice(list(self.actuators)), self.now_s))

    def stop(self, *, engaged: bool) -> None:
        self.released = self.released or (self.stopped and not engaged)
        self.stopped = engaged
        self.apply(self.gate.stop(self.now_s, engaged=engaged))
        if engaged and self.online:
            self.all_rest()

    def all_rest(self) -> None:
        """Whatever the mode, a stop brings every device to its safe value."""
        self.arrive()
        assert all(self.has[name] == self.rest(name) for name in self.actuators if self.rest(name) is not None)

    def arm(self) -> None:
        if self.gate.arm(self.now_s) is None:
            self.released = False

    def change_mode(self) -> None:
        mode = self.draw.choice(MODES)
        if self.draw.random() < 0.3:
            self.mode = mode
            self.apply(self.gate.configure(mode, self.now_s))
        else:
            self.apply(self.gate.set_mode(mode, self.now_s, self.draw.choice([None, *self.actuators])))

    def restart(self) -> None:
        """A kill: a stop that met a lost broker holds over it, and what moved gets its safe action in any mode."""
        self.arrive()
        latches = self.gate.latches
        self.now_s += 0.2
        self.start(latches)
        assert self.gate.stopped == self.stopped
        if self.stopped:
            self.all_rest()
        self.arrive()
        assert not {name for name in self.left_moving if self.rest(name) is not None}

    def change_telemetry(self) -> None:
        self.telemetry = self.draw.choice(
            [{}, {"room": {"load": 1.0, "window": 0.0}}, {"room": {"load": 0.0, "window": 1.0}}, QUIET]
        )

    def wait(self) -> None:
        for _ in range(self.draw.randint(1, 5)):
            self.now_s += self.draw.choice([0.01, 0.05, 0.2])
            self.apply(self.gate.tick(self.now_s))
            self.arrive(self.draw.choice([0, 1, 99]))

    def resume(self) -> None:
        """All is in order again."""
        self.connect()
        self.report()
        self.telemetry = QUIET
        if self.stopped:
            self.stop(engaged=False)
        self.apply(self.gate.set_mode("autonomous", self.now_s))
        self.now_s += 0.35
        self.propose({})
        self.arm()
        self.now_s += 0.05
        self.propose({})

    def ask_what_is_allowed(self) -> None:
        """What the gate calls allowed passes, and what it leaves out is refused."""
        self.resume()
        self.arrive()
        self.now_s += 0.2
        self.propose({})
        self.arrive()
        self.now_s += 0.04
        allowed = self.gate.allowed_choices(self.now_s)
        free = [name for name in allowed if self.gate.holds[name] is None]
        if free and self.gate.armed:
            name = self.draw.choice(free)
            value = self.any(name)
            decisions = [each for each in self.propose({name: value}) if each.actuator == name]
            assert all(each.rule is None for each in decisions) == (value in allowed[name]), (allowed, name, value)

    def step(self) -> None:
        happens: list[tuple[int, Callable[[], object]]] = [
            (42, self.act),
            (10, self.override),
            (3, self.end_hold),
            (3, lambda: self.stop(engaged=True)),
            (2, lambda: self.stop(engaged=False)),
            (3, self.arm),
            (2, lambda: self.apply(self.gate.disarm(self.now_s))),
            (6, self.change_mode),
            (5, self.storm),
            (2, self.disconnect),
            (2, self.connect),
            (2, lambda: self.apply(self.gate.lost(self.now_s))),
            (2, lambda: self.apply(self.gate.woke(self.now_s, 60.0))),
            (3, self.restart),
            (4, self.change_telemetry),
            (3, self.resume),
            (4, self.ask_what_is_allowed),
            (4, self.wait),
        ]
        weights, calls = zip(*happens, strict=True)
        self.draw.choices(calls, weights)[0]()


@pytest.mark.parametrize("world", WORLDS)
def test_devices_that_obey_never_come_to_what_is_forbidden(world: str) -> None:
    moves = 0
    for seed in range(SEEDS):
        home = Home(world, seed)
        for _ in range(STEPS):
            home.step()
        moves += home.moves
    assert moves > 5 * SEEDS, "nothing moved, so nothing was tested"
