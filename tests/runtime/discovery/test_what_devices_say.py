"""Descriptions of devices as they are in the world: each is proposed as it is meant, or left out with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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


def test_a_report_in_other_words_than_the_commands_is_not_compared_with_them() -> None:
    switch = announced(
        "switch", state_topic="x", command_topic="c", payload_on="1", payload_off="0", state_on="ON", state_off="OFF"
    )
    assert [(each.choices, each.state_topic) for each in found(switch).actuators] == [(("0", "1"), None)]
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
