"""Shadow mode watched from outside: `python tests/benchmarks/shadow_run.py [SECONDS]` (default 600).

Runs the demo's daemon in mode `shadow` with the learner on, its own broker and world. The world's person takes over the head in half of
the episodes, all the time, by `override/head`; nothing else moves it. The promotion gate is asked without its `ope` step: where no
decision of the policy is carried out, none can be weighed. Watched:

- `mosquitto_sub` on `reflexd/demo/act/+/set`: no message may carry a policy's name (overrides and safe actions are people's and the
  gate's).
- every decision against what the person does at that moment: how often the shadow policy would have done the same, minute by minute.
  It learns from overrides alone, as its own decisions are not carried out; the last fifth must agree more often than the first.

Prints a line a minute and a table; exit code 1 when a command of the policy was seen or the agreement did not rise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import paho.mqtt.client as mqtt
import yaml
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from free_ports import free_port  # noqa: E402 - after the path

from actuators.sim import panorama_plant  # noqa: E402 - after the path
from fakes import connect_when_up  # noqa: E402 - after the path
from runtime.config.mqtt_settings import MqttSettings  # noqa: E402 - after the path
from runtime.plant import serve  # noqa: E402 - after the path

START_S = 180.0
HUMAN = {"override", "gate", ""}
FIFTH = 5


@dataclass
class Seen:
    """What passed by, by the minute."""

    agreed: Counter[int] = field(default_factory=Counter)
    requested: Counter[int] = field(default_factory=Counter)
    policies: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    override: tuple[float, str] = (0.0, "")
    begun_s: float = 0.0

    def take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        """One message."""
        body: dict[str, Any] = json.loads(message.payload)
        kind = message.topic.rsplit("/", 1)[-1]
        now_s = time.monotonic()
        if kind == "head":
            self.override = (now_s, str(body["value"]))
        elif kind == "event":
            self.events[body["type"]] += 1
        elif kind == "decision":
            self.begun_s = self.begun_s or now_s
            if body["policy"] not in self.policies:
                self.policies.append(body["policy"])
            stamp_s, value = self.override
            if now_s - stamp_s < 0.15:
                minute = int((now_s - self.begun_s) / 60)
                self.requested[minute] += 1
                self.agreed[minute] += body["actions"]["head"]["value"] == value

    def share(self, minutes: range) -> float:
        """How often it would have done what the person did."""
        requested = sum(self.requested[minute] for minute in minutes)
        return sum(self.agreed[minute] for minute in minutes) / requested if requested else float("nan")


def settings(folder: Path, port: int) -> Path:
    """The demo in shadow mode, with a person who goes on taking over."""
    body = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    body |= {"mode": "shadow", "state_dir": str(folder / "state"), "mqtt": {"url": f"embedded://127.0.0.1:{port}"}}
    body["metrics"] = {"listen": f"127.0.0.1:{free_port()}"}
    body.pop("dashboard", None)
    body.pop("plant")
    body["promotion"] = {"steps": ["integrity", "latency", "sanity", "held_out", "shadow"]}
    path = folder / "shadow.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


def world(port: int) -> int:
    """The demo's world with a person who does not tire; a process of its own, as `plant:` has it."""
    panorama_plant.TAKEOVERS_S = float("inf")
    plant = panorama_plant.PanoramaPlant("demo", 0, simulated_overrides=True)
    asyncio.run(serve(plant, MqttSettings(url=f"mqtt://127.0.0.1:{port}"), "demo"))
    return 0


def commands(port: int, file: IO[str]) -> subprocess.Popen[str]:
    """mosquitto_sub on every command, one JSON line each."""
    program = shutil.which("mosquitto_sub")
    assert program, "mosquitto_sub is missing: apt-get install mosquitto-clients"
    arguments = ["-V", "5", "-p", str(port), "-t", "reflexd/demo/act/+/set", "-q", "1"]
    return subprocess.Popen([program, *arguments], stdout=file, text=True)


def connected(port: int, seen: Seen) -> mqtt.Client:
    """A client that hears decisions, overrides and events."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    topics = [("reflexd/demo/decision", 0), ("reflexd/demo/override/head", 1), ("reflexd/demo/event", 1)]
    client.on_connect = lambda one, *_: one.subscribe(topics)
    client.on_message = seen.take
    connect_when_up(client, port, START_S)
    return client


def watch(seconds: float, seen: Seen, daemon: subprocess.Popen[bytes]) -> None:
    """Wait for the first decision and then so long, with a line a minute."""
    pause, deadline_s = threading.Event(), time.monotonic() + START_S
    while not seen.begun_s and time.monotonic() < deadline_s and daemon.poll() is None:
        pause.wait(0.5)
    assert seen.begun_s, "no decision; see the daemon's log"
    for minute in range(int(seconds / 60)):
        while time.monotonic() < seen.begun_s + 60 * (minute + 1) and daemon.poll() is None:
            pause.wait(0.5)
        sys.stderr.write(
            f"minute {minute + 1}: agrees {seen.share(range(minute, minute + 1)):.2f} in {seen.requested[minute]} ticks,"
            f" {len(seen.policies)} versions\n"
        )


def by_policy(lines: list[str]) -> Counter[str]:
    """Commands by who decided."""
    return Counter(str(json.loads(line).get("policy") or "") for line in lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", nargs="?", type=float, default=600.0)
    parser.add_argument("--world", type=int, metavar="PORT", help=argparse.SUPPRESS)  # this file's own child
    given = parser.parse_args(arguments)
    if given.world is not None:
        return world(given.world)
    seconds = given.seconds
    seen, port = Seen(), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = settings(folder, port)
        with (folder / "log").open("wb") as log, (folder / "commands").open("w+") as received, ExitStack() as running:
            run = [sys.executable, "-m", "runtime.cli", "run", str(config)]
            daemon = started(running, run, log)
            client = connected(port, seen)
            running.callback(client.loop_stop)
            running.callback(client.disconnect)
            started(running, [sys.executable, __file__, "--world", str(port)], log)
            listener = commands(port, received)
            running.callback(listener.terminate)
            watch(seconds, seen, daemon)
            running.close()
            listener.wait(10)
            received.seek(0)
            who = by_policy([line for line in received.read().splitlines() if line.strip()])
    return report(seen, who, int(seconds / 60))


def started(running: ExitStack, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a child; the stack sends it SIGTERM and waits for it when it closes."""
    child = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    running.callback(child.wait, 60)
    running.callback(child.send_signal, signal.SIGTERM)
    return child


def report(seen: Seen, who: Counter[str], minutes: int) -> int:
    """The table, and whether it held."""
    part = max(1, minutes // FIFTH)
    first, last = seen.share(range(part)), seen.share(range(minutes - part, minutes))
    theirs = sum(count for name, count in who.items() if name not in HUMAN)
    table = Table("what", "found", "bound")
    table.add_row("commands of a policy", str(theirs), "0")
    table.add_row("commands by who decided", str(dict(who)), "")
    table.add_row("agrees with the person, first fifth", f"{first:.3f}", "")
    table.add_row("agrees with the person, last fifth", f"{last:.3f}", "more than the first")
    table.add_row("versions that decided", str(len(seen.policies)), "")
    table.add_row("events", str(dict(seen.events)), "")
    Console(width=140).print(table)
    return int(theirs > 0 or not last > first)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
