"""The daemon as a user runs it: the demo from its settings file, watched from outside over a real broker."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import canaries
import paho.mqtt.client as mqtt
import pytest
import yaml
from free_ports import free_port
from paho.mqtt.enums import CallbackAPIVersion

from fakes import connect_when_up, end

START_S = 150.0
"""For the first start on a busy machine: models are converted and backends calibrated."""

LIST_MODULES = """
import atexit, sys
from pathlib import Path

def write():
    title = Path("/proc/self/cmdline").read_bytes().strip(bytes(1)).decode()
    if title.startswith("reflexd: "):
        name = title.removeprefix("reflexd: ").replace(" ", "-")
        Path({folder!r}, "modules-" + name).write_text(" ".join(sorted(sys.modules)))

atexit.register(write)
"""
"""Python reads it at the start of every process: each one lists its modules when it ends."""


class Watcher:
    """A plain MQTT client that keeps every message."""

    def __init__(self, port: int) -> None:
        self.messages: queue.Queue[mqtt.MQTTMessage] = queue.Queue()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe("reflexd/demo/#", 1)
        self.client.on_message = lambda _c, _u, message: self.messages.put(message)
        connect_when_up(self.client, port, START_S)

    def wait(self, topic: str, accept: Callable[[Any], bool] = lambda _: True, timeout_s: float = 60.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while True:
            message = self.messages.get(timeout=max(0.01, deadline - time.monotonic()))
            if message.topic == f"reflexd/demo/{topic}":
                body = json.loads(message.payload)
                if accept(body):
                    return body

    def forget(self) -> None:
        """Only what arrives from now on counts."""
        self.messages = queue.Queue()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Daemon:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings = yaml.safe_load(Path("configs/demo.yaml").read_text())
        self.port = free_port()
        settings["mqtt"] |= {"url": f"embedded://127.0.0.1:{self.port}", **canaries.LOGIN}
        settings["state_dir"] = str(folder / "state")
        settings["metrics"]["listen"] = f"127.0.0.1:{free_port()}"
        settings["learner"] |= {"promote_every_s": 5, "warmup": 64, "batch": 32, "priority": "normal"}
        settings["promotion"] = {"steps": ["integrity"], "experiments": False}
        settings["plant"]["simulated_overrides"] = False
        del settings["dashboard"]
        self.config = folder / "demo.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        self.log = (folder / "log").open("w+")
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(LIST_MODULES.format(folder=str(folder)))
        path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", str(Path.cwd()))])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runtime.cli", "run", str(self.config)],
            stderr=self.log,
            stdout=self.log,
            env=os.environ | {"PYTHONPATH": path},
        )

    def verb(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runtime.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def child(self, title: str) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(
            int(pid) for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title.encode())
        )

    def stop(self) -> None:
        end(self.process)
        self.log.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    running = Daemon(tmp_path_factory.mktemp("daemon"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def watcher(daemon: Daemon) -> Iterator[Watcher]:
    seen = Watcher(daemon.port)
    yield seen
    seen.close()


def test_it_decides_on_every_stream_and_the_head_moves(daemon: Daemon, watcher: Watcher) -> None:
    def every_stream(body: Any) -> bool:
        return set(body["ages_ms"]) == {"front", "room", "orders", "joints"} and not body["missing"]

    decision = watcher.wait("decision", every_stream, START_S)
    action = decision["actions"]["head"]
    assert action["value"] in {"left", "stay", "right"}
    assert 0 < action["probability"] <= 1
    assert decision["policy"] == "untrained"
    command = watcher.wait("act/head/set", lambda body: body["policy"] == "untrained")
    assert command["decision"].startswith(decision["id"].split("-")[0])
    acknowledged = watcher.wait("act/head/state", lambda body: (body.get("seq") or 0) >= command["seq"])
    assert acknowledged["boot"] == command["boot"]


def test_status_and_health_say_it_is_well(daemon: Daemon, watcher: Watcher) -> None:
    health = watcher.wait("health", lambda body: body["armed"] and body["tick"]["count"] > 20)
    assert {name: stream["stale"] for name, stream in health["streams"].items()} == dict.fromkeys(
        health["streams"], False
    )
    received = daemon.verb("status", str(daemon.config), "--json", "--timeout", "30")
    assert json.loads(received.stdout)["policy"]


def test_a_policy_is_learned_promoted_and_flipped_in(daemon: Daemon, watcher: Watcher) -> None:
    promoted = watcher.wait("event", lambda body: body["type"] == "policy_promoted", 120)
    version = promoted["data"]["version"]
    assert watcher.wait("decision", lambda body: body["policy"] == version)
    listed = daemon.verb("checkpoints", "--config", str(daemon.config))
    assert version[:6] in listed.stdout


def test_a_recording_is_decided_again_bit_for_bit_across_a_promotion(daemon: Daemon, watcher: Watcher) -> None:
    assert daemon.verb("record", "on", "--config", str(daemon.config)).returncode == 0
    watcher.forget()
    before = watcher.wait("decision")["policy"]
    watcher.wait("decision", lambda body: body["policy"] != before, 120)
    for _ in range(20):
        watcher.wait("decision")
    ended = daemon.verb("record", "off", "--config", str(daemon.config), "--json")
    facts = json.loads(ended.stdout)
    assert facts["dropped"] == 0
    done = daemon.verb("replay", facts["path"], "--config", str(daemon.config), "--json")
    report = json.loads(done.stdout)
    assert report["same"], report["different"][:3]
    assert report["decisions"] > 10
    assert len(report["versions"]) >= 2
    assert done.returncode == 0


def test_a_decision_can_be_explained(daemon: Daemon, watcher: Watcher) -> None:
    watcher.forget()  # the version of an older decision may be deleted already
    decision = watcher.wait("decision")["id"]
    received = daemon.verb("explain", decision, "--config", str(daemon.config), "--json")
    assert received.returncode == 0, received.stderr
    part = json.loads(received.stdout)["parts"]["head"]
    assert sum(part["streams"].values()) == pytest.approx(part["score"] - part["baseline"], abs=1e-4)


def test_stop_is_obeyed_and_release_alone_moves_nothing(daemon: Daemon, watcher: Watcher) -> None:
    watcher.client.publish("reflexd/demo/stop", b'{"engaged": true}', 1)
    safe = watcher.wait("act/head/set", lambda body: body["policy"] == "gate")
    assert safe["value"] == "stay"
    assert watcher.wait("status", lambda body: body["state"] == "stopped")
    watcher.client.publish("reflexd/demo/stop", b'{"engaged": false}', 1)
    watcher.wait("status", lambda body: body["state"] != "stopped")
    watcher.client.publish("reflexd/demo/request/arm", b"{}", 1)
    assert watcher.wait("act/head/set", lambda body: body["policy"] not in {"gate", "override"})


def test_a_killed_agent_comes_back_with_the_live_policy(daemon: Daemon, watcher: Watcher) -> None:
    watcher.forget()
    live = watcher.wait("decision")["policy"]
    os.kill(daemon.child("reflexd: agent"), signal.SIGKILL)
    assert watcher.wait("event", lambda body: body["type"] == "child_restarted")["data"]["child"] == "agent"
    back = watcher.wait("decision", timeout_s=START_S)
    assert back["policy"] != "untrained"
    assert int(back["policy"].split("-")[0]) >= int(live.split("-")[0])


def test_sigterm_ends_it_in_order(daemon: Daemon, watcher: Watcher) -> None:
    daemon.process.send_signal(signal.SIGTERM)
    assert watcher.wait("status", lambda body: body["state"] == "offline")
    assert daemon.process.wait(60) == 0


def test_the_agent_that_ran_until_now_imported_neither_torch_nor_transformers(daemon: Daemon) -> None:
    """It acted on promoted versions, wrote a recording and explained a decision; the learner shows that the list is whole."""
    agent, learner = (set((daemon.folder / f"modules-{name}").read_text().split()) for name in ("agent", "learner"))
    assert "runtime.inference.compiled_engine" in agent
    assert not {"torch", "transformers"} & agent
    assert "torch" in learner
