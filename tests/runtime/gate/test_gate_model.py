"""Whatever happens in whatever order, the gate keeps its promises: a machine looks for an order that breaks one.

`GATE_MODEL_STEPS` sets the number of steps: 2,000 in `make test`. `make fuzz` takes 1,000,000 in fifty pieces with the seeds
1 to 50. Above 2,000 steps `GATE_MODEL_SEED` sets the seed, and the same seed finds the same again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import orjson
from gate_clients import Clients
from gate_model import MIN_HOLD_S, POOL, QUIET, SETTINGS, TOO_WARM, Mixture, World
from gate_relay import RelayProcess
from hypothesis import HealthCheck, Phase, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from runtime.mqtt.connection_types import PublishMessage

STEPS = int(os.environ.get("GATE_MODEL_STEPS", "2000"))
SEED = int(os.environ.get("GATE_MODEL_SEED", "1"))
STEPS_A_RUN = 50
NAMES = st.sampled_from(sorted(SETTINGS["actuators"]))
MODES = st.sampled_from(["shadow", "assist", "autonomous", "autonomous"])
SWITCHES = ("heater", "fan", "lamp")
SWITCH = st.sampled_from(["OFF", "ON", "ON"])
NUMBER = st.sampled_from([-1.0, -0.5, 0.0, 0.4, 0.6, 1.0])
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, [], [0.0, 0.0], [1e308], "LEFT", 5.0, [1.02], {"a": 1}, "OFF", [0.0]]
)
STOPS = [b'{"engaged": true}', b"ON", b"{}", b"\xff", b'{"engaged": "true"}']
RELEASE = b'{"engaged": false}'
ODD_PAYLOADS = st.sampled_from([b"", b"{", b"7", b"[]", b"\xff", b'{"state": 7}', b'{"streams": []}', b'{"value": {}}'])
FRAMES = [b"", b"{", b"[]", b'{"kind": "Proposal"}', b'{"kind": "GateVerdict"}', b"\xff" * 100]


def _continuous() -> st.SearchStrategy[dict[str, Any]]:
    safe = st.sampled_from(["hold", "hold", [0], [0.6], [-0.25]])
    rate = st.sampled_from([None, [1], [0.5], [4]])
    return st.fixed_dictionaries({"safe": safe, "max_rate": rate, "out_of_range": st.sampled_from(["clamp", "refuse"])})


def _choice() -> st.SearchStrategy[dict[str, Any]]:
    safe = st.sampled_from(["hold", "hold", "OFF", "ON"])
    return st.fixed_dictionaries({"safe": safe, "min_hold_s": st.sampled_from([0.0, MIN_HOLD_S, 0.35])})


MIXTURES = st.builds(
    Mixture.of,
    st.fixed_dictionaries({name: _continuous() for name in ("arm", "wheel")} | {n: _choice() for n in SWITCHES}),
    st.lists(st.sampled_from(POOL), min_size=1, max_size=5, unique=True).map(tuple),
)
"""`safe: hold` among rules, rates and shortest holds."""


class GateModel(RuleBasedStateMachine):
    """The rules: one for each thing that can happen around the gate."""

    @initialize(arm=st.sampled_from(["auto", "request"]), mode=MODES, mixture=st.none() | MIXTURES)
    def begin(self, arm: str, mode: str, mixture: Mixture | None) -> None:
        self.world = World(arm, mode, mixture)
        self.clients = Clients(self.world)
        self.relay = RelayProcess(self.world)

    def teardown(self) -> None:
        if hasattr(self, "relay"):
            self.relay.close()
        if hasattr(self, "clients"):
            self.clients.close()
        if hasattr(self, "world"):
            self.world.close()

    # the usual course, so that something moves at all

    def tick(self, actions: dict[str, Any], times: int = 1, **more: Any) -> None:
        for _ in range(times):
            self.world.propose(actions, **more)
            self.world.wait(0.05)

    @rule(arm=NUMBER, wheel=NUMBER, heater=SWITCH, fan=SWITCH, lamp=SWITCH, times=st.integers(1, 12))
    def act(self, arm: float, wheel: float, heater: str, fan: str, lamp: str, times: int) -> None:
        self.tick({"arm": (arm,), "wheel": (wheel,), "heater": heater, "fan": fan, "lamp": lamp}, times)

    @rule()
    def devices_report_and_an_operator_arms(self) -> None:
        for name, value in self.world.devices.items():
            self.world.report(name, ([0.0] if name in {"arm", "wheel"} else "OFF") if value is None else value)
        self.tick({}, 2)
        self.world.request("arm", b"{}")
        self.tick({"fan": "ON", "heater": "ON"}, 4)

    @rule(mode=st.booleans())
    def the_fan_must_rest_while_the_heater_is_on(self, mode: bool) -> None:
        self.devices_report_and_an_operator_arms()
        self.tick({"fan": "ON", "heater": "ON"}, 10)
        if mode:
            self.world.request("mode", b'{"mode": "shadow", "actuator": "fan"}')
        else:
            self.tick({"fan": "ON", "heater": "ON"}, stale=("air",))

    @rule(
        room=st.fixed_dictionaries(
            {}, optional={name: st.sampled_from([0.0, 0.0, 0.3, 1.0, math.nan]) for name in ("window", "load")}
        ),
        silent=st.sampled_from([False, False, False, True]),
    )
    def the_telemetry_changes(self, room: dict[str, float], silent: bool) -> None:
        self.world.telemetry = {} if silent else {"room": room}

    @rule()
    def the_telemetry_is_quiet(self) -> None:
        self.world.telemetry = QUIET

    @rule(
        after=st.sampled_from([{}, {"room": {"load": 0.0}}, {"room": {"window": 1.0, "load": 1.0}}, QUIET]),
        held=st.sampled_from([True, True, False]),
        slow=st.booleans(),
        old_s=st.sampled_from([0.0, 1.1]),
    )
    def the_telemetry_ends_what_is_on(self, after: Any, held: bool, slow: bool, old_s: float) -> None:
        self.the_telemetry_is_quiet()
        self.devices_report_and_an_operator_arms()
        self.tick({"fan": "ON", "heater": "ON", "arm": (0.4,)}, 6)
        if held:
            self.override("fan", "ON", 5)
            self.override("heater", "ON", 5)
        self.world.prompt = not slow
        self.world.telemetry = after
        self.tick({"fan": "ON", "heater": "ON", "arm": (0.4,)}, age_s=old_s)
        self.override("heater", "ON", 0.2)
        self.tick({"fan": "ON", "heater": "ON", "arm": (0.4,)}, 2)
        self.resume_the_broker()

    @rule()
    def the_agent_asks_for_shadow(self) -> None:
        self.tick({"arm": (1.0,), "heater": "ON", "fan": "ON"}, shadow=True)

    @rule()
    def the_broker_blinks_while_the_arm_moves(self) -> None:
        self.devices_report_and_an_operator_arms()
        self.tick({"arm": (1.0,)}, 10)
        self.world.lose(self.world.safety)
        self.find_the_broker()
        self.tick({"arm": (1.0,)}, 10)

    # what goes wrong

    @rule()
    def the_broker_swallows_messages(self) -> None:
        self.devices_report_and_an_operator_arms()
        self.world.prompt = False
        self.world.wait(0.3)
        self.world.swallow(self.world.safety)
        self.world.must_come_to_rest()

    @rule(actions=st.dictionaries(st.one_of(NAMES, st.just("nose")), st.one_of(ODD, NUMBER, SWITCH), max_size=4))
    def act_oddly(self, actions: dict[str, Any]) -> None:
        self.tick({k: tuple(v) if isinstance(v, list) else v for k, v in actions.items() if v != {"a": 1}})

    @rule(
        stale=st.sampled_from([("air",), ("eyes",), ("air", "eyes"), (TOO_WARM,), ("room", TOO_WARM)]),
        ready=st.booleans(),
        age_s=st.sampled_from([0.0, 0.29, 0.4, -1.0]),
    )
    def act_on_old_data(self, stale: tuple[str, ...], ready: bool, age_s: float) -> None:
        actions = {"arm": (1.0,), "wheel": (1.0,), "heater": "ON", "fan": "ON", "lamp": "ON"}
        self.tick(actions, stale=stale, ready=ready, age_s=age_s)

    @rule(data=st.sampled_from(FRAMES))
    def send_no_frame(self, data: bytes) -> None:
        self.world.frame(data)

    @rule(
        name=NAMES, value=st.one_of(ODD, NUMBER.map(lambda x: [x]), SWITCH), retain=st.booleans(), answers=st.booleans()
    )
    def report(self, name: str, value: Any, retain: bool, answers: bool) -> None:
        self.world.report(name, value, retain=retain, answers=answers)

    @rule(payload=st.sampled_from([*STOPS, RELEASE, b""]), retain=st.booleans())
    def stop(self, payload: bytes, retain: bool) -> None:
        self.world.stop(payload, retain=retain)

    @rule(
        between=st.sampled_from(["", "", "disarm", "stop", "lose", "wait"]),
        after=st.sampled_from(["", "disarm", "stop", "lose", "wait"]),
    )
    def a_release_and_an_arm_cross(self, between: str, after: str) -> None:
        world = self.world
        happens: dict[str, Callable[[], None]] = {
            "": lambda: None,
            "disarm": lambda: world.request("disarm", b""),
            "stop": lambda: world.stop(b"ON"),
            "lose": lambda: world.lose(world.safety),
            "wait": lambda: world.wait(1.2),
        }
        world.prompt = False
        world.request("arm", b"")
        happens[between]()
        world.stop(RELEASE)
        happens[after]()
        self.resume_the_broker()
        self.tick({"arm": (1.0,)}, 3)

    @rule()
    def release_and_arm(self) -> None:
        self.world.wait(1.1)
        self.world.stop(RELEASE)
        self.tick({"arm": (1.0,)}, 2)
        self.world.request("arm", b"")
        self.tick({"arm": (1.0,)}, 2)

    @rule(
        verb=st.sampled_from(["arm", "disarm", "warm"]),
        payload=st.sampled_from([b"", b"{}", b"please"]),
        retain=st.booleans(),
    )
    def request(self, verb: str, payload: bytes, retain: bool) -> None:
        self.world.request(verb, payload, retain=retain)

    @rule(mode=MODES, name=st.one_of(st.none(), NAMES))
    def change_mode(self, mode: str, name: str | None) -> None:
        actuator = f', "actuator": "{name}"' if name else ""
        self.world.request("mode", f'{{"mode": "{mode}"{actuator}}}'.encode())

    @rule(mode=st.sampled_from(["shadow", "assist"]), seen=st.sampled_from([0.0, 0.41, None]), held=st.booleans())
    def an_operator_takes_the_arm_from_the_policy(self, mode: str, seen: float | None, held: bool) -> None:
        self.devices_report_and_an_operator_arms()
        self.tick({"arm": (0.4,)}, 10)
        if held:
            self.override("arm", [0.3], 0.2)
            self.tick({}, 6)
        if seen is not None:
            self.world.report("arm", [seen])
        self.world.request("mode", f'{{"mode": "{mode}", "actuator": "arm"}}'.encode())
        self.world.wait(0.05)

    @rule(name=NAMES, value=st.one_of(ODD, NUMBER.map(lambda x: [x]), SWITCH), hold_s=st.sampled_from([0, 0.2, 5]))
    def override(self, name: str, value: Any, hold_s: float) -> None:
        world = self.world
        world.arrive(world.requests, f"reflexd/model/override/{name}", orjson.dumps({"value": value, "hold_s": hold_s}))

    @rule(which=st.sampled_from(["safety", "requests"]))
    def lose_the_broker(self, which: str) -> None:
        self.world.lose(getattr(self.world, which))

    @rule()
    def find_the_broker(self) -> None:
        self.world.connect(self.world.safety)
        self.world.connect(self.world.requests)

    @rule()
    def pause_the_broker(self) -> None:
        self.world.prompt = False

    @rule(times=st.integers(1, 20))
    def act_while_the_broker_is_slow(self, times: int) -> None:
        self.world.prompt = False
        for _ in range(times):
            self.act(1.0, -1.0, "ON", "ON", "OFF", 1)
            self.world.deliver(self.world.safety, 1)

    @rule()
    def resume_the_broker(self) -> None:
        self.world.prompt = True
        self.world.settle_loop()

    @rule(count=st.sampled_from([5, 50, 200]))
    def flood(self, count: int) -> None:
        for _ in range(count):
            self.world.host.connection.enqueue("reflexd/model/response/flood", b"{}", qos=1)
            self.world.host.safety.enqueue("reflexd/model/response/flood", b"{}", qos=1)
        self.world.settle_loop()

    @rule(broken=st.booleans())
    def the_disk(self, broken: bool) -> None:
        self.world.disk.broken = broken
        self.world.settle_loop()

    @rule()
    def a_stop_meets_a_full_disk(self) -> None:
        self.world.disk.broken = True
        self.world.stop(b'{"engaged": true}')
        self.world.disk.broken = False
        self.world.must_come_to_rest()

    @rule(mode=MODES)
    def kill(self, mode: str) -> None:
        self.world.kill(mode)

    @rule(
        what=st.sampled_from(["stop", "release", "arm", "disarm", "shadow", "tick", "lose"]),
        turns=st.integers(0, 6),
        written=st.booleans(),
        mode=MODES,
    )
    def kill_at_an_await(self, what: str, turns: int, written: bool, mode: str) -> None:
        world = self.world
        happens: dict[str, Callable[[], None]] = {
            "stop": lambda: world.stop(b'{"engaged": true}'),
            "release": lambda: world.stop(RELEASE),
            "arm": lambda: world.request("arm", b"{}"),
            "disarm": lambda: world.request("disarm", b"{}"),
            "shadow": lambda: world.request("mode", b'{"mode": "shadow"}'),
            "tick": lambda: world.propose({"arm": (1.0,), "heater": "ON", "fan": "ON"}),
            "lose": lambda: world.lose(world.safety),
        }
        world.die_amid(happens[what], turns, mode, written=written)

    @rule(
        mode=MODES,
        payload=st.sampled_from(STOPS),
        qos=st.sampled_from([0, 0, 1]),
        released=st.booleans(),
        after_s=st.sampled_from([0.0, 0.0, 30.0, 90.0]),
    )
    def a_stop_while_the_gate_is_dead(
        self, mode: str, payload: bytes, qos: int, released: bool, after_s: float
    ) -> None:
        self.world.stop_a_dead_gate(mode, payload, qos, released=released, after_s=after_s)

    @rule(what=st.sampled_from(["kill", "start", "start", "freeze", "thaw", "lose", "connect", "connect"]))
    def the_second_listener(self, what: str) -> None:
        self.world.change_the_listener(what)

    @rule(
        away=st.booleans(),
        payload=st.sampled_from([*STOPS, RELEASE]),
        qos=st.sampled_from([0, 0, 1]),
        turns=st.integers(0, 8),
    )
    def the_second_listener_is_killed_at_an_await(self, away: bool, payload: bytes, qos: int, turns: int) -> None:
        if away:
            self.world.lose(self.world.safety)
        self.world.kill_the_listener_amid(lambda: self.world.stop(payload, qos=qos), turns)
        self.find_the_broker()
        self.devices_report_and_an_operator_arms()

    @rule(
        payload=st.sampled_from([*STOPS, RELEASE]),
        qos=st.sampled_from([0, 1]),
        then_s=st.sampled_from([0.01, 0.2, 0.7]),
        released=st.booleans(),
    )
    def a_stop_while_the_broker_is_away(self, payload: bytes, qos: int, then_s: float, released: bool) -> None:
        self.world.lose(self.world.safety)
        self.world.stop(payload, qos=qos)
        if released:
            self.world.stop(RELEASE, qos=qos)
        self.world.wait(then_s)
        if then_s > 0.5:
            self.world.must_be_latched()
        self.find_the_broker()
        self.devices_report_and_an_operator_arms()

    @rule(
        gate=st.sampled_from([0x87, 0, None]),
        listener=st.sampled_from([0x87, 0, None]),
        reconnects=st.booleans(),
        restarts=st.booleans(),
    )
    def the_broker_refuses_the_stop(
        self, gate: int | None, listener: int | None, reconnects: bool, restarts: bool
    ) -> None:
        world = self.world
        self.the_policy_acts()
        world.refuses_stop, world.refuses_listener = gate, listener
        if reconnects:
            world.lose(world.safety)
            world.listener.lose()
        if restarts:
            world.change_the_listener("start")
        self.find_the_broker()
        world.change_the_listener("connect")
        self.devices_report_and_an_operator_arms()
        self.tick({"arm": (1.0,)}, 2)
        world.refuses_stop = world.refuses_listener = None
        world.subscribe_again()
        world.listener.subscribe_again()
        self.devices_report_and_an_operator_arms()

    @rule(slept_s=st.sampled_from([0.5, 60.0]), age_s=st.sampled_from([0.0, 0.01, 0.1]))
    def the_machine_is_suspended(self, slept_s: float, age_s: float) -> None:
        self.the_policy_acts()
        self.world.sleep(slept_s)
        self.tick({"arm": (1.0,), "heater": "ON", "fan": "ON"}, age_s=age_s)
        self.devices_report_and_an_operator_arms()

    @rule(by_s=st.sampled_from([-3_600.0, -1.0, 1.0, 3_600.0]))
    def step_the_clock(self, by_s: float) -> None:
        self.world.wall_s += by_s
        self.world.stepped_s += abs(by_s)

    def the_policy_acts(self) -> None:
        """All is in order, and the gate is armed where its settings allow that."""
        self.resume_the_broker()
        self.find_the_broker()
        self.the_telemetry_is_quiet()
        self.release_and_arm()
        self.world.request("mode", b'{"mode": "autonomous"}')
        self.devices_report_and_an_operator_arms()

    @rule(agreement=st.sampled_from(["", "0123456789abcdef"]), times=st.integers(1, 3))
    def an_agent_has_other_settings(self, agreement: str, times: int) -> None:
        self.the_policy_acts()
        self.tick({"arm": (1.0,), "heater": "ON", "fan": "ON"}, times, agreement=agreement)

    @rule(values=st.lists(SWITCH, min_size=2, max_size=5), by_hand=st.booleans())
    def the_lamp_is_switched_to_and_fro(self, values: list[str], by_hand: bool) -> None:
        self.the_policy_acts()
        for value in values:
            if by_hand:
                self.override("lamp", value, 0)
            self.tick({"lamp": value})

    # the relay of a fleet's stop

    @rule(payload=st.sampled_from(STOPS), away=st.booleans(), passes=st.booleans())
    def the_fleet_stops(self, payload: bytes, away: bool, passes: bool) -> None:
        if away:
            self.relay.connect()
            self.relay.lose(self.relay.local)
        self.relay.stop(payload)
        if away:
            self.world.wait(0.7)
        if passes:
            self.relay.must_pass()

    @rule(
        payload=st.sampled_from(STOPS),
        turns=st.integers(0, 12),
        away=st.booleans(),
        passes=st.booleans(),
    )
    def the_relay_is_killed_at_an_await(self, payload: bytes, turns: int, away: bool, passes: bool) -> None:
        self.relay.connect()
        if away:
            self.relay.lose(self.relay.local)
        self.relay.kill_amid(lambda: self.relay.stop(payload), turns)
        if passes:
            self.relay.must_pass()

    @rule(which=st.sampled_from(["fleet", "local"]))
    def the_relay_loses_a_broker(self, which: str) -> None:
        self.relay.lose(getattr(self.relay, which))

    @rule(delivers=st.booleans())
    def the_relay_finds_its_brokers(self, delivers: bool) -> None:
        self.relay.connect()
        if delivers:
            self.relay.must_pass()

    # the page and `reflexd top`

    @rule()
    def press_stop(self) -> None:
        self.clients.press_stop()

    @rule()
    def press_release_and_arm(self) -> None:
        self.clients.press_release_and_arm()

    @rule(name=NAMES, value=st.one_of(NUMBER.map(lambda x: [x]), SWITCH))
    def press_override(self, name: str, value: Any) -> None:
        self.clients.press_override(name, value)

    @rule(mode=MODES)
    def press_mode(self, mode: str) -> None:
        self.clients.press_mode(mode)

    @rule(which=st.integers(0, 2))
    def a_client_loses_the_broker(self, which: int) -> None:
        self.clients.lose(which)

    @rule(topic=st.sampled_from(["info", "status", "health", "decision", "event"]), payload=ODD_PAYLOADS)
    def odd_messages_reach_page_and_top(self, topic: str, payload: bytes) -> None:
        self.clients.hear(PublishMessage(f"reflexd/model/{topic}", payload, 1, True, None))

    @rule()
    def look_at_page_and_top(self) -> None:
        self.clients.look()

    @rule(what=st.sampled_from(["stop", "release", "arm", "autonomous"]))
    def the_gate_freezes(self, what: str) -> None:
        world = self.world
        world.freeze(2.0)
        happens: dict[str, Callable[[], None]] = {
            "stop": lambda: world.stop(b"ON"),
            "release": lambda: world.stop(RELEASE),
            "arm": lambda: world.request("arm", b""),
            "autonomous": lambda: world.request("mode", b'{"mode": "autonomous"}'),
        }
        happens[what]()
        self.tick({"arm": (1.0,)}, 2)

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.2, 0.3, 1.0]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule()
    def the_agent_falls_silent(self) -> None:
        self.world.must_come_to_rest()


TestGateModel = (GateModel if STEPS <= 2_000 else seed(SEED)(GateModel)).TestCase
TestGateModel.settings = hypothesis_settings(
    max_examples=max(1, STEPS // STEPS_A_RUN),
    stateful_step_count=STEPS_A_RUN,
    deadline=None,
    derandomize=STEPS <= 2_000,
    database=None,
    phases=(Phase.generate,) if STEPS > 2_000 else (Phase.generate, Phase.shrink),  # shrinking may take minutes
    report_multiple_bugs=False,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
