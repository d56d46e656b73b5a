"""Odd, forged and repeated messages to the real gate on a real broker: what allows movement must be exactly right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiomqtt
import orjson
import paho.mqtt.client as paho
import pytest
from gate_host import SETTINGS, TOPICS, World, resumed, world_of
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fakes import Mosquitto, eventually
from runtime.config.loader import ConfigError, load
from runtime.gate import ipc
from runtime.mqtt import Message

STOP, RELEASE = b'{"engaged": true}', b'{"engaged": false}'


def state(actuator: str) -> str:
    return "zigbee2mqtt/lamp" if actuator == "lamp" else TOPICS("act", actuator, "state")


async def settled(world: World) -> None:
    """Until the gate has handled what was sent before: its answer comes after it, on the same connection."""
    await world.ask("nothing")


async def publish_raw(world: World, broker: Mosquitto, *messages: tuple[str, bytes], retain: bool = False) -> None:
    async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        for topic, payload in messages:
            await client.publish(topic, payload, 1, retain=retain)
    await settled(world)


NO_RELEASES = [
    b'{"engaged": false, "engaged": false}', b'{"engaged": true, "engaged": false}', b'\xef\xbb\xbf{"engaged": false}',
    b'{"engaged": false}\x00', b'{"engaged": 0}', b'{"engaged": "false"}', b'{"engaged": null}', b'[{"engaged": false}]',
    b'{"Engaged": false}', '{"eng\u0430ged": false}'.encode(), b'{"engaged": false, "source": "me", "force": true}',
    b'{"engaged": -0.0}', b'{"engaged": false', b"false", b"OFF", b'"release"', b"\xff\xfe", b"[" * 5_000, b" ",
]  # fmt: skip


async def test_what_is_not_exactly_a_release_stops(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        for payload in NO_RELEASES:
            await eventually(lambda: not resumed(world))
            await world.outside.publish(TOPICS("stop"), payload)
            await eventually(lambda: world.host.gate.stopped, f"{payload[:40]!r} stops")
            await world.outside.publish(TOPICS("stop"), RELEASE)
            await eventually(lambda: not world.host.gate.stopped)


async def test_a_stop_comes_in_every_way_that_mqtt_5_has(tmp_path: Path, broker: Mosquitto) -> None:
    alias, expiring = Properties(PacketTypes.PUBLISH), Properties(PacketTypes.PUBLISH)
    alias.TopicAlias = 1
    expiring.MessageExpiryInterval = 1
    expiring.UserProperty = [("engaged", "false"), ("engaged", "false")]
    expiring.PayloadFormatIndicator = 1
    expiring.ContentType = "application/release"
    async with world_of(tmp_path, broker) as world:
        await world.armed()

        async def stops(how: str) -> None:
            await eventually(lambda: world.host.gate.stopped, how)
            await world.outside.publish(TOPICS("stop"), RELEASE)
            await eventually(lambda: not world.host.gate.stopped)

        client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        try:
            await asyncio.to_thread(client.publish(TOPICS("stop"), STOP, 1, properties=alias).wait_for_publish, 5)
            await stops("a topic with an alias")
            client.publish("", STOP, 1, properties=alias)
            await stops("the alias alone")
            client.publish(TOPICS("stop"), STOP, 2, properties=expiring)
            await stops("QoS 2, about to expire, with odd properties")
        finally:
            client.disconnect()
            client.loop_stop()
        panel = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        panel.will_set(TOPICS("stop"), STOP, 1)
        panel.connect("127.0.0.1", broker.port)
        for _ in range(10):
            panel.loop(0.05)
        sock = panel.socket()
        assert sock is not None
        sock.close()  # without DISCONNECT: the broker publishes the will
        await stops("the will of a panel that dies")


RETAINED: list[tuple[str, bytes]] = [
    (TOPICS("request", "arm"), b"{}"), (TOPICS("request", "mode"), b'{"mode": "autonomous"}'), (TOPICS("stop"), RELEASE),
    (TOPICS("override", "head"), b'{"value": "left", "hold_s": 3600}'), (TOPICS("request", "end_override"), b'{"actuator": "head"}'),
    (TOPICS("request", "reload"), b""), (TOPICS("act", "head", "state"), b'{"value": "left", "boot": "x", "seq": 7}'),
    (TOPICS("act", "arm", "state"), b'{"value": [9, 9]}'), (TOPICS("hold", "head"), b'{"value": "left", "until": null}'),
    (TOPICS("status"), b'{"state": "online", "reasons": []}'), (TOPICS("act", "head", "set"), b'{"value": "left"}'),
]  # fmt: skip


@pytest.mark.parametrize("before", [True, False])
async def test_nothing_retained_moves_anything(tmp_path: Path, broker: Mosquitto, before: bool) -> None:
    gate = {"gate": SETTINGS["gate"] | {"arm": "request"}}

    async def plant(client: Callable[..., Any]) -> None:
        for topic, payload in RETAINED:
            await client(topic, payload)

    if before:
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            await plant(lambda topic, payload: client.publish(topic, payload, 1, retain=True))
    async with world_of(tmp_path, broker, **gate) as world:
        if not before:
            await plant(lambda topic, payload: world.outside.publish(topic, payload, retain=True))
        await settled(world)
        for _ in range(10):
            verdict = await world.propose({"head": "left", "arm": (0.5, 0.5), "lamp": "ON"})
            assert not verdict.armed
        assert world.reloads == 0
        assert {command.get("policy", "gate") for command in world.commands()} <= {"gate"}
        assert world.host.gate.holds == dict.fromkeys(world.host.gate.holds)


ODD_VALUES: list[tuple[str, bytes]] = [
    ("arm", b'"NaN"'), ("arm", b'"Infinity"'), ("arm", b'["0.5", "0.5"]'), ("arm", b"[1e999, 0]"), ("arm", b"[-1e999, 0]"),
    ("arm", b"[1" + b"0" * 400 + b", 0]"), ("arm", b"[NaN, 0]"), ("arm", b"[null, 0]"), ("arm", b"[true, false]"), ("arm", b"[[0.1], 0.1]"),
    ("arm", b"[0.1]"), ("arm", b"[0.1, 0.1, 0.1]"), ("arm", b"{}"), ("arm", b'"0x10"'), ("arm", b"[0.1, 0.1" + b", 0" * 5_000 + b"]"),
    ("head", b'"LEFT"'), ("head", '"\uff4c\uff45\uff46\uff54"'.encode()), ("head", '"left\u200b"'.encode()), ("head", b'"left\\u0000"'),
    ("head", b'" left"'), ("head", b'["left"]'), ("head", b"0"), ("head", b'"\\ud800"'), ("lamp", '"\u041eN"'.encode()), ("lamp", b'"ON\\", \\"state\\": \\"OFF"'),
]  # fmt: skip


async def test_odd_values_are_refused_from_person_and_device_alike(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        rest = {name: world.host.gate.last_command(name)[0] for name in world.host.gate.modes}
        for name, value in ODD_VALUES:
            key = b"state" if name == "lamp" else b"value"
            await publish_raw(
                world,
                broker,
                (TOPICS("override", name), b'{"value": ' + value + b', "hold_s": 5}'),
                (state(name), b'{"' + key + b'": ' + value + b"}"),
            )
            assert world.host.gate.holds[name] is None, value
            assert world.host.gate.last_command(name)[0] == rest[name], value


@pytest.mark.parametrize(
    "hold", [b"-1", b"3600.1", b"1e400", b"NaN", b'"5 s"', b"null", b"[5]", b"{}", b'5, "hold_s": 5', b'5, "holds": 1']
)
async def test_odd_lengths_of_a_hold_are_refused(tmp_path: Path, broker: Mosquitto, hold: bytes) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await publish_raw(world, broker, (TOPICS("override", "head"), b'{"value": "left", "hold_s": ' + hold + b"}"))
        assert world.host.gate.holds["head"] is None
        assert all(command["policy"] == "gate" for command in world.commands())


@pytest.mark.parametrize(
    "name", ["h\u0435ad", "head\u200b", "HEAD", "head ", "..", "head.", "%2e%2e", "x" * 5_000, "\U0001f916", "$SYS"]
)
async def test_names_that_only_look_like_an_actuator_or_a_verb(tmp_path: Path, broker: Mosquitto, name: str) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await publish_raw(
            world,
            broker,
            (TOPICS("override", name), b'{"value": "left", "hold_s": 5}'),
            (TOPICS("request", name), b"{}"),
            (TOPICS("act", name, "state"), b'{"value": "left"}'),
            (TOPICS("request", "mode"), orjson.dumps({"mode": "shadow", "actuator": name})),
        )
        assert set(world.host.gate.modes.values()) == {"autonomous"}
        assert set(world.host.gate.holds.values()) == {None}
        assert world.host.gate.last_command("head")[0] == "stay"


async def test_a_report_cannot_acknowledge_what_was_never_sent(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        boot = world.host.devices.commands.boot
        await publish_raw(world, broker, (state("head"), orjson.dumps({"value": "stay", "boot": boot, "seq": 0})))
        world.host.stop(engaged=True)
        assert "head" in world.host.gate.owed()
        last = world.host.devices.commands.last("head")
        for seq in (last + 1, 10**9, 2**63, -1, last - 10_000):
            await publish_raw(world, broker, (state("head"), orjson.dumps({"value": "stay", "boot": boot, "seq": seq})))
            assert "head" in world.host.gate.owed(), seq
        while "head" in world.host.gate.owed():  # the gate repeats the command meanwhile
            last = world.host.devices.commands.last("head")
            body = orjson.dumps({"value": "stay", "boot": boot, "seq": last})
            await publish_raw(world, broker, (state("head"), body))


@pytest.mark.parametrize("policy", ["gate", "override", "none"])
async def test_a_policy_cannot_bear_the_name_of_the_gate_or_of_a_person(
    tmp_path: Path, broker: Mosquitto, policy: str
) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        frame = orjson.loads(ipc.pack(world.proposal({"head": "left"})))
        with pytest.raises(ValueError, match="reserved"):
            ipc.unpack(orjson.dumps(frame | {"policy": policy}))
        before = world.host.counts["malformed proposal"]
        world.agent.send(orjson.dumps(frame | {"policy": policy}))
        await eventually(lambda: world.host.counts["malformed proposal"] > before)
        assert all(command["value"] == "stay" for command in world.commands())


@pytest.mark.parametrize(
    "data", [b"\0" * 100, b"{}", b"[]", b"null", b'{"kind": "Verdict"}', b"[" * 100_000, b" " * 262_144]
)
async def test_datagrams_that_are_no_proposal_end_nothing(tmp_path: Path, broker: Mosquitto, data: bytes) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        before = world.host.counts["malformed proposal"]
        world.agent.send(data)
        await eventually(lambda: world.host.counts["malformed proposal"] == before + 1)
        await world.armed()


async def test_an_empty_datagram_is_the_end_of_the_agent(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.moving("left")
        world.agent.send(b"")
        await eventually(lambda: world.events("agent_lost"))
        await eventually(lambda: world.commands()[-1]["policy"] == "gate")


@pytest.mark.parametrize("topic", ["stop", "override/head", "request/mode", "request/arm", "act/head/state"])
async def test_deep_and_large_messages_are_refused_and_counted(tmp_path: Path, broker: Mosquitto, topic: str) -> None:
    deep = b'{"value": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await publish_raw(
            world, broker, *((TOPICS(topic), payload) for payload in (deep, b'{"value": "' + b"x" * 1_000_000 + b'"}'))
        )
        assert set(world.host.gate.holds.values()) == {None}
        assert set(world.host.gate.modes.values()) == {"autonomous"}
        assert world.host.gate.stopped is (topic == "stop")


@pytest.mark.parametrize(
    "response", ["reflexd/tester/stop", "reflexd/tester/act/head/set", "reflexd/tester/response/../stop", "reflexd/tester/request/arm", "$SYS/x", "reflexd/tester/responses/x", "reflexd/tester/response", "/"]
)  # fmt: skip
async def test_an_answer_never_becomes_a_command(tmp_path: Path, broker: Mosquitto, response: str) -> None:
    requested = Properties(PacketTypes.PUBLISH)
    requested.ResponseTopic = response
    requested.CorrelationData = b'{"engaged": true}' * 3_000
    async with world_of(tmp_path, broker, gate=SETTINGS["gate"] | {"arm": "request"}) as world:
        async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            for verb in ("arm", "disarm", "mode", "no-such-verb"):
                await client.publish(TOPICS("request", verb), b"", 1, properties=requested)
        await settled(world)
        assert not world.host.gate.stopped
        assert [
            m for m in world.messages if m.topic == response and b"status" in m.payload
        ] == [] or response.startswith("reflexd/tester/response/")


async def test_the_last_of_a_flood_of_stops_and_releases_counts(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.moving("left")
        async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            for number in range(3_000):
                await client.publish(TOPICS("stop"), RELEASE if number % 2 else STOP, 0)
            await client.publish(TOPICS("stop"), STOP, 1)
        await eventually(lambda: world.host.gate.stopped and world.host.latches.has("stopped", value=True))
        await eventually(lambda: world.of("status")[-1]["state"] == "stopped")
        verdict = await world.propose({"head": "left"})
        assert verdict.stopped
        assert not verdict.armed
        assert world.commands()[-1]["policy"] == "gate"


async def test_modes_that_flip_leave_the_same_on_the_disk_and_in_force(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.moving("left")
        for number in range(300):
            body = {"mode": ("shadow", "autonomous", "assist")[number % 3], "actuator": ("head", "arm")[number % 2]}
            await world.outside.publish(TOPICS("request", "mode"), orjson.dumps(body))
        await settled(world)
        await eventually(lambda: world.host.latches.is_saved)
        await eventually(lambda: world.host.latches.on_disk["modes"] == dict(world.host.gate.modes))


async def test_a_device_that_never_does_what_it_is_commanded_gets_no_more_commands_than_ticks(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await world.outside.publish(TOPICS("override", "arm"), b'{"value": [0.5, 0.5], "hold_s": 60}')
        await eventually(lambda: world.host.gate.holds["arm"] is not None)
        before = world.host.devices.commands.last("arm")
        begun = world.ticks
        for number in range(200):
            await world.outside.publish(state("arm"), orjson.dumps({"value": [(-1) ** number, 1]}), qos=0)
            if number % 20 == 0:
                await world.propose({"arm": (-1.0, -1.0)})
        await eventually(
            lambda: bool(world.host.gate.holds["arm"] or world.events("agent_lost")), "the hold, or its end"
        )
        assert world.host.devices.commands._seq - before <= 3 * (world.ticks - begun) + 20
        arm = [command["value"] for command in world.commands("arm") if command["policy"] == "policy"]
        assert all(abs(part) <= 1 for value in arm for part in value)


async def test_two_actuators_on_one_topic_each_get_their_part_of_the_report(tmp_path: Path, broker: Mosquitto) -> None:
    head = SETTINGS["actuators"]["head"] | {"state_topic": "zigbee2mqtt/lamp", "state_value": "angle"}
    async with world_of(tmp_path, broker, actuators=SETTINGS["actuators"] | {"head": head}) as world:
        await world.outside.publish("zigbee2mqtt/lamp", b'{"state": "ON", "angle": "left"}')
        await eventually(lambda: world.host.gate.last_command("lamp")[0] == "ON")
        assert world.host.gate.last_command("head")[0] == "left"
        await world.outside.publish("zigbee2mqtt/lamp", b'{"angle": "right"}')
        await eventually(lambda: world.host.gate.last_command("head")[0] == "right")
        assert world.host.connection.refused.total() == 1


async def test_two_actuators_with_one_report_are_both_answered_by_the_newest_number(
    tmp_path: Path, broker: Mosquitto
) -> None:
    """The device has handled every command up to the number that it names, of either actuator."""
    shared = {"state_topic": "lab/both", "payload": None}
    both = {
        "head": SETTINGS["actuators"]["head"] | shared | {"state_value": "angle"},
        "lamp": SETTINGS["actuators"]["lamp"] | shared | {"state_value": "light", "topic": None},
    }
    async with world_of(tmp_path, broker, actuators=SETTINGS["actuators"] | both) as world:
        boot = world.host.devices.commands.boot

        async def report(angle: str, light: str, seq: int) -> None:
            body = {"angle": angle, "light": light, "seq": seq, "boot": boot}
            await world.outside.publish("lab/both", orjson.dumps(body))

        await world.armed()
        await world.propose({"head": "left"})
        await world.propose({"lamp": "ON"})
        last = world.host.devices.commands.last
        await eventually(lambda: last("lamp") > last("head"))
        await report("left", "ON", last("lamp"))
        await eventually(lambda: not world.host.gate.owed())
        gate = world.host.gate
        await eventually(lambda: all(gate._actuators[n].carried_out == gate._actuators[n].serial for n in both))
        assert gate._actuators["head"].possible == ("left",)
        assert not world.events("report_refused")
        await report("left", "ON", last("lamp") + 1)
        await eventually(lambda: world.events("report_refused"))


CHAIN = {
    "actuators": {
        name: {"kind": "choice", "choices": ["OFF", "ON"], "safe": "OFF", "requires": ["air"] if name == "d" else []}
        for name in "abcd"
    },
    "streams": SETTINGS["streams"]
    | {"air": {"kind": "telemetry", "source": "topic", "fields": ["a"], "required": False}},
    "gate": {
        "reconcile_s": 0.0,
        "forbid": ["a == 'ON' and b == 'OFF'", "b == 'ON' and c == 'OFF'", "c == 'ON' and d == 'OFF'"],
    },
}


def last_values(messages: list[Message]) -> dict[str, str]:
    """Each actuator's last command outside."""
    sets = [each for each in messages if each.topic.endswith("/set")]
    return {each.topic.split("/")[3]: orjson.loads(each.payload)["value"] for each in sets}


async def test_a_chain_of_three_rules_comes_to_rest_in_an_order_that_breaks_none(
    tmp_path: Path, broker: Mosquitto
) -> None:
    async with world_of(tmp_path, broker, **CHAIN) as world:
        for name in "abcd":
            await world.outside.publish(state(name), b'{"value": "OFF"}')
        await world.armed()
        everything = dict.fromkeys("abcd", "ON")

        async def on() -> None:
            async with asyncio.timeout(60):
                while {world.host.gate.last_command(name)[0] for name in "abcd"} != {"ON"}:
                    await world.propose(everything)
                    await asyncio.sleep(0.01)

        await on()
        causes = [
            lambda: world.propose(everything, stale=("air",)),
            lambda: world.ask("mode", mode="shadow", actuator="d"),
            lambda: world.outside.publish(TOPICS("stop"), STOP),
        ]
        for cause in causes:
            await cause()
            await eventually(lambda: {world.host.gate.last_command(name)[0] for name in "abcd"} == {"OFF"})
            if cause is causes[1]:
                await world.ask("mode", mode="autonomous")
            if cause is not causes[2]:
                await on()
        await eventually(lambda: set(last_values(world.messages).values()) == {"OFF"}, "the last commands outside")
        now = dict.fromkeys("abcd", "OFF")
        for message in world.messages:
            _, _, _, name, kind = (*message.topic.split("/"), "", "", "", "")[:5]
            if kind == "set":
                now[name] = orjson.loads(message.payload)["value"]
                for first, second in ("ab", "bc", "cd"):
                    assert not (now[first] == "ON" and now[second] == "OFF"), (now, message)
        assert set(now.values()) == {"OFF"}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"head": {"topic": "zigbee2mqtt/lamp/set", "payload": '{"state": "${value}"}'}}, "the same topic"),
        ({"head": {"topic": "reflexd/tester/stop"}}, "reserved"),
        ({"head": {"topic": "reflexd/tester/act/arm/set"}}, "reserved"),
        ({"head": {"topic": "reflexd/other/act/head/set"}}, "reserved"),
        ({"head": {"topic": "$SYS/broker"}}, "reserved"),
        ({"head": {"state_topic": "zigbee2mqtt/lamp", "state_value": "state"}}, "the same topic"),
        ({"head": {"state_topic": "reflexd/tester/act/arm/state"}}, "the same topic"),
        ({"head": {"topic": "zigbee2mqtt/lamp/set", "payload": '{"angle": "${value}"}'}}, ""),
        ({"head": {"state_topic": "zigbee2mqtt/lamp", "state_value": "angle"}}, ""),
        ({"head": {"topic": "reflexd/tester/act/head/set", "state_topic": "reflexd/tester/act/head/state"}}, ""),
    ],
)
def test_two_names_for_one_device_are_refused(tmp_path: Path, changes: dict[str, Any], wanted: str) -> None:
    actuators = {name: each | changes.get(name, {}) for name, each in SETTINGS["actuators"].items()}
    text = orjson.dumps(SETTINGS | {"actuators": actuators, "state_dir": str(tmp_path)}).decode()
    path = tmp_path / "tester.yaml"
    path.write_text(text)
    if not wanted:
        load(path)
        return
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert any(wanted in str(problem) and "head" in str(problem) for problem in refused.value.problems)
