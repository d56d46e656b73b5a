"""Devices that carry out nothing: with another clock, or with reports that follow no command. Event and status name them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from gate_model import World

from actuators.actions import Value
from actuators.config import ChoiceSettings
from actuators.sim.plant import Device
from actuators.wire import CommandWriter, parse_state
from fakes import FakeClock
from runtime.config.schema import Config
from runtime.gate.build import build_host
from runtime.gate.device_clocks import AGREE_S, PATIENCE_S, REPORTS, DeviceClocks, FollowedCommands
from runtime.gate.info import InfoBuilder
from runtime.mqtt.connection_types import Message
from runtime.mqtt.topics import Refused
from runtime.process.systemd import Notifier

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
            world.host.devices.reported(
                "lamp", Message(topic, body, 1, retain=retain, stamp_s=world.host.now()), ["lamp"]
            )

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


class Heard:
    """Commands and reports of one device under a clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.following = FollowedCommands(self.clock.now)
        self.seq = 0

    def command(self, value: Value, after_s: float = 0.0) -> None:
        self.following.commanded("it", value)
        self.seq += 1
        self.clock.advance(after_s)

    def report(self, value: Value, seq: int | None = None, *, names: bool = False) -> None:
        self.following.reported("it", value, seq=seq, names_command=names or seq is not None)

    def events(self) -> list[str]:
        return [kind for kind, _ in self.following.changes()]


def test_a_device_that_names_commands_and_then_names_no_newer_one_does_not_follow() -> None:
    heard = Heard()
    heard.command("ON")
    heard.report("ON", 1)
    for number in range(24):
        heard.command("ON" if number % 2 else "OFF", 0.5)
        heard.report("ON", 1)  # it is alive, and repeats the old command
        assert heard.events() == (["device_unresponsive"] if number == 19 else []), number
    (problem,) = heard.following.problems()
    assert "'ON'" in problem
    assert "clock" in problem
    heard.report("OFF", 20)
    assert heard.events() == ["device_responsive"]
    assert heard.following.problems() == []


def test_a_device_that_only_ever_reported_its_state_does_not_follow_when_that_stays() -> None:
    heard = Heard()
    heard.report("OFF")
    for number in range(30):  # as a device with another clock: each command is dropped
        heard.command(("ON", "OFF", "ON")[number % 3], 0.5)
    assert heard.events() == ["device_unresponsive"]
    heard.report("ON")
    assert heard.events() == ["device_responsive"]


@pytest.mark.parametrize("names", [False, True])
def test_a_device_that_follows_late_or_reports_nothing_is_not_named(names: bool) -> None:
    heard = Heard()
    silent = Heard()
    heard.report("OFF")
    for number in range(200):
        word = "ON" if number // 7 % 2 else "OFF"
        silent.command(word, 0.5)
        heard.command(word, 0.5)
        if number % 14 == 13:  # seven seconds late at most
            heard.report(word, heard.seq if names else None)
        assert heard.events() == silent.events() == []


def test_one_short_departure_that_passed_unreported_is_no_reason() -> None:
    heard = Heard()
    heard.report("OFF")
    heard.command("ON", 0.2)
    for _ in range(100):
        heard.command("OFF", 0.5)
    assert heard.events() == []


def test_a_slow_device_of_numbers_follows_and_a_stuck_one_does_not() -> None:
    heard = Heard()
    heard.report((0.0, 0.0))
    for number in range(100):
        heard.command((0.5, number / 100), 0.5)
        heard.report((0.48, max(0.0, number / 100 - 0.05)))
        assert heard.events() == []
    for _ in range(30):
        heard.command((-1.0, 1.0), 0.5)
        heard.report((0.48, 0.95))
    assert heard.events() == ["device_unresponsive"]


def test_without_a_broker_no_device_is_blamed() -> None:
    heard = Heard()
    heard.report("OFF")
    heard.command("ON", PATIENCE_S - 1)
    heard.following.disconnected()
    heard.clock.advance(60.0)
    assert heard.events() == []


def test_the_gate_names_a_device_that_drops_every_command_and_a_report_that_it_cannot_read() -> None:
    world = World()
    clock = FakeClock()
    world.host.publisher.following = FollowedCommands(clock.now)
    topic = f"{world.host.topics.base}/act/lamp/state"

    def report(body: bytes) -> None:
        with suppress(Refused):
            world.host.devices._reported_all(["lamp"], Message(topic, body, 1, retain=False, stamp_s=world.host.now()))

    try:
        report(b"OFF")
        world.host.publisher.following.commanded("lamp", "ON")
        clock.advance(PATIENCE_S)
        world.host.tick()
        assert "device_unresponsive" in world.event_types
        state, reasons = world.host.publisher.status()
        assert any("lamp: the device follows no command" in reason for reason in reasons), (state, reasons)
        report(b"ON")
        world.host.tick()
        assert "device_responsive" in world.event_types
        for _ in range(50):
            report(b"standby")
        assert world.event_types.count("report_refused") == 1
    finally:
        world.close()


async def test_what_speaks_is_not_expected_to_report_the_text(tmp_path: Path) -> None:
    """A loudspeaker reports whether it speaks; its texts are not collected either."""
    say = {"kind": "text", "task": "chat"}
    chat = {"kind": "text-generation", "model": "/nowhere"}
    eyes = {"kind": "telemetry", "source": "topic", "fields": ["a"]}
    parts = {"streams": {"eyes": eyes}, "actuators": {"say": say}, "tasks": {"chat": chat}}
    config = Config.model_validate({"agent": "tester", "state_dir": tmp_path, **parts})
    host = build_host(config, Notifier(), InfoBuilder(config, "0"))
    clock = FakeClock()
    following = host.publisher.following = FollowedCommands(clock.now)
    host.devices.reported("say", Message("", b'"idle"', 1, retain=False), ["say"])
    for number in range(100):
        host.devices._delivered("say", number, f"text {number}", "acknowledged")
        clock.advance(PATIENCE_S)
    assert (following.changes(), following.problems()) == ([], [])
    assert not following._devices["say"].commanded
