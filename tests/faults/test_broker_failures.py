"""Every kind of failure of the broker, and what each place shows of it: the same sentence with the remedy everywhere."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from certificates import certificate
from free_ports import free_port
from structlog.testing import capture_logs

from actuators.wire import DeviceMessage
from fakes import Mosquitto, eventually
from runtime.agent.jobs import unready
from runtime.config.loader import LoadedConfig, load
from runtime.console import client
from runtime.console.status import show_status
from runtime.dashboard.broker_connections import MqttBridge
from runtime.dashboard.view_state import ViewState
from runtime.gate.status import AgentLiveness, StatusPublisher
from runtime.mqtt import Address, Connection
from runtime.mqtt.topics import Topics
from runtime.plant import serve

SETTINGS = """\
agent: lamp
state_dir: {state}
mqtt: {{keepalive_s: 1, {mqtt}}}
streams: {{joints: {{kind: telemetry, source: topic, fields: [a]}}}}
actuators: {{head: {{kind: choice, choices: [left, stay], safe: stay}}}}
"""
LOGIN = "username: anna, password: canary-wrong"
FAILURES = {
    "closed port": "no broker listens there; start it, or correct mqtt.url",
    "silent host": "does not answer; check mqtt.url, the network and the firewall",
    "unknown host": "is unknown: no address for nowhere.invalid; correct mqtt.url",
    "other authority": "has a certificate that is refused: self-signed certificate; correct mqtt.ca",
    "other host": "has a certificate that is refused: IP address mismatch",
    "wrong login": "refuses the login (user anna); correct mqtt.username and mqtt.password",
}


@dataclass
class NoPlant:
    """A device that does nothing."""

    period_s: float = 1.0

    def subscriptions(self) -> tuple[str, ...]:
        return ("reflexd/lamp/act/head/set",)

    def receive(self, topic: str, payload: bytes, *, retained: bool, now_s: float) -> list[DeviceMessage]:
        return []

    def step(self, now_s: float) -> list[DeviceMessage]:
        return []


@dataclass
class Places:
    """The places that show the state of a daemon's connection, with the connections that they have in a daemon."""

    loaded: LoadedConfig
    gate: Connection = field(init=False)
    agent: Connection = field(init=False)
    page: MqttBridge = field(init=False)

    def __post_init__(self) -> None:
        mqtt, topics = self.loaded.config.mqtt, Topics("lamp")
        self.gate = Connection(Address.of(mqtt, "gate"), "reflexd-lamp-gate")
        self.agent = Connection(Address.of(mqtt, "agent"), "reflexd-lamp-agent")
        self.page = MqttBridge(Address.of(mqtt, "dashboard"), topics, ViewState(topics), list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run every connection."""
        plant = serve(NoPlant(), self.loaded.config.mqtt, "lamp")
        tasks = [asyncio.create_task(each) for each in (self.gate.run(), self.agent.run(), self.page.run(), plant)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def status(self) -> str:
        """Return the reasons of the published status."""
        gate: Any = SimpleNamespace(stopped=False, armed=False, restricted={})
        feeder: Any = SimpleNamespace(required=frozenset())
        liveness = AgentLiveness(ready=True, was_ready=True, heartbeat_s=0.0)
        latches: Any = SimpleNamespace(error=None)
        info: Any = None
        made = StatusPublisher(gate, self.gate, self.gate, Topics("lamp"), feeder, liveness, latches, info)
        state, reasons = made.status()
        return f"{state}: {'; '.join(reasons)}"

    def readyz(self) -> str:
        """Return what `/readyz` answers."""
        loop = SimpleNamespace(clock=SimpleNamespace(now=float), mode="shadow")
        parts: Any = SimpleNamespace(
            control_loop=loop,
            gate=SimpleNamespace(latest=None),
            inbox=SimpleNamespace(stale=lambda _now: (), required=()),
            control=self.agent,
        )
        return "; ".join(unready(parts))

    def link(self) -> str:
        """Return what the page shows."""
        return str(self.page.state.sections["link"]["reason"])


@asynccontextmanager
async def failing(kind: str, folder: Path) -> AsyncIterator[str]:
    """Yield the `mqtt` section of settings for a broker that fails in this way."""
    port, broker = free_port(), None
    if kind == "silent host":
        with socket.create_server(("127.0.0.1", port), backlog=64):  # the kernel accepts, and no program answers
            yield f"url: 'mqtt://127.0.0.1:{port}'"
        return
    if kind in ("other authority", "other host"):
        key, cert = await asyncio.to_thread(
            certificate, folder, "127.0.0.1" if kind == "other authority" else "192.0.2.7"
        )
        extra = f"listener {port} 127.0.0.1\nallow_anonymous true\ncertfile {cert}\nkeyfile {key}\nuser root\n"
        broker = Mosquitto(folder, port, extra)
    if kind == "wrong login":
        passwords = folder / "passwords"
        passwords.touch()
        passwords.chmod(0o644)
        command = ["mosquitto_passwd", "-b", str(passwords), "anna", "right"]
        await asyncio.to_thread(subprocess.run, command, check=True)
        extra = f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\nuser root\n"
        broker = Mosquitto(folder, port, extra)
    if broker is not None:
        await asyncio.to_thread(broker.start)
    try:
        yield {
            "closed port": f"url: 'mqtt://127.0.0.1:{port}'",
            "unknown host": "url: 'mqtt://nowhere.invalid'",
            "other authority": f"url: 'mqtts://127.0.0.1:{port}'",
            "other host": f"url: 'mqtts://127.0.0.1:{port}', ca: '{folder / 'cert.pem'}'",
            "wrong login": f"url: 'mqtt://127.0.0.1:{port}', {LOGIN}",
        }[kind]
    finally:
        if broker is not None:
            broker.stop()


def settings(folder: Path, mqtt: str) -> LoadedConfig:
    file = folder / "lamp.yaml"
    file.write_text(SETTINGS.format(state=folder / "state", mqtt=mqtt))
    return load(file)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", FAILURES)
async def test_every_place_names_the_failure_and_its_remedy_alike(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CONNECT_S", 0.0)  # the verb answers as soon as the reason is known
    async with failing(kind, tmp_path) as mqtt:
        places = Places(settings(tmp_path, mqtt))
        with capture_logs() as logs:
            async with places.running():
                shown: dict[str, Callable[[], str]] = {
                    "status": places.status,
                    "/readyz": places.readyz,
                    "page": places.link,
                    "plant": lambda: "; ".join(e["reason"] for e in logs if e.get("client") == "reflexd-lamp-plant"),
                }
                for place, text in shown.items():
                    await eventually(lambda text=text: FAILURES[kind] in text(), f"{kind} at {place}", 30)
        code = await asyncio.to_thread(show_status, places.loaded, as_json=False, timeout_s=30.0)
    gc.collect()  # paho leaves a refused TLS socket to it
    printed = capsys.readouterr().err
    assert code == 3
    assert FAILURES[kind] in printed
    assert "canary" not in printed + str(logs)
    warned = [entry["client"] for entry in logs if entry["log_level"] == "warning"]
    assert len(warned) <= len(set(warned)) * 2, "at once, and then rarely"


async def test_two_daemons_of_one_name_are_named_at_every_place_while_they_are_connected(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path).start()
    try:
        loaded = settings(tmp_path, f"url: '{broker.url}'")
        one, other = Places(loaded), Places(loaded)
        with capture_logs() as logs:
            async with one.running(), other.running():
                for place, text in {"status": one.status, "/readyz": one.readyz}.items():
                    await eventually(
                        lambda text=text: "give each daemon its own name" in text(), f"the name at {place}", 60
                    )
                    assert text().startswith("degraded") or place != "status"
                await eventually(
                    lambda: any(
                        e.get("client") == "reflexd-lamp-plant" and "its own name" in e.get("reason", "") for e in logs
                    ),
                    "the name at plant",
                    60,
                )
    finally:
        broker.stop()
