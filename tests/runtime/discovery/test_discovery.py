"""Discovery on five kinds of homes: each stream and actuator is proposed rightly or left out, and none is wrong."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from click.testing import CliRunner
from free_ports import free_port
from homes import HOMES, tree_of

from actuators.wire import parse_state
from fakes import Mosquitto
from runtime.cli.main import main
from runtime.config.loader import load
from runtime.discovery.plain_topics import propose
from runtime.discovery.proposals import Proposals
from runtime.discovery.settings_text import Plan, settings_text
from runtime.discovery.topic_samples import MAX_TOPICS, Tree
from runtime.preflight.preflight import problems_and_warnings
from sensors.streams.registry import build as build_sensor
from sensors.streams.telemetry import TopicTelemetry

Fields = dict[str, tuple[str, tuple[str, ...]]]
Moved = dict[str, tuple[str, tuple[str, ...], str, str | None, str]]

STREAMS: dict[str, Fields] = {
    "zigbee": {
        "desk": ("zigbee2mqtt/desk", ("power",)),
        "heater": ("zigbee2mqtt/heater", ("power",)),
        "living_climate": ("zigbee2mqtt/living/climate", ("temperature", "humidity")),
    },
    "home assistant": {
        "cellar_temperature": ("cellar/esp1/telemetry", ("temperature",)),
        "motion": ("hall/motion", ("state",)),
    },
    "tasmota": {
        "terrace": ("tele/terrace/SENSOR", ("temperature", "humidity")),
        "meter": ("tele/meter/SENSOR", ("power", "today")),
    },
    "esphome": {
        "bath_temperature": ("esp-bath/sensor/bath_temperature/state", ("value",)),
        "window": ("esp-bath/binary_sensor/window/state", ("state",)),
        "outside": ("ha/sensor/outside/state", ("value",)),
    },
    "plain": {
        "sensor": ("room/sensor", ("temperature", "ok")),
        "moisture": ("garden/soil/moisture", ("moisture",)),
    },
}
"""By home: name -> topic and fields."""
ON_OFF = ("OFF", "ON")
ACTUATORS: dict[str, Moved] = {
    "zigbee": {"desk_switch": ("zigbee2mqtt/desk/set", ON_OFF, '{"state": "${value}"}', "zigbee2mqtt/desk", "state")},
    "home assistant": {
        "fan": ("cellar/fan/set", ("0", "1"), "${value}", "cellar/fan/state", "value"),
        "lamp": ("hall/lamp/set", ON_OFF, '{"state": "${value}"}', "hall/lamp", "state"),
    },
    "tasmota": {
        "terrace_power": ("cmnd/terrace/POWER", ON_OFF, "${value}", "stat/terrace/POWER", "value"),
        "strip_power1": ("cmnd/strip/POWER1", ON_OFF, "${value}", "stat/strip/POWER1", "value"),
    },
    "esphome": {
        "bath_fan": ("esp-bath/switch/bath_fan/command", ON_OFF, "${value}", "esp-bath/switch/bath_fan/state", "value")
    },
    "plain": {"fan": ("room/fan/set", ON_OFF, "${value}", "room/fan/state", "value")},
}
"""By home: name -> command topic, choices, payload, state topic, place of the state."""


def plan(found: Proposals) -> str:
    return settings_text(Plan("home", "mqtt://127.0.0.1:1883", found.streams, found.actuators))


@pytest.mark.parametrize("home", HOMES)
def test_every_stream_and_actuator_is_right_or_left_out(home: str) -> None:
    found = propose(tree_of(HOMES[home]))
    assert {each.name: (each.topic, each.fields) for each in found.streams} == STREAMS[home]
    moved = {a.name: (a.topic, a.choices, a.payload, a.state_topic, a.state_value) for a in found.actuators}
    assert moved == ACTUATORS[home]
    assert all(left.why for left in found.left_out)


@pytest.mark.parametrize("home", HOMES)
def test_check_accepts_the_file_and_every_stream_reads_what_was_heard(home: str, tmp_path: Path) -> None:
    tree = tree_of(HOMES[home])
    found = propose(tree)
    path = tmp_path / "home.yaml"
    path.write_text(plan(found))
    problems, _, loaded = problems_and_warnings(path, ports=False)
    assert problems == []
    assert loaded is not None
    assert loaded.config.mode == "shadow"
    for stream in found.streams:
        sensor = build_sensor(stream.name, loaded.config.streams[stream.name])
        assert isinstance(sensor, TopicTelemetry)
        for sample in tree.topics[stream.topic].samples:
            assert len(sensor.decode(sample, 0.0).values) == len(stream.fields)
    for actuator in found.actuators:
        settings = loaded.config.actuators[actuator.name]
        if settings.state_topic in tree.topics:
            for sample in tree.topics[settings.state_topic].samples:
                assert str(parse_state(settings, sample).value) in actuator.choices


def test_a_home_with_everything_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    everything = {topic: payloads for home in HOMES.values() for topic, payloads in home.items()}
    found = propose(tree_of(everything))
    assert {s.topic for s in found.streams} == {topic for each in STREAMS.values() for topic, _ in each.values()}
    assert {a.topic for a in found.actuators} == {row[0] for each in ACTUATORS.values() for row in each.values()}
    names = [s.name for s in found.streams] + [a.name for a in found.actuators]
    assert len(set(names)) == len(names)
    path = tmp_path / "all.yaml"
    path.write_text(plan(found))
    assert problems_and_warnings(path, ports=False)[0] == []


def test_no_payload_breaks_it_and_memory_is_bounded() -> None:
    chance = random.Random(0)
    tree = Tree()
    topics = [topic for home in HOMES.values() for topic in home]
    payloads = [p for home in HOMES.values() for some in home.values() for p in some]
    for number in range(3_000):
        payload = chance.choice(payloads)
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        start = chance.randrange(len(raw) + 1)
        tree.take(
            chance.choice(topics),
            raw[start:] + bytes(chance.randrange(256) for _ in range(chance.randrange(3))),
            number,
        )
    found = propose(tree)
    assert found.left_out
    assert plan(found)
    for number in range(MAX_TOPICS + 10):
        tree.take(f"t/{number}", b"1", 0.0)
    assert len(tree.topics) == MAX_TOPICS
    assert tree.left_out >= 10


@pytest.fixture
def busy(tmp_path: Path) -> Mosquitto:
    """A broker on which a thermometer reports and a heater answers."""
    broker = Mosquitto(tmp_path)
    broker.start()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.publish("room/heater/state", "OFF", retain=True)
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(0.1):
            client.publish("room/sensor", json.dumps({"temperature": 20 + time.monotonic() % 1}))

    thread = threading.Thread(target=report)
    thread.start()
    yield broker
    ended.set()
    thread.join()
    client.loop_stop()
    broker.stop()


def test_the_verb_writes_a_file_for_a_sensor_and_a_switch_without_an_edit(busy: Mosquitto, tmp_path: Path) -> None:
    out = tmp_path / "room.yaml"
    arguments = ["discover", busy.url, "--seconds", "1.5", "--out", str(out), "--yes", "--agent", "room"]
    named = ["--actuator", "heater=room/heater/set,room/heater/state", "--reward", "-abs(sensor.temperature - 22)"]
    done = CliRunner().invoke(main, [*arguments, *named])
    assert done.exit_code == 0, done.output
    config = load(out).config
    assert config.mode == "shadow"
    assert config.streams["sensor"].source == "topic:room/sensor"
    assert config.actuators["heater"].topic == "room/heater/set"
    assert "heater" in done.output
    assert config.streams["sensor"].required
    again = CliRunner().invoke(main, [*arguments, *named])
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_without_an_actuator_or_a_broker_it_says_what_to_do(
    busy: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "none.yaml")
    done = CliRunner().invoke(main, ["discover", busy.url, "--seconds", "1", "--out", out, "--yes"])
    assert done.exit_code == 2
    assert "name one with --actuator" in done.stderr
    listed = CliRunner().invoke(main, ["discover", busy.url, "--seconds", "1", "--json"])
    body = json.loads(listed.stdout)
    assert body["streams"][0]["topic"] == "room/sensor"
    assert "--actuator" in body["left_out"][0]["why"]
    monkeypatch.setattr("runtime.discovery.topic_samples.CONNECT_S", 0.5)
    gone = CliRunner().invoke(main, ["discover", f"mqtt://127.0.0.1:{free_port()}", "--seconds", "1"])
    assert gone.exit_code == 1
    assert "no broker on 127.0.0.1" in gone.stderr


def test_new_writes_a_file_that_check_accepts(tmp_path: Path) -> None:
    out = tmp_path / "robot.yaml"
    answers = "robot\n\nroom/sensor\ntemperature, humidity\nroom/heater/set\n-abs(sensor.temperature - 22)\n"
    done = CliRunner().invoke(main, ["new", str(out)], input=answers)
    assert done.exit_code == 0, done.output
    assert problems_and_warnings(out, ports=False)[0] == []
    assert load(out).config.streams["sensor"].fields == ("temperature", "humidity")  # type: ignore[union-attr]
