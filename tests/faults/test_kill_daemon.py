"""Faults of the processes of a daemon that learns from a real plant: kill -9, SIGSTOP, and a limit on their memory.

What the experience had taken before a kill is there after it; the daemon acts again with the version that was live, and the learner
goes on from where it had saved. A killed supervisor is started again, as systemd does.
"""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import canaries
import orjson
import paho.mqtt.client as mqtt
import psutil
import pytest
import yaml
from free_ports import free_port
from paho.mqtt.enums import CallbackAPIVersion

from fakes import Contention, Mosquitto, connect_when_up
from learners.experience.reader import Reader

ROOT = Path(__file__).resolve().parents[2]
BASE = "reflexd/cart"
START_S = 150.0
RATE_HZ = 20.0
BROKEN = {"checkpoint_refused", "experience_corrupt", "transition_rejected"}
VICTIMS = ("agent", "learner", "supervisor")


def until(what: Callable[[], object], received: Callable[[], str], deadline_s: float = START_S) -> None:
    end = time.monotonic() + deadline_s
    while not what():
        assert time.monotonic() < end, received()
        threading.Event().wait(0.05)


class Life:
    """A plant, a daemon that is started again when it dies, and an ear."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self.folder, self.broker, self.state = folder, broker, folder / "state"
        self.lock = threading.Lock()
        self.decisions: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        plant = ("plant", "CartPole-v1", "--rate", str(RATE_HZ))
        command = [sys.executable, "-m", "runtime.cli", *plant, "--agent", "cart", "--config"]
        printed = subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout
        settings = yaml.safe_load(printed) | {
            "state_dir": str(self.state),
            "mqtt": {"url": broker.url, **canaries.LOGIN},
            "gate": {"arm": "auto"},
            "dashboard": {"listen": f"127.0.0.1:{free_port()}"},
            "promotion": {"steps": ["integrity", "latency"], "experiments": False},
            "learner": {
                "batch": 32, "warmup": 40, "update_every_s": 0.2, "promote_every_s": 2, "save_every_s": 1,
                "priority": "normal",
            },
        }  # fmt: skip
        self.config = folder / "cart.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        self.log = (folder / "log").open("w+")
        self.plant = self.run(*plant, "--settings", str(self.config))
        self.daemon = self.run("run", str(self.config))
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{BASE}/#", 1)
        self.client.on_message = self.take
        connect_when_up(self.client, broker.port, START_S)

    def run(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "runtime.cli", *arguments]
        return subprocess.Popen(command, stdout=self.log, stderr=self.log, cwd=ROOT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        for process in (self.daemon, self.plant):
            process.send_signal(signal.SIGTERM)
        for process in (self.daemon, self.plant):
            process.wait(60)
        self.log.close()

    def take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        topic = message.topic.removeprefix(f"{BASE}/")
        if topic in ("decision", "event"):
            body = orjson.loads(message.payload)
            with self.lock:
                (self.decisions if topic == "decision" else self.events).append(body)

    def received(self) -> str:
        """What is known, for a failure."""
        self.log.seek(0)
        return f"events {[event['type'] for event in self.events][-20:]}; log: {self.log.read()[-3000:]}"

    def decided(self, since: int) -> list[dict[str, Any]]:
        with self.lock:
            return self.decisions[since:]

    def count(self, kind: str) -> int:
        with self.lock:
            return sum(event["type"] == kind for event in self.events)

    def updates(self) -> int:
        try:
            return int(orjson.loads((self.state / "learner" / "progress.json").read_bytes())["updates"])
        except FileNotFoundError:
            return 0

    def rows(self) -> dict[int, str]:
        """Row and decision of every transition that a reader sees."""
        if not (self.state / "experience").is_dir():
            return {}
        with Reader(self.state / "experience") as reader:
            return {row.row: row.transition.decision for row in reader.rows(0, 1 << 40)}

    def pid(self, victim: str) -> int:
        """The process with this title; one that was just started has its title in a moment."""
        if victim == "supervisor":
            return self.daemon.pid
        found: list[int] = []

        def titled() -> list[int]:
            children = psutil.Process(self.daemon.pid).children()
            found[:] = [child.pid for child in children if " ".join(child.cmdline()).strip() == f"reflexd: {victim}"]
            return found

        until(titled, self.received)
        return found[0]

    def kill(self, victim: str) -> None:
        """Kill one, and start the daemon again if it was the one."""
        family = psutil.Process(self.daemon.pid).children(recursive=True) if victim == "supervisor" else []
        family = [each for each in family if "stop listener" not in " ".join(each.cmdline())]  # it lives on, by design
        psutil.Process(self.pid(victim)).kill()
        if victim == "supervisor":
            self.daemon.wait(30)
            psutil.wait_procs(family, timeout=60)
            self.daemon = self.run("run", str(self.config))

    def learning(self) -> None:
        """Wait until it acts by a learned version and the learner makes updates."""
        at, decided = self.updates(), len(self.decided(0))
        until(lambda: any(d["policy"] != "untrained" for d in self.decided(decided)), self.received)
        until(lambda: self.updates() > at, self.received)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """One daemon for all tests of this file: its start and its first version take most of the time."""
    folder = tmp_path_factory.mktemp("life")
    broker = Mosquitto(folder).start()
    try:
        with Life(folder, broker) as one:
            yield one
    finally:
        broker.stop()


def survive(life: Life, victims: list[str], rng: random.Random) -> int:
    """Kill one after the other; returns how many transitions are missing in the end, and never stops at one."""
    life.learning()
    lost: set[int] = set()
    for victim in victims:
        threading.Event().wait(rng.uniform(0.0, 3.0))
        acknowledged, at, resumed = life.rows(), life.updates(), life.count("learner_resumed")
        life.kill(victim)
        seen = len(life.decided(0))
        until(lambda seen=seen: life.decided(seen), life.received)
        first = life.decided(seen)[0]
        assert first["policy"] != "untrained", f"after the {victim}: {life.received()}"
        if victim != "agent":
            until(lambda resumed=resumed: life.count("learner_resumed") > resumed, life.received)
            received = [event["data"] for event in life.events if event["type"] == "learner_resumed"][-1]
            assert received["resumed"], received
            assert received["update"] <= at + RATE_HZ * 10
        life.learning()
        after = life.rows()
        lost |= {row for row, decision in acknowledged.items() if after.get(row) != decision}
    assert not [event for event in life.events if event["type"] in BROKEN]
    return len(lost)


def test_each_process_is_killed_once(life: Life) -> None:
    lost = survive(life, list(VICTIMS), random.Random(0))
    print(f"kill -9 of {', '.join(VICTIMS)}: {lost} acknowledged transitions lost")
    assert lost == 0


def acts_on(life: Life, while_s: float) -> float:
    """Return the longest time between two decisions within `while_s`, and after it until the next one.

    The seconds in which the machine let a process wait for a core do not count.
    """
    longest_s, end_s = 0.0, time.monotonic() + while_s
    while time.monotonic() < end_s:
        begun_s, seen, contention = time.monotonic(), len(life.decided(0)), Contention()
        until(lambda seen=seen: life.decided(seen), life.received)
        longest_s = max(longest_s, time.monotonic() - begun_s - contention.s)
    return longest_s


def lost_rows(life: Life, acknowledged: dict[int, str]) -> int:
    after = life.rows()
    return sum(after.get(row) != decision for row, decision in acknowledged.items())


@pytest.mark.parametrize("victim", ["learner", "dashboard"])
def test_a_frozen_learner_or_page_stops_no_decision(life: Life, victim: str) -> None:
    life.learning()
    acknowledged, restarts = life.rows(), life.count("child_restarted")
    process = psutil.Process(life.pid(victim))
    process.suspend()
    try:
        updates = life.updates()
        gap_s = acts_on(life, 2.0)
        assert victim != "learner" or life.updates() == updates
    finally:
        process.resume()
    life.learning()
    lost = lost_rows(life, acknowledged)
    print(f"SIGSTOP of the {victim}: longest time between two decisions {gap_s:.2f} s; {lost} transitions lost")
    assert lost == 0
    assert gap_s < 10
    assert life.count("child_restarted") == restarts


def test_a_learner_without_memory_is_started_again_and_stops_no_decision(life: Life) -> None:
    life.learning()
    acknowledged, restarts, resumed = life.rows(), life.count("child_restarted"), life.count("learner_resumed")
    resource.prlimit(life.pid("learner"), resource.RLIMIT_AS, (1, 1))  # it gets no memory any more
    begun_s = time.monotonic()
    until(lambda: life.count("child_restarted") > restarts, life.received)
    named_s = time.monotonic() - begun_s
    gap_s = acts_on(life, 1.0)
    until(lambda: life.count("learner_resumed") > resumed, life.received)
    life.learning()
    lost = lost_rows(life, acknowledged)
    last = [event["data"] for event in life.events if event["type"] == "child_restarted"][-1]
    print(
        f"learner without memory: named after {named_s:.1f} s, longest time between two decisions {gap_s:.2f} s, "
        f"learns again after {time.monotonic() - begun_s:.0f} s; {lost} transitions lost"
    )
    assert last["child"] == "learner"
    assert lost == 0
    assert gap_s < 10
    assert not [event for event in life.events if event["type"] in BROKEN]


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_fifty_kills_at_random_moments(life: Life) -> None:
    rng = random.Random(1)
    assert survive(life, [rng.choice(VICTIMS) for _ in range(50)], rng) == 0
