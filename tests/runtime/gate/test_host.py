"""The gate's input and output: a real broker, a real socket pair, and the test as agent, device and operator."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from free_ports import free_port
from gate_host import TOPICS, make_host, resumed, world_of
from wire_helpers import running

from fakes import Mosquitto, disk_full, eventually
from runtime.gate import ipc, latches
from runtime.gate.stop import channel, follower
from runtime.gate.stop.latch import StopLatch
from runtime.mqtt import Address, Connection
from runtime.mqtt.topics import encode


async def test_commands_carry_what_the_design_says(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        verdict = await world.propose({"head": "left", "arm": (0.5, -0.5), "lamp": "ON"})
        await eventually(lambda: any(c["value"] == "left" for c in world.commands()))
        await eventually(lambda: any(m.payload == b'{"state": "ON"}' for m in world.messages))
        command = next(c for c in world.commands() if c["value"] == "left")
        rest = world.commands()[0]
        arm = world.commands("arm")[-1]
        sets = [m for m in world.messages if m.topic.endswith("/set")]
    assert verdict.outcomes["head"] == ipc.Outcome(sent=True, rule=None, value="left", by="policy")
    assert verdict.outcomes["arm"].value == (0.5, -0.5)
    assert (rest["value"], rest["policy"], rest["decision"]) == ("stay", "gate", None)
    assert command["decision"] == verdict.decision
    assert command["policy"] == "p1"
    assert command["seq"] > rest["seq"]
    assert command["boot"] == rest["boot"]
    assert abs(time.time() - command["stamp"]) < 30
    assert arm["value"] == [0.5, -0.5]
    assert not any(m.retain for m in sets)


async def test_an_agent_that_asks_for_shadow_gets_it_once_and_an_operator_may_change_it(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.moving("left")
        verdict = await world.propose({"head": "right"}, shadow=True)
        assert set(verdict.mode.values()) == {"shadow"}
        assert verdict.outcomes["head"].rule == "mode"
        await eventually(lambda: world.commands()[-1]["policy"] == "gate")
        await eventually(lambda: world.events("mode_changed"))
        assert "data" in await world.ask("mode", mode="autonomous")
        verdict = await world.propose({"head": "right"}, shadow=True)
        assert set(verdict.mode.values()) == {"autonomous"}, "the operator has decided since"
        await world.propose({})
        verdict = await world.propose({"head": "right"}, shadow=True)
        assert set(verdict.mode.values()) == {"shadow"}


async def test_a_latch_of_the_second_listener_is_a_stop_at_the_start_and_the_release_removes_it(
    tmp_path: Path, broker: Mosquitto
) -> None:
    latch = StopLatch.of(tmp_path)
    latch.write("sent while the gate was not listening")
    async with world_of(tmp_path, broker) as world:
        assert world.host.gate.stopped
        await eventually(lambda: world.of("status")[-1:] and world.of("status")[-1]["state"] == "stopped")
        assert "sent while the gate was not listening" in world.of("status")[-1]["reasons"][0]
        assert (await world.ask("arm"))["error"] == "release the stop first, then arm"
        assert (await world.ask("mode", mode="shadow"))["data"], "another write of the latches"
        assert latch.read() is not None, "only a release removes it"
        await world.send(TOPICS("stop"), {"engaged": False})
        await eventually(lambda: latch.read() is None)
        await eventually(lambda: world.events("stop_released"))


async def test_a_latch_that_appears_later_is_a_stop_too(tmp_path: Path, broker: Mosquitto) -> None:
    latch = StopLatch.of(tmp_path)
    async with world_of(tmp_path, broker) as world:
        await world.moving("left")
        latch.write("the gate missed it")
        await eventually(lambda: world.events("stopped"))
        assert world.events("stopped") == [{"reason": "the stop listener received it: the gate missed it"}]
        await eventually(lambda: world.commands()[-1]["policy"] == "gate")


async def test_a_latch_of_the_second_listener_is_engaged_before_a_reconnected_gate_arms(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        StopLatch.of(tmp_path).write("sent while the gate was not listening")
        world.host.on_connection_change(False, "lost")
        world.host.on_connect()
        assert world.host.gate.stopped
        assert not (await world.propose({"head": "left"})).outcomes["head"].sent


async def test_a_stop_on_the_second_listeners_channel_is_engaged_at_once_without_a_connection(
    tmp_path: Path, broker: Mosquitto
) -> None:
    for data in (b"stop: sent at QoS 0", b"\xff", b"withdrawn?", bytes(10_000)):
        gate_end, listener_end = channel.pair()
        async with world_of(tmp_path / str(len(data)), broker) as world:
            world.host.listener.attach(gate_end)
            await world.armed()
            listener_end.send(channel.WITHDRAWN)  # releases nothing and engages nothing
            listener_end.send(data)
            world.host.on_connection_change(False, "lost")
            world.host.on_connect()  # reads the channel before anything arms
            assert world.host.gate.stopped
            assert not (await world.propose({"head": "left"})).outcomes["head"].sent
            listener_end.send(channel.WITHDRAWN)
            await world.propose({})
            assert world.host.gate.stopped
            reason = world.host.publisher.stop_reason
            assert reason.startswith("the stop listener received it")
            assert len(reason) < 400
            listener_end.close()
            await eventually(lambda: world.host.listener._reader.end is None, "the end of file")
            await world.ask("disarm")


async def test_a_connected_gate_waits_for_its_own_stop_before_it_engages_the_second_listeners(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate_end, listener_end = channel.pair()
    async with world_of(tmp_path, broker) as world:
        host = world.host
        host.listener.attach(gate_end)
        await world.armed()
        monkeypatch.setattr(follower, "OWN_STOP_S", 1e6)
        host.listener.stated("late: the gate has handled the release already")
        host.listener.stated(None)
        host.listener.stated("released by the gate's own connection")
        host.stop(engaged=True)
        host.stop(engaged=False)
        monkeypatch.setattr(follower, "OWN_STOP_S", 0.0)
        host.tick()
        assert not host.gate.stopped
        monkeypatch.setattr(follower, "OWN_STOP_S", 1e6)
        listener_end.send(b"stop: ")
        await eventually(lambda: host.listener._stated is not None, "the statement")
        host.tick()
        assert not host.gate.stopped
        monkeypatch.setattr(follower, "OWN_STOP_S", 0.0)
        host.tick()
        assert host.gate.stopped
        host.listener.detach()
        listener_end.close()


async def test_nothing_that_is_not_finite_or_in_range_reaches_a_device(tmp_path: Path, broker: Mosquitto) -> None:
    bad: list[Any] = [(float("nan"), 0.0), (float("inf"), 0.0), (2.0, 0.0), (0.0,), "left"]
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        rules = [(await world.propose({"arm": value, "head": "up"})).outcomes for value in bad]
        await world.propose({"arm": (0.25, 0.25)})
        await eventually(lambda: world.commands("arm")[-1]["value"] == [0.25, 0.25])
        values = [c["value"] for c in world.commands("arm")]
    assert [r["arm"].rule for r in rules] == ["not_finite", "not_finite", "out_of_range", "wrong_type", "wrong_type"]
    assert {r["head"].rule for r in rules} == {"unknown_choice"}
    assert all(value in ([0.0, 0.0], [0.25, 0.25]) for value in values)


async def test_a_closed_link_and_a_silent_one_are_safe(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.moving("left")
        await eventually(lambda: {"cause": "silent"} in world.events("agent_lost"), "the dead-man")
        await eventually(lambda: world.commands()[-1]["value"] == "stay")
        await eventually(lambda: world.of("status")[-1]["state"] == "degraded")
        await world.moving("right")
        world.agent.close()
        await eventually(lambda: {"cause": "closed"} in world.events("agent_lost"), "the end-of-file")
        await eventually(lambda: world.commands()[-1]["value"] == "stay")
    assert {c["value"] for c in world.commands() if c["policy"] == "p1"} == {"left", "right"}


async def test_what_the_agent_no_longer_does_degrades_the_status(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await world.propose({"head": "left"}, degraded=("recording: the disk is full",))
        assert world.host.publisher.status() == ("degraded", ("recording: the disk is full",))
        await world.propose({"head": "left"})
        assert world.host.publisher.status()[0] == "online"


async def test_nonsense_from_the_agent_is_counted(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        for nonsense in (
            b"{",
            b"[]",
            b'{"kind":"Proposal"}',
            b'{"kind":"x"}',
            b"\xff",
            b'{"kind":"Proposal","tick":1}',
        ):
            world.agent.send(nonsense)
        await eventually(lambda: world.host.counts["malformed proposal"] == 6)
        world.agent.send(ipc.pack(ipc.GateVerdict("d", armed=True, stopped=False, mode={})))
        await world.armed()
        assert world.host.counts["malformed proposal"] == 6


async def test_stop_is_latched_through_a_restart_and_release_moves_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await world.propose({"head": "left"})
        await world.send(TOPICS("stop"), {"engaged": True})
        await eventually(lambda: world.events("stopped") == [{}])
        await eventually(lambda: world.commands()[-1]["value"] == "stay")
        assert (await world.propose({"head": "left"})).outcomes["head"].rule == "stopped"
        assert (await world.ask("arm"))["status"] == "error"
        await eventually(lambda: (latches.load(tmp_path / "latches.json") or {}).get("stopped") is True)
    async with world_of(tmp_path, broker) as world:
        await eventually(lambda: world.of("status")[-1]["state"] == "stopped")
        assert (await world.propose({"head": "left"})).stopped
        await eventually(lambda: not resumed(world))
        await world.send(TOPICS("stop"), {"engaged": False})
        await eventually(lambda: world.events("stop_released") == [{}])
        assert not (await world.propose({"head": "left"})).armed
        assert (await world.ask("arm"))["status"] == "ok"
        await world.armed(ask_again=True)
        assert (await world.propose({"head": "left"})).outcomes["head"].sent


async def test_a_release_and_an_arm_sent_at_once_arm(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        for _ in range(20):
            await world.send(TOPICS("stop"), {"engaged": True})
            await eventually(lambda: world.host.gate.stopped)
            world.outside.enqueue(TOPICS("stop"), b'{"engaged": false}', qos=1)
            assert (await world.ask("arm"))["status"] == "ok"
            await world.armed()
            await world.send(TOPICS("stop"), {"engaged": True})
            await eventually(lambda: world.host.gate.stopped)
            assert "release the stop first" in (await world.ask("arm"))["error"]


async def test_what_was_retained_is_ignored(tmp_path: Path, broker: Mosquitto) -> None:
    async with running(Connection(Address("127.0.0.1", broker.port), "past")) as past:
        await past.publish(TOPICS("stop"), b'{"engaged": false}', retain=True)
        await past.publish(TOPICS("override", "head"), b'{"value": "left", "hold_s": 60}', retain=True)
        await past.publish(TOPICS("request", "disarm"), b"", retain=True)
        await past.publish(TOPICS("request", "mode"), b'{"mode": "shadow"}', retain=True)
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        refused = world.host.connection.refused
        await world.send(TOPICS("override", "head"), {"value": "left"}, retain=True)
        await world.send(TOPICS("request", "mode"), {"mode": "shadow"}, retain=True)
        await world.send(TOPICS("stop"), {"engaged": False}, retain=True)
        await eventually(lambda: sum(refused.values()) == 2)
        await eventually(lambda: world.host.safety.refused[TOPICS("stop")] == 2)
        verdict = await world.propose({"head": "right"})
        assert verdict.outcomes["head"].by == "policy"
        assert set(verdict.mode.values()) == {"autonomous"}
        await world.send(TOPICS("stop"), {"engaged": True}, retain=True)  # stopping is always obeyed
        await eventually(lambda: world.host.gate.stopped)


async def test_override_yields_and_is_reported(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await world.send(TOPICS("override", "head"), {"value": "right", "hold_s": 30, "source": "anna"})
        await eventually(lambda: world.commands()[-1]["value"] == "right")
        verdict = await world.propose({"head": "left"})
        assert verdict.outcomes["head"] == ipc.Outcome(sent=False, rule="overridden", value="right", by="override")
        await world.send(TOPICS("override", "head"), {"value": "up"})
        await eventually(lambda: len(world.events("override")) == 2)
        assert world.commands()[-1]["policy"] == "override"
        first, second = world.events("override")
    assert (first["sent"], first["source"]) == (True, "anna")
    assert (second["sent"], second["rule"]) == (False, "unknown_choice")


async def test_an_override_that_is_over_before_the_next_proposal_is_in_its_verdict(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.moving("left")
        await world.send(TOPICS("override", "head"), {"value": "right", "hold_s": 0})
        await eventually(lambda: world.commands()[-1]["policy"] == "override")
        await eventually(lambda: world.host.gate.held_until_s("head") is None)
        verdict = await world.propose({"head": "left"})
        assert verdict.overridden == {"head": "right"}
        assert (await world.propose({"head": "left"})).overridden == {}


async def test_an_override_and_a_stop_are_answered_by_the_gate(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker, gate={"reconcile_s": 0.1, "arm": "request"}) as world:

        async def press(*parts: str, **body: Any) -> dict[str, Any]:
            reply_to = TOPICS("response", "page")
            answer = await world.outside.request(TOPICS(*parts), encode(body), reply_to=reply_to, timeout_s=60)
            data: dict[str, Any] = orjson.loads(answer.payload)
            return data

        await world.propose({})
        disarmed = (await press("override", "head", value="left", hold_s=2))["data"]
        assert (disarmed["sent"], disarmed["rule"], disarmed["reason"]) == (False, "disarmed", "not armed")
        assert (await world.ask("arm"))["status"] == "ok"
        await world.armed(ask_again=True)
        moved = (await press("override", "head", value="left", hold_s=2))["data"]
        assert (moved["sent"], moved["value"], moved["hold_s"]) == (True, "left", 2)
        assert "hold_s" in (await press("override", "head", value="left", hold_s=-1))["error"]
        assert (await press("stop", engaged=True))["data"] == {"stopped": True, "armed": False}
        assert (await press("stop", engaged="no"))["data"] == {"stopped": True, "armed": False}
        assert world.host.connection.refused == {TOPICS("override", "+"): 1}


async def test_holds_are_published_and_can_be_ended(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await eventually(lambda: world.of("hold", "head")[-1:] == [{"value": None, "until": None}])
        await world.send(TOPICS("override", "head"), {"value": "right", "hold_s": 60})
        await eventually(lambda: world.of("hold", "head")[-1]["value"] == "right")
        assert 55 < world.of("hold", "head")[-1]["until"] - time.time() <= 60
        await world.propose({"head": "left"})
        assert (await world.ask("end_override", actuator="head"))["data"] == {"actuator": "head"}
        await eventually(lambda: world.of("hold", "head")[-1]["until"] is None)
        await world.moving("left")
        assert "not configured" in (await world.ask("end_override", actuator="nose"))["error"]


async def test_a_hold_that_is_extended_many_times_a_second_is_published_rarely(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with world_of(tmp_path, broker) as world:
        host = world.host
        await world.armed()
        before, start_s = len(world.of("hold", "head")), host.now()
        for number in range(20):  # no await: the host's own tick does not come between
            now_s = start_s + number / 20
            host.holds.wall = lambda now_s=now_s: 1e9 + now_s  # the clocks agree, however slowly this runs
            host.gate.override("head", "right", 10.0, now_s)
            host.holds.publish_changes(now_s)
        host.holds.wall = lambda: 1e9 + host.now()
        await eventually(lambda: len(world.of("hold", "head")) == before + 2)
        await world.propose({})
        assert len(world.of("hold", "head")) == before + 2


async def test_requests_are_answered(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker, gate={"reconcile_s": 0.1, "arm": "request"}) as world:
        await world.propose({})
        assert not (await world.propose({"head": "left"})).armed
        assert (await world.ask("arm"))["status"] == "ok"
        await world.armed(ask_again=True)
        assert (await world.ask("mode", mode="assist", actuator="head"))["data"]["modes"]["head"] == "assist"
        await eventually(lambda: world.of("info")[-1]["mode"] == "assist")
        async with asyncio.timeout(60):  # on a busy machine the dead-man may act in between, and arming ends with it
            while (await world.propose({"head": "left"})).outcomes["head"].rule != "mode":
                await world.ask("arm")
        assert "not configured" in (await world.ask("mode", mode="assist", actuator="nose"))["error"]
        assert "mode" in (await world.ask("mode", mode="wild"))["error"]
        assert (await world.ask("disarm"))["data"] == {"armed": False}
        assert not (await world.propose({"head": "left"})).armed
        assert (await world.ask("reload"))["status"] == "ok"
        assert await world.ask("reload") == {"status": "error", "error": "line 3: no"}
        await eventually(lambda: "assist" in str(latches.load(tmp_path / "latches.json")))


async def test_an_answer_never_goes_to_an_actuator(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        for topic in (TOPICS.command("head"), "zigbee2mqtt/lamp/set", "reflexd/other/act/x/set"):
            world.outside.enqueue(TOPICS("request", "disarm"), b"", qos=1, response_topic=topic)
        await eventually(lambda: len(world.of("response", "disarm")) == 3)
        sets = [orjson.loads(m.payload) for m in world.messages if m.topic.endswith("/set")]
    assert world.host.connection.drops["forbidden response topic"] == 3
    assert all("status" not in body for body in sets)


async def test_devices_are_reconciled_before_anything_moves(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker, gate={"reconcile_s": 60}) as world:
        assert not (await world.propose({"head": "left"})).armed
        await world.send(TOPICS.state("head"), {"value": "left"}, retain=True)
        await world.send(TOPICS.state("arm"), {"value": [0.1, 0.2]}, retain=True)
        assert not (await world.propose({"head": "left"})).armed
        await world.send("zigbee2mqtt/lamp", {"state": "ON", "linkquality": 3})
        await world.armed()
        assert world.host.gate.last_command("arm") == ((0.1, 0.2), "none")
        await world.send(TOPICS.state("head"), {"value": "sideways"})
        await world.send(TOPICS.state("head"), {"nothing": 1})
        await eventually(lambda: world.host.connection.refused[TOPICS.state("head")] == 2)


async def test_a_safe_action_is_sent_again_until_acknowledged(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        boot = world.host.devices.commands.boot
        await eventually(lambda: len(world.commands()) == 1)
        await world.send(TOPICS.state("head"), {"value": "left", "seq": 0, "boot": boot})  # missed it
        await eventually(lambda: len(world.commands()) >= 3, "the safe action again")
        last = world.commands()[-1]
        assert (last["value"], last["policy"]) == ("stay", "gate")
        answered = world.host.gate.repeats
        async with asyncio.timeout(60):
            while world.host.gate.owed():  # it may have been sent again meanwhile
                await world.send(
                    TOPICS.state("head"), {"value": "stay", "seq": world.commands()[-1]["seq"], "boot": boot}
                )
                await asyncio.sleep(0.02)
        assert answered >= 1


async def test_a_lost_broker_disarms_and_its_return_restores_everything(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await world.propose({"head": "left"})
        broker.stop()
        await eventually(lambda: not world.host.connection.connected)
        await eventually(lambda: not world.host.gate.armed)
        assert (
            "no connection to the broker" in world.host.publisher.status()[1]
            or world.host.publisher.status()[0] == "degraded"
        )
        broker.start()
        await eventually(lambda: world.host.connection.connected and world.outside.connected)
        await world.armed()
        await eventually(lambda: world.of("status")[-1]["state"] == "online")
        assert world.host.publisher.counts["broker_lost"] == 1  # whoever listens may come back later than the event
        assert world.host.publisher.counts["broker_recovered"] == 1
        info = world.of("info")[-1]
        assert (info["policy"], info["mode"], info["version"]) == ("p1", "autonomous", "1.2.3")


async def test_the_end_rests_and_says_so(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await world.propose({"head": "left"})
        await world.host.go_safe("requested end")
        await eventually(lambda: world.commands()[-1]["value"] == "stay")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await world.propose({"head": "left"})
        world.host.tick()
        await world.host.publish_offline("requested end")
        await eventually(lambda: world.of("status")[-1] == {"state": "offline", "reasons": ["requested end"]})
        assert world.commands()[-1]["value"] == "stay"


async def test_latches_that_cannot_be_written_are_reported(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world_of(tmp_path, broker) as world:
        monkeypatch.setattr(os, "fsync", disk_full)
        await world.send(TOPICS("stop"), {"engaged": True})
        await eventually(lambda: world.host.gate.stopped)
        world.host.latches.changed()
        await world.host.go_safe("end")
    assert latches.load(tmp_path / "latches.json") is None


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"{", b"[]", b"{}", b"true", b"ON", b"1", b"stop!", b"\xff", b'{"engaged": 1}', b'{"engaged": "true"}'),
        *(b'{"engaged": "no"}', b'{"engaged": false, "engaged ": 1}', b"[" * 40 + b"]" * 40, b"x" * 100_000),
    ],
)
async def test_a_message_that_may_mean_stop_is_a_stop(tmp_path: Path, broker: Mosquitto, payload: bytes) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.moving("left")
        await world.outside.publish(TOPICS("stop"), payload)
        await eventually(lambda: world.host.gate.stopped)
        await eventually(lambda: world.commands()[-1]["value"] == "stay")
        await eventually(lambda: len(world.events("stopped")) == 1)
        assert "counts as a stop" in world.events("stopped")[0]["reason"]
        await eventually(lambda: "counts as a stop" in str(world.of("status")[-1]))


async def test_what_allows_movement_must_be_exactly_right(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker, gate={"reconcile_s": 0.1, "arm": "request"}) as world:
        await world.propose({})
        for payload in (b"please", b"[]", b'{"now": true}', b"1", b'"arm"'):
            answer = await world.outside.request(TOPICS("request", "arm"), payload, reply_to=TOPICS("response", "me"))
            assert orjson.loads(answer.payload)["status"] == "error"
        assert not (await world.propose({})).armed
        assert "actuatr" in (await world.ask("mode", mode="autonomous", actuatr="head"))["error"]
        assert "unknown verb" in (await world.ask("warm"))["error"]
        assert "there are" in (await world.ask("warm"))["error"]
        answer = await world.outside.request(
            TOPICS("override", "nose"), b'{"value": "left"}', reply_to=TOPICS("response", "me")
        )
        assert "'nose' is not configured" in orjson.loads(answer.payload)["error"]
        answer = await world.outside.request(
            TOPICS("override", "head"), b'{"value": "left", "hold": 60}', reply_to=TOPICS("response", "me")
        )
        assert "hold" in orjson.loads(answer.payload)["error"]


async def test_the_broker_stores_a_stop_while_the_gate_is_away(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
    async with running(Connection(Address("127.0.0.1", broker.port), "operator")) as operator:
        await operator.publish(TOPICS("stop"), b'{"engaged": true}')
        await operator.publish(TOPICS("stop"), b'{"engaged": false}')
    async with world_of(tmp_path, broker) as world:
        await eventually(lambda: world.host.gate.stopped)
        await eventually(lambda: world.host.safety.refused[TOPICS("stop")] == 1, "the old release refused")
        await eventually(lambda: len(world.events("stop_release_refused")) == 1, "the reason")
        assert "send it again" in world.events("stop_release_refused")[0]["reason"]
        assert world.host.gate.stopped
        await eventually(lambda: world.of("status")[-1]["state"] == "stopped")


async def test_a_stop_that_was_retained_is_deleted_with_its_release(tmp_path: Path, broker: Mosquitto) -> None:
    async with running(Connection(Address("127.0.0.1", broker.port), "operator")) as operator:
        await operator.publish(TOPICS("stop"), b'{"engaged": true}', retain=True)
        async with world_of(tmp_path, broker) as world:
            await eventually(lambda: world.host.gate.stopped, "a retained stop at the start")
            await eventually(lambda: world.events("stopped") == [{"reason": "a retained stop message"}])
            await operator.publish(TOPICS("stop"), b'{"engaged": false}')
            await eventually(lambda: not world.host.gate.stopped)
            await eventually(lambda: any(m.topic == TOPICS("stop") and not m.payload for m in world.messages))
            await eventually(lambda: world.events("stop_released") == [{}])
        async with world_of(tmp_path, broker) as world:
            await eventually(lambda: world.of("status") != [])
            assert not world.host.gate.stopped


async def test_a_publish_that_the_broker_refuses_is_not_acknowledged(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "acl").write_text("topic read #\ntopic write reflexd/+/status\n")
    port = free_port()
    text = f"listener {port} 127.0.0.1\nallow_anonymous true\nacl_file {folder}/acl\nuser root\n"
    refusing = Mosquitto(folder, port, extra=text).start()
    try:
        host = make_host(tmp_path, port)
        async with running(host.safety):
            await eventually(lambda: host.safety.drops["refused by the broker"] >= 3)
            assert host.gate.owed() == ["head", "arm", "lamp"]
    finally:
        refusing.stop()
