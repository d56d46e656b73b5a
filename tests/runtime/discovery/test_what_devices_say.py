"""Descriptions of devices as they are in the world: each is proposed as it is meant, or left out with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from actuators.config import AnyActuator
from actuators.wire import parse_state
from runtime.discovery.plain_topics import propose
from runtime.discovery.proposals import Proposals
from runtime.discovery.settings_text import Plan, settings_text
from runtime.discovery.topic_samples import Tree
from runtime.preflight.preflight import problems_and_warnings


def found(*messages: tuple[str, Any]) -> Proposals:
    tree = Tree()
    for at, (topic, body) in enumerate(messages):
        tree.take(topic, (body if isinstance(body, str) else json.dumps(body)).encode(), float(at))
    return propose(tree)


def announced(component: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    return f"homeassistant/{component}/a/b/config", {"name": "B", **settings}


def zigbee(feature: dict[str, Any], **device: Any) -> tuple[str, list[Any]]:
    exposes = [{"type": "switch", "features": [{"type": "binary", "property": "state", "access": 7, **feature}]}]
    return "zigbee2mqtt/bridge/devices", [{"friendly_name": "plug", "definition": {"exposes": exposes}, **device}]


@pytest.mark.parametrize(
    ("template", "is_read"),
    [
        ("{{ value_json.t }}", True),
        ("{{ value_json['t'] | float(0) | round(2) }}", True),
        ("{{ value_json.t | int(default=0) }}", True),
        ("{{ value_json.t | float / 10 }}", False),
        ("{{ value_json.t | round(1) * 0.1 }}", False),
        ("{{ value_json.t | int + 5 }}", False),
    ],
)
def test_a_template_that_computes_is_not_taken_for_the_field(template: str, is_read: bool) -> None:
    made = found(announced("sensor", state_topic="x", value_template=template), ("x", {"t": 215}))
    assert [stream.fields for stream in made.streams] == ([("t",)] if is_read else [])
    assert is_read or "more than a field" in made.left_out[0].why


def test_a_scaled_bare_number_is_left_out() -> None:
    made = found(announced("sensor", state_topic="x", value_template="{{ value | float * 0.1 }}"), ("x", "215"))
    assert made.streams == []


def test_a_contact_is_not_named_as_an_open_door() -> None:
    """`contact: true` is a closed door; only Home Assistant turns it round."""
    door = announced(
        "binary_sensor", state_topic="x", device_class="door", payload_on=False, payload_off=True,
        value_template="{{ value_json.contact }}",
    )  # fmt: skip
    assert found(door, ("x", {"contact": True})).streams[0].fields == ("contact",)


def test_a_report_in_other_words_than_the_commands_is_read_as_they_are() -> None:
    switch = announced(
        "switch", state_topic="x", command_topic="c", payload_on="1", payload_off="0", state_on="ON", state_off="OFF"
    )
    moved = found(switch).actuators
    assert [(each.choices, each.state_topic, each.state_words) for each in moved] == [
        (("0", "1"), "x", {"0": "OFF", "1": "ON"})
    ]
    text = settings_text(Plan("home", "mqtt://127.0.0.1", [], moved))
    settings = TypeAdapter(AnyActuator).validate_python(yaml.safe_load(text)["actuators"]["b"])
    assert [parse_state(settings, reported).value for reported in (b"ON", b"OFF", b"?")] == ["1", "0", "?"]
    fan = announced("fan", state_topic="x", command_topic="c", state_value_template="{{ value_json.state }}")
    assert [(each.state_topic, each.state_value) for each in found(fan).actuators] == [("x", "state")]


@pytest.mark.parametrize(
    "message",
    [
        announced("switch", command_topic="c", payload_on="GO", payload_off="GO"),
        announced("select", command_topic="c", options=["a", None, {"x": 1}]),
        announced("select", command_topic="c", options="ab"),
        zigbee({"value_on": True, "value_off": False}),
        zigbee({"value_on": 'O"N'}),
        zigbee({"access": None}),
        zigbee({"access": "7"}),
        zigbee({}, disabled=True),
        announced("light", command_topic="c", on_command_type="brightness"),
        announced("select", command_topic="c", options=[str(at) for at in range(2_000)]),
        announced("switch", command_topic="c/#"),
        announced("switch", command_topic=""),
        announced("switch", command_topic="c", state_topic="+/x"),
    ],
)
def test_what_could_not_be_commanded_rightly_is_no_actuator(message: tuple[str, Any]) -> None:
    assert found(message).actuators == []


def test_a_base_topic_of_the_device_counts_for_its_entities() -> None:
    body = {"~": "base/x", "dev": {"name": "D"}, "cmps": {"t": {"p": "sensor", "name": "T", "stat_t": "~/t"}}}
    made = found(("homeassistant/device/a/config", body), ("base/x/t", "21.5"))
    assert [stream.topic for stream in made.streams] == ["base/x/t"]


def test_topics_and_fields_of_any_characters_give_settings_that_are_read(tmp_path: Path) -> None:
    made = found(
        ("x/\ufeff", {"t": 1}), ("größe/ä\U0001f321", {"t": 1}), ('a "b"\\', {"t": 1}), ("y/\x7f", {"t": 1}),
        ("z", {"x" * 300: 1, "日本": 2}), ("lamp/set", "ON"), ("lamp/state", "ON"),
    )  # fmt: skip
    assert [left.topic for left in made.left_out] == ["y/\x7f"]
    path = tmp_path / "home.yaml"
    path.write_text(settings_text(Plan("home", "mqtt://127.0.0.1", made.streams, made.actuators)), encoding="utf-8")
    problems, _, loaded = problems_and_warnings(path, ports=False)
    assert problems == []
    assert loaded is not None
    assert {stream.source for stream in loaded.config.streams.values()} == {
        f"topic:{stream.topic}" for stream in made.streams
    }


def harmful(kind: str) -> list[tuple[str, Any]]:
    shutter = {"Shutter1": {"Position": 0, "Direction": 0}}
    plug = [{"type": "switch", "features": [{"type": "binary", "property": "state", "access": 7}]}]
    return {
        "name of the device": [announced("switch", command_topic="c", device={"name": "Garage opener"})],
        "model": [announced("switch", command_topic="c", dev={"name": "Relay 3", "mdl": "Door strike"})],
        "maker": [
            (
                "z/bridge/devices",
                [{"friendly_name": "a", "definition": {"description": "Water valve", "exposes": plug}}],
            )
        ],
        "person": [
            ("z/bridge/devices", [{"friendly_name": "a", "description": "Gate", "definition": {"exposes": plug}}])
        ],
        "Tasmota's name": [
            ("tasmota/discovery/A/config", {"t": "t1", "fn": ["Garage door"]}),
            ("stat/t1/POWER", "OFF"),
        ],
        "Tasmota's relay": [("tasmota/discovery/A/config", {"t": "t1", "rl": [3, 3]}), ("stat/t1/POWER1", "OFF")],
        "Tasmota's shutter": [("stat/t1/POWER1", "OFF"), ("tele/t1/SENSOR", shutter)],
        "prefix": [("garage-opener/status", "online"), ("garage-opener/switch/relay/state", "OFF")],
        "roller": [("shellies/s1/roller/0", "stop"), ("shellies/s1/relay/0", "off")],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "name of the device", "model", "maker", "person", "Tasmota's name", "Tasmota's relay", "Tasmota's shutter", "prefix", "roller",
    ],
)  # fmt: skip
def test_whatever_says_that_a_device_opens_something_leaves_it_out(kind: str) -> None:
    made = found(*harmful(kind))
    assert made.actuators == []
    assert any("harm" in left.why for left in made.left_out)


def test_the_safe_action_switches_off_or_sends_nothing() -> None:
    made = found(
        ("homeassistant/select/a/config", {"name": "Strength", "cmd_t": "a", "ops": ["boost", "eco", "off"]}),
        ("homeassistant/select/b/config", {"name": "Scene", "cmd_t": "b", "ops": ["boost", "eco"]}),
        ("homeassistant/switch/c/config", {"name": "Fan", "cmd_t": "c", "pl_on": "run", "pl_off": "halt"}),
    )
    assert [(each.name, each.safe) for each in made.actuators] == [
        ("strength", "off"),
        ("scene", "hold"),
        ("fan", "halt"),
    ]
    assert 'safe: "hold"' in settings_text(Plan("home", "mqtt://127.0.0.1", made.streams, made.actuators))


def test_each_relay_of_several_is_an_actuator_and_a_device_below_another_is_its_own() -> None:
    relays = [
        {"type": "switch", "features": [{"type": "binary", "property": f"state_{end}", "access": 7}]}
        for end in ("center", "l3")
    ]
    numbers = [{"type": "numeric", "property": "temperature", "access": 1}]
    made = found(
        ("z/bridge/devices", [
            {"friendly_name": "strip", "definition": {"exposes": relays}},
            {"friendly_name": "strip/air", "definition": {"exposes": numbers}},
        ]),
        ("z/strip", {"state_center": "ON"}), ("z/strip/air", {"temperature": 20.5}),
    )  # fmt: skip
    assert [(each.name, each.payload) for each in made.actuators] == [
        ("strip_center", '{"state_center": "${value}"}'),
        ("strip_l3", '{"state_l3": "${value}"}'),
    ]
    assert [(each.name, each.topic) for each in made.streams] == [("strip_air", "z/strip/air")]


def test_a_device_that_two_conventions_describe_is_proposed_once() -> None:
    tasmota = {"name": "A", "cmd_t": "cmnd/a/POWER", "stat_t": "tele/a/STATE", "val_tpl": "{{value_json.POWER}}"}
    made = found(
        ("homeassistant/switch/a/config", tasmota), ("stat/a/POWER", "OFF"), ("tele/a/STATE", {"POWER": "OFF"})
    )
    assert [each.topic for each in made.actuators] == ["cmnd/a/POWER"]
    assert "a sends the same commands" in made.left_out[0].why


def named(made: Proposals) -> dict[str, str]:
    return {stream.name: stream.topic for stream in made.streams} | {each.name: each.topic for each in made.actuators}


def test_names_do_not_depend_on_the_order_in_which_the_broker_sends() -> None:
    messages = [
        ("stat/a/POWER", "OFF"), ("tele/a/SENSOR", {"X": {"T": 1}}), ("kitchen/temp", "20"), ("hall/temp", "21"),
        ("z/bridge/devices", [{"friendly_name": "a", "definition": {"exposes": []}}]),
    ]  # fmt: skip
    made, turned = found(*messages), found(*messages[::-1])
    names = named(made)
    assert names == named(turned)
    assert names["a"] == "tele/a/SENSOR"
    assert names["a_power"] == "cmnd/a/POWER"


def test_shelly_devices_give_what_they_measure_and_nothing_about_themselves() -> None:
    switch = {
        "id": 0,
        "output": False,
        "apower": 1.5,
        "aenergy": {"total": 5, "minute_ts": 17},
        "temperature": {"tC": 40},
    }
    made = found(
        ("shellies/announce", {"id": "s", "new_fw": False}), ("shellies/s/info", {"ram_total": 5}),
        ("shellies/s/relay/0", "off"), ("shellies/s/relay/0/command", "on"), ("shellies/s/relay/0/power", "12.5"),
        ("shellies/s/relay/0/energy", "900"), ("shellies/s/temperature", "41"), ("shellies/ht/sensor/temperature", "21.5"),
        ("plus/online", "true"), ("plus/status/switch:0", switch), ("plus/status/sys", {"unixtime": 17, "ram_free": 4}),
        ("plus/status/mqtt", {"connected": True}), ("plus/events/rpc", {"params": {"ts": 17.5}}),
        ("h/status/temperature:0", {"id": 0, "tC": 21.5, "tF": 70.7}),
    )  # fmt: skip
    assert {each.name: each.fields for each in made.streams} == {
        "s_relay_0_power": ("power",),
        "ht_sensor_temperature": ("temperature",),
        "plus_switch_0": ("output", "apower"),
        "h_temperature_0": ("tc",),
    }
    assert [(each.topic, each.choices, each.state_topic) for each in made.actuators] == [
        ("shellies/s/relay/0/command", ("off", "on"), "shellies/s/relay/0"),
        ("plus/command/switch:0", ("off", "on"), "plus/status/switch:0"),
    ]
    assert made.actuators[1].state_words == {"off": "false", "on": "true"}


def test_counters_that_only_grow_and_commands_are_no_telemetry() -> None:
    made = found(
        announced("sensor", stat_t="e", stat_cla="total_increasing", val_tpl="{{ value_json.used }}"), ("e", {"used": 1}),
        ("tele/m/SENSOR", {"ENERGY": {"Total": 1000.5, "Power": 3}}), ("meter/energy", "1000.5"),
        ("homeassistant/climate/c/config", {"temp_cmd_t": "c/target", "avty_t": "c/there"}), ("c/target", "21"), ("c/there", "1"),
    )  # fmt: skip
    assert [(each.topic, each.fields) for each in made.streams] == [("tele/m/SENSOR", ("power",))]


def test_one_description_that_check_would_refuse_does_not_cost_the_file(tmp_path: Path) -> None:
    made = found(
        announced("binary_sensor", state_topic="b", payload_on="X", payload_off="X"), ("b", "X"),
        ("homeassistant/switch/y/config", {"name": "Y", "cmd_t": "y/#"}),
        ("homeassistant/switch/z/config", {"name": "Z", "cmd_t": "z", "stat_t": "zs", "pl_on": '{"s":1}', "pl_off": '{"s":0}'}),
        ("haus/größe", "21.5"), ("0/1", "5"), ("y/if", "1"),
    )  # fmt: skip
    assert [(each.name, each.state_topic) for each in made.actuators] == [
        ("z", None)
    ]  # it would never be read as its words
    assert [each.name for each in made.streams] == ["device_0_1", "gr_e", "device_if"]
    path = tmp_path / "home.yaml"
    path.write_text(
        settings_text(
            Plan("home", "mqtt://127.0.0.1", made.streams, made.actuators, "-abs(device_if['if'] - device_0_1.value)")
        )
    )
    assert problems_and_warnings(path, ports=False)[0] == []


@pytest.mark.parametrize("agent", ["123", "null", "0x1f", "on", "2026-01-01"])
def test_an_agent_or_a_topic_that_yaml_reads_as_no_text_is_a_name(agent: str, tmp_path: Path) -> None:
    made = found((f"x/{agent}", "1.5"), ("y/null", {"t": 1}), ("true/set", "ON"), ("true/state", "ON"))
    path = tmp_path / "home.yaml"
    path.write_text(settings_text(Plan(agent, "mqtt://127.0.0.1", made.streams, made.actuators)))
    problems, _, loaded = problems_and_warnings(path, ports=False)
    assert problems == []
    assert loaded is not None
    assert loaded.config.agent == agent
    assert len(loaded.config.streams) == 2
    assert list(loaded.config.actuators) == ["device_true"]
