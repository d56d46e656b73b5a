"""A whole daemon with sensors that publish unusable readings: each refusal is an event with stream, field and reason; the rest is acted on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
import yaml
from paho.mqtt.enums import CallbackAPIVersion

from fakes import Mosquitto, connect_when_up, end, wait_for

START_S = 150.0
HALL, BARE = "zigbee2mqtt/hall motion", "homeassistant/sensor/temp/state"
SETTINGS: dict[str, Any] = {
    "agent": "house",
    "tick": {"rate_hz": 5},
    "learner": {"enabled": False},
    "streams": {
        "hall": {
            "kind": "telemetry",
            "source": f"topic:{HALL}",
            "fields": ["occupancy", "illuminance"],
            "max_age_s": 60,
        },
        "bare": {"kind": "telemetry", "source": f"topic:{BARE}", "fields": ["value"], "max_age_s": 60},
        "window": {"kind": "telemetry", "source": "topic:hall/window", "fields": ["value"], "max_age_s": 60},
    },
    "actuators": {"heater": {"kind": "choice", "choices": ["OFF", "ON"], "safe": "OFF", "requires": ["bare"]}},
    "gate": {"forbid": ["heater == 'ON' and window.value"]},
}


class Outside:
    """Sends what devices send, and holds what the daemon published."""

    def __init__(self, port: int) -> None:
        self.received: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe("reflexd/house/#", 1)
        self.client.on_message = lambda _c, _u, message: self.take(message.topic, bytes(message.payload))
        connect_when_up(self.client, port, START_S)

    def take(self, topic: str, payload: bytes) -> None:
        kind = topic.removeprefix("reflexd/house/")
        if kind == "event":
            self.events.append(json.loads(payload))
        elif kind in {"health", "decision", "status"} or kind.startswith("act/"):
            self.received[kind] = json.loads(payload)

    def send(self, topic: str, payload: str, *, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retain)

    def refused(self, stream: str) -> list[dict[str, Any]]:
        return [e["data"] for e in self.events if e["type"] == "payload_refused" and e["data"]["stream"] == stream]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Outside]:
    broker = Mosquitto(tmp_path).start()
    config = tmp_path / "house.yaml"
    config.write_text(yaml.safe_dump(SETTINGS | {"mqtt": {"url": broker.url}, "state_dir": str(tmp_path / "state")}))
    outside = Outside(broker.port)
    outside.send(HALL, '{"occupancy": true, "illuminance": 12}', retain=True)
    with (tmp_path / "log").open("w") as log:
        daemon = subprocess.Popen([sys.executable, "-m", "runtime.cli", "run", str(config)], stdout=log, stderr=log)
    yield outside
    try:
        end(daemon)
    finally:
        outside.client.disconnect()
        outside.client.loop_stop()
        broker.stop()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_what_cannot_be_used_is_named_and_what_can_be_used_is_acted_on(house: Outside) -> None:
    wait_for(lambda: "decision" in house.received, "the first decision", START_S)
    wait_for(lambda: "hall" not in house.received["decision"]["missing"], "the stored reading of the start", 60.0)
    for payload, cause, field in [
        ('{"occupancy": true, "illuminance": "12,5"}', "not_a_number", "illuminance"),
        ('{"linkquality": 80}', "missing_field", "occupancy"),
        ("<html>", "not_json", ""),
    ]:
        house.send(HALL, payload)
        wait_for(
            lambda cause=cause: any(e["cause"] == cause for e in house.refused("hall")), f"the event {cause}", 60.0
        )
        event = next(each for each in house.refused("hall") if each["cause"] == cause)
        assert field in event["reason"]
    wait_for(
        lambda: '"last_refusal": "not_json' in json.dumps(house.received.get("health")), "the reason in health", 60.0
    )
    house.send("hall/window", "0")
    house.send(BARE, "21.5")
    wait_for(lambda: house.received["decision"]["ages_ms"].get("bare") is not None, "a bare number", 60.0)
    assert "bare" not in house.received["decision"]["missing"]
    wait_for(lambda: "act/heater/set" in house.received, "a command", 60.0)
    heats = lambda: house.received["decision"]["actions"]["heater"]["probabilities"]["ON"]  # noqa: E731
    wait_for(lambda: heats() > 0.0, "a proposal to heat, perhaps", 60)
    house.send("hall/window", "OPEN")
    wait_for(lambda: heats() == 0.0, "no proposal to heat while the window is open", 60)
    house.send("reflexd/house/override/heater", '{"value": "ON", "hold_s": 1.0}')
    wait_for(
        lambda: any(
            e["type"] == "override" and e["data"]["rule"] == "forbidden" and not e["data"]["sent"] for e in house.events
        ),
        "the refusal of a person's command",
        60,
    )
    assert house.received["act/heater/set"]["value"] == "OFF"
