"""Home Assistant's device discovery message, held against the published format, and what is read from it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import canaries
import jsonschema
import pytest

from runtime.config.loader import load
from runtime.config.schema import Config
from runtime.gate.info import describe
from runtime.monitoring.home_assistant import Discovery
from sensors.config import public_source

ROOT = Path(__file__).parents[3]
TOPIC = {"type": "string", "pattern": r"^[^+#\u0000]+$"}
TEXT = {"type": "string", "minLength": 1}
COMMON = {
    "p": {"enum": ["sensor", "select", "switch", "button"]},
    "unique_id": TEXT,
    "name": TEXT,
    "ic": {"type": "string", "pattern": "^mdi:"},
    "ent_cat": {"enum": ["config", "diagnostic"]},
}
OWN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "sensor": (
        {
            "val_tpl": TEXT,
            "unit_of_meas": TEXT,
            "dev_cla": {"enum": ["duration"]},
            "stat_cla": {"enum": ["measurement"]},
        },
        [],
    ),
    "select": (
        {"val_tpl": TEXT, "cmd_t": TOPIC, "cmd_tpl": TEXT, "ops": {"type": "array", "items": TEXT}},
        ["cmd_t", "ops"],
    ),
    "switch": (
        {"val_tpl": TEXT, "cmd_t": TOPIC, "pl_on": TEXT, "pl_off": TEXT, "stat_on": TEXT, "stat_off": TEXT},
        ["cmd_t"],
    ),
    "button": ({"cmd_t": TOPIC, "pl_prs": TEXT}, ["cmd_t"]),
}
# The format as published: https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload (2024.11 and later):
# every component names its platform and, to be stored, a unique id; shared options are at the top.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["dev", "o", "cmps"],
    "properties": {
        "dev": {
            "type": "object",
            "additionalProperties": False,
            "required": ["ids"],
            "properties": {
                "ids": {"type": "array", "items": TEXT, "minItems": 1},
                **dict.fromkeys(("name", "mf", "mdl", "sw"), TEXT),
            },
        },
        "o": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": TEXT, "sw": TEXT, "url": {"type": "string", "pattern": "^https?://"}},
        },
        "avty": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["t"],
                "properties": {"t": TOPIC, "val_tpl": TEXT},
            },
        },
        "stat_t": TOPIC,
        "qos": {"enum": [0, 1, 2]},
        "cmps": {
            "type": "object",
            "propertyNames": {"pattern": "^[a-zA-Z0-9_-]+$"},
            "additionalProperties": {
                "oneOf": [
                    {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["p", "unique_id", *required],
                        "properties": {**COMMON, **own, "p": {"const": platform}},
                    }
                    for platform, (own, required) in OWN.items()
                ]
            },
        },
    },
}


@pytest.fixture
def config() -> Config:
    return load(ROOT / "configs" / "home.yaml").config


def test_the_message_has_the_published_shape_and_stays_small(config: Config) -> None:
    discovery = Discovery(config, "0.1.0")
    message = json.loads(discovery.payload())
    jsonschema.validate(message, SCHEMA)
    assert discovery.topic == "homeassistant/device/reflexd_home/config"
    assert len(discovery.payload()) < 16_384
    platforms = {name: part["p"] for name, part in message["cmps"].items()}
    assert platforms["mode"] == "select"
    assert platforms["stop"] == "switch"
    assert {platforms[name] for name in ("promote", "rollback", "arm")} == {"button"}
    assert {platforms[name] for name in ("status", "policy", "reward", "latency_ms", "act_lamp")} == {"sensor"}
    ids = [part["unique_id"] for part in message["cmps"].values()]
    assert len(set(ids)) == len(ids)


def test_what_it_would_send_is_what_the_agent_takes(config: Config) -> None:
    parts = Discovery(config, "0.1.0").message()["cmps"]
    assert json.loads(parts["stop"]["pl_on"]) == {"engaged": True}
    assert json.loads(parts["stop"]["pl_off"]) == {"engaged": False}
    assert parts["stop"]["cmd_t"] == "reflexd/home/stop"
    assert json.loads(parts["mode"]["cmd_tpl"].replace("{{ value }}", "shadow")) == {"mode": "shadow"}
    assert json.loads(parts["rollback"]["pl_prs"]) == {}


def test_every_template_reads_a_key_of_the_state(config: Config) -> None:
    discovery = Discovery(config, "0.1.0")
    health = {
        "policy": "000003",
        "mode": "assist",
        "stopped": False,
        "tick": {"p50_ms": 20.5},
        "learner": {"reward_mean": 0.25},
    }
    state = json.loads(discovery.state("online", health, {"lamp": "ON", "arm": (0.1234, 1.0)}))
    assert state == {
        "status": "online",
        "policy": "000003",
        "mode": "assist",
        "stopped": False,
        "reward": 0.25,
        "latency_ms": 20.5,
        "actions": {"lamp": "ON", "arm": "0.123, 1"},
    }
    for part in discovery.message()["cmps"].values():
        for key in re.findall(r"value_json\.(\w+)", part.get("val_tpl", "")):
            assert key in state


def test_before_any_health_the_state_is_complete_and_stopped_is_stopped(config: Config) -> None:
    state = json.loads(Discovery(config, "0.1.0").state("stopped", {}, {}))
    assert state["stopped"] is True
    assert state["reward"] is None


def test_info_names_everything_and_no_secret() -> None:
    config = load(ROOT / "configs" / "demo.yaml").config
    received = describe(config, version="1", policy="p")
    assert set(received["streams"]) == set(config.streams)
    assert received["actuators"]["head"]["choices"] == ["left", "stay", "right"]
    assert public_source(f"rtsp://user:{canaries.RTSP}@cam:554/1?token={canaries.QUERY}") == "rtsp://cam:554/1"
    assert public_source(0) == 0
    assert public_source("topic:a/b") == "topic:a/b"
