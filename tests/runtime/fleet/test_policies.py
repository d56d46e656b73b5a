"""A published policy reaches the learner of a device through a real broker, and takes the device's own way from there."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from unittest.mock import AsyncMock, Mock

import learning
import orjson
import pytest
from click.testing import CliRunner

from fakes import Mosquitto, eventually
from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.signing import public_pem
from learners.checkpoints.store import Checkpoints
from learners.checkpoints.trusted_keys import read_public
from learners.fleet_data.received_policies import received, withdrawn
from learners.fleet_data.retained_blobs import UNFINISHED_S
from learners.fleet_data.uplink_queue import UplinkIdentity
from learners.ipc.outbox import Outbox
from runtime.cli.main import main
from runtime.fleet import policy_publisher
from runtime.fleet.policy_publisher import PolicyPublisher, rollback_in_words
from runtime.fleet.policy_receiver import PolicyReceiver
from runtime.fleet.server_settings import FleetServerSettings
from runtime.fleet.topics import FleetTopics
from runtime.mqtt import Address, Connection, Message, MqttLost

SPEC_DIGEST = hashlib.sha256(learning.SPEC.to_json()).hexdigest()


def publisher(folder: Path, broker: Mosquitto) -> PolicyPublisher:
    body = {"group": "arms", "data": str(folder / "data"), "mqtt": {"url": broker.url}}
    return PolicyPublisher(FleetServerSettings.model_validate(body))


def trained(folder: Path, scale: float) -> tuple[Path, str]:
    """A checkpoint that was made elsewhere, and the file of its key."""
    checkpoints = Checkpoints(folder / "trained", learning.KEY)
    weights = {name: x * scale for name, x in learning.SmallPolicy(learning.SPEC).state_dict().items()}
    version = checkpoints.save({"policy": weights}, {"spec": orjson.loads(learning.SPEC.to_json())})
    (folder / "trained.pem").write_bytes(public_pem(learning.KEY.public_key()))
    return checkpoints.folder / version, str(folder / "trained.pem")


@asynccontextmanager
async def receiving(state: Path, broker: Mosquitto, key: Path, agent: str = "robot") -> AsyncIterator[PolicyReceiver]:
    """A device's receiver, connected."""
    link = Connection(Address("127.0.0.1", broker.port), f"tester-{agent}")
    identity = UplinkIdentity("arms", agent, SPEC_DIGEST, "0.1.0")
    outbox = Outbox(state / "learner" / "outbox")
    receiver = PolicyReceiver(state, link, FleetTopics("arms"), read_public(key), lambda: identity, outbox)
    tasks = [asyncio.create_task(link.run()), asyncio.create_task(receiver.run())]
    try:
        await link.up()
        yield receiver
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_a_policy_a_newer_one_and_a_rollback_arrive_and_a_replay_does_not(
    tmp_path: Path, broker: Mosquitto
) -> None:
    server, state = publisher(tmp_path, broker), tmp_path / "state"
    directory, known = trained(tmp_path, 1.0)
    first = server.add(directory, known, lambda _: False)
    recorded: list[bytes] = []
    spy = Connection(Address("127.0.0.1", broker.port), "spy")
    spy.subscribe("reflexd/fleet/arms/policy", lambda message: recorded.append(message.payload), retained="send")
    spying = asyncio.create_task(spy.run())
    await spy.up()
    await server.publish(1.0)
    async with receiving(state, broker, server.key_file()) as receiver:
        await eventually(lambda: receiver.accepted is not None, "the first policy")
        directory, _ = trained(tmp_path, 2.0)
        second = server.add(directory, known, lambda _: False)
        await server.publish(1.0)
        await eventually(lambda: receiver.accepted is not None and receiver.accepted.counter == 2, "the second policy")
        found = received(state)
        assert found is not None
        assert found.name == second
        spy.enqueue("reflexd/fleet/arms/policy", recorded[0], qos=1)
        await eventually(lambda: receiver.refused == 1, "the refusal of a replay")
        assert server.go_back() == second  # the first never passed its waves: the second is only withdrawn
        assert server.skipped == [first]
        assert server.go_back(force=True) == first
        await server.publish(1.0)
        await eventually(lambda: receiver.accepted is not None and receiver.accepted.counter == 3, "the rollback")
        found = received(state)
        assert found is not None
        assert found.name == first
        assert withdrawn(state) == {second}
    spying.cancel()
    await asyncio.wait([spying])
    kinds = [event.kind for event in Outbox(state / "learner" / "outbox").collect()]
    assert kinds == ["fleet_policy_received"] * 2 + ["fleet_policy_refused", "fleet_policy_received"]


async def test_agents_outside_of_a_wave_and_after_a_restart_take_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    server = publisher(tmp_path, broker)
    directory, known = trained(tmp_path, 1.0)
    server.add(directory, known, lambda _: False)
    await server.publish(1e-9)
    async with receiving(tmp_path / "other", broker, server.key_file(), "other") as receiver:
        assert await receiver.link.caught_up(10)
        assert received(tmp_path / "other") is None
        await server.publish(1.0)
        await eventually(lambda: receiver.accepted is not None, "the wider wave")
    async with receiving(tmp_path / "other", broker, server.key_file(), "other") as again:
        await eventually(lambda: again.repeated == 1, "the retained manifest")
        assert again.accepted is None
        assert again.refused == 0


async def retained_parts(broker: Mosquitto) -> set[tuple[str, str]]:
    """Digest and number of each part of a blob that the broker retains."""
    found = set()
    spy = Connection(Address("127.0.0.1", broker.port), "parts")

    def seen(message: Message) -> None:
        _, digest, number = message.topic.rsplit("/", 2)
        found.add((digest, number))

    spy.subscribe("reflexd/fleet/arms/policy/blob/+/+", seen, retained="send")
    spying = asyncio.create_task(spy.run())
    await spy.up()
    assert await spy.caught_up(10)
    spying.cancel()
    await asyncio.wait([spying])
    return found


async def test_parts_of_earlier_blobs_are_cleared_also_those_of_killed_publishers(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, now_s = publisher(tmp_path, broker), [time.time()]
    server.clock = lambda: now_s[0]
    made = [trained(tmp_path, scale) for scale in (1.0, 2.0, 3.0, 4.0)]

    async def published(number: int) -> str:
        server.add(*made[number], lambda _: False)
        return (await server.publish(1.0)).sha256

    first = await published(0)
    assert await retained_parts(broker) == {(first, "0")}
    with monkeypatch.context() as patch:  # killed after the manifest, before anything was cleared
        patch.setattr(PolicyPublisher, "_clear", AsyncMock(side_effect=MqttLost("killed")))
        second = await published(1)
    assert await retained_parts(broker) == {(first, "0"), (second, "0")}
    with monkeypatch.context() as patch:  # killed between the parts and the manifest
        patch.setattr(policy_publisher, "sign", Mock(side_effect=MqttLost("killed")))
        with pytest.raises(MqttLost):
            await published(2)
    assert len(await retained_parts(broker)) == 3
    fourth = await published(3)
    left = {digest for digest, _ in await retained_parts(broker)}
    assert fourth in left
    assert not left & {first, second}
    assert len(left) == 2  # of a publisher that may still be at work
    now_s[0] += UNFINISHED_S + 1
    assert (await server.publish(1.0)).sha256 == fourth
    assert await retained_parts(broker) == {(fourth, "0")}
    server.add(*made[0], lambda _: False)
    again = await server.publish(1.0)
    assert await retained_parts(broker) == {(again.sha256, "0")}


def test_a_checkpoint_of_an_unknown_key_is_not_published(tmp_path: Path, broker: Mosquitto) -> None:
    directory, _ = trained(tmp_path, 1.0)
    with pytest.raises(ValueError, match="signed with an unknown key"):
        publisher(tmp_path, broker).add(directory, None, lambda _: False)


async def test_a_rollback_that_did_not_reach_the_broker_can_be_repeated(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, names = publisher(tmp_path, broker), []
    for scale in (1.0, 2.0, 3.0):
        directory, known = trained(tmp_path, scale)
        names.append(server.add(directory, known, lambda _: False))
        server.note_passed(names[-1])
    away = FleetServerSettings.model_validate(server.settings.model_dump() | {"mqtt": {"url": "mqtt://127.0.0.1:1"}})
    monkeypatch.setattr(policy_publisher, "CONNECT_S", 0.05)
    with pytest.raises(MqttLost):
        await PolicyPublisher(away).roll_back(1.0)
    monkeypatch.undo()
    assert (await server.publish(1.0)).version == names[2]  # nothing was taken out
    assert server.go_back() == server.go_back() == names[1]  # the connection ended before the policy was published
    policy = await server.roll_back(1.0)
    assert (policy.version, policy.withdrawn) == (names[1], [names[2]])
    policy = await server.roll_back(1.0)
    assert (policy.version, policy.withdrawn) == (names[0], [names[2], names[1]])
    for _ in range(2):  # none is left that passed: it is only withdrawn
        policy = await server.roll_back(1.0)
        assert (policy.version, set(policy.withdrawn)) == (names[0], set(names))


def stored(folder: Path, server: PolicyPublisher, scale: float, by: Literal["person", "wave"]) -> str:
    directory, known = trained(folder, scale)
    return server.add(directory, known, lambda _: False, by=by)


async def test_a_rollback_by_hand_returns_to_no_version_that_did_not_pass_unless_forced(
    tmp_path: Path, broker: Mosquitto
) -> None:
    server = publisher(tmp_path, broker)
    with pytest.raises(CheckpointRefused, match="no version was published"):
        await server.roll_back(1.0)
    passed = stored(tmp_path, server, 1.0, "wave")
    server.note_passed(passed)
    by_hand = stored(tmp_path, server, 2.0, "person")
    await server.publish(1.0)
    bad = stored(tmp_path, server, 3.0, "wave")
    policy = await server.roll_back(1.0)
    assert (policy.version, policy.withdrawn, server.skipped) == (passed, [bad], [by_hand])
    assert f"{by_hand} never passed all waves" in rollback_in_words(server, policy)


def verb(folder: Path, broker: Mosquitto, *arguments: str) -> str:
    path = folder / "fleet.yaml"
    path.write_text(f'group: arms\ndata: data\nmqtt: {{url: "{broker.url}"}}\n')
    result = CliRunner().invoke(main, ["fleet", "rollback", str(path), *arguments])
    assert result.exit_code == 0, result.output
    return result.output


async def test_the_verb_withdraws_first_and_names_what_force_would_return_to(tmp_path: Path, broker: Mosquitto) -> None:
    server = publisher(tmp_path, broker)
    by_hand = stored(tmp_path, server, 1.0, "person")
    await server.publish(0.1)
    bad = stored(tmp_path, server, 2.0, "person")
    await server.publish(1.0)
    output = await asyncio.to_thread(verb, tmp_path, broker)
    assert f"{bad} is withdrawn from arms; no earlier version passed its waves" in output
    assert f"--force` returns to {by_hand}" in output
    assert server.in_force() == bad  # withdrawn, and no other one is in force
    output = await asyncio.to_thread(verb, tmp_path, broker, "--force")
    assert f"{by_hand}, which NEVER PASSED all waves, is published" in output.replace("waves is", "waves, is")
    assert server.in_force() == by_hand


async def test_a_withdrawal_returns_to_what_a_person_published_to_all_and_not_to_a_part(
    tmp_path: Path, broker: Mosquitto
) -> None:
    server = publisher(tmp_path, broker)
    to_all = stored(tmp_path, server, 1.0, "person")
    await server.publish(1.0)
    to_few = stored(tmp_path, server, 2.0, "person")
    await server.publish(0.1)
    bad = stored(tmp_path, server, 3.0, "wave")
    policy = await server.withdraw(bad)
    assert (policy.version, server.skipped) == (to_all, [to_few])
