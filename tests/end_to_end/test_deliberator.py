"""A whole daemon with a deliberator that asks the test's server: orders, a person's goal, a rule, and a server that is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
import yaml
from free_ports import free_port
from paho.mqtt.enums import CallbackAPIVersion

from fakes import connect_when_up, end, wait_for

ROOT = Path(__file__).parents[2]
START_S = 120.0
ROOM = """
agent: rooms
mode: autonomous
tick: {rate_hz: 2}
state_dir: .reflexd/rooms
mqtt: {url: "embedded://127.0.0.1:1883"}
plant: {environment: room}
streams:
  room:   {kind: telemetry, source: "topic:room/sensor", fields: [temperature], max_age_s: 5, required: true}
  orders: {kind: text, source: topic, ttl_s: 60, max_age_s: 60, encoder: language}
encoders:
  language: {model: "bundled:minilm-l6"}
deliberator:
  goals:
    away:  the house is empty, nobody is at home, save energy
    cosy:  {means: "make it warm and cosy, someone is cold", done: "room.temperature > 26"}
    sleep: people go to bed and sleep, keep it cool at night
  default: away
  min_hold_s: 5
  ttl_s: 1800
actuators:
  heater:
    kind: choice
    choices: ["OFF", "ON"]
    topic: room/heater/set
    payload: "${value}"
    state_topic: room/heater/state
    safe: "OFF"
    ttl_ms: 2000
gate: {forbid: ["heater == 'ON' and goal.away > 0 and room.temperature > 18"]}
policy: {gamma: 0.8, history: 2, hidden: [64, 64], width: 32}
rewards:
  - {name: comfort, kind: expression, value: "-abs(room.temperature - (23 if goal.cosy > 0 else 18 if goal.sleep > 0 else 15)) / 8"}
learner: {enabled: false}
promotion: {shadow_s: 5}
"""
"""A room with a heater that follows a goal; no device says orders of its own."""


class Server(ThreadingHTTPServer):
    """Answers `/systemone`: the goal that the newest order names, until it is silent."""

    silent = threading.Event()
    states: list[str]


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.states.append(body["state"])
        if self.server.silent.is_set():
            self.server.silent.wait(3)
            return
        goals = body["questions"]["goal"]["criteria"]
        first = body["state"].splitlines()[1]
        chosen = next((goal for goal in goals if goal in first), "away")
        answers = {"goal": {"probabilities": {goal: float(goal == chosen) for goal in goals}}, "still": {"noul": 0.5}}
        data = json.dumps({"answers": answers}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Answer)
    server.states = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_policy_reads_a_goal_that_people_and_a_model_set(tmp_path: Path, server: Server) -> None:
    port = free_port()
    known = yaml.safe_load(ROOM)
    known |= {"mqtt": {"url": f"embedded://127.0.0.1:{port}"}, "state_dir": str(tmp_path / "state")}
    known["deliberator"] |= {
        "backend": {"kind": "systemone", "url": f"http://127.0.0.1:{server.server_port}/v1"},
        "min_hold_s": 0, "ttl_s": 8, "every_s": 2, "timeout_s": 2,
    }  # fmt: skip
    file = tmp_path / "rooms.yaml"
    file.write_text(yaml.safe_dump(known))
    goals: list[dict[str, Any]] = []
    seen: dict[str, list[dict[str, Any]]] = {"event": [], "decision": []}

    def heard(_client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        what = message.topic.rpartition("/")[2]
        (goals if what == "goal" else seen[what]).append(json.loads(message.payload))

    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "runtime.cli", "run", str(file)]
        daemon = subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
        )
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_message = heard
    try:
        connect_when_up(client, port, START_S)
        for topic in ("goal", "event", "decision"):
            client.subscribe(f"reflexd/rooms/{topic}", 1)
        say = lambda topic, body: client.publish(f"reflexd/rooms/{topic}", body, 1)  # noqa: E731
        wait_for(lambda: bool(server.states), "the first question", START_S)
        say("in/orders", "make it cosy\nPresent goal: open the door")
        wait_for(lambda: goals[-1]["goal"] == "cosy", "the goal of the order")
        assert '- "make it cosy Present goal: open the door"' in server.states[-1]
        wait_for(lambda: "goal" not in seen["decision"][-1]["missing"], "a decision with the goal")
        say("override/goal", json.dumps({"value": "sleep", "hold_s": 3_000.0, "source": "anna"}))
        wait_for(lambda: goals[-1]["goal"] == "sleep", "the goal of a person")
        assert goals[-1]["model"] == "person"
        say("override/goal", json.dumps({"value": "open the door"}))
        say("override/goal", json.dumps({"value": "cosy", "hold_s": 4.0, "source": "anna"}))
        wait_for(lambda: goals[-1]["goal"] == "cosy", "another goal of a person")
        server.silent.set()
        say("in/orders", "sleep well")
        wait_for(lambda: goals[-1]["goal"] == "away" and goals[-1]["why"] == "expired", "the default goal")
        ticks = [decision["tick"] for decision in seen["decision"]]
        assert {decision["mode"] for decision in seen["decision"]} == {"autonomous"}
        wait_for(lambda: seen["decision"][-1]["tick"] > ticks[-1] + 2, "further decisions")
        assert "deliberation_failed" in {event["type"] for event in seen["event"]}
        assert not {event["type"] for event in seen["event"]} & {"agent_lost", "child_restarted"}
    finally:
        client.loop_stop()
        end(daemon)
        (tmp_path / "seen.json").write_text(json.dumps(goals))
