"""The page of a fleet shows what is retained at a real broker, as text, and acts only for operators who signed in here."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from prometheus_client import CollectorRegistry, generate_latest

from fakes import Contention, Mosquitto
from runtime.dashboard.access.auth import Access
from runtime.fleet.group_page import FleetPage, GroupAction, GroupMetrics, act_on
from runtime.fleet.reports import GroupWatch
from runtime.fleet.server_settings import FleetServerSettings
from runtime.fleet.stop.caller import StopCaller
from runtime.fleet.stop.messages import StopTopics
from runtime.fleet.topics import AgentReport, FleetTopics, GroupLearnerReport, IngestReport
from runtime.fleet.wave_runner import PAUSED
from runtime.mqtt import Address, Connection
from runtime.mqtt.topics import encode
from runtime.process.http_server import serve

TOKEN, VIEWER = "operator-token-of-a-test", "viewer-token-of-a-test-"
SCRIPT = "<script>alert(1)</script>"


@asynccontextmanager
async def page(tmp_path: Path, broker: Mosquitto) -> AsyncIterator[tuple[str, GroupWatch]]:
    """The page of the group `arms` at a broker, with 50 agents, one of them with a script as its verdict."""
    settings = FleetServerSettings.model_validate(
        {"group": "arms", "data": tmp_path, "mqtt": {"url": f"mqtt://127.0.0.1:{broker.port}"}}
    )
    topics, sender = FleetTopics("arms"), Connection(Address("127.0.0.1", broker.port), "sender")
    sending = asyncio.create_task(sender.run())
    await sender.up()
    for at in range(50):
        report = AgentReport(
            agent=f"arm-{at:02}",
            state="online",
            policy="000003-aaaaaaaa",
            wave="canary",
            backlog_rows=at,
            verdict=SCRIPT,
        )
        await sender.publish(topics.report(report.agent), encode(report), retain=True, timeout_s=5)
    await sender.publish(
        topics.report("arm-99"), encode(report), retain=True, timeout_s=5
    )  # in the name of another one
    await sender.publish(topics.report("arm-98"), b"\xff{", retain=True, timeout_s=5)
    learner = GroupLearnerReport(
        state="online",
        progress={"trust": {"arm-00": {"reward": 0.25}, "arm-01": "x"}, "updates": 7, "row": SCRIPT, "alert": SCRIPT},
        excluded={"arm-02": "flipped"},
        excluded_count=1,
    )
    await sender.publish(topics.learner, encode(learner), retain=True, timeout_s=5)
    ingest = IngestReport(name="ingest-0", state="online", counts={"rows": 12, 'a"\n}': 1})
    await sender.publish(topics.ingest("ingest-0"), encode(ingest), retain=True, timeout_s=5)
    watch = GroupWatch(settings)
    access = Access(TOKEN, VIEWER, time.monotonic)

    async def act(action: GroupAction) -> str:
        return await act_on(settings, action)

    stops = StopCaller(watch.link, StopTopics("arms"))
    view = FleetPage("arms", access, frozenset({"127.0.0.1"}), "", watch, act, stops)
    running = asyncio.create_task(watch.link.run())
    try:
        async with serve(view.application(), "127.0.0.1:0") as port:
            await watch.link.up()
            assert await watch.link.caught_up(10)
            yield f"http://127.0.0.1:{port}", watch
    finally:
        for task in (sending, running):
            task.cancel()
        await asyncio.wait([sending, running])


async def test_fifty_agents_are_shown_in_under_a_second_and_only_operators_act(
    tmp_path: Path, broker: Mosquitto
) -> None:
    jar = aiohttp.CookieJar(unsafe=True)
    async with page(tmp_path, broker) as (url, _), aiohttp.ClientSession(cookie_jar=jar) as browser:
        assert (await browser.get(f"{url}/state")).status == 401
        assert (await browser.get(url, allow_redirects=False)).headers["Location"] == "/login"
        origin, wanted = {"Origin": url}, {"action": "pause"}
        assert (await browser.post(f"{url}/action", json=wanted, headers=origin)).status == 401
        assert (await browser.post(f"{url}/login", data={"token": VIEWER})).status == 200
        assert (await browser.post(f"{url}/action", json=wanted, headers=origin)).status == 403
        assert (await browser.post(f"{url}/login", data={"token": TOKEN})).status == 200
        begun_s, contention = time.monotonic(), Contention()
        state = await (await browser.get(f"{url}/state")).json()
        assert time.monotonic() - begun_s < 1 + contention.s
        assert [each["agent"] for each in state["agents"]] == [f"arm-{at:02}" for at in range(50)]
        assert state["agents"][0]["reward"] == 0.25
        assert state["agents"][1]["reward"] is None
        assert state["agents"][2]["excluded"] == "flipped"
        assert (state["role"], state["agents"][3]["verdict"], state["alert"]) == ("operator", SCRIPT, SCRIPT)
        answer = await browser.get(url)
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        assert "fleet.js" in await answer.text()
        for foreign in ({"Origin": "http://evil.example"}, {}):
            assert (await browser.post(f"{url}/action", json=wanted, headers=foreign)).status == 403
        assert (await browser.get(f"{url}/state", headers={"Host": "evil.example"})).status == 421
        bodies: tuple[object, ...] = (
            *({"action": "format"}, {"action": "pause", "more": 1}, [], None, {"action": "stop"}),
            *({"action": "stop_all", "agent": "arm-00"}, {"action": "stop", "agent": "arm/00"}, {"action": "release"}),
        )
        for body in bodies:
            assert (await browser.post(f"{url}/action", json=body, headers=origin)).status == 400
        paused = tmp_path / "arms" / PAUSED
        assert not paused.exists()
        assert (await browser.post(f"{url}/action", json=wanted, headers=origin)).status == 200
        assert paused.exists()
        assert (await browser.post(f"{url}/action", json={"action": "resume"}, headers=origin)).status == 200
        assert not paused.exists()
        answer = await browser.post(f"{url}/action", json={"action": "rollback"}, headers=origin)
        assert (answer.status, "no version was published" in await answer.text()) == (503, True)


async def test_metrics_have_every_part_and_survive_hostile_reports(tmp_path: Path, broker: Mosquitto) -> None:
    async with page(tmp_path, broker) as (_, watch):
        registry = CollectorRegistry()
        registry.register(GroupMetrics(watch))
        text = generate_latest(registry).decode()
    assert 'reflexd_fleet_agent_backlog_rows{agent="arm-49"} 49.0' in text
    assert 'reflexd_fleet_ingest{count="rows",ingest="ingest-0"} 12.0' in text
    assert 'reflexd_fleet_learner{figure="updates"} 7.0' in text
    assert "reflexd_fleet_broker_connected 1.0" in text
    assert 'figure="row"' not in text
    assert "arm-99" not in text
    assert text.count("reflexd_fleet_agent_online{") == 50
    board = (Path(__file__).parents[3] / "configs/grafana/dashboards/reflexd-fleet.json").read_text()
    wanted = set(re.findall(r"reflexd_fleet_[a-z_]+", board))
    assert len(wanted) >= 6
    assert all(f"# TYPE {name} gauge" in text for name in wanted)
