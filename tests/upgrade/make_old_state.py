"""Makes `old_state.tar.gz`: a state directory as 0.1.0 of commit 78b61a8 leaves it, by running that very daemon.

    git worktree add --detach /tmp/old 78b61a8
    .venv/bin/python tests/upgrade/make_old_state.py /tmp/old /tmp/old_state.tar.gz

Takes some minutes. The daemon runs in a folder of its own and every path in its settings is relative, so that none of this
machine's gets into what it writes. In the archive:

    state/          the state directory, after a regular end: a live policy on probation and the one before it, a task version
                    made from labels, an encoder that followed it, rewards, overrides, labels, a quarantined source, a mode
                    of one actuator and the software stop
    state/recordings/
        exploring.mcap   both actuators act and explore
        assisting.mcap   the arm is in `assist`, so nothing explores
        promotion.mcap   begins under one policy and ends under the next
    model/          the tiny encoder with random weights, held.jsonl the held-out file
    expected.json   what the old program itself reads in all this

On a busy machine the last step may fail: where a recording begins while a tick is being decided, the old program has that
tick both in the recording's snapshot of the past and as its first decision, and then decides the first ones otherwise
itself. Run it again; only recordings that it replays identically are packed.

The key under `state/keys` was made for this archive by the daemon and signs nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as mqtt
import yaml
from paho.mqtt.enums import CallbackAPIVersion

HERE = Path(__file__).parent
COMMIT = "78b61a8"
BASE = "reflexd/old"
INTENTS = {"go": "move", "stop": "halt", "left": "turn"}
HASTE = {"learner": {"promote_every_s": 3}, "promotion": {"probation_s": 3}}
"""Of the first run: a version is promoted and confirmed within a minute."""
WATCHED = {"learner": {"promote_every_s": 3}}
"""Of the second: the next version stays on probation."""
WAIT_S = 240.0


class Session:
    """One run of the old daemon, with somebody who sends telemetry, orders and rewards."""

    def __init__(self, tree: Path, folder: Path, changed: Mapping[str, Mapping[str, Any]]) -> None:
        from free_ports import free_port

        from fakes import connect_when_up

        port = free_port()
        self.config = write_config(HERE / "config_0_1_0.yaml", folder / "config.yaml", port, changed)
        self.tree, self.folder = tree, folder
        self._log = (folder / "log").open("a")
        self.process = subprocess.Popen(self._command("run", "config.yaml"), cwd=folder, env=_environment(tree), stdout=self._log, stderr=self._log)  # fmt: skip
        self.messages: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{BASE}/#", 1)
        self.client.on_message = self._take
        self._rewarding = self._over = False
        connect_when_up(self.client, port, WAIT_S)
        self._world = threading.Thread(target=self._live, daemon=True)
        self._world.start()

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "runtime.cli", *arguments]

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        topic = message.topic.removeprefix(f"{BASE}/")
        if topic in ("event", "decision", "status") or topic.startswith("response/"):
            body = json.loads(message.payload)
            if topic == "event":
                print(f"  {body['type']} {json.dumps(body['data'])[:150]}", flush=True)
            if topic == "decision" and self._rewarding:
                self._reward(body)
            self.messages.put((topic, body))

    def _reward(self, decision: dict[str, Any]) -> None:
        """Of two sources that agree: a bright lamp and an arm in the middle."""
        value = 0.5 * (decision["actions"]["lamp"]["value"] == "bright") - 0.1 * abs(
            decision["actions"]["arm"]["value"][0]
        )
        for source in ("eyes", "hands"):
            self.tell("reward", value=value, decision=decision["id"], source=source)

    def _live(self) -> None:
        """The world: telemetry five times a second, an order every second."""
        rng = random.Random(0)
        for turn in range(1 << 30):
            if self._over:
                return
            self.tell("in/joints", x=round(rng.uniform(-1, 1), 3), y=round(rng.uniform(-1, 1), 3))
            if turn % 5 == 0:
                self.client.publish(f"{BASE}/in/orders", rng.choice(["please go now", "stop the a", "left now please", "is the red"]), 1)  # fmt: skip
            time.sleep(0.2)

    def tell(self, topic: str, **body: Any) -> None:
        self.client.publish(f"{BASE}/{topic}", json.dumps(body), 1)

    def wait(self, topic: str, accept: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """The next message of a topic that is accepted."""
        end_s = time.monotonic() + WAIT_S
        while True:
            reported, body = self.messages.get(timeout=max(0.01, end_s - time.monotonic()))
            if reported == topic and accept(body):
                return body

    def event(self, *kinds: str) -> dict[str, Any]:
        return self.wait("event", lambda body: body["type"] in kinds)

    def ask(self, verb: str, **body: Any) -> dict[str, Any]:
        self.tell(f"request/{verb}", **body)
        answer = self.wait(f"response/{verb}")
        assert answer["status"] == "ok", answer
        return dict(answer.get("data") or {})

    @contextmanager
    def recording(self, name: str, decisions: int = 40) -> Iterator[None]:
        """Record what is done in the context and `decisions` more decisions, under a name of ours."""
        self.ask("record", on=True)
        yield
        for _ in range(decisions):
            self.wait("decision")
        facts = self.ask("record", on=False)
        assert facts["dropped"] == 0, facts
        (self.folder / facts["path"]).rename(self.folder / "state" / "recordings" / name)

    @contextmanager
    def rewarded(self) -> Iterator[None]:
        self._rewarding = True
        yield
        self._rewarding = False

    def label(self, rows: list[dict[str, str]], source: str) -> None:
        for row in rows:
            self.client.publish(f"{BASE}/label", json.dumps({"task": "intents", **row, "source": source}), 1).wait_for_publish(10)  # fmt: skip
            time.sleep(0.012)

    def __enter__(self) -> Self:
        self.wait("decision", lambda body: not body["missing"])
        return self

    def __exit__(self, *_: object) -> None:
        from fakes import end

        self._over = True
        self._world.join()
        code = end(self.process)
        self.client.disconnect()
        self.client.loop_stop()
        self._log.close()
        assert code == 0, f"the daemon ended with {code}"


def write_config(source: Path, target: Path, port: int, changed: Mapping[str, Mapping[str, Any]] = {}) -> Path:
    """Settings with a port and the login of the tests."""
    import canaries

    settings = yaml.safe_load(source.read_text())
    settings["mqtt"] = {"url": f"embedded://127.0.0.1:{port}", **canaries.LOGIN}
    for section, values in changed.items():
        settings[section] |= values
    target.write_text(yaml.safe_dump(settings))
    return target


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


def make(tree: Path, folder: Path) -> None:
    """Live through three runs of the old daemon in `folder`."""
    import tinymodels

    tinymodels.bert(folder / "model", width=16, length=16)
    tinymodels.held_out(folder / "held.jsonl", 45, INTENTS)
    print("first run: labels, an encoder that follows, a policy that passes", flush=True)
    with Session(tree, folder, HASTE) as first, first.rewarded():
        first.label(tinymodels.orders(75, 1, INTENTS), "teacher")
        received = first.event("task_promoted", "task_rejected", "finetune_skipped", "task_held_back")
        assert received["type"] == "task_promoted", received
        wrong = tinymodels.orders(75, 3, INTENTS)
        labels = [row["label"] for row in wrong]
        random.Random(0).shuffle(labels)
        first.label([{**row, "label": label} for row, label in zip(wrong, labels, strict=True)], "mallory")
        first.event("source_quarantined")
        first.tell("override/lamp", value="bright", hold_s=0.5, source="person")
        first.event("override")
        first.event("policy_confirmed")
    print("second run: another policy, that stays on probation", flush=True)
    with Session(tree, folder, WATCHED) as second, second.recording("promotion.mcap", 15), second.rewarded():
        second.event("policy_on_probation")
    print("third run: recordings, a mode, the stop", flush=True)
    with Session(tree, folder, {}) as third:
        third.wait("decision", lambda body: body["mode"] == "autonomous")
        with third.recording("exploring.mcap"):
            pass
        third.ask("mode", mode="assist", actuator="arm")
        third.wait("decision", lambda body: body["mode"] == "assist")
        with third.recording("assisting.mcap"):
            third.tell("override/arm", value=[0.25], hold_s=0.5, source="person")
        third.tell("stop", engaged=True)
        third.wait("status", lambda body: body["state"] == "stopped")


def read(tree: Path, folder: Path) -> dict[str, Any]:
    """What the old program itself finds in the state directory it left; the replay of each recording among it."""
    from learners.reader import Reader

    state = folder / "state"
    with Reader(state / "experience") as reader:
        rows = reader.newest(1 << 30)
        received = {
            "rows": [row_facts(row) for row in rows],
            "labels": [[x.text, x.label, x.source] for x in reader.labels("intents")],
            "rewards": [[x.row, x.value, x.source] for x in reader.rewards(0, 1 << 30)],
            "quarantined": reader.quarantined(),
            "raw": [[x.stamp_s, x.encoding, x.data.decode()] for x in reader.raw("orders", 0, 1e12)],
        }
    for name in ("latches", "probation", "quarantine"):
        received[name] = json.loads((state / f"{name}.json").read_bytes())
    received["live"] = json.loads((state / "checkpoints" / "LIVE").read_bytes())
    received["task"] = json.loads((state / "learner" / "tasks" / "intents" / "current.json").read_bytes())
    received["replays"] = {}
    for path in sorted((state / "recordings").iterdir()):
        command = [sys.executable, "-m", "runtime.cli", "replay", str(path), "--config", "config.yaml", "--json"]
        done = subprocess.run(command, cwd=folder, env=_environment(tree), capture_output=True, text=True, check=False)
        report = json.loads(done.stdout)
        print(
            f"{path.name}: {report['decisions']} decisions by {report['versions']}, same: {report['same']}", flush=True
        )
        assert report["same"], f"the old program itself decides otherwise, run it again: {report['different'][:3]}"
        received["replays"][path.name] = report
    return received


def row_facts(row: Any) -> dict[str, Any]:
    """The content of a transition, with the first of each stream's tokens; `nobody` of 0.1.0 is called `none` here."""
    one = row.transition
    names = ("session", "tick", "decision", "stamp_s", "policy", "reward", "value")
    names += ("done", "intervention", "demonstration", "failure")
    facts = {"row": row.row, **{name: getattr(one, name) for name in names}}
    facts |= {"encoder_versions": one.encoder_versions, "actions": one.actions, "probabilities": one.probabilities}
    facts["by"] = {name: "none" if by == "nobody" else by for name, by in one.by.items()}
    facts["tokens"] = {name: [float(x) for x in tokens.flatten()[:3]] for name, tokens in one.tokens.items()}
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return] # tuples become lists


def machine() -> dict[str, str]:
    """What exact arithmetic hangs on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"torch": torch.__version__, "instructions": torch.backends.cpu.get_cpu_capability(), "processor": model}


def pack(folder: Path, out: Path) -> None:
    """The archive, with nothing of this machine in it.

    Raises:
        AssertionError: a file names a path of this machine, or the login of the tests.
    """
    import canaries

    def neutral(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    # the embedded broker's own settings: written again at each start, with the whole path of its folder in them
    shutil.rmtree(folder / "state" / "broker")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        for mark in (b"/tmp", b"/work", b"/root", b"/home", canaries.MARK.encode(), str(folder).encode()):
            assert mark not in path.read_bytes(), f"{path} contains {mark!r}"
    with tarfile.open(out, "w:gz") as archive:
        for name in ("state", "model", "held.jsonl", "expected.json"):
            archive.add(folder / name, name, filter=neutral)
    print(f"{out}: {out.stat().st_size:,} bytes")


def main() -> None:
    requested = argparse.ArgumentParser(description="Make the archive of an old state directory.")
    requested.add_argument("tree", type=Path, help=f"a checkout of {COMMIT}")
    requested.add_argument("out", type=Path)
    given = requested.parse_args()
    sys.path[:0] = [str(given.tree), str(given.tree / "tests")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            make(given.tree, folder)
            received = {"machine": machine(), **read(given.tree, folder)}
        finally:
            shutil.copy(folder / "log", given.out.with_suffix(".log"))
        (folder / "expected.json").write_text(json.dumps(received))
        for left in ("log", "config.yaml"):
            (folder / left).unlink()
        pack(folder, given.out)


if __name__ == "__main__":
    main()
