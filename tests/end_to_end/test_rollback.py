"""A whole daemon over a real broker: a version with falling rewards is rolled back within ten seconds, and dying does not save it."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import canaries
import numpy as np
import orjson
import paho.mqtt.client as mqtt
import pytest
import yaml
from free_ports import free_port
from paho.mqtt.enums import CallbackAPIVersion

from fakes import end
from learners.checkpoints.store import open_checkpoints
from runtime.config.loader import load
from runtime.inference.build import build_engine
from runtime.inference.torch_engine import untrained

BASE = "reflexd/small"
START_S = 150.0
KNOWN = 200
"""Decisions, at 10 Hz, of which the mean rewards make a baseline."""
SETTINGS: dict[str, Any] = {
    "agent": "small",
    "streams": {"joints": {"kind": "telemetry", "source": "topic", "fields": ["angle"]}},
    "actuators": {"head": {"kind": "choice", "choices": ["left", "stay", "right"], "safe": "stay"}},
    "rewards": [{"name": "feedback", "kind": "topic"}],
    "gate": {"arm": "auto", "deadman_ms": 2_000},
    "learner": {"enabled": False},
}


class Rewarder:
    """Rewards every decision by the version that made it, and keeps events and decisions."""

    def __init__(self, port: int) -> None:
        self.gains: dict[str, float] = {}
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.acting = ""
        self.counts: Counter[str] = Counter()
        """Decisions of each version."""
        self.decided = threading.Condition()
        self._rng = np.random.default_rng(0)
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe([(f"{BASE}/decision", 0), (f"{BASE}/event", 1)])
        self.client.on_message = self._take
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.client.username_pw_set(*canaries.LOGIN.values())
                self.client.connect("127.0.0.1", port)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                threading.Event().wait(0.2)
        self.client.loop_start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _take(self, _client: object, _userdata: object, message: mqtt.MQTTMessage) -> None:
        body = orjson.loads(message.payload)
        if message.topic.endswith("/event"):
            self.events.put(body)
            return
        gain = self.gains.get(body["policy"], 0.0) + float(self._rng.normal(0.0, 0.2))
        reward = {"value": gain, "decision": body["id"], "source": "world"}
        self.client.publish(f"{BASE}/reward", orjson.dumps(reward), 1)
        with self.decided:
            self.acting = body["policy"]
            self.counts[self.acting] += 1
            self.decided.notify_all()

    def wait(
        self, kind: str, timeout_s: float = 60.0, accept: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> dict[str, Any]:
        """The numbers of the next event of a type."""
        deadline = time.monotonic() + timeout_s
        while True:
            event = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            if event["type"] == kind and accept(event["data"]):
                data: dict[str, Any] = event["data"]
                return data

    def until(self, version: str, timeout_s: float = START_S) -> None:
        """Wait until a version decides."""
        with self.decided:
            assert self.decided.wait_for(lambda: self.acting == version, timeout_s), self.acting

    def until_known(self, version: str, timeout_s: float = START_S) -> None:
        """Wait until enough seconds of a version are known to compare another one with it."""
        with self.decided:
            assert self.decided.wait_for(lambda: self.counts[version] >= KNOWN, timeout_s), self.counts


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    port = free_port()
    path = tmp_path / "small.yaml"
    path.write_text(
        yaml.safe_dump(
            SETTINGS
            | {"state_dir": str(tmp_path / "state"), "mqtt": {"url": f"embedded://127.0.0.1:{port}", **canaries.LOGIN}}
        )
    )
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen([sys.executable, "-m", "runtime.cli", "run", str(path)], stdout=log, stderr=log)
    yield path
    end(process)
    log.close()


def test_it_is_back_out_in_ten_seconds_and_a_crash_loop_too(config: Path) -> None:
    loaded = load(config).config
    checkpoints = open_checkpoints(loaded.state_dir, loaded.promotion)
    engine = build_engine(loaded, checkpoints)
    state, spec = untrained(engine.spec, 0).state_dict(), json.loads(engine.spec.to_json())
    engine.close()
    good, bad, crashing = (
        checkpoints.save(
            {"policy": {k: x + shift if x.is_floating_point() else x for k, x in state.items()}}, {"spec": spec}
        )
        for shift in (0.0, 0.5, 1.0)
    )
    with Rewarder(int(str(loaded.mqtt.url).rpartition(":")[2])) as world:
        world.gains = {good: 1.0, bad: -2.0, crashing: 1.0}
        world.until("untrained", START_S)
        checkpoints.promote(good)
        world.until_known(good)
        checkpoints.promote(bad)
        world.until(bad)
        received = world.wait("policy_rolled_back", START_S)
        world.until(good, START_S)
        assert world.counts[bad] <= 100  # ten seconds at 10 Hz
        assert (received["version"], received["to"], received["by"]) == (bad, good, "experiment")
        assert "fell" in received["why"]
        checkpoints.promote(crashing)  # its exploration is no probability: the agent dies of the first decision
        received = world.wait("policy_rolled_back", START_S)
        assert (received["version"], received["to"], received["why"]) == (crashing, good, "crashes")
        world.until(good, START_S)
    assert checkpoints.live().failed == (bad, crashing)
