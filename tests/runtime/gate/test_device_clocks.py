"""A device with another clock drops every command as expired; event and status name it with the measured offset."""

from __future__ import annotations

import orjson
import pytest
from gate_model import World

from actuators.config import ChoiceSettings
from actuators.sim.plant import Device
from actuators.wire import CommandWriter, parse_state
from fakes import FakeClock
from runtime.gate.device_clocks import AGREE_S, REPORTS, DeviceClocks
from runtime.mqtt.connection_types import Message

LIMIT_S = 0.3


@pytest.mark.parametrize("offset_s", [-3_600.0, -0.5, 0.5, 86_400.0])
def test_an_offset_that_reports_agree_on_for_a_while_is_named_once(offset_s: float) -> None:
    clock = FakeClock()
    clocks = DeviceClocks(clock.now)
    events = []
    for noise in [0.0, 0.01, -0.01, 0.02, 0.0, 0.01]:
        events.append(clocks.measured("lamp", offset_s + noise, LIMIT_S))
        clock.advance(AGREE_S / 4)
    assert [event is not None for event in events] == [False] * 4 + [True, False]
    found = events[4]
    assert found is not None
    assert found[0] == "clock_offset"
    assert found[1]["offset_s"] == pytest.approx(offset_s, abs=0.03)
    (problem,) = clocks.problems()
    assert f"{abs(offset_s):.1f} s {'ahead' if offset_s > 0 else 'behind'}" in problem
    assert clocks.measured("lamp", 0.2, LIMIT_S) is None, "at the limit it neither begins nor ends"
    assert clocks.measured("lamp", 0.0, LIMIT_S) == ("clock_offset_ended", {"of": "actuators.lamp"})
    assert clocks.problems() == []


def test_late_reports_are_no_offset() -> None:
    clock = FakeClock()
    clocks = DeviceClocks(clock.now)
    for number in range(300):
        assert clocks.measured("lamp", -2.0 if number % 30 else -0.1, LIMIT_S) is None
        clock.advance(AGREE_S / 40)
    for _ in range(200):  # what a broker delivers at once after a pause
        assert clocks.measured("lamp", -5.0, LIMIT_S) is None


def test_the_gate_measures_the_clock_in_reports_and_not_in_retained_ones() -> None:
    world = World()
    clock = FakeClock()
    world.host.publisher.clocks = DeviceClocks(clock.now)
    try:
        topic = f"{world.host.topics.base}/act/lamp/state"

        def report(stamp_s: float, *, retain: bool) -> None:
            body = orjson.dumps({"value": "OFF", "stamp": stamp_s})
            world.host.devices.reported("lamp", Message(topic, body, 1, retain=retain, stamp_s=world.host.now()))

        for _ in range(REPORTS):
            report(world.host.wall() - 50.0, retain=True)
            clock.advance(AGREE_S)
        assert world.host.publisher.clocks.problems() == []
        for _ in range(REPORTS):
            report(world.host.wall() - 50.0, retain=False)
            clock.advance(AGREE_S)
        assert "clock_offset" in world.event_types
        assert any("50.0 s behind" in reason for reason in world.host.publisher.status()[1])
        report(world.host.wall(), retain=False)
        assert "clock_offset_ended" in world.event_types
    finally:
        world.close()


def test_a_simulated_device_that_drops_commands_as_expired_reports_its_clock() -> None:
    settings = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF")
    commands = CommandWriter("reflexd/model", {"lamp": settings}, "b")
    device = Device("reflexd/model", "lamp", lambda value: value)
    sent_s, ahead_s = 1_000_000.0, 7.0
    reports = []
    for tick in range(25):
        now_s = sent_s + tick / 10
        out = commands.write("lamp", "ON", decision=None, policy="p", stamp_s=now_s)
        assert device.take(out.payload, retained=False, now_s=now_s + ahead_s) is None
        reports += [(now_s, each) for each in device.refusal("OFF", now_s + ahead_s)]
    assert len(reports) == 3, "one a second"
    for now_s, each in reports:
        stamp_s = parse_state(settings, each.payload).stamp_s
        assert stamp_s is not None
        assert stamp_s - now_s == pytest.approx(ahead_s)
