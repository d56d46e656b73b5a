"""`reflexd status`, `reflexd top` and requests: separate logins, untrusted text, and what is old."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from io import StringIO
from pathlib import Path

import canaries
import pytest
from free_ports import free_port
from rich.console import Console
from wire_helpers import running

from fakes import Mosquitto, eventually
from fakes_agent import running as fake_agent
from runtime.config.loader import LoadedConfig, load
from runtime.config.schema import Config
from runtime.console import status
from runtime.console.client import NoAnswer, connect, send_request
from runtime.console.status import LatestMessages, picture, plain, show_status, subscribe
from runtime.dashboard.broker_connections import MqttBridge
from runtime.dashboard.view_state import ViewState
from runtime.mqtt import Address, Message
from runtime.mqtt.topics import Refused, Topics, encode

FOLDER = Path(__file__).parents[3] / "configs" / "mosquitto"
LOGINS = {
    "gate": "gate",
    "agent": "agent",
    "dashboard": "page",
    "status": "status",
    "top": "top",
    "request": "request",
}


def settings(tmp_path: Path, mqtt: str) -> LoadedConfig:
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"agent: demo\nstate_dir: {tmp_path}/state\nmqtt: {mqtt}\n"
        "streams: {joints: {kind: telemetry, fields: [a]}}\nactuators: {head: {kind: choice, choices: [a, b], safe: a}}\n"
    )
    return load(path)


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[Mosquitto]:
    """A mosquitto with the shipped configuration and access list."""
    folder = tmp_path / "broker"
    folder.mkdir()
    tmp_path.chmod(0o755)
    passwords = folder / "passwords"
    passwords.touch()
    tool = shutil.which("mosquitto_passwd")
    assert tool, "mosquitto_passwd is missing: apt-get install mosquitto"
    for user in [*LOGINS.values(), "page-media", "page-stop"]:
        subprocess.run([tool, "-b", str(passwords), user, canaries.MQTT], check=True, capture_output=True)
    shutil.copy(FOLDER / "acl", folder / "acl")
    port = free_port()
    text = (FOLDER / "mosquitto.conf").read_text()
    text = text.replace("listener 1883", f"listener {port} 127.0.0.1\nuser root").replace("/etc/mosquitto", str(folder))
    broker = Mosquitto(folder, port, extra=text)
    yield broker.start()
    broker.stop()


def logins(port: int) -> str:
    own = {client: {"username": user, "password": canaries.MQTT} for client, user in LOGINS.items()}
    own["dashboard"] |= {"media": "page-media", "stop": "page-stop"}
    return json.dumps({"url": f"mqtt://127.0.0.1:{port}", **own})


async def test_the_page_and_every_tool_stay_connected_with_the_shipped_broker(
    tmp_path: Path, shipped: Mosquitto
) -> None:
    loaded = settings(tmp_path, logins(shipped.port))
    topics = Topics("demo")
    bridge = MqttBridge(Address.of(loaded.config.mqtt, "dashboard"), topics, ViewState(topics), list)
    top, once, request = (
        subscribe(loaded, "top", LatestMessages()),
        subscribe(loaded, "status", LatestMessages()),
        connect(loaded, "request"),
    )
    links = (top, once, request, bridge.control, bridge.stop, bridge._connection("media"))
    async with AsyncExitStack() as all_of_them:
        for link in links:
            await all_of_them.enter_async_context(running(link))
        for _ in range(15):
            await bridge.stop.publish("reflexd/demo/stop", b'{"engaged": true}')
            await request.publish("reflexd/demo/request/explain", b"{}")
        assert all(link.connects == 1 and link.connected for link in links)


async def test_of_two_tops_with_one_login_one_ends_and_names_the_reason(tmp_path: Path, shipped: Mosquitto) -> None:
    loaded, seen = settings(tmp_path, logins(shipped.port)), [LatestMessages(), LatestMessages()]
    async with running(subscribe(loaded, "top", seen[0])), running(subscribe(loaded, "top", seen[1])):
        await eventually(lambda: any(each.ended for each in seen))
    assert "another client seems to use the same login" in seen[0].ended + seen[1].ended
    assert "mqtt.top" in seen[0].ended + seen[1].ended


def test_a_tool_without_a_login_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = f"{{username: u, password: {canaries.MQTT}}}"
    loaded = settings(tmp_path, f"{{url: 'mqtt://127.0.0.1:1', gate: {one}, agent: {one}}}")
    assert show_status(loaded, as_json=False, timeout_s=0.1) == 2
    assert status.watch(loaded) == 2
    assert "mqtt.status: missing" in capsys.readouterr().err
    with pytest.raises(NoAnswer, match=r"mqtt\.request: missing, while mqtt\.gate, mqtt\.agent have a login"):
        send_request(loaded, "explain", {})


def test_settings_with_a_login_for_some_clients_need_one_for_each() -> None:
    base = {
        "agent": "a",
        "state_dir": "/nonexistent",
        "streams": {"joints": {"kind": "telemetry", "source": "topic", "fields": ["a"]}},
        "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
    }
    with pytest.raises(ValueError, match=r"mqtt\.agent: missing"):
        Config.model_validate({**base, "mqtt": {"gate": {"username": "gate"}}})
    config = Config.model_validate({**base, "mqtt": {"gate": {"username": "gate"}, "username": "others"}})
    assert {
        client.username for client in (config.mqtt.credentials("top"), config.mqtt.credentials("agent")) if client
    } == {"others"}


def shown(panel: object) -> str:
    out = StringIO()
    Console(file=out, width=200, force_terminal=True, color_system=None).print(panel)
    return out.getvalue()


def message(kind: str, body: object) -> Message:
    return Message(f"reflexd/demo/{kind}", json.dumps(body).encode(), 1, retain=False)


def test_markup_and_control_characters_are_shown_as_text() -> None:
    seen = LatestMessages()
    seen.take(message("status", {"state": "[/bold]", "reasons": ["[red]x[/blue]"]}))
    seen.take(message("health", {"streams": {"[/]": {"drops": {"\x1b]0;title\x07": 1}}}, "policy": "[bold"}))
    seen.take(message("decision", {"id": "d", "stamp": 1, "actions": {"[/x]": {"value": "\x1b[2J[/y]"}}}))
    seen.take(message("event", {"type": "[/z]", "stamp": 1e300, "data": {"source": "[/red]\x9b"}}))
    seen.take(
        message(
            "event", {"type": "policy_rejected", "data": {"version": "[/v]\x9b", "step": "ope", "reason": "[/red]"}}
        )
    )
    text = shown(picture("demo", seen))
    for part in ("[/bold]", "[red]x[/blue]", "[/]", "[bold", "[/x]", "[/y]", "[/z]", "[/red]"):
        assert part in text
    assert "\x1b]0" not in text
    assert "\x1b[2J" not in text
    assert "\x9b" not in text
    assert len(plain("x" * 10_000)) == status.MAX_CELL + 1


def test_events_are_sentences_and_figures_that_are_not_there_yet_have_no_python_words() -> None:
    seen = LatestMessages()
    seen.take(message("health", {"learner": {"state": "dead"}}))
    seen.take(message("event", {"type": "mode_changed", "stamp": 1.0, "data": {"modes": {"heater": "autonomous"}}}))
    text = shown(picture("demo", seen))
    assert "The mode is now autonomous." in text
    assert "mode_changed" not in text
    assert "{" not in text
    assert "none yet" in text
    assert re.search(r"(updates|reward)\s+None", text) is None


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("health", {"streams": []}),
        ("health", {"streams": {"a": {"drops": "x"}}}),
        ("health", {"tick": None}),
        ("decision", {"actions": {"a": {"probability": "high"}}}),
        ("decision", {"id": 5, "stamp": "now"}),
        ("event", {"type": ["x"]}),
        ("event", {"type": "x", "data": 4}),
        ("status", {"state": 7}),
        ("status", []),
        ("status", {"state": "online", "reasons": "none"}),
    ],
)
def test_an_odd_message_is_refused_and_the_last_good_one_stays(kind: str, body: object) -> None:
    seen = LatestMessages()
    seen.take(message("status", {"state": "online"}))
    with pytest.raises(Refused):
        seen.take(message(kind, body))
    assert "online" in shown(picture("demo", seen))


async def test_status_of_a_running_agent_and_of_none(
    tmp_path: Path, broker: Mosquitto, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    loaded = settings(tmp_path, f"{{url: '{broker.url}'}}")
    async with fake_agent(broker.url) as agent:
        waiting = asyncio.create_task(asyncio.to_thread(show_status, loaded, as_json=True, timeout_s=60))
        while not waiting.done():
            agent.link.enqueue(agent.topics("health"), encode({"tick": {"p50_ms": 1.5}, "mode": "shadow"}))
            await asyncio.wait([waiting], timeout=0.1)
        assert waiting.result() in {0, 1}
        assert b'"p50_ms"' in capsysbinary.readouterr().out
    silent = settings(tmp_path, f"{{url: 'mqtt://127.0.0.1:{free_port()}'}}")
    assert await asyncio.to_thread(show_status, silent, as_json=False, timeout_s=0.2) == 3
    assert b"start it with `reflexd run FILE`" in capsysbinary.readouterr().err


def test_old_figures_say_how_old_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, clock = LatestMessages(), [100.0]
    monkeypatch.setattr("runtime.console.status.time.monotonic", lambda: clock[0])
    seen.take(message("decision", {"id": "d", "stamp": 1, "actions": {"head": {"value": "left", "probability": 0.5}}}))
    seen.take(message("health", {"policy": "p"}))
    assert "last decision" in shown(picture("demo", seen))
    clock[0] = 142.0
    text = shown(picture("demo", seen, connected=False))
    assert "last decision, 42 s ago" in text
    assert "no connection to the broker" in text


def test_a_learner_that_waits_for_a_core_differs_from_one_that_stopped() -> None:
    waiting, stopped = LatestMessages(), LatestMessages()
    waiting.take(message("health", {"learner": {"state": "dead"}}))
    stopped.take(message("health", {"learner": {"state": "dead", "updates": 12}}))
    assert "waits while other programs use all cores" in shown(picture("demo", waiting))
    text = shown(picture("demo", stopped))
    assert "dead" in text
    assert "waits" not in text
