"""Requests of every verb with random arguments to a whole daemon: `python tests/benchmarks/bench_requests.py [COUNT] [SEED]`.

COUNT requests (default 1,000) reach a daemon with an embedded broker, an agent with three versions, telemetry that comes and goes,
a stop that is engaged and released, and recordings that start and end. Each request has a response topic. Prints for each verb
how many were answered, and the time of an answer. The exit code is 1 where one was not answered, was answered twice, or a
child process was restarted.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import yaml
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import canaries  # noqa: E402 - after the path
from free_ports import free_port  # noqa: E402 - after the path

from fakes import connect_when_up, end, wait_for  # noqa: E402 - after the path
from learners.checkpoints.store import open_checkpoints  # noqa: E402 - after the path
from runtime.config.loader import load  # noqa: E402 - after the path
from runtime.inference.build import build_engine  # noqa: E402 - after the path
from runtime.inference.torch_engine import untrained  # noqa: E402
from runtime.mqtt.rpc import AGENT_VERBS, GATE_VERBS  # noqa: E402

AGENT, GATE = AGENT_VERBS, tuple(sorted(GATE_VERBS, key="reload".__eq__))
ASKERS = 3
"""Response topics that the requests name in turn."""
START_S, ANSWER_S = 300.0, 60.0
OPEN = 12
"""Requests that wait for an answer at a time."""


def settings_of(folder: Path, port: int) -> Path:
    """A small daemon without learner and page."""
    path = folder / "small.yaml"
    body = {
        "agent": "small",
        "state_dir": str(folder / "state"),
        "mqtt": {"url": f"embedded://127.0.0.1:{port}", **canaries.LOGIN},
        "tick": {"rate_hz": 10},
        "streams": {"joints": {"kind": "telemetry", "source": "topic", "fields": ["q", "v"], "max_age_s": 0.5}},
        "actuators": {
            "head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"},
            "arm": {"kind": "continuous", "low": [-1], "high": [1], "safe": [0]},
        },
        "learner": {"enabled": False},
        "dashboard": None,
        "metrics": None,
    }
    path.write_text(yaml.safe_dump(body))
    return path


def prepare(path: Path) -> list[str]:
    """Save three versions and let one act."""
    config = load(path).config
    checkpoints = open_checkpoints(config.state_dir, config.promotion)
    engine = build_engine(config, checkpoints)
    weights = untrained(engine.spec, 0).state_dict()
    versions = [checkpoints.save({"policy": weights}, {}) for _ in range(3)]
    checkpoints.promote(versions[0])
    engine.close()
    return versions


class Client:
    """Sends requests, feeds telemetry, and collects answers, decisions and events."""

    def __init__(self, port: int) -> None:
        self.answers: dict[int, list[tuple[float, dict[str, Any]]]] = defaultdict(list)
        self.sent_s: dict[int, float] = {}
        self.decisions: list[str] = []
        self.events: Counter[str] = Counter()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(
            [(f"reflexd/small/{topic}", mqtt.SubscribeOptions(1)) for topic in ("response/#", "decision", "event")]
        )
        self.client.on_message = self._received
        connect_when_up(self.client, port, START_S)

    def _received(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        body = json.loads(message.payload)
        if message.topic.endswith("/decision"):
            self.decisions.append(body["id"])
        elif message.topic.endswith("/event"):
            self.events[body["type"]] += 1
        else:
            properties = message.properties
            assert properties is not None
            correlation: bytes = vars(properties)["CorrelationData"]
            self.answers[int(correlation.decode())].append((time.monotonic(), body))

    def request(self, number: int, verb: str, payload: bytes) -> None:
        """Publish one request that names where its answer goes."""
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = f"reflexd/small/response/bench{number % ASKERS}"
        properties.CorrelationData = str(number).encode()
        self.sent_s[number] = time.monotonic()
        self.client.publish(f"reflexd/small/request/{verb}", payload, 1, properties=properties)

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return len(self.sent_s) - len(self.answers)


def payload_of(chance: random.Random, names: list[Any]) -> bytes:
    """A payload of any kind: fitting, of the wrong type, no JSON, empty."""
    kind = chance.random()
    if kind < 0.1:
        return chance.randbytes(chance.randrange(20))
    if kind < 0.2:
        return b""
    values = [*names, None, True, False, 1e400, -1, 2**70, "", "\x00", "x" * 200, [], {}, chance.random()]
    keys = [
        "version",
        "task",
        "decision",
        "on",
        "source",
        "mode",
        "actuator",
        "stream",
        "label",
        "readings",
        "numbers",
        "other",
    ]
    body = {key: chance.choice(values) for key in chance.sample(keys, chance.randrange(3))}
    return json.dumps(body).encode()


def fitting(chance: random.Random, verb: str, decisions: list[str], versions: list[str]) -> bytes:
    """A payload that the verb takes."""
    version = chance.choice([*versions, "newest"])
    bodies: dict[str, list[dict[str, Any]]] = {
        "explain": [{"decision": chance.choice(decisions or ["none"])}],
        "record": [{"on": True}, {"on": False}],
        "promote": [{"version": version}],
        "rollback": [{}, {"version": version}],
        "mode": [{"mode": mode} for mode in ("shadow", "assist", "autonomous")],
        "end_override": [{"actuator": "head"}],
        "finetune": [{"task": "intents"}],
        "release": [{"source": "someone"}],
        "accept_drift": [{"stream": "joints"}],
        "readings": [{"task": "intents"}, {"task": "intents", "count": 3}],
        "labels": [{"task": "intents"}],
        "label_readings": [{"task": "intents", "label": "a", "readings": [1]}],
        "correct_labels": [{"task": "intents", "numbers": [1]}],
    }
    return json.dumps(chance.choice(bodies.get(verb, [{}]))).encode()


def feed(client: Client, ended: threading.Event, chance: random.Random) -> None:
    """Telemetry at 10 Hz that stops now and then, and a stop that is engaged and released."""
    number, until = 0, 0
    while not ended.wait(0.1):
        number += 1
        if number >= until:
            body = json.dumps({"q": float(np.sin(number / 9)), "v": chance.random()})
            client.client.publish("reflexd/small/in/joints", body)
            if chance.random() < 0.02:
                until = number + chance.randrange(20)
        if chance.random() < 0.02:
            client.client.publish("reflexd/small/stop", json.dumps({"engaged": chance.random() < 0.3}), 1)


def run(count: int, seed: int, folder: Path) -> tuple[Client, list[str], int]:
    """Send all requests; return the client, the verbs in order, and the exit code of the daemon."""
    port, chance = free_port(), random.Random(seed)
    path = settings_of(folder, port)
    versions = prepare(path)
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "runtime.cli", "run", str(path)], stdout=log, stderr=log, cwd=ROOT
        )
        ended, verbs = threading.Event(), []
        try:
            client = Client(port)
            feeding = threading.Thread(target=feed, args=(client, ended, random.Random(seed + 1)))
            feeding.start()
            wait_for(lambda: len(client.decisions) > 20, "decisions", START_S)
            for number in range(count):
                verb = chance.choice([*AGENT, *GATE[:-1], *GATE] if chance.random() < 0.5 else [*AGENT, *GATE])
                names = [*versions, *client.decisions[-3:], "newest", "intents", "head", "shadow"]
                fits = chance.random() < 0.5
                payload = fitting(chance, verb, client.decisions, versions) if fits else payload_of(chance, names)
                verbs.append(verb)
                client.request(number, verb, payload)
                wait_for(lambda: client.waiting < OPEN, "answers", ANSWER_S)
            wait_for(lambda: client.waiting == 0, "the last answers", ANSWER_S)
            threading.Event().wait(1.0)
        finally:
            ended.set()
            code = end(daemon)
        feeding.join()
        client.client.disconnect()
    return client, verbs, code


def main() -> int:
    """Run, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=1_000, help="requests")
    parser.add_argument("seed", nargs="?", type=int, default=0, help="of all that is random")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        client, verbs, code = run(given.count, given.seed, Path(folder))
    table = Table("verb", "sent", "answered once", "ok", "error", "median s", "worst s")
    for verb in sorted(set(verbs)):
        numbers = [number for number, each in enumerate(verbs) if each == verb]
        answers = [client.answers[number] for number in numbers]
        took = [answer[0][0] - client.sent_s[n] for n, answer in zip(numbers, answers, strict=True) if answer]
        states = Counter(answer[0][1].get("status") for answer in answers if answer)
        once = sum(len(answer) == 1 for answer in answers)
        row = (len(numbers), once, states["ok"], states["error"], f"{np.median(took):.3f}", f"{max(took):.3f}")
        table.add_row(verb, *map(str, row))
    restarts = client.events["child_restarted"]
    console = Console()
    console.print(table)
    console.print(f"children restarted: {restarts}; exit code of the daemon: {code}")
    every = all(len(client.answers[number]) == 1 for number in range(len(verbs)))
    return int(restarts > 0 or code != 0 or not every)


if __name__ == "__main__":
    sys.exit(main())
