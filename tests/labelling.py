"""A daemon with one text stream and one task, watched and labelled from outside over a real broker."""

from __future__ import annotations

import itertools
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import canaries
import paho.mqtt.client as mqtt
import yaml
from free_ports import free_port
from paho.mqtt.enums import CallbackAPIVersion

from fakes import connect_when_up, end

__all__ = ["Daemon", "free_port", "settings"]

BASE = "reflexd/waves"
START_S = 150.0


def settings(folder: Path, port: int, model: str, **changed: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a daemon that reads orders and acts on nothing real; `changed` adds to whole sections."""
    made: dict[str, Any] = {
        "agent": "waves",
        "mode": "shadow",
        "tick": {"rate_hz": 10},
        "state_dir": str(folder / "state"),
        "mqtt": {"url": f"embedded://127.0.0.1:{port}", **canaries.LOGIN},
        "streams": {"orders": {"kind": "text", "source": "topic", "ttl_s": 60, "max_age_s": 60, "encoder": "language"}},
        "encoders": {"language": {"model": model}},
        "actuators": {"head": {"kind": "choice", "choices": ["left", "stay", "right"], "safe": "stay"}},
        "rewards": [{"name": "feedback", "kind": "topic"}],
        "policy": {"width": 32, "history": 1},
        "tasks": {"intents": {"kind": "text-classification", "stream": "orders", "model": model, "train": "lora"}},
        "learner": {"promote_every_s": 3600},
        "finetune": {"every_s": 1, "min_labels": 32},
    }
    for section, values in changed.items():
        made[section] = made.get(section, {}) | dict(values)
    return made


class Daemon:
    """Runs `reflexd run` and keeps what it publishes: `events`, `results`, and the number of every tick it decided."""

    def __init__(self, folder: Path, made: Mapping[str, Any]) -> None:
        self.ticks: list[int] = []
        self.events: list[dict[str, Any]] = []
        self._reported: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.state_dir = Path(made["state_dir"])
        config = folder / "waves.yaml"
        config.write_text(yaml.safe_dump(dict(made)))
        self._log = (folder / "log").open("w+")
        command = [sys.executable, "-m", "runtime.cli", "run", str(config)]
        self.process = subprocess.Popen(command, stderr=self._log, stdout=self._log)
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{BASE}/#", 1)
        self.client.on_message = self._take
        connect_when_up(self.client, int(str(made["mqtt"]["url"]).rpartition(":")[2]), START_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        end(self.process)
        self._log.close()

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        topic = message.topic.removeprefix(BASE + "/")
        if topic == "decision":
            self.ticks.append(json.loads(message.payload)["tick"])
        if topic == "event":
            self.events.append(json.loads(message.payload))
        if topic in ("event", "health", "decision") or topic.startswith("task/"):
            self._reported.put((topic, json.loads(message.payload)))

    def wait(
        self, topic: str, accept: Callable[[dict[str, Any]], bool] = lambda _: True, *, timeout_s: float = 60.0
    ) -> dict[str, Any]:
        """The next message of a topic that is accepted; what is passed over is gone.

        Raises:
            TimeoutError: none came; the end of the daemon's log is in it.
        """
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                received, body = self._reported.get(timeout=left_s)
            except queue.Empty:
                break
            if received == topic and accept(body):
                return body
        self._log.seek(0)
        kinds = [event["type"] for event in self.events]
        raise TimeoutError(f"no {topic} within {timeout_s:g} s; events {kinds}; log: {self._log.read()[-3000:]}")

    def event(self, *kinds: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """The next event of one of these kinds."""
        return self.wait("event", lambda body: body["type"] in kinds, timeout_s=timeout_s)

    def received(self, kind: str, timeout_s: float = 90.0) -> dict[str, Any]:
        """The newest event of a kind, whenever it came; waits for the first."""
        deadline_s = time.monotonic() + timeout_s
        while not (found := [event for event in self.events if event["type"] == kind]):
            assert time.monotonic() < deadline_s, f"no {kind}; events {[event['type'] for event in self.events]}"
            threading.Event().wait(0.05)
        return found[-1]["data"]  # type: ignore[no-any-return] # JSON

    def label(
        self, rows: Sequence[Mapping[str, str]], task: str = "intents", source: str | None = None
    ) -> None:  # fmt: skip
        """Publish labelled orders, a little below the quota of one source."""
        for row in rows:
            body = {"task": task, "text": row["text"], "label": row["label"]} | ({"source": source} if source else {})
            self.client.publish(f"{BASE}/label", json.dumps(body), 1).wait_for_publish(60)
            threading.Event().wait(0.012)

    def ask(self, text: str, version: str | None = None) -> dict[str, Any]:
        """Give an order and wait for what the task says of it, by a version where one is named."""
        decided = self.wait("decision")["tick"]
        self.client.publish(f"{BASE}/in/orders", text.encode(), 1)

        def about_it(body: dict[str, Any]) -> bool:
            number = int(str(body["decision"]).rpartition("-")[2])
            return number >= decided and version in (None, body["version"])

        return self.wait("task/intents", about_it, timeout_s=90)

    def request(self, verb: str, **body: str) -> None:
        """Ask for something; events tell what came of it."""
        self.client.publish(f"{BASE}/request/{verb}", json.dumps(body), 1)

    def missed(self, since: int = 0) -> int:
        """Ticks that were left out after the first `since` decisions seen here."""
        ticks = self.ticks[since:]
        return sum(after - before - 1 for before, after in itertools.pairwise(ticks))
