"""Secrets that sing: a whole daemon with passwords in its settings, and everything it produced is searched for them.

The broker wants a password, the cameras' addresses carry others, and the page has tokens of its own. What is searched:
logs, every MQTT message, metrics, the page and what its web socket sends, every file of the state directory, a recording,
command lines and environment titles of every process, a crash of the agent, and what `reflexd check` says of broken files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import canaries
import paho.mqtt.client as mqtt
import psutil
import pytest
import yaml
from aiohttp import ClientSession
from free_ports import free_port
from paho.mqtt.enums import CallbackAPIVersion

from fakes import Mosquitto, end, listening, wait_for

ROOT = Path(__file__).parents[2]
SONG = re.compile(rb"c4nary-[a-z-]+-[0-9a-f]{4}")
START_S = 150.0
PLUGIN = """
import asyncio, logging
from collections import Counter

class Sings:
    def __init__(self, name, options, *, clock):
        self.name, self.drops, self.password = name, Counter(), options["password"]

    async def run(self, publish, lost, recovered):
        logging.getLogger("sings").warning("signing in with %s", self.password)
        lost(f"the password {self.password!r} was refused")
        await asyncio.Event().wait()
"""
"""A plugin that tells its password wherever it can."""


def settings(folder: Path, broker: int) -> dict[str, Any]:
    camera = {"kind": "camera", "encoder": "vision", "rate_hz": 5}
    return {
        "agent": "sings",
        "state_dir": str(folder / "state"),
        "mqtt": {"url": f"mqtt://127.0.0.1:{broker}", "username": "sings", "password": "${env:SINGS_MQTT}"},
        "streams": {
            "joints": {"kind": "telemetry", "source": "topic", "fields": ["angle"], "required": True},
            "hidden": {**camera, "source": f"rtsp://cam:${{env:SINGS_RTSP}}@127.0.0.1:{free_port()}/1"},
            "plain": {**camera, "source": f"rtsp://cam:{canaries.INLINE}@127.0.0.1:{free_port()}/1"},
            "careless": {
                "kind": "plugin",
                "plugin": "sings",
                "fields": ["x"],
                "options": {"password": canaries.PLUGIN},
            },
            "http": {**camera, "source": f"http://127.0.0.1:{free_port()}/x?token={canaries.QUERY}"},
        },
        "encoders": {"vision": {"model": "bundled:efficientnet-lite0"}},
        "actuators": {"head": {"kind": "choice", "choices": ["left", "stay", "right"], "safe": "stay"}},
        "rewards": [{"name": "feedback", "kind": "topic"}],
        "gate": {"arm": "auto", "deadman_ms": 2_000},
        "learner": {"warmup": 32, "batch": 16, "promote_every_s": 3, "priority": "normal"},
        "promotion": {"steps": ["integrity"], "experiments": False},
        "dashboard": {
            "listen": f"127.0.0.1:{free_port()}",
            "token": "${file:" + str(folder / "operator-token") + "}",
            "viewer_token": canaries.VIEWER,
        },
        "metrics": {"listen": f"127.0.0.1:{free_port()}"},
    }


@dataclass
class Singing:
    """The daemon, and every message that passed its broker."""

    folder: Path
    known: dict[str, Any]
    broker: Mosquitto
    environment: dict[str, str]
    received: list[mqtt.MQTTMessage] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "sings.yaml"

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "runtime.cli", "run", str(self.config), "--verbose"]
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=self.environment)

    def listen(self) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.username_pw_set("sings", canaries.MQTT)
        client.on_connect = lambda client, *_: client.subscribe("#", 1)
        client.on_message = lambda _c, _u, message: self.received.append(message)
        client.connect("127.0.0.1", self.broker.port)
        client.loop_start()
        return client

    def has(self, topic: str, accept: str = "") -> bool:
        return any(m.topic == f"reflexd/sings/{topic}" and accept in m.payload.decode() for m in list(self.received))

    def verb(self, *arguments: str) -> bytes:
        command = [sys.executable, "-m", "runtime.cli", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, env=self.environment, check=False)
        return done.stdout + done.stderr


@pytest.fixture
def singing(tmp_path: Path) -> Iterator[Singing]:
    port = free_port()
    passwords = tmp_path / "passwords"
    passwords.touch(0o600)
    tool = shutil.which("mosquitto_passwd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert tool, "mosquitto_passwd is missing: apt-get install mosquitto"
    subprocess.run([tool, "-b", str(passwords), "sings", canaries.MQTT], check=True, capture_output=True)
    text = f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\nuser root\n"
    broker = Mosquitto(tmp_path, port, extra=text).start()
    (tmp_path / "operator-token").write_text(canaries.OPERATOR)
    known = settings(tmp_path, port)
    site = tmp_path / "site"
    (site / "sings-1.dist-info").mkdir(parents=True)
    (site / "sings.py").write_text(PLUGIN)
    (site / "sings-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sings\nVersion: 1\n")
    (site / "sings-1.dist-info" / "entry_points.txt").write_text("[reflexd.sensors]\nsings = sings:Sings\n")
    environment = os.environ | {"PYTHONPATH": str(site)} | {"SINGS_MQTT": canaries.MQTT, "SINGS_RTSP": canaries.RTSP}
    found = Singing(tmp_path, known, broker, environment)
    found.config.write_text(yaml.safe_dump(known))
    yield found
    broker.stop()


def sung(what: str, data: bytes) -> set[tuple[str, bytes]]:
    return {(what, song) for song in SONG.findall(data)}


def in_processes(root: psutil.Process) -> set[tuple[str, bytes]]:
    found: set[tuple[str, bytes]] = set()
    for process in (root, *root.children(recursive=True)):
        title = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        found |= sung(f"command line of {title[:40]!r}", title)
    return found


def on_the_metrics_port(address: str) -> set[tuple[str, bytes]]:
    found: set[tuple[str, bytes]] = set()
    for path in ("metrics", "livez", "readyz"):
        try:
            with urllib.request.urlopen(f"{address}/{path}") as answer:
                found |= sung(path, answer.read())
        except urllib.error.HTTPError as refused:  # not ready: the reasons count, too
            found |= sung(path, refused.read())
    return found


async def on_the_page(address: str) -> set[tuple[str, bytes]]:
    found: set[tuple[str, bytes]] = set()
    async with ClientSession() as http:
        answer = await http.post(f"{address}/login", data={"token": canaries.OPERATOR})
        found |= sung("login", await answer.read() + repr(answer.headers).encode())
        cookie = answer.headers["Set-Cookie"].split(";")[0]
        headers = {"Cookie": cookie, "Origin": address}
        for path in ("/", "/login", "/nowhere"):
            answer = await http.get(f"{address}{path}", headers=headers)
            found |= sung(path, await answer.read())
        async with http.ws_connect(f"{address}/socket", headers=headers) as ws:
            await ws.send_json({"do": "request", "verb": "checkpoints", "id": 1})
            for _ in range(15):
                message = await ws.receive()
                found |= sung("web socket", message.data if isinstance(message.data, bytes) else message.data.encode())
    return found


async def test_no_secret_is_in_anything_a_whole_daemon_produced(singing: Singing) -> None:
    listener = singing.listen()
    process = singing.start()
    base, page = "reflexd/sings", f"http://{singing.known['dashboard']['listen']}"
    found: set[tuple[str, bytes]] = set()
    try:
        port = int(page.rpartition(":")[2])
        wait_for(lambda: listening(port), "the page", START_S)
        wait_for(lambda: singing.has("status"), "the agent", START_S)

        def feed(topic: str) -> bool:
            listener.publish(f"{base}/in/joints", json.dumps({"angle": 0.5}), 0)
            return singing.has(topic)

        wait_for(lambda: feed("decision"), "a decision", START_S)
        wait_for(lambda: feed("event") and singing.has("event", "sensor_lost"), "the lost cameras", START_S)
        for verb in ("record", "explain", "checkpoints", "reload", "promote", "nonsense"):
            listener.publish(f"{base}/request/{verb}", json.dumps({"decision": "x", "version": "y"}), 1)
        wait_for(lambda: feed("response/reload"), "the answer to reload", START_S)
        wait_for(lambda: feed("health"), "health", START_S)
        found |= in_processes(psutil.Process(process.pid))
        found |= await on_the_page(page)
        found |= on_the_metrics_port(f"http://{singing.known['metrics']['listen']}")
        agents = [
            p for p in psutil.Process(process.pid).children() if b"agent" in b" ".join(map(str.encode, p.cmdline()))
        ]
        agents[0].send_signal(signal.SIGABRT)
        wait_for(lambda: feed("event") and singing.has("event", "child_restarted"), "the crash", START_S)
    finally:
        end(process)
        listener.disconnect()
        listener.loop_stop()
    for message in singing.received:
        found |= sung(f"{message.topic} {message.payload[:40]!r}", message.topic.encode() + message.payload)
    found |= sung("log", (singing.folder / "log").read_bytes())
    files = [path for path in (singing.folder / "state").rglob("*") if path.is_file()]
    for path in files:
        found |= sung(str(path.relative_to(singing.folder)), path.read_bytes())
    for verb in ("status", "checkpoints"):
        arguments = [verb, str(singing.config)] if verb == "status" else [verb, "--config", str(singing.config)]
        found |= sung(verb, singing.verb(*arguments))
    assert found == set()
    assert singing.has("event", "the password '***' was refused")
    assert b"signing in with ***" in (singing.folder / "log").read_bytes()
    assert any(path.suffix == ".mcap" for path in files), "nothing was recorded"
    topics = {message.topic for message in singing.received}
    assert {f"{base}/{name}" for name in ("info", "status", "health", "decision", "event")} <= topics


BROKEN: dict[str, dict[str, Any]] = {
    "a key that is not known": {"mqtt": {"pasword": canaries.MQTT}},
    "a password of the wrong type": {"mqtt": {"password": [canaries.MQTT]}},
    "a secret where a number belongs": {"tick": {"rate_hz": "${env:SINGS_MQTT}"}},
    "a secret as a name": {"agent": "${env:SINGS_RTSP}!"},
    "credentials in the broker's address": {"mqtt": {"url": f"mqtt://u:{canaries.MQTT}@host:x"}},
    "a camera with an odd setting": {"streams": {"c": {"kind": "camera", "source": f"rtsp://u:{canaries.INLINE}@h/1"}}},
    "a camera of no known sort": {
        "streams": {"c": {"kind": "camera", "source": f"rtsp//u:{canaries.INLINE}@h/1", "encoder": "vision"}}
    },
    "a token that is too short": {"dashboard": {"token": canaries.OPERATOR, "listen": 7}},
}


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_what_check_says_of_broken_settings_names_no_secret(singing: Singing, what: str) -> None:
    body = singing.known | {
        key: (singing.known.get(key, {}) | change if isinstance(change, dict) else change)
        for key, change in BROKEN[what].items()
    }
    singing.config.write_text(yaml.safe_dump(body))
    reported = singing.verb("check", str(singing.config))
    assert sung(what, reported) == set(), reported.decode()
    assert b"sings.yaml:" in reported or b"ok" in reported.lower()
