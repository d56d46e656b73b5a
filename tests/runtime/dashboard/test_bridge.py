"""The page's connections against a real mosquitto and an agent on the wire; the process's entry."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import canaries
import pytest
from free_ports import free_port
from wire_helpers import address
from wire_helpers import running as connected

from fakes import Contention, Mosquitto, listening
from fakes_agent import FakeAgent, running
from runtime.config.loader import load
from runtime.config.mqtt_settings import Credentials
from runtime.dashboard.__main__ import main, until_signal
from runtime.dashboard.broker_connections import MqttBridge, Unreachable
from runtime.dashboard.view_state import ViewState
from runtime.mqtt import Address, Connection
from runtime.mqtt.topics import Topics, encode


async def comes(condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110 - a state announces nothing to wait for
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"{what} did not come within {within_s} s")


@asynccontextmanager
async def linked(broker: Mosquitto, watched: list[str]) -> AsyncIterator[tuple[MqttBridge, ViewState]]:
    topics = Topics("demo")
    state = ViewState(topics)
    bridge = MqttBridge(address(broker.port), topics, state, lambda: watched)
    task = asyncio.create_task(bridge.run())
    try:
        await asyncio.wait_for(bridge.control.up(), 60)
        yield bridge, state
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_the_topics_alone_tell_everything_the_page_shows(broker: Mosquitto) -> None:
    async with running(broker.url), linked(broker, []) as (_, state):
        for name in ("link", "status", "info", "health", "decision", "actuators"):
            await comes(lambda name=name: name in state.sections, name)  # type: ignore[misc]
        await comes(lambda: "set" in state.sections["actuators"].get("head", {}), "a command")
        await comes(lambda: "state" in state.sections["actuators"]["head"], "an acknowledgement")
        await comes(lambda: "texts" in state.sections.get("streams", {}).get("orders", {}), "an order")
        assert state.sections["link"]["connected"] is True
        assert not state.refused


async def test_previews_are_asked_for_only_while_someone_looks(broker: Mosquitto) -> None:
    watched: list[str] = []
    async with running(broker.url) as agent, linked(broker, watched) as (bridge, state):
        await comes(lambda: "info" in state.sections, "info")
        await comes(lambda: agent.tick > 10, "ticks")
        assert requested(agent) == []
        watched[:] = ["front", "room"]
        bridge.watch_changed.set()
        await comes(lambda: state.stream_views.picture_counts.get("front", 0) >= 3, "three pictures")
        await comes(lambda: "level_db" in state.stream_views.contents.get("room", {}), "a sound level")
        assert requested(agent)[0] == {"streams": ["front", "room"]}
        watched.clear()
        bridge.watch_changed.set()
        before = len(requested(agent))
        watched[:] = ["front"]
        bridge.watch_changed.set()
        await comes(lambda: len(requested(agent)) > before, "watching again")
        watched.clear()
        bridge.watch_changed.set()


def requested(agent: FakeAgent) -> list[object]:
    return [body for what, body in agent.observed if what == "preview/subscribe"]


async def test_commands_are_answered_refused_or_time_out_in_words(broker: Mosquitto) -> None:
    async with running(broker.url) as agent, linked(broker, []) as (bridge, state):
        assert (await bridge.request(("request", "checkpoints"), {}, 10))["live"] == agent.live
        moved = await bridge.request(("override", "head"), {"value": "left", "hold_s": 9}, 10)
        assert moved["sent"] is True
        await comes(lambda: state.sections.get("holds", {}).get("head", {}).get("value") == "left", "the hold")
        assert await bridge.request(("stop",), {"engaged": True}, 10) == {"stopped": True, "armed": False}
        refused = await bridge.request(("override", "head"), {"value": "left", "hold_s": 2}, 10)
        assert (refused["sent"], refused["rule"]) == (False, "stopped")
        with pytest.raises(Unreachable, match=r"request arm: refused: .*release it first"):
            await bridge.request(("request", "arm"), {}, 10)
        agent.responds = False
        with pytest.raises(Unreachable, match=r"stop: no gate received it: no response within 0\.3 s"):
            await bridge.request(("stop",), {"engaged": True}, 0.3)
    async with linked(broker, []) as (bridge, _):
        with pytest.raises(Unreachable, match="no agent received it"):
            await bridge.request(("request", "checkpoints"), {}, 0.3)


async def test_a_stop_needs_no_other_connection_than_its_own(broker: Mosquitto) -> None:
    topics = Topics("demo")
    bridge = MqttBridge(Address("127.0.0.1", broker.port), topics, ViewState(topics), list)
    engaged = {"stopped": True, "armed": False}
    async with running(broker.url):
        async with connected(bridge.stop):  # whatever floods the other one, or keeps it from the broker
            assert await bridge.request(("stop",), {"engaged": True}, 10) == engaged
            with pytest.raises(Unreachable, match="not sent"):
                await bridge.request(("request", "checkpoints"), {}, 1)
        async with connected(bridge.control):  # while it has none of its own
            assert await bridge.request(("stop",), {"engaged": True}, 10) == engaged


async def test_a_flood_of_what_the_page_shows_is_not_before_the_stop(broker: Mosquitto) -> None:
    topics = Topics("demo")
    bridge = MqttBridge(Address("127.0.0.1", broker.port), topics, ViewState(topics), list)
    flood = Connection(Address("127.0.0.1", broker.port), "flood", max_outgoing=500)
    async with running(broker.url), connected(bridge.stop), connected(bridge.control), connected(flood):
        for k in range(500):
            flood.enqueue("reflexd/demo/event", encode({"type": "t", "stamp": k, "data": {"filling": "x" * 2_000}}))
        assert (await bridge.request(("stop",), {"engaged": True}, 10))["stopped"] is True
        assert list(bridge.stop._inbound.subscriptions) == [f"reflexd/demo/response/page-stop/{bridge.instance}"]


@pytest.mark.parametrize(
    ("login", "own"), [({}, False), ({"media": "page-media"}, False), ({"stop": "page-stop"}, True)]
)
def test_a_login_without_a_user_for_the_stop_has_one_connection(login: dict[str, str], own: bool) -> None:
    topics = Topics("demo")
    user = Credentials.model_validate({"username": "page", "password": canaries.MQTT} | login)
    bridge = MqttBridge(Address("127.0.0.1", 1, user), topics, ViewState(topics), list)
    assert (bridge.stop is not bridge.control) is own
    if own:
        assert bridge.stop.address.credentials is not None
        assert bridge.stop.address.credentials.username == "page-stop"


async def test_whatever_is_retained_the_page_goes_on(broker: Mosquitto) -> None:
    odd = [
        b"[]",
        b"7",
        b'{"streams": {"a": {}}}',
        b'{"streams": {"a": {"kind": "text", "source": "topic:#"}}}',
        b"\xff",
    ]
    odd += [b'{"actuators": {"a": {"kind": "text", "state_topic": "+/#/x"}}}', b'{"streams": 5, "actuators": 5}']
    async with linked(broker, ["a"]) as (bridge, state):
        for topic in ("info", "status", "health", "decision", "event", "hold/head", "act/head/state", "proposal/head"):
            for payload in odd:
                await bridge.control.publish(f"reflexd/demo/{topic}", payload, retain=topic == "info")
        await bridge.control.publish("reflexd/demo/status", b'{"state": "degraded"}')
        await comes(lambda: state.sections.get("status", {}).get("state") == "degraded", "the status after all of it")
        assert state.refused["info: ValidationError"] >= 3
    async with linked(broker, []) as (bridge, state):  # a restart reads the retained info again
        await comes(lambda: bridge.control.connected and "link" in state.sections, "the link")
        await bridge.control.publish("reflexd/demo/info", b"", retain=True)


async def test_a_frozen_broker_is_noticed_within_two_seconds_and_its_return_too(broker: Mosquitto) -> None:
    async with linked(broker, []) as (bridge, state):
        await comes(lambda: bool(state.sections["link"]["connected"]), "the link")
        frozen_s, contention = time.monotonic(), Contention()
        broker.signal(signal.SIGSTOP)
        await comes(lambda: not state.sections["link"]["connected"], "the loss")
        assert time.monotonic() - frozen_s < 2.0 + contention.s
        with pytest.raises(Unreachable, match="not sent"):
            await bridge.publish("reflexd/demo/stop", b"{}", 1)
        with pytest.raises(Unreachable, match="not sent"):
            await bridge.request(("request", "arm"), {}, 1)
        broker.signal(signal.SIGCONT)
        await comes(lambda: bool(state.sections["link"]["connected"]), "the return")


def settings_file(tmp_path: Path, port: int, more: str = "") -> Path:
    path = tmp_path / "page.yaml"
    path.write_text(
        f"agent: demo\nstate_dir: {tmp_path}/state\nmqtt: {{url: 'mqtt://127.0.0.1:{free_port()}', {canaries.LOGIN_YAML}}}\n"
        "streams: {joints: {kind: telemetry, fields: [a]}}\n"
        f"actuators: {{head: {{kind: choice, choices: [a, b], safe: a}}}}\n{more or f'dashboard: {{listen: 127.0.0.1:{port}}}'}\n"
    )
    return path


async def test_the_process_serves_until_it_is_asked_to_end_even_without_a_broker(tmp_path: Path) -> None:
    port = free_port()
    config = load(settings_file(tmp_path, port)).config
    assert config.dashboard is not None
    serving = asyncio.create_task(until_signal(config, config.dashboard, tmp_path / "page.yaml"))
    await comes(lambda: listening(port), "the page")
    token = tmp_path / "state" / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        url = f"http://127.0.0.1:{port}"
        answer = await http.post(f"{url}/login", data={"token": token.read_text().strip()})
        cookie = {"Cookie": answer.headers["Set-Cookie"].split(";")[0]}
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(serving, 60)
        assert not listening(port)
        stored = tmp_path / "state" / "dashboard-sessions.json"
        assert stored.stat().st_mode & 0o777 == 0o600
        serving = asyncio.create_task(until_signal(config, config.dashboard, tmp_path / "page.yaml"))
        await comes(lambda: listening(port), "the page again")
        assert (await http.get(url, headers=cookie, allow_redirects=False)).status == 200, "the session survives"
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(serving, 60)


def test_what_keeps_it_from_serving_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the process's own logging would go on writing to this test's captured stream
    monkeypatch.setattr("runtime.dashboard.__main__.configure", lambda **_: None)
    assert main([str(settings_file(tmp_path, 1, "mode: shadow"))]) == 2
    assert "dashboard: {}" in capsys.readouterr().err
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "token").write_text("short")
    assert main([str(settings_file(tmp_path, free_port()))]) == 1
    assert "fewer than 16" in capsys.readouterr().err


async def test_the_page_shows_why_there_is_no_broker() -> None:
    topics, port = Topics("demo"), free_port()
    state = ViewState(topics)
    bridge = MqttBridge(address(port), topics, state, list)
    task = asyncio.create_task(bridge.run())
    try:
        await comes(lambda: "no broker listens there" in state.sections["link"]["reason"], "the reason")
        assert state.sections["link"]["connected"] is False
    finally:
        task.cancel()
        await asyncio.wait([task])
