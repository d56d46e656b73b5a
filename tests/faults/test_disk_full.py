"""A whole daemon on a disk that becomes full: the policy goes on acting, the status says why, and it recovers without a restart."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
import yaml
from disks import SmallDisk, small_disk
from paho.mqtt.enums import CallbackAPIVersion

from fakes import Mosquitto, connect_when_up, end, wait_for

START_S = 150.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "size=48m") as one:
        yield one


class Outside:
    """A device that reports its joints, and what the daemon published."""

    def __init__(self, port: int) -> None:
        self.status: dict[str, Any] = {}
        self.health: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.commands = 0
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe("reflexd/tester/#", 1)
        self.client.on_message = lambda _c, _u, message: self.take(message.topic, bytes(message.payload))
        connect_when_up(self.client, port, START_S)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def _feed(self) -> None:
        while not self._stop.wait(0.1):
            self.client.publish("reflexd/tester/in/joints", json.dumps({"a": 0.5}))

    def take(self, topic: str, payload: bytes) -> None:
        if topic == "reflexd/tester/act/head/set":
            self.commands += 1
        elif topic == "reflexd/tester/status":
            self.status = json.loads(payload)
        elif topic == "reflexd/tester/health":
            self.health = json.loads(payload)
        elif topic == "reflexd/tester/event":
            self.events.append(json.loads(payload))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.client.disconnect()
        self.client.loop_stop()


def test_a_full_disk_degrades_the_daemon_and_stops_nothing(tmp_path: Path, disk: SmallDisk) -> None:
    broker = Mosquitto(tmp_path).start()
    config = tmp_path / "tester.yaml"
    settings = {
        "agent": "tester",
        "tick": {"rate_hz": 10},
        "state_dir": str(disk.folder / "state"),
        "mqtt": {"url": broker.url},
        "streams": {"joints": {"kind": "telemetry", "source": "topic", "fields": ["a"], "max_age_s": 2.0}},
        "actuators": {"head": {"kind": "choice", "choices": ["left", "stay", "right"], "safe": "stay"}},
        "gate": {"deadman_ms": 3_000},
        "learner": {"warmup": 64, "batch": 32, "save_every_s": 5, "priority": "normal"},
    }
    config.write_text(yaml.safe_dump(settings))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.cli", "run", str(config)], stdout=log, stderr=log, cwd=tmp_path
        )
    outside = Outside(broker.port)
    try:
        wait_for(lambda: outside.status.get("state") == "online", "the daemon online", START_S)
        wait_for(lambda: outside.health.get("learner", {}).get("buffer", 0) > 0, "a learner at work", START_S)
        assert outside.health["storage"]["used_bytes"] > 0
        before = len(outside.events)  # a slow machine may lose its agent while the learner starts
        disk.fill()
        begun_s = time.monotonic()
        wait_for(lambda: outside.status.get("state") == "degraded", "the status degraded", 60)
        print(f"full disk: degraded after {time.monotonic() - begun_s:.1f} s with {outside.status['reasons']}")
        reason = next(one for one in outside.status["reasons"] if one.startswith("storage: "))
        assert str(disk.folder) in reason
        commands = outside.commands
        wait_for(lambda: outside.commands > commands + 30, "commands on a full disk", 60.0)
        disk.free()
        wait_for(lambda: outside.status.get("state") == "online", "the recovery", 60)
        kinds = [event["type"] for event in outside.events[before:]]
        assert "storage_degraded" in kinds
        assert "storage_recovered" in kinds
        assert not {"child_restarted", "agent_lost"} & set(kinds)
        print(f"full disk: {outside.commands - commands} commands meanwhile, no process restarted")
    finally:
        outside.close()
        end(process)
        broker.stop()
    text = (tmp_path / "log").read_text()
    assert "Traceback" not in text, text[-3_000:]
