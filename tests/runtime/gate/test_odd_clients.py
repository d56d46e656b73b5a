"""Odd clients, agents and disks around the real gate on a real broker: none of them moves anything, and none ends the gate."""

from __future__ import annotations

import array
import asyncio
import shutil
import socket
import struct
from pathlib import Path
from typing import Any

import aiomqtt
import orjson
import psutil
import pytest
from gate_host import TOPICS, World, make_host, world_of
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from actuators.config import ChoiceSettings, GateSettings
from actuators.safety.decisions import MODES
from actuators.safety.gate import Gate
from fakes import Mosquitto, eventually
from runtime.gate import ipc, latches

STOP, RELEASE = b'{"engaged": true}', b'{"engaged": false}'


async def settled(world: World) -> None:
    """Until the gate has handled what was sent before on the connection of requests."""
    await world.ask("nothing")


async def stop_is_obeyed(world: World) -> None:
    """Send a stop; the gate has it and the head gets its safe command."""
    before = len(world.commands())
    await world.outside.publish(TOPICS("stop"), STOP)
    await eventually(lambda: world.host.gate.stopped, "the stop")
    await eventually(lambda: any(c["value"] == "stay" for c in world.commands()[before:]), "the safe command")


async def release_and_arm(world: World) -> None:
    await eventually(lambda: world.host.latches.has("stopped", value=True), "the stop on the disk")
    await world.outside.publish(TOPICS("stop"), RELEASE)
    await eventually(lambda: not world.host.gate.stopped, "the release")
    await world.armed(ask_again=True)


# --- clients


async def test_a_hold_ends_with_a_stop_and_does_not_come_back(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await world.send(TOPICS("override", "head"), {"value": "right", "hold_s": 60})
        await eventually(lambda: world.host.gate.holds["head"] is not None, "the hold")
        await stop_is_obeyed(world)
        await release_and_arm(world)
        before = len(world.commands())
        for _ in range(5):
            await world.propose({})
        await settled(world)
        assert world.host.gate.holds["head"] is None
        assert [c["value"] for c in world.commands()[before:] if c["policy"] != "gate"] == []


async def test_deleting_a_retained_stop_releases_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.outside.publish(TOPICS("stop"), STOP, retain=True)
        await eventually(lambda: world.host.latches.has("stopped", value=True), "the stop on the disk")
        for payload in (b"", RELEASE, b""):
            await world.outside.publish(TOPICS("stop"), payload, retain=True)
        await world.outside.publish(TOPICS("stop"), b"OFF", retain=True)
        await world.outside.publish(TOPICS("stop"), b"", retain=True)
        await settled(world)
    async with world_of(tmp_path, broker) as world:
        await world.ticks_of(10)
        assert world.host.gate.stopped


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("request/mode", b'{"mode": "shadow", "mode": "autonomous"}'),
        ("request/mode", b'{"mode": "autonomous", "actuator": "head", "actuator": null}'),
        ("request/arm", b'{"source": "a", "source": "b"}'),
        ("override/head", b'{"value": "stay", "value": "right", "hold_s": 5}'),
        ("override/head", b'{"value": "right", "hold_s": 0, "hold_s": 3600}'),
    ],
)
async def test_a_message_with_a_repeated_key_allows_nothing(
    tmp_path: Path, broker: Mosquitto, topic: str, payload: bytes
) -> None:
    async with world_of(tmp_path, broker, mode="assist", gate={"reconcile_s": 0.1, "arm": "request"}) as world:
        await world.propose({})
        await world.outside.publish(TOPICS(*topic.split("/")), payload)
        await settled(world)
        await world.propose({})
        assert set(world.host.gate.modes.values()) == {"assist"}
        assert not world.host.gate.armed
        assert not any(world.host.gate.holds.values())


@pytest.mark.parametrize("long", ["topic", "correlation", "properties"])
async def test_a_request_for_a_huge_or_odd_answer_ends_no_connection(
    tmp_path: Path, broker: Mosquitto, long: str
) -> None:
    requested = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    requested.ResponseTopic = TOPICS("response") + "/" + ("x" * 60_000 if long == "topic" else "x")
    requested.CorrelationData = b"c" * (60_000 if long == "correlation" else 1)
    requested.UserProperty = [("k" * 50, "v" * 50)] * (500 if long == "properties" else 1)
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        connects = world.host.safety.connects, world.host.connection.connects
        async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
            for topic in ("request/arm", "request/nothing", "override/head", "stop"):
                await client.publish(TOPICS(*topic.split("/")), STOP, 1, properties=requested)
        await eventually(lambda: world.host.gate.stopped, "the stop")
        await settled(world)
        assert (world.host.safety.connects, world.host.connection.connects) == connects


def utf8(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode()


def packet(kind: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([kind, len(body)]) + body


@pytest.mark.parametrize("reset", [False, True])
async def test_a_stop_in_one_segment_with_the_end_of_the_connection_is_obeyed(
    tmp_path: Path, broker: Mosquitto, reset: bool
) -> None:
    """A panel of MQTT 3.1.1 that sends CONNECT and PUBLISH at once and waits for nothing."""
    connect = packet(0x10, utf8("MQTT") + b"\x04\x02\x00\x05" + utf8("panel"))
    publish = packet(0x30, utf8(TOPICS("stop")) + STOP)
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        with socket.create_connection(("127.0.0.1", broker.port)) as panel:
            panel.sendall(connect + publish)
            if reset:
                await eventually(lambda: bool(panel.recv(4, socket.MSG_PEEK)), "the broker's answer")
                panel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: world.host.gate.stopped, "the stop")


async def test_a_device_that_acknowledges_another_daemon_gets_few_repeats(tmp_path: Path, broker: Mosquitto) -> None:
    """It says that it answers, and never acknowledges a command of this daemon: the safe action is repeated more and more slowly."""
    async with world_of(tmp_path, broker) as world:
        await world.send(TOPICS("act", "head", "state"), {"value": "stay", "boot": "another", "seq": 5})
        await settled(world)
        await world.armed()
        await stop_is_obeyed(world)
        before = world.host.gate.repeats
        await eventually(lambda: world.host.gate.repeats >= before + 3, "repeats")
        assert world.host.gate.owed() == ["head"]
        assert world.host.gate._actuators["head"].repeat_s >= 0.8


@pytest.mark.parametrize("seed", range(3))
async def test_on_the_wire_nothing_of_the_policy_follows_the_stop(tmp_path: Path, broker: Mosquitto, seed: int) -> None:
    """The agent proposes as fast as it can while the stop comes: after the safe command the broker gets none of the policy."""
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        stopping = asyncio.create_task(world.outside.publish(TOPICS("stop"), STOP))
        for number in range(60 + 37 * seed):
            world.agent.send(ipc.pack(world.proposal({"head": ("left", "right")[number % 2], "arm": (0.1, 0.1)})))
            if number % (seed + 2) == 0:
                await asyncio.sleep(0)
        await stopping
        await eventually(lambda: world.host.gate.stopped and not world.host.gate.owed(), "rest")
        await settled(world)
        for name in ("head", "arm"):
            who = [c["policy"] for c in world.commands(name)]
            last = max(i for i, each in enumerate(who) if each == "gate")
            assert "p1" not in who[last:]
            assert world.commands(name)[-1]["policy"] == "gate"


# --- agents


async def test_files_that_the_agent_passes_along_are_closed(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        before = psutil.Process().num_fds()
        with (tmp_path / "file").open("wb") as file:
            fds = array.array("i", [file.fileno()] * 50)
            for _ in range(20):
                data = ipc.pack(world.proposal({}))
                world.agent.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
                await asyncio.sleep(0)
        await world.propose({})
        assert psutil.Process().num_fds() <= before
        await stop_is_obeyed(world)


async def test_an_agent_that_reads_no_verdict_delays_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()

        async def flood() -> None:
            while True:
                try:
                    world.agent.send(ipc.pack(world.proposal({"head": "left"})))
                except BlockingIOError:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        await eventually(lambda: world.host.counts["unsent verdict"] > 100, "a full socket")
        await stop_is_obeyed(world)
        flooding.cancel()
        await asyncio.wait([flooding])


@pytest.mark.parametrize("how", ["half closed", "too long", "empty"])
async def test_the_end_and_the_junk_of_an_agent_bring_the_devices_to_rest(
    tmp_path: Path, broker: Mosquitto, how: str
) -> None:
    async with world_of(tmp_path, broker) as world:
        await world.armed()
        await world.moving("left")
        before = len(world.commands())
        if how == "half closed":
            world.agent.shutdown(socket.SHUT_WR)
        elif how == "empty":
            world.agent.send(b"")
        else:
            world.agent.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * ipc.MAX_MESSAGE)
            world.agent.send(ipc.pack(world.proposal({"head": "right"})) + b" " * 2 * ipc.MAX_MESSAGE)
        await eventually(lambda: any(c["policy"] == "gate" for c in world.commands()[before:]), "the safe command")
        assert "right" not in [c["value"] for c in world.commands()[before:]]


# --- disks


async def test_a_state_folder_that_was_removed_is_made_again_for_the_stop(tmp_path: Path, broker: Mosquitto) -> None:
    folder = tmp_path / "state"
    async with world_of(folder, broker) as world:
        await world.armed()
        shutil.rmtree(folder, ignore_errors=True)
        await stop_is_obeyed(world)
        await eventually(lambda: bool(world.events("stopped")), "the announcement")
        assert latches.load(folder / "latches.json")["stopped"] is True  # type: ignore[index]


async def test_a_folder_in_place_of_the_second_listeners_latch_is_a_stop_that_stays(
    tmp_path: Path, broker: Mosquitto
) -> None:
    (tmp_path / "stop-latch").mkdir(parents=True)
    async with world_of(tmp_path, broker) as world:
        await eventually(lambda: world.host.latches.has("stopped", value=True), "the stop on the disk")
        await eventually(lambda: any(s["state"] == "stopped" for s in world.of("status")), "the status")
        await world.outside.publish(TOPICS("stop"), RELEASE)
        await eventually(lambda: bool(world.events("latches_not_saved")), "the reason")
        assert world.events("stop_released") == [], "a restart would stop again"
    assert make_host(tmp_path, broker.port).gate.stopped


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from([*MODES, "head", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["stopped", "wanted", "modes", "configured", "head", "x"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(content=JSON, mode=st.sampled_from(MODES))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_latches_of_any_content_arm_nothing_and_free_nothing(content: Any, mode: Any) -> None:
    head = ChoiceSettings(kind="choice", choices=("left", "stay"), safe="stay")
    gate = Gate({"head": head}, GateSettings(), now_s=10.0, mode=mode)
    gate.restore(content if isinstance(content, dict) else latches.UNREADABLE)
    assert not gate.armed
    assert MODES.index(gate.modes["head"]) <= MODES.index(mode)
    reported = isinstance(content, dict) and content.get("stopped") is False
    assert gate.stopped or reported, "whatever is no clear `false` is a stop"
    assert orjson.loads(orjson.dumps(gate.latches))["configured"] == mode
