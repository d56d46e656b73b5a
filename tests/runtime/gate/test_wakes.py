"""When the gate's host takes the time: as soon as something is due, and seldom while nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from gate_model import World

from runtime.mqtt import Message

STEP_S = 0.001
DEADMAN_S = 0.15
PERIOD_S = 0.1
LAMP = {"lamp": "ON"}


@dataclass
class Clocked:
    """The real loop of the host on the model's clock, which moves by a millisecond."""

    world: World = field(default_factory=World)
    ticks: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        host, tick = self.world.host, self.world.host.tick

        def noted() -> None:
            self.ticks.append(self.world.loop.now_s)
            tick()

        type(host).tick = lambda _host: noted()  # type: ignore[method-assign]
        self._restore = lambda: setattr(type(host), "tick", tick.__func__)  # type: ignore[attr-defined]
        self.running = self.world.loop.create_task(host.run())

    def close(self) -> None:
        self._restore()
        self.running.cancel()
        self.world.close()

    def advance(self, seconds: float) -> None:
        """Let time pass, with a broker that delivers while the model says so."""
        for _ in range(round(seconds / STEP_S)):
            self.world.loop.now_s += STEP_S
            self.world.wall_s += STEP_S
            self.world.settle_loop()

    def act(self, times: int, actions: dict[str, object] | None = None) -> None:
        """Ticks of the agent, one each period."""
        for _ in range(times):
            self.world.propose(actions or LAMP)
            self.advance(PERIOD_S)

    def until(self, seconds: float, condition: object) -> float:
        """Advance until the condition holds, and return the time that it took."""
        begun_s = self.world.loop.now_s
        while not condition():  # type: ignore[operator]
            assert self.world.loop.now_s - begun_s < seconds, "not in time"
            self.advance(STEP_S)
        return self.world.loop.now_s - begun_s


@pytest.fixture
def clocked() -> Iterator[Clocked]:
    """An armed gate that commands a lamp and has nothing else to do."""
    made = Clocked()
    for name, value in {"arm": [0.0], "wheel": [0.0], "heater": "OFF", "fan": "OFF", "lamp": "OFF"}.items():
        made.world.report(name, value)
    made.act(6)
    assert made.world.host.gate.armed
    assert made.world.devices["lamp"] == "ON"
    yield made
    made.close()


def test_one_tick_for_each_proposal_and_four_a_second_without(clocked: Clocked) -> None:
    clocked.ticks.clear()
    clocked.act(20)
    assert len(clocked.ticks) == 20
    clocked.until(1.0, lambda: not clocked.world.host.gate.armed)
    clocked.advance(1.0)
    clocked.ticks.clear()
    clocked.advance(2.0)
    assert len(clocked.ticks) == 8


def test_the_dead_man_acts_within_a_millisecond_of_its_deadline(clocked: Clocked) -> None:
    world = clocked.world
    world.propose(LAMP)
    deadline_s = world.host.gate.deadline_s
    assert deadline_s == pytest.approx(world.loop.now_s + PERIOD_S + DEADMAN_S)
    clocked.until(1.0, lambda: "agent_lost" in world.event_types)
    assert 0 <= world.loop.now_s - deadline_s <= STEP_S + 1e-9
    assert world.devices["lamp"] == "OFF"


def test_a_flood_of_proposals_costs_one_tick_in_ten_milliseconds_at_most(clocked: Clocked) -> None:
    clocked.ticks.clear()
    for _ in range(500):
        clocked.world.propose(LAMP)
        clocked.advance(STEP_S)
    assert len(clocked.ticks) <= 51


def test_a_safe_action_is_repeated_when_it_is_due(clocked: Clocked) -> None:
    world = clocked.world
    world.prompt = False
    world.propose(LAMP)
    clocked.until(1.0, lambda: "lamp" in world.host.gate.owed())
    lost_s = world.loop.now_s
    moments = list[float]()
    repeats = 0
    for _ in range(800):
        clocked.advance(STEP_S)
        if world.host.gate.repeats > repeats:
            repeats = world.host.gate.repeats
            moments.append(round(world.loop.now_s - lost_s, 3))
    assert moments == pytest.approx([0.1, 0.3, 0.7], abs=5 * STEP_S)


def test_an_override_ends_to_the_millisecond(clocked: Clocked) -> None:
    world = clocked.world
    world.host.set_mode("assist")
    clocked.act(2, {"lamp": "OFF"})
    world.host.override("lamp", "ON", 0.123)
    begun_s = world.loop.now_s
    clocked.advance(0.1)
    world.propose({})
    assert world.devices["lamp"] == "ON"
    clocked.until(1.0, lambda: world.devices["lamp"] == "OFF")
    assert world.loop.now_s - begun_s == pytest.approx(0.123, abs=3 * STEP_S)


def test_a_change_of_the_connection_is_in_the_status_at_once(clocked: Clocked) -> None:
    world = clocked.world
    clocked.advance(0.02)
    world.lose(world.requests)
    taken_s = clocked.until(1.0, lambda: (world.host.publisher._published or ("",))[0] == "degraded")
    assert taken_s <= 0.011


def test_a_process_that_begins_to_fail_is_in_the_status_within_a_quarter_of_a_second(clocked: Clocked) -> None:
    world = clocked.world
    clocked.until(1.0, lambda: not world.host.gate.armed)
    clocked.advance(1.0)
    world.host.publisher.failing = lambda: ["learner"]
    taken_s = clocked.until(
        1.0, lambda: "the process learner fails repeatedly" in (world.host.publisher._published or ("", ()))[1]
    )
    assert taken_s <= 0.25 + STEP_S


def test_the_host_ends_when_it_is_cancelled(clocked: Clocked) -> None:
    clocked.running.cancel()
    clocked.advance(0.01)
    assert clocked.running.cancelled()
    assert isinstance(clocked.running, asyncio.Task)


def test_nothing_spins_while_the_daemon_ends(clocked: Clocked) -> None:
    clocked.world.host.channel.ending = True
    clocked.ticks.clear()
    clocked.advance(2.0)
    assert len(clocked.ticks) <= 1
    assert clocked.running.done()


def test_a_safe_action_is_owed_at_once_when_a_device_first_says_which_command_it_answers(clocked: Clocked) -> None:
    host, report = clocked.world.host, Message("act/lamp/state", b'{"value": "ON", "boot": "b7", "seq": 3}', 1, False)
    host.gate._actuators["lamp"].answers = False
    for is_new in (True, False):
        host.devices.woken.clear()
        host.devices.reported("lamp", report)
        assert host.is_woken is is_new


def test_the_end_of_an_override_is_seen_at_once(clocked: Clocked) -> None:
    host = clocked.world.host
    host.override("lamp", "ON", 5.0)
    clocked.advance(0.1)
    host.devices.woken.clear()
    host.end_override("lamp")
    assert host.is_woken
