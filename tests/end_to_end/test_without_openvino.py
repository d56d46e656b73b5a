"""A whole daemon where openvino is not installed: it acts on ONNX graphs without torch, and compiles the graphs of another library again."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import canaries
import orjson
import paho.mqtt.client as mqtt
import pytest
import yaml
from free_ports import free_port
from paho.mqtt.enums import CallbackAPIVersion

from fakes import connect_when_up, end
from learners.checkpoints.store import open_checkpoints
from learners.ipc.settings import Backend
from learners.model.spec import PolicySpec
from learners.worker.compilation import compile_candidate
from runtime.config.loader import load
from runtime.inference.build import build_spec
from runtime.inference.torch_engine import untrained

START_S = 280.0
"""On a busy machine: each of two exports takes 10 s of a core, the second one at a low priority."""
WITHOUT_OPENVINO = """
import atexit, importlib.metadata, sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "openvino":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
distribution = importlib.metadata.Distribution.from_name

def installed(name):
    if name == "openvino":
        raise importlib.metadata.PackageNotFoundError(name)
    return distribution(name)

importlib.metadata.Distribution.from_name = importlib.metadata.distribution = installed

def write():
    title = Path("/proc/self/cmdline").read_bytes().strip(bytes(1)).decode()
    if title.startswith("reflexd: "):
        name = title.removeprefix("reflexd: ").replace(" ", "-")
        Path({folder!r}, "modules-" + name).write_text(" ".join(sorted(sys.modules)))

atexit.register(write)
"""
"""Python reads it at the start of every process: openvino is absent, and each process lists its modules when it ends."""
SETTINGS: dict[str, Any] = {
    "agent": "small",
    "streams": {
        name: {"kind": "telemetry", "source": "topic", "fields": ["angle", "speed"]} for name in ("left", "right")
    },
    "actuators": {"head": {"kind": "choice", "choices": ["left", "stay", "right"], "safe": "stay"}},
    "policy": {"width": 16, "latents": 2, "layers": 1, "heads": 2, "hidden": [16]},
    "learner": {"enabled": False},
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    port, path, site = free_port(), tmp_path / "small.yaml", tmp_path / "site"
    own = {"state_dir": str(tmp_path / "state"), "mqtt": {"url": f"embedded://127.0.0.1:{port}", **canaries.LOGIN}}
    path.write_text(yaml.safe_dump(SETTINGS | own))
    site.mkdir()
    (site / "sitecustomize.py").write_text(WITHOUT_OPENVINO.format(folder=str(tmp_path)))
    places = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", str(Path.cwd()))])
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "runtime.cli", "run", str(path)]
        environment = os.environ | {"PYTHONPATH": places, "REFLEXD_CACHE": str(tmp_path / "cache")}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        yield path, process
        end(process)


def test_the_agent_acts_in_onnxruntime_and_a_graph_of_openvino_is_compiled_again(
    daemon: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    config, process = daemon
    loaded = load(config).config
    checkpoints = open_checkpoints(loaded.state_dir, loaded.promotion)
    spec: PolicySpec = build_spec(loaded, {})
    assert not spec.plain
    state = untrained(spec, 1).state_dict()
    made = compile_candidate(spec, state, Backend(backend="openvino"), [])
    version = checkpoints.save(
        {"policy": state}, {"spec": json.loads(spec.to_json())} | made.documents, graphs=made.graphs
    )
    received: queue.Queue[tuple[str, Any]] = queue.Queue()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_connect = lambda it, *_: it.subscribe([("reflexd/small/decision", 0), ("reflexd/small/event", 1)])
    client.on_message = lambda _c, _u, m: received.put((m.topic.rpartition("/")[2], orjson.loads(m.payload)))
    connect_when_up(client, int(str(loaded.mqtt.url).rpartition(":")[2]), START_S)
    events: list[dict[str, Any]] = []

    def wait(accept: Callable[[str, Any], bool]) -> Any:
        deadline = time.monotonic() + START_S
        while True:
            kind, body = received.get(timeout=max(0.01, deadline - time.monotonic()))
            if kind == "event":
                events.append(body)
            if accept(kind, body):
                return body

    assert wait(lambda kind, _: kind == "decision")["policy"] == "untrained"
    checkpoints.promote(version)
    wait(lambda kind, body: kind == "decision" and body["policy"] == version)
    client.disconnect()
    client.loop_stop()
    (compiled,) = [event["data"] for event in events if event["type"] == "graph_compiled"]
    assert compiled["version"] == version
    assert compiled["reason"].startswith("its graph is of OpenVINO ")
    assert ", this is ONNX Runtime " in compiled["reason"]
    assert not {event["type"] for event in events} & {"engine_in_torch", "graph_refused", "checkpoint_refused"}
    names = [path.name.partition("-")[0] for path in (loaded.state_dir / "onnxruntime").iterdir()]
    assert "policy" in names
    assert not (loaded.state_dir / "openvino").exists()
    log = (config.parent / "log").read_text()
    assert "onnxruntime float32" in next(line for line in log.splitlines() if "engine.ready" in line)
    end(process)
    agent = set((config.parent / "modules-agent").read_text().split())
    assert "onnxruntime" in agent
    assert not {"torch", "transformers", "openvino", "onnx", "onnxscript"} & agent
