"""Every metric of a running daemon moves: what Prometheus and Grafana ask for is there, and no metric is constant.

One daemon with a learner is driven through an ordinary bad day (a stop, an override, a stalled agent, a killed learner, a lost
broker, a stream that falls silent, promotions and a rollback) while its `/metrics` is read again and again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import canaries
import numpy as np
import orjson
import paho.mqtt.client as mqtt
import psutil
import pytest
import yaml
from free_ports import free_port
from paho.mqtt.enums import CallbackAPIVersion
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from fakes import Mosquitto, end
from runtime.monitoring.metrics import Metrics

BASE = "reflexd/driven"
CONFIGS = Path(__file__).parents[2] / "configs"
START_S = 120.0
STILL = {
    "reflexd_build": "what is running",
    "reflexd_tick_period_seconds": "a setting",
    "reflexd_sources_quarantined": "takes minutes of contradicting rewards; tests/runtime/feedback/test_source_quarantine.py",
    "reflexd_storage_limit_bytes": "a setting",
    "reflexd_storage_full_seconds": "-1 until the folder has grown for long enough; tests/runtime/monitoring/test_disk_budget.py",
    "reflexd_experience_refused": "takes a disk that fails; tests/runtime/monitoring/test_metrics.py",
    "reflexd_storage_failing": "takes a disk that fails; tests/faults/test_disk_full.py",
}
"""What may stand still, and why."""
CHANCE = {
    "reflexd_experiment": "takes a trusted version and a challenger; tests/runtime/deploy/experiments/test_controller.py",
    "reflexd_rejections": "takes a candidate that a filter rejects; tests/runtime/monitoring/test_metrics.py",
}
"""What moves in some runs only, and where it is tested."""
SETTINGS: dict[str, Any] = {
    "agent": "driven",
    "tick": {"rate_hz": 10},
    "streams": {
        "joints": {"kind": "telemetry", "source": "topic", "fields": ["angle"], "max_age_s": 0.5, "required": True},
        "room": {"kind": "microphone", "source": "topic", "window_s": 0.5, "max_age_s": 0.5, "encoder": "hearing"},
    },
    "encoders": {"hearing": {"model": "builtin:modulation-spectrum"}},
    "actuators": {"head": {"kind": "choice", "choices": ["left", "stay", "right"], "safe": "stay"}},
    "rewards": [{"name": "feedback", "kind": "topic"}],
    "gate": {"deadman_ms": 3_000},
    "policy": {"width": 32, "hidden": [32], "history": 1},
    "learner": {"warmup": 16, "batch": 16, "promote_every_s": 2, "reward_delay_s": 0.2, "priority": "normal"},
    "promotion": {"steps": ["integrity"]},
}


class World:
    """Feeds the streams and rewards, and is the operator."""

    def __init__(self, port: int) -> None:
        self.rates = {"joints": 25, "room": 10}
        self.events: list[dict[str, Any]] = []
        self.health: dict[str, Any] = {}
        self.over = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        topics = [(f"{BASE}/{name}", 1) for name in ("event", "health", "decision")]
        self.client.on_connect = lambda client, *_: client.subscribe(topics)
        self.client.on_message = self._take
        self.client.reconnect_delay_set(1, 1)
        self.client.connect_async("127.0.0.1", port)
        self.client.loop_start()
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._thread.join()
        self.client.disconnect()
        self.client.loop_stop()

    def say(self, topic: str, body: Any) -> None:
        self.client.publish(f"{BASE}/{topic}", body if isinstance(body, bytes) else orjson.dumps(body), 1)

    def _take(self, _client: object, _userdata: object, message: mqtt.MQTTMessage) -> None:
        body = orjson.loads(message.payload)
        if message.topic.endswith("event"):
            self.events.append(body)
        elif message.topic.endswith("health"):
            self.health = body
        else:
            value = body["actions"]["head"]["value"]
            self.say("reward", {"value": float(value == "left"), "decision": body["id"], "source": "world"})

    def _feed(self) -> None:
        rng, n = np.random.default_rng(0), 0
        while not self.over.wait(0.02):
            n += 1
            if self.rates["joints"] and n % (50 // self.rates["joints"]) == 0:
                self.client.publish(f"{BASE}/in/joints", orjson.dumps({"angle": n % 7}), 0)
            if self.rates["room"] and n % (50 // self.rates["room"]) == 0:
                self.client.publish(f"{BASE}/in/room", rng.integers(-900, 900, 1_600, np.int16).tobytes(), 0)

    def saw(self, kind: str) -> int:
        return sum(event["type"] == kind for event in self.events)


class Scrapes:
    """Reads `/metrics` until `stop`; keeps every value of every family."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/metrics"
        self.seen: dict[str, set[float]] = defaultdict(set)
        self.names: set[str] = set()
        self.latest: dict[str, float] = {}
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.over.wait(0.25):
            with suppress(OSError):
                with urllib.request.urlopen(self.url, timeout=2) as answer:
                    text = answer.read().decode()
                self._take(text)

    def _take(self, text: str) -> None:
        for family in text_string_to_metric_families(text):
            samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            self.names |= {sample.name for sample in samples}
            for sample in samples:
                self.latest[sample.name + "".join(f" {x}" for x in sample.labels.values())] = sample.value
            self.seen[family.name].add(sum(sample.value for sample in samples if not sample.name.endswith("_bucket")))
            if any(sample.labels for sample in samples):  # one mode for another: the sum stays
                self.seen[family.name].add(float(hash(tuple(sample.value for sample in samples))))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[psutil.Process, Mosquitto, int]]:
    broker, port = Mosquitto(tmp_path).start(), free_port()
    more = {
        "state_dir": str(tmp_path / "state"),
        "mqtt": {"url": broker.url, **canaries.LOGIN},
        "metrics": {"listen": f"127.0.0.1:{port}"},
    }
    (tmp_path / "driven.yaml").write_text(yaml.safe_dump(SETTINGS | more))
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "runtime.cli", "run", str(tmp_path / "driven.yaml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield psutil.Process(process.pid), broker, port
    finally:
        try:
            end(process)
        finally:
            broker.stop()


def until(condition: Callable[[], Any], what: str, timeout_s: float = 90.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.05)
    return found


def child(daemon: psutil.Process, title: str) -> int:
    return next(p.pid for p in daemon.children() if p.cmdline()[0].startswith(f"reflexd: {title}"))


def test_what_is_asked_for_exists_and_every_metric_moves(daemon: tuple[psutil.Process, Mosquitto, int]) -> None:
    process, broker, port = daemon
    world, scrapes = World(broker.port), Scrapes(port)
    try:
        drive(world, scrapes, process, broker)
        assert world.health["gate"]["refusals"]["overridden"] > 0
        assert world.health["process"]["tasks"] > 5
        assert world.health["restarts"]["learner"] == 1
    finally:
        world.close()
        scrapes.close()
    board = json.loads((CONFIGS / "grafana/dashboards/reflexd.json").read_text())
    requested = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    requested.append((CONFIGS / "prometheus/reflexd.rules.yml").read_text())
    used = set(re.findall(r"\b(?:reflexd|process)_[a-z_]+\b", "\n".join(requested)))
    later = {
        "reflexd_experience_refused_total",
        "reflexd_rejections_total",
    }  # with labels: there after the first of them
    assert used - scrapes.names <= later, "asked for by configs/, but not there"
    known = {family.name for family in Metrics(CollectorRegistry(), agent="a", version="0").registry.collect()}
    still = {name for name in known if name.startswith("reflexd_") and len(scrapes.seen[name]) < 2}
    assert still - set(CHANCE) == set(STILL), "never moved, or moves and is listed as still"


def drive(world: World, scrapes: Scrapes, process: psutil.Process, broker: Mosquitto) -> None:
    now = scrapes.latest
    until(lambda: now.get("reflexd_armed"), "armed", START_S)
    until(lambda: now.get("reflexd_learner_updates_total", 0) > 0, "the learner updates", 60)
    until(lambda: world.saw("policy_promoted") >= 2, "versions follow freely while none is trusted", 60)
    first = next(event["data"] for event in world.events if event["type"] == "policy_promoted")
    world.say("request/promote", {"version": first["version"]})
    until(lambda: now.get("reflexd_promotions_total", 0) >= 2, "promotions are counted")
    until(lambda: now.get("reflexd_policy_trusted"), "trusted, because a person chose it")
    world.say("request/rollback", {})
    until(lambda: now.get("reflexd_rollbacks_total"), "rolled back")

    world.say("override/head", {"value": "right", "hold_s": 1})
    until(lambda: now.get("reflexd_gate_refusals_total head overridden"), "the policy yields")
    world.say("reward", b"{ no JSON")
    world.say("stop", {"engaged": True})
    until(lambda: now.get("reflexd_stopped"), "stopped")
    world.say("stop", {"engaged": False})
    until(lambda: not now.get("reflexd_stopped"), "released: a stop has a connection of its own, so wait for it")
    world.say("request/arm", {})
    until(lambda: now.get("reflexd_armed") and not now.get("reflexd_stopped"), "armed again")
    world.say("request/mode", {"mode": "shadow"})
    until(lambda: now.get("reflexd_mode shadow"), "in shadow mode")
    world.say("request/mode", {"mode": "autonomous"})

    world.rates["room"] = 0
    until(lambda: now.get("reflexd_stream_stale room"), "a silent stream is stale")
    world.rates["room"] = 10
    agent = child(process, "agent")
    os.kill(agent, signal.SIGSTOP)
    threading.Event().wait(0.5)
    os.kill(agent, signal.SIGCONT)
    os.kill(child(process, "learner"), signal.SIGKILL)
    until(lambda: now.get("reflexd_child_restarts_total learner"), "the learner is started again")
    broker.stop()
    until(lambda: now.get("reflexd_mqtt_connected") == 0, "the loss of the broker is seen")
    broker.start()
    until(lambda: now.get("reflexd_mqtt_reconnects_total"), "connected again")
    until(lambda: now.get("reflexd_messages_refused_total malformed reward"), "what was not taken is counted")
    until(lambda: now.get("reflexd_tick_overruns_total") and now.get("reflexd_ticks_skipped_total"), "late ticks")
    until(lambda: world.health.get("restarts"), "health after the reconnection")
