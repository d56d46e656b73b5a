"""A whole daemon on a state directory in which everything is of a format it does not know: it starts, acts, and names each part."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import canaries
import orjson
import paho.mqtt.client as mqtt
import yaml
from paho.mqtt.enums import CallbackAPIVersion

from fakes import Mosquitto, connect_when_up, end, wait_for
from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints, open_checkpoints
from learners.experience import schema
from runtime.config.loader import load
from runtime.inference.build import build_engine
from runtime.inference.torch_engine import untrained

START_S = 150.0
BASE = "reflexd/old"
SETTINGS: dict[str, Any] = {
    "agent": "old",
    "streams": {"joints": {"kind": "telemetry", "source": "topic", "fields": ["angle"]}},
    "actuators": {"head": {"kind": "choice", "choices": ["left", "stay", "right"], "safe": "stay"}},
    "gate": {"arm": "auto", "deadman_ms": 2_000},
    "learner": {"promote_every_s": 3_600, "priority": "nice"},
}


def of_format_2(versions: Checkpoints, version: str, state: Path) -> None:
    folder = versions.folder / version
    body = orjson.dumps(orjson.loads((folder / "manifest.json").read_bytes()) | {"format": 2})
    (folder / "manifest.json").write_bytes(body)
    (folder / "manifest.sig").write_bytes(load_key(state).sign(body))


def make_strange(config: Path, state: Path) -> tuple[str, str]:
    """Two versions that acted, the newer and everything else of another program's format; gives their names."""
    loaded = load(config).config
    checkpoints = open_checkpoints(loaded.state_dir, loaded.promotion)
    engine = build_engine(loaded, checkpoints)
    weights, spec = untrained(engine.spec, 0).state_dict(), json.loads(engine.spec.to_json())
    engine.close()
    good, strange = (checkpoints.save({"policy": weights}, {"spec": spec}) for _ in range(2))
    for version in (good, strange):
        checkpoints.promote(version)
    of_format_2(checkpoints, strange, state)
    learner = Checkpoints(state / "learner" / "state", load_key(state))
    learner.promote(position := learner.save({"policy": weights}, {"position": {}}))
    of_format_2(learner, position, state)
    for name in ("latches.json", "experiments.json", "quarantine.json", "learner/spec.json", "learner/progress.json"):
        (state / name).write_text('{"format": 99}')
    (state / "learner" / "journal.jsonl").write_text('{"format": 99}\n')
    (state / "learner" / "outbox").mkdir()
    (state / "learner" / "outbox" / "00000000000000000001-000001.json").write_text('{"format": 99}')
    (state / "experience").mkdir(exist_ok=True)
    for path, number in (("experience/experience.db", schema.SCHEMA + 1), ("learner/reencoded.db", 99)):
        with closing(sqlite3.connect(state / path)) as db:
            db.execute(f"PRAGMA user_version = {number}")
    return good, strange


class Witness:
    def __init__(self, port: int) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.status: dict[str, Any] = {}
        self.policies: list[str] = []
        self.moved = 0
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{BASE}/#", 1)
        self.client.on_message = self._take
        connect_when_up(self.client, port, START_S)

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        topic = message.topic.removeprefix(f"{BASE}/")
        if topic == "act/head/set":
            self.moved += json.loads(message.payload)["policy"] != "gate"
        elif topic == "event":
            body = json.loads(message.payload)
            self.events.append((body["type"], body["data"]))
        elif topic == "status":
            self.status = json.loads(message.payload)
        elif topic == "decision":
            self.policies.append(json.loads(message.payload)["policy"])

    def reported(self, kind: str) -> list[dict[str, Any]]:
        return [data for each, data in list(self.events) if each == kind]

    def tell(self, topic: str, **body: Any) -> None:
        self.client.publish(f"{BASE}/{topic}", json.dumps(body), 1)


def test_it_starts_names_what_it_does_not_know_and_acts(tmp_path: Path, broker: Mosquitto) -> None:
    config, state = tmp_path / "old.yaml", tmp_path / "state"
    place = {"state_dir": str(state), "mqtt": {"url": broker.url, **canaries.LOGIN}}
    config.write_text(yaml.safe_dump(SETTINGS | place))
    good, strange = make_strange(config, state)
    witness = Witness(broker.port)
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "runtime.cli", "run", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: len(witness.policies) > 5, "decisions", START_S)
        wait_for(lambda: bool(witness.reported("learner_resumed")), "the learner", START_S)
        wait_for(lambda: bool(witness.reported("experience_write_failed")), "the store", START_S)
        assert set(witness.policies) == {good}
        assert {data["version"] for data in witness.reported("checkpoint_refused")} >= {strange}
        assert {data["reason"] for data in witness.reported("checkpoint_refused")} == {"unknown_format"}
        assert witness.reported("experiment_state_unreadable")
        assert witness.reported("quarantine_state_unreadable")
        assert witness.reported("learner_resumed")[0] == {"resumed": False, "update": 0, "row": 0}
        assert witness.status["state"] == "stopped"
        assert not witness.moved
        witness.tell("stop", engaged=False)
        wait_for(lambda: witness.status["state"] != "stopped", "the release")
        witness.tell("request/arm")
        wait_for(lambda: witness.moved > 3, "acting")
        assert not witness.reported("child_restarted")
    finally:
        code = end(process)
        witness.client.disconnect()
        witness.client.loop_stop()
    assert code == 0
