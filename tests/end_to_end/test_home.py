"""configs/home.yaml as it is shipped, with a lamp and a motion sensor that speak as Zigbee2MQTT does."""

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
from free_ports import free_port
from paho.mqtt.enums import CallbackAPIVersion

from fakes import Mosquitto, connect_when_up, end, wait_for

START_S = 150.0
"""For the first start on a busy machine: the language model is converted."""


TREES = ("zigbee2mqtt", "reflexd/home", "homeassistant")


class Zigbee2MQTT:
    """Its side of the topics: a lamp does what `set` says and reports it, a sensor sees somebody whenever the agent looks."""

    def __init__(self, port: int) -> None:
        self.orders: list[dict[str, Any]] = []
        """What the lamp was sent."""
        self.received: dict[str, Any] = {}
        """The newest message of each topic."""
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe([(f"{t}/#", 1) for t in TREES])
        self.client.on_message = lambda _c, _u, message: self.take(message.topic, bytes(message.payload))
        connect_when_up(self.client, port, START_S)

    def take(self, topic: str, payload: bytes) -> None:
        if not payload.startswith(b"{"):
            return
        body = json.loads(payload)
        self.received[topic] = body
        if topic == "zigbee2mqtt/hall_lamp/set":
            self.orders.append(body)
            self.report(body["state"])
        elif topic == "reflexd/home/decision":
            self.say(
                "zigbee2mqtt/hall_motion", {"occupancy": True, "illuminance": 12, "battery": 87, "linkquality": 66}
            )

    def report(self, state: str) -> None:
        """The lamp's state, with what else such a lamp tells."""
        self.say("zigbee2mqtt/hall_lamp", {"state": state, "brightness": 254, "linkquality": 90}, retain=True)

    def say(self, topic: str, body: dict[str, Any], *, retain: bool = False) -> None:
        self.client.publish(topic, json.dumps(body), qos=1, retain=retain)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Zigbee2MQTT]:
    broker = Mosquitto(tmp_path).start()
    settings = yaml.safe_load(Path("configs/home.yaml").read_text())
    settings["mqtt"] = {"url": broker.url}
    settings["state_dir"] = str(tmp_path / "state")
    settings["dashboard"]["listen"] = f"127.0.0.1:{free_port()}"
    settings["metrics"]["listen"] = f"127.0.0.1:{free_port()}"
    config = tmp_path / "home.yaml"
    config.write_text(yaml.safe_dump(settings))
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "runtime.cli", "run", str(config)]
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    devices = Zigbee2MQTT(broker.port)
    devices.report("OFF")
    yield devices
    try:
        end(daemon)
    finally:
        devices.client.disconnect()
        devices.client.loop_stop()
        broker.stop()


def test_a_person_switches_the_lamp_and_the_policy_only_when_it_may(home: Zigbee2MQTT) -> None:
    def decided() -> bool:
        return home.received.get("reflexd/home/decision", {}).get("ages_ms", {}).get("motion") is not None

    wait_for(decided, "a decision that saw the motion sensor", START_S)
    wait_for(lambda: any(t.startswith("homeassistant/device/") for t in home.received), "its discovery", 60.0)
    first = home.received["reflexd/home/decision"]["tick"]
    wait_for(lambda: home.received["reflexd/home/decision"]["tick"] >= first + 3, "three more decisions", 60.0)
    assert home.orders == [], "in shadow mode it only watches"

    home.say("reflexd/home/override/lamp", {"value": "ON", "hold_s": 2, "source": "hall"})
    wait_for(lambda: bool(home.orders), "the person's order at the lamp", 60.0)
    assert home.orders[0] == {"state": "ON"}, "what Zigbee2MQTT takes, and nothing of ours"
    home.say("reflexd/home/override/lamp", {"value": "PURPLE", "source": "hall"})

    home.say("reflexd/home/request/mode", {"mode": "autonomous"})
    wait_for(lambda: any(order["state"] == "OFF" for order in home.orders), "an order of the policy", 120)
    assert all(set(order) == {"state"} and order["state"] in {"ON", "OFF"} for order in home.orders)
