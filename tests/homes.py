"""Recorded topic trees of five kinds of homes, as their brokers would deliver them; all made up, none recorded from a person."""

from __future__ import annotations

import json
from typing import Any

from runtime.discovery.topic_samples import Tree

Home = dict[str, list[Any]]
"""Topic -> the payloads that came on it, oldest first: text, or a value that is sent as JSON."""

PLUG: list[dict[str, Any]] = [
    {
        "type": "switch",
        "features": [{"type": "binary", "property": "state", "access": 7, "value_on": "ON", "value_off": "OFF"}],
    },
    {"type": "numeric", "property": "power", "access": 1, "unit": "W"},
    {"type": "numeric", "property": "linkquality", "access": 1},
]
CLIMATE: list[dict[str, Any]] = [
    {"type": "numeric", "property": "temperature", "access": 1},
    {"type": "numeric", "property": "humidity", "access": 1},
    {"type": "numeric", "property": "battery", "access": 1},
    {"type": "numeric", "property": "linkquality", "access": 1},
]
LOCK: list[dict[str, Any]] = [
    {
        "type": "lock",
        "features": [{"type": "binary", "property": "state", "access": 7, "value_on": "LOCK", "value_off": "UNLOCK"}],
    }
]

ZIGBEE: Home = {
    "zigbee2mqtt/bridge/state": ["online"],
    "zigbee2mqtt/bridge/info": [{"version": "1.40.0"}],
    "zigbee2mqtt/bridge/devices": [
        [
            {"type": "Coordinator", "friendly_name": "Coordinator", "definition": None},
            {"type": "Router", "friendly_name": "heater", "definition": {"exposes": PLUG}},
            {"type": "EndDevice", "friendly_name": "living/climate", "definition": {"exposes": CLIMATE}},
            {"type": "Router", "friendly_name": "desk", "definition": {"exposes": PLUG}},
            {"type": "EndDevice", "friendly_name": "entrance", "definition": {"exposes": LOCK}},
            {"type": "EndDevice", "friendly_name": "strange", "definition": None},
        ]
    ],
    "zigbee2mqtt/heater": [
        {"state": "OFF", "power": 0.0, "linkquality": 120},
        {"state": "ON", "power": 1480, "linkquality": 98},
    ],
    "zigbee2mqtt/desk": [{"state": "OFF", "power": 0.0, "linkquality": 120}],
    "zigbee2mqtt/heater/availability": ["online"],
    "zigbee2mqtt/living/climate": [
        {"temperature": 21.4, "humidity": 44, "battery": 80, "linkquality": 66},
        {"temperature": 21.5, "humidity": 44.5, "battery": 80, "linkquality": 60},
    ],
    "zigbee2mqtt/entrance": [{"state": "LOCK", "battery": 60}],
}

HOME_ASSISTANT: Home = {
    "homeassistant/sensor/boiler_room/temp/config": [
        {
            "name": "Temperature",
            "~": "cellar/esp1",
            "stat_t": "~/telemetry",
            "val_tpl": "{{ value_json.climate.temperature | float }}",
            "dev_cla": "temperature",
            "dev": {"name": "Cellar"},
            "uniq_id": "c1",
        }
    ],
    "homeassistant/sensor/boiler_room/rssi/config": [
        {"name": "RSSI", "stat_t": "cellar/esp1/telemetry", "val_tpl": "{{ value_json.rssi }}", "ent_cat": "diagnostic"}
    ],
    "homeassistant/sensor/odd/config": [
        {"name": "Odd", "stat_t": "cellar/esp1/telemetry", "val_tpl": "{{ value_json.a + value_json.b }}"}
    ],
    "homeassistant/switch/fan1/config": [
        {"name": "Fan", "cmd_t": "cellar/fan/set", "stat_t": "cellar/fan/state", "pl_on": "1", "pl_off": "0"}
    ],
    "homeassistant/light/lamp1/config": [
        {"name": "Lamp", "schema": "json", "cmd_t": "hall/lamp/set", "stat_t": "hall/lamp", "brightness": True}
    ],
    "homeassistant/lock/front/config": [{"name": "Front", "cmd_t": "front/lock/set", "stat_t": "front/lock/state"}],
    "homeassistant/cover/garage/config": [{"name": "Garage door", "cmd_t": "garage/set"}],
    "homeassistant/number/target/config": [{"name": "Target", "cmd_t": "target/set", "min": 5, "max": 30}],
    "homeassistant/binary_sensor/motion/config": [{"name": "Motion", "stat_t": "hall/motion", "dev_cla": "motion"}],
    "homeassistant/device/reflexd_demo/config": [
        {"dev": {"name": "reflexd"}, "cmps": {"m": {"p": "select", "cmd_t": "reflexd/demo/x"}}}
    ],
    "homeassistant/status": ["online"],
    "cellar/esp1/telemetry": [{"climate": {"temperature": 12.5, "humidity": 70}, "rssi": -60, "a": 1, "b": 2}],
    "cellar/fan/state": ["0"],
    "hall/lamp": [{"state": "OFF", "brightness": 120}],
    "hall/motion": ["OFF", "ON"],
    "front/lock/state": ["LOCKED"],
    "reflexd/demo/status": [{"state": "online"}],
}

TASMOTA: Home = {
    "tele/terrace/LWT": ["Online"],
    "tele/terrace/STATE": [
        {"Time": "2026-01-01T00:00:00", "Uptime": "0T01:00:00", "POWER": "OFF", "Wifi": {"RSSI": 80}}
    ],
    "tele/terrace/SENSOR": [
        {"Time": "2026-01-01T00:00:00", "AM2301": {"Temperature": 4.5, "Humidity": 81.0}, "TempUnit": "C"},
        {"Time": "2026-01-01T00:05:00", "AM2301": {"Temperature": 4.4, "Humidity": 81.5}, "TempUnit": "C"},
    ],
    "tele/meter/SENSOR": [{"Time": "2026-01-01T00:00:00", "ENERGY": {"Power": 212, "Voltage": 231, "Today": 1.25}}],
    "stat/terrace/POWER": ["OFF", "ON"],
    "stat/terrace/RESULT": [{"POWER": "ON"}],
    "stat/strip/POWER1": ["OFF"],
    "stat/garage_door/POWER": ["OFF"],
    "tasmota/discovery/AABBCC/config": [{"ip": "10.0.0.2", "t": "terrace"}],
}

ESPHOME: Home = {
    "esp-bath/status": ["online"],
    "esp-bath/debug": ["[D][sensor:094]: 'Bath': Sending state 23.10000 °C"],
    "esp-bath/sensor/bath_temperature/state": ["23.1", "23.2"],
    "esp-bath/sensor/wifi_signal/state": ["-61"],
    "esp-bath/sensor/bath_humidity/state": ["nan"],
    "esp-bath/switch/bath_fan/state": ["OFF"],
    "esp-bath/switch/gas_valve/state": ["OFF"],
    "esp-bath/binary_sensor/window/state": ["OFF", "ON"],
    "esp-bath/light/mirror/state": ['{"state":"OFF","color_mode":"onoff"}'],
    # the same shape from Home Assistant's statestream takes no commands
    "ha/sensor/outside/state": ["7.5"],
    "ha/sensor/outside/last_updated": ["2026-01-01T00:00:00"],
    "ha/sensor/outside/unit_of_measurement": ["°C"],
    "ha/switch/pump/state": ["OFF"],
    "ha/switch/pump/last_changed": ["2026-01-01T00:00:00"],
}

PLAIN: Home = {
    "room/sensor": [{"temperature": 20.5, "name": "x", "ok": True}, {"temperature": 20.6, "name": "x", "ok": True}],
    "room/heater/set": ["ON"],
    "room/heater/state": ["OFF", "ON"],
    "room/fan/set": ["ON"],
    "room/fan/state": ["OFF", "ON"],
    "garden/soil/moisture": ["31.5", "31.4"],
    "garden/pump/state": ["OFF"],
    "weather/forecast": [{"text": "rain"}],
    "camera/porch": [b"\xff\xd8\xff\xe0 not text \xff"],
    "door/lock/set": ["ON"],
    "door/lock/state": ["ON"],
    "room/sometimes": [{"a": 1}, {"b": 2}],
    "room/broken": ['{"a": 1', "NaN"],
    "node/battery": ["87"],
}

HOMES: dict[str, Home] = {
    "zigbee": ZIGBEE, "home assistant": HOME_ASSISTANT, "tasmota": TASMOTA, "esphome": ESPHOME, "plain": PLAIN,
}  # fmt: skip


def tree_of(home: Home) -> Tree:
    """The tree after every payload came, two seconds apart on each topic."""
    tree = Tree()
    for topic, payloads in home.items():
        for number, payload in enumerate(payloads):
            raw = (
                payload
                if isinstance(payload, bytes)
                else (payload if isinstance(payload, str) else json.dumps(payload)).encode()
            )
            tree.take(topic, raw, 2.0 * number)
    return tree
