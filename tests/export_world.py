"""A state folder with experience and recordings, for tests of `reflexd export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from actuators.actions import ActionSpace, Choice
from learners.config.learner import ExperienceSettings
from learners.experience.store import Raw, Store, Transition
from learners.ipc.policy_spec import write_policy_spec
from learners.model.spec import PolicySpec, StreamSpec
from runtime.cli.main import main
from runtime.recording.recorder import Note, Recorder, TickRecord
from sensors.drivers import opencv
from sensors.readings import Frame, Sound, Telemetry, Text

SPEC = PolicySpec(
    (StreamSpec("front", "image", 4, 8, 2), StreamSpec("orders", "text", 1, 8), StreamSpec("joints", "telemetry", 1, 2)),
    ActionSpace((Choice("head", ("left", "stay", "right")),)),
    width=16, hidden=(16,), history=2, heads=2,
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "arm.yaml"
    path.write_text(
        f"""
agent: arm
state_dir: {tmp_path}/state
mqtt: {{url: "mqtt://127.0.0.1:1"}}
streams:
  front: {{kind: camera, source: topic, encoder: v}}
  orders: {{kind: text, source: topic, encoder: l}}
  joints: {{kind: telemetry, source: topic, fields: [q1, q2]}}
encoders:
  v: {{model: "bundled:efficientnet-lite0"}}
  l: {{model: "bundled:minilm-l6"}}
actuators:
  head: {{kind: choice, choices: [left, stay, right], safe: stay}}
"""
    )
    return path


def image(n: int) -> np.ndarray[Any, Any]:
    return np.full((6, 8, 3), n, np.uint8)


def tick(n: int) -> Transition:
    return Transition(
        session="s", tick=n, decision=f"s-{n}", stamp_s=1_000.0 + n / 10, policy="p0",
        tokens={"joints": np.array([[n, -n]], np.float32)}, present={"front": True, "orders": True, "joints": True},
        ages_s={"front": 0.0, "orders": 0.0, "joints": 0.0}, actions={"head": "left"}, probabilities={"head": 0.5},
        by={"head": "policy"}, value=0.5,
    )  # fmt: skip


def lived(config: Path, count: int = 20, raws: int = 0) -> Path:
    """A state folder in which an agent has acted."""
    state = config.parent / "state"
    write_policy_spec(state, SPEC)
    settings = ExperienceSettings.model_validate({})
    store = Store(state / "experience", settings, on_event=lambda _kind, _fields: None, clock=lambda: 1_000.0)
    for n in range(count):
        store.append(tick(n))
        if n < raws:
            store.add_raw(Raw("front", 1_000.0 + n / 10, "jpeg", opencv.encode(image(n))))
            store.add_raw(Raw("orders", 1_000.0 + n / 10, "utf-8", b"look left"))
    store.credit(1.5, decision="s-3", source="button")
    assert store.close()
    return state


def recorded(state: Path, name: str = "r", count: int = 10, start: int = 0) -> Path:
    path = state / "recordings" / f"{name}.mcap"
    recorder = Recorder(path, {"spec": "x", "session": "s"}, 1 << 30)
    recorder.start({"history": b"\x01"})
    sound = np.sin(np.arange(4_000) / 9).astype(np.float32)
    for n in range(start, start + count):
        readings = (
            Frame("front", n / 10, n, image(n)),
            Sound("room", n / 10, n, sound[n * 100 : n * 100 + 800]),
            Telemetry("joints", n / 10, n, ("q1", "q2"), np.array([n, -n], np.float32)),
        )
        fresh = (*readings, Text("orders", 0.0, 1, "look up")) if n == start else readings
        body = {"id": f"s-{n}", "tick": n, "used": {"front": n, "room": n, "joints": n, "orders": 1}}
        assert recorder.put(TickRecord(int((1_000 + n / 10) * 1e9), fresh, body))
    recorder.put(Note(int(1_000.55e9), "reward", {"value": 1.0}))
    recorder.close()
    return path


def export(config: Path, form: str, out: str, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["export", str(config), "--format", form, "--out", str(config.parent / out), *more])
    return done.exit_code, done.output
