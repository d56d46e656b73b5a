"""A stop of the fleet: from the verb and the page, over a real broker, through the real gate of an agent, and its answer back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from click.testing import CliRunner, Result
from fleet_parts import CONFIG, ROOT
from gate_host import world_of
from pydantic import SecretStr
from scripted_broker import LimitedBroker, serving
from wire_helpers import running

from fakes import Mosquitto, eventually
from learners.ipc.outbox import Outbox
from runtime.cli.main import main
from runtime.config.loader import load
from runtime.config.mqtt_settings import Credentials
from runtime.dashboard.access.auth import Access
from runtime.fleet.enrollment import enroll
from runtime.fleet.group_page import FleetPage, act_on
from runtime.fleet.reports import GroupWatch, stop_agents
from runtime.fleet.server_settings import FleetServerSettings
from runtime.fleet.stop.caller import StopCaller
from runtime.fleet.stop.messages import MAX_IDS, StopTopics, stop_payload
from runtime.fleet.stop.pending import PendingStops
from runtime.fleet.stop.relay import StopRelay
from runtime.fleet.topics import AgentReport, FleetTopics
from runtime.fleet.uplink_process import stop_relay
from runtime.mqtt import Address, BrokerRefused, Connection, Message
from runtime.mqtt.connection_types import PublishMessage, properties
from runtime.mqtt.packets import publish_packet, reason_of
from runtime.mqtt.topics import encode
from runtime.process.http_server import serve

NONE = properties(None, None, None)
TOPICS, STOPS = FleetTopics("arms"), StopTopics("arms")
PUBACK = b"Received PUBACK from reflexd-fleet-tester-stop"
OPERATOR, VIEWER = "operator-token-of-a-test", "viewer-token-of-a-test-"


def relay_of(
    folder: Path, fleet: Mosquitto, own: str | None = None, *, agent: str = "tester", more: str = ""
) -> StopRelay:
    """Return the relay of an agent, as its uplink builds it; `own` is the address of the agent's broker."""
    path = folder / f"{agent}.yaml"
    text = CONFIG.format(agent=agent, state=folder / agent, url=fleet.url, group="arms").replace("}\nfleet", "}\nfleet")
    path.write_text(text.replace("1000000}", f"1000000{more}}}") + f'mqtt: {{url: "{own or fleet.url}"}}\n')
    config = load(path).config
    assert config.fleet is not None
    relay = stop_relay(config, config.fleet, Outbox(folder / agent / "learner" / "outbox"))
    relay.retry_s, relay.gate_s = (0.1, 0.5), 1.0
    return relay


@asynccontextmanager
async def relaying(relay: StopRelay) -> AsyncIterator[None]:
    task = asyncio.create_task(relay.run())
    try:
        async with asyncio.timeout(30):
            await relay.fleet.up()
        assert await relay.fleet.caught_up(10)
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def server(folder: Path, broker: Mosquitto, **login: Any) -> FleetServerSettings:
    return FleetServerSettings.model_validate(
        {"group": "arms", "data": folder / "data", "mqtt": {"url": broker.url, **login}}
    )


async def report(broker: Mosquitto, *agents: str) -> None:
    """Leave the retained report of agents."""
    sender = Connection(Address("127.0.0.1", broker.port), "reports")
    async with running(sender):
        for agent in agents:
            payload = encode(AgentReport(agent=agent, state="online"))
            await sender.publish(TOPICS.report(agent), payload, retain=True, timeout_s=10)


async def verb(folder: Path, broker: Mosquitto, *arguments: str) -> Result:
    path = folder / "fleet.yaml"
    path.write_text(f'group: arms\ndata: data\nmqtt: {{url: "{broker.url}"}}\n')
    return await asyncio.to_thread(CliRunner().invoke, main, ["fleet", "stop", str(path), *arguments])


async def test_the_verb_stops_one_agent_through_its_own_gate_and_shows_the_answer(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = relay_of(tmp_path, broker)
    async with world_of(tmp_path / "state", broker) as world, relaying(relay):
        await eventually(lambda: relay.state() is not None, "the status of the agent")
        assert relay.state() != "stopped"
        with monkeypatch.context() as shorter:
            shorter.setattr("runtime.fleet.reports.stop_agents", partial(stop_agents, timeout_s=0.5))
            other = await verb(tmp_path, broker, "another")
        assert (other.exit_code, world.host.gate.stopped) == (1, False)
        assert "another: no answer" in other.output
        done = await verb(tmp_path, broker, "tester")
        assert (done.exit_code, done.output, world.host.gate.stopped) == (0, "tester: stopped\n", True)
        assert world.host.latches.has("stopped", value=True)
        await eventually(lambda: relay.state() == "stopped", "the stopped status")
        repeated = await verb(tmp_path, broker, "tester", "--json")
        assert orjson.loads(repeated.output)["tester"]["outcome"] == "stopped"
    events = Outbox(tmp_path / "tester" / "learner" / "outbox").collect()
    assert [(event.kind, event.fields["outcome"], event.fields["source"]) for event in events] == [
        ("fleet_stop", "stopped", "reflexd fleet stop")
    ] * 2


@pytest.mark.parametrize("code", [0x87, 0])
async def test_a_subscription_to_the_fleets_stop_that_is_not_granted_is_an_event(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr("runtime.mqtt.connection.SUBSCRIBE_AGAIN_S", 0.02)
    fleet = LimitedBroker(suback=lambda topic: code if topic.endswith(b"tester") else 1)
    async with serving(fleet) as port:
        relay = relay_of(tmp_path, broker, broker.url)
        relay.fleet.address = Address("127.0.0.1", port, None, None, 60.0)
        outbox = Outbox(tmp_path / "tester" / "learner" / "outbox")
        async with relaying(relay):
            await eventually(lambda: fleet.subscribed.count(STOPS.of("tester").encode()) >= 3, "two more attempts")
            refused = outbox.collect()
            assert [each.kind for each in refused] == ["fleet_stop_not_heard"]
            assert refused[0].fields["reason"].startswith(f"{STOPS.of('tester')}: ")
            fleet.suback = lambda _topic: 1
            await eventually(lambda: not relay.fleet.denials, "the grant")
            assert [each.kind for each in Outbox(outbox.folder).collect()] == [
                "fleet_stop_not_heard",
                "fleet_stop_heard",
            ]


async def test_a_stop_of_all_names_each_agent_that_did_not_stop(tmp_path: Path, broker: Mosquitto) -> None:
    await report(broker, "tester", "away", "private")
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(world_of(tmp_path / "state", broker))
        for relay in (relay_of(tmp_path, broker), relay_of(tmp_path, broker, agent="private", more=", stop: false")):
            await stack.enter_async_context(relaying(relay))
        answers = await stop_agents(server(tmp_path, broker), None, "a test", 1.5)
        assert {name: each.outcome for name, each in answers.items()} == {
            "away": "no_answer",
            "private": "refused",
            "tester": "stopped",
        }
        assert "fleet.stop is false" in answers["private"].reason
        assert world.host.gate.stopped
    assert (await verb(tmp_path, broker)).exit_code == 2
    assert (await verb(tmp_path, broker, "tester", "--all")).exit_code == 2


async def test_without_a_gate_or_a_broker_of_the_agent_there_is_no_answer_and_the_stop_is_tried_again(
    tmp_path: Path, broker: Mosquitto
) -> None:
    own = Mosquitto(tmp_path).start()
    try:
        watch = GroupWatch(server(tmp_path, broker))
        caller = StopCaller(watch.link, STOPS)
        relay = relay_of(tmp_path, broker, own.url)
        relay.gate_s = 0.3
        async with relaying(relay), running(watch.link):
            stopping = asyncio.create_task(caller.stop("tester", ["tester"], "a test", 60))
            await eventually(lambda: "tester" in caller.newest, "an answer")
            assert caller.newest["tester"].outcome == "no_answer"
            assert "no gate of the agent answered" in caller.newest["tester"].reason
            own.stop()
            await eventually(lambda: "the agent's broker:" in caller.newest["tester"].reason, "another answer")
            assert caller.newest["tester"].outcome == "no_answer"
            assert not stopping.done()
            own.start()
            async with world_of(tmp_path / "state", own) as world:
                assert (await stopping)["tester"].outcome == "stopped", "the late answer"
                assert world.host.gate.stopped
    finally:
        own.stop()


async def test_a_stop_that_waits_survives_kill_9_of_the_uplink(tmp_path: Path, broker: Mosquitto) -> None:
    """The fleet's broker has its acknowledgement, and the agent's broker is away: only the disk of the device has the stop."""
    own = Mosquitto(tmp_path)
    relay_of(tmp_path, broker, own.url)  # writes the settings

    def started() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "runtime.fleet", str(tmp_path / "tester.yaml")]
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})

    process = started()
    watch = GroupWatch(server(tmp_path, broker))
    caller = StopCaller(watch.link, STOPS)
    file = PendingStops.of(tmp_path / "tester")
    try:
        async with running(watch.link):
            await eventually((tmp_path / "tester" / "uplink").is_dir, "the uplink")
            await eventually(lambda: b"Sending SUBACK to reflexd-fleet-tester-stop" in broker_log(broker), "its ear")
            await caller.stop("tester", ["tester"], "a test", 0.1)
            await eventually(lambda: caller.newest["tester"].outcome == "no_answer" and file.path.exists(), "the file")
            await eventually(lambda: PUBACK in broker_log(broker), "the ack")
            process.kill()
            process.wait()
            own.start()
            async with world_of(tmp_path / "state", own) as world:
                process = started()
                await eventually(lambda: world.host.gate.stopped, "the stop")
                await eventually(lambda: caller.newest["tester"].outcome == "stopped", "its answer")
            await eventually(lambda: not file.path.exists(), "nothing left to be done")
    finally:
        process.kill()
        process.wait()
        own.stop()


def broker_log(broker: Mosquitto) -> bytes:
    return (broker.folder / f"mosquitto-{broker.port}.log").read_bytes()


async def test_while_the_disk_refuses_the_fleets_broker_stores_the_stop(tmp_path: Path, broker: Mosquitto) -> None:
    """Nothing delays the stop; without its file, it is acknowledged only once it is obeyed."""
    own = Mosquitto(tmp_path)
    (tmp_path / "no folder").write_text("")

    def relay_without_disk() -> StopRelay:
        relay = relay_of(tmp_path, broker, own.url)
        relay.pending = PendingStops.of(tmp_path / "no folder")
        return relay

    async with relaying(relay := relay_without_disk()):
        found = await stop_agents(server(tmp_path, broker), "tester", "a test", 0.2)
        assert found["tester"].outcome == "no_answer"
        await eventually(lambda: len(relay._waiting) == 1, "the end of the attempt")
        assert len(relay._unacknowledged) == 1
        assert PUBACK not in broker_log(broker)
    own.start()
    try:
        async with world_of(tmp_path / "state", own) as world, relaying(relay_without_disk()):
            await eventually(lambda: world.host.gate.stopped, "the stop that the broker sent again")
            await eventually(lambda: PUBACK in broker_log(broker), "the acknowledgement of what was obeyed")
        async with relaying(relay := relay_without_disk()):
            assert [*relay._unacknowledged, *relay._waiting, *relay._under_way] == [], "it is not sent again"
    finally:
        own.stop()


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"{}", b'{"format": 2, "stops": {}}', b'{"format": 1, "stops": 3}']
)
def test_a_file_of_stops_that_cannot_be_read_is_a_stop(tmp_path: Path, content: bytes) -> None:
    file = PendingStops.of(tmp_path)
    assert file.load() == {}
    file.save({str(number): "x" * 64 for number in range(MAX_IDS + 5)})
    assert list(file.load()) == [str(number) for number in range(5, MAX_IDS + 5)]
    file.path.write_bytes(content)
    assert list(file.load()) == [""]
    file.save({})
    file.save({})
    assert file.load() == {}


@pytest.mark.parametrize("code", [0x80, 0x83, 0x91, 0x97])
async def test_a_refusal_that_may_pass_is_tried_again(tmp_path: Path, broker: Mosquitto, code: int) -> None:
    own = LimitedBroker(puback=lambda _topic: code)
    status = PublishMessage("reflexd/tester/status", encode({"state": "stopped", "reasons": []}), 0, False, NONE)

    def stops(_topic: bytes) -> int:
        assert own.writer is not None
        own.writer.write(publish_packet(status, 0))
        return 0

    async with serving(own) as port:
        relay = relay_of(tmp_path, broker, f"mqtt://127.0.0.1:{port}")
        relay.gate_s = 0.2
        watch = GroupWatch(server(tmp_path, broker))
        caller = StopCaller(watch.link, STOPS)
        async with relaying(relay), running(watch.link):
            stopping = asyncio.create_task(caller.stop("tester", ["tester"], "a test", 60))
            await eventually(lambda: "tester" in caller.newest, "an answer")
            assert caller.newest["tester"].outcome == "no_answer"
            assert "tried again" in caller.newest["tester"].reason
            assert not stopping.done()
            own.puback = stops
            assert (await stopping)["tester"].outcome == "stopped", "another attempt"


@pytest.mark.parametrize("code", [0x87, 0x90, 0x99])
async def test_a_refusal_that_lasts_is_named_and_given_up(tmp_path: Path, broker: Mosquitto, code: int) -> None:
    own = LimitedBroker(puback=lambda _topic: code)
    async with serving(own) as port:
        relay = relay_of(tmp_path, broker, f"mqtt://127.0.0.1:{port}")
        relay.gate_s = 0.2
        async with relaying(relay):
            found = await stop_agents(server(tmp_path, broker), "tester", "a test", 10)
            assert (found["tester"].outcome, reason_of(code) in found["tester"].reason) == ("refused", True)
            await eventually(lambda: not relay._under_way and not relay.pending.load(), "nothing left to be done")


async def test_a_gate_with_answers_that_cannot_be_read_is_known_by_its_status_and_may_be_released(
    tmp_path: Path, broker: Mosquitto
) -> None:
    (tmp_path / "acl").write_text("topic deny reflexd/tester/response/fleet-stop/#\ntopic readwrite #\n")
    (tmp_path / "acl").chmod(0o644)
    own = Mosquitto(tmp_path)
    own.extra = f"listener {own.port} 127.0.0.1\nuser root\nallow_anonymous true\nacl_file {tmp_path}/acl\n"
    own.start()
    relay = relay_of(tmp_path, broker, own.url)
    relay.gate_s = 0.3
    try:
        async with world_of(tmp_path / "state", own) as world, relaying(relay):
            found = await stop_agents(server(tmp_path, broker), "tester", "a test", 10)
            assert (found["tester"].outcome, "its status says so" in found["tester"].reason) == ("stopped", True)
            await world.send("reflexd/tester/stop", {"engaged": False})
            await eventually(lambda: not world.host.gate.stopped, "the release at the agent")
            assert await relay.fleet.caught_up(10)
            assert not relay._waiting
    finally:
        own.stop()


async def test_a_silent_gate_is_given_up_so_that_a_release_lasts(tmp_path: Path, broker: Mosquitto) -> None:
    relay = relay_of(tmp_path, broker)
    relay.gate_s, relay.retry_s, relay.silent_s = 0.1, (0.05, 0.05), 0.3
    watch = GroupWatch(server(tmp_path, broker))
    caller = StopCaller(watch.link, STOPS)
    async with relaying(relay), running(watch.link):
        found = await caller.stop("tester", ["tester"], "a test", 0.2)
        assert found["tester"].outcome == "no_answer"
        await eventually(lambda: "no gate of the agent answered for" in caller.newest["tester"].reason, "the end")
        assert not relay._waiting


async def test_more_stops_than_an_answer_can_name_while_the_gate_is_silent_end_nothing(
    tmp_path: Path, broker: Mosquitto
) -> None:
    relay = relay_of(tmp_path, broker)
    relay.gate_s, relay.retry_s = 0.2, (0.05, 0.05)
    watch = GroupWatch(server(tmp_path, broker))
    caller = StopCaller(watch.link, STOPS)
    async with relaying(relay), running(watch.link):
        for begin in (0, MAX_IDS):
            for number in range(begin, begin + MAX_IDS):
                relay._ordered(Message(STOPS.of("tester"), stop_payload(str(number), "a script"), 1, retain=False))
            if begin == 0:
                await eventually(lambda: not relay._waiting, "the begin of the first attempt")
        async with world_of(tmp_path / "state", broker) as world:
            await eventually(lambda: world.host.gate.stopped, "the stop")
            await eventually(lambda: "tester" in caller.newest and caller.newest["tester"].outcome == "stopped", "it")
        assert caller.newest["tester"].ids == [str(number) for number in range(MAX_IDS, 2 * MAX_IDS)]


async def test_a_device_that_was_away_from_the_fleet_is_stopped_when_it_comes_back(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with relaying(relay_of(tmp_path, broker)):
        pass
    async with world_of(tmp_path / "state", broker) as world:
        assert (await stop_agents(server(tmp_path, broker), "tester", "a test", 0.2))["tester"].outcome == "no_answer"
        async with relaying(relay_of(tmp_path, broker)):
            await eventually(lambda: world.host.gate.stopped, "the stored stop")


async def test_nothing_from_afar_releases_and_what_is_malformed_stops(tmp_path: Path, broker: Mosquitto) -> None:
    relay = relay_of(tmp_path, broker)
    outside = Connection(Address("127.0.0.1", broker.port), "server")
    answers: list[dict[str, Any]] = []
    outside.subscribe(STOPS.answer("+"), lambda message: answers.append(orjson.loads(message.payload)))
    async with world_of(tmp_path / "state", broker) as world, relaying(relay), running(outside):
        assert await outside.caught_up(10)
        await outside.publish(STOPS.of("tester"), b'{"engaged": false}', timeout_s=10)
        await eventually(lambda: [each["outcome"] for each in answers] == ["refused"], "the refusal")
        assert not world.host.gate.stopped
        for payload in (b"", b"\xff", b'{"engaged": "false"}', b'{"engaged": false, "id": "1"}', b"[]"):
            answers.clear()
            await world.send("reflexd/tester/stop", {"engaged": False})
            await eventually(lambda: not world.host.gate.stopped, "the release at the agent")
            await outside.publish(STOPS.of_all, payload, timeout_s=10)
            await eventually(lambda: world.host.gate.stopped, f"a stop by {payload!r}")
            await eventually(lambda: any(each["outcome"] == "stopped" for each in answers), "its answer")
        await outside.publish(STOPS.of("tester"), b'{"engaged": false}', timeout_s=10)
        await eventually(lambda: answers[-1]["outcome"] == "refused", "the refusal of a release")
        assert world.host.gate.stopped


async def test_a_flood_of_stops_is_one_stop_and_the_newest_is_answered(tmp_path: Path, broker: Mosquitto) -> None:
    relay = relay_of(tmp_path, broker)
    watch = GroupWatch(server(tmp_path, broker))
    caller = StopCaller(watch.link, STOPS)
    async with world_of(tmp_path / "state", broker) as world, relaying(relay), running(watch.link):
        for number in range(150):
            watch.link.enqueue(STOPS.of("tester"), stop_payload(str(number), "a flood"), qos=1)
        found = await caller.stop("tester", [], "a test", 20)
        assert (found["tester"].outcome, world.host.gate.stopped) == ("stopped", True)


async def test_only_the_server_may_stop_and_only_an_agent_answers_for_itself(tmp_path: Path) -> None:
    folder = tmp_path
    probe = Mosquitto(folder)
    settings = server(folder, probe, username="fleet", password="server-password")
    logins = {"fleet": "server-password"}
    for agent in ("tester", "other"):
        text = enroll(settings, agent, None).settings
        logins[agent] = text.partition("password: ")[2].splitlines()[0]
    probe.extra = (
        f"listener {probe.port} 127.0.0.1\nuser root\nallow_anonymous false\n"
        f"password_file {settings.data}/enrolled/passwords\nacl_file {settings.data}/enrolled/acl\n"
    )
    probe.start()

    def login(name: str) -> Credentials:
        return Credentials(username=name, password=SecretStr(logins[name]))

    own = Mosquitto(tmp_path).start()
    try:
        more = f", username: tester, password: {logins['tester']}"
        relay = relay_of(tmp_path, probe, own.url, more=more)
        intruder = Connection(Address("127.0.0.1", probe.port, login("other")), "other")
        async with world_of(tmp_path / "state", own) as world, relaying(relay), running(intruder):
            for topic in (STOPS.of("tester"), STOPS.of_all, STOPS.of("other"), STOPS.answer("tester")):
                with pytest.raises(BrokerRefused):
                    await intruder.publish(topic, stop_payload("1", "other"), timeout_s=10)
            assert not world.host.gate.stopped
            found = await stop_agents(settings, "tester", "a test", 10)
            assert (found["tester"].outcome, world.host.gate.stopped) == ("stopped", True)
    finally:
        own.stop()
        probe.stop()


async def test_a_broker_of_the_agent_that_refuses_the_login_or_the_topic_is_named(
    tmp_path: Path, broker: Mosquitto
) -> None:
    (tmp_path / "acl").write_text("topic read #\ntopic write reflexd/echo/#\n")
    (tmp_path / "acl").chmod(0o644)
    own = Mosquitto(tmp_path)
    own.extra = f"listener {own.port} 127.0.0.1\nuser root\nallow_anonymous true\nacl_file {tmp_path}/acl\n"
    own.start()
    try:
        async with relaying(relay_of(tmp_path, broker, own.url)):
            found = await stop_agents(server(tmp_path, broker), "tester", "a test", 10)
        assert (found["tester"].outcome, "Not authorized" in found["tester"].reason) == ("refused", True)
    finally:
        own.stop()
    (tmp_path / "logins.yaml").write_text(
        CONFIG.format(agent="tester", state=tmp_path / "tester", url=broker.url, group="arms")
        + f'mqtt: {{url: "{own.url}", gate: {{username: gate}}, agent: {{username: agent}}}}\n'
    )
    config = load(tmp_path / "logins.yaml").config
    assert config.fleet is not None
    relay = stop_relay(config, config.fleet, Outbox(tmp_path / "outbox"))
    async with relaying(relay):
        found = await stop_agents(server(tmp_path, broker), "tester", "a test", 10)
    assert (found["tester"].outcome, "mqtt.fleet: missing" in found["tester"].reason) == ("refused", True)


async def test_on_the_page_an_operator_stops_and_a_viewer_may_not(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    await report(broker, "tester", "away")
    settings = server(tmp_path, broker)
    watch = GroupWatch(settings)
    caller = StopCaller(watch.link, STOPS)
    view = FleetPage(
        "arms",
        Access(OPERATOR, VIEWER, time.monotonic),
        frozenset({"127.0.0.1"}),
        "",
        watch,
        lambda action: act_on(settings, action),
        caller,
    )
    relay = relay_of(tmp_path, broker)
    jar = aiohttp.CookieJar(unsafe=True)
    async with (
        world_of(tmp_path / "state", broker) as world,
        relaying(relay),
        running(watch.link),
        serve(view.application(), "127.0.0.1:0") as port,
        aiohttp.ClientSession(cookie_jar=jar) as browser,
    ):
        url = f"http://127.0.0.1:{port}"
        one, everyone, origin = {"action": "stop", "agent": "tester"}, {"action": "stop_all"}, {"Origin": url}
        for token, status in (("", 401), (VIEWER, 403)):
            if token:
                await browser.post(f"{url}/login", data={"token": token})
            for body in (one, everyone):
                assert (await browser.post(f"{url}/action", json=body, headers=origin)).status == status
        assert not world.host.gate.stopped
        await browser.post(f"{url}/login", data={"token": OPERATOR})
        answer = await browser.post(f"{url}/action", json=one, headers=origin)
        assert (await answer.json(), world.host.gate.stopped) == ({"outcome": "tester: stopped"}, True)
        state = await (await browser.get(f"{url}/state")).json()
        assert {each["agent"]: each["stop"] for each in state["agents"]} == {"away": "", "tester": "stopped"}
        monkeypatch.setattr(caller, "stop", partial(caller.stop, timeout_s=3.0))
        answer = await browser.post(f"{url}/action", json=everyone, headers=origin)
        assert (await answer.json())["outcome"] == "1 of 2 agents are stopped. Not stopped: away"
