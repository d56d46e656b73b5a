"""What a device does with manifests and parts that are replayed, out of its wave, interrupted or wrong; without a broker."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import learning
import orjson
import pytest

from fakes import eventually
from learners.checkpoints.store import Checkpoints
from learners.fleet_data.policy_manifest import FleetPolicy, FleetPolicyRefused, pack_blob, sign
from learners.fleet_data.received_policies import forget_received, received, withdrawn
from learners.fleet_data.uplink_queue import UplinkIdentity
from learners.ipc.outbox import Outbox
from runtime.fleet.policy_receiver import PolicyReceiver
from runtime.fleet.topics import BLOB_PART_BYTES, FleetTopics
from runtime.mqtt import Message

SPEC_DIGEST = hashlib.sha256(learning.SPEC.to_json()).hexdigest()
TOPICS = FleetTopics("arms")


@dataclass
class RetainedParts:
    """A broker with retained parts of blobs, which it passes to each subscriber."""

    parts: dict[str, bytes] = field(default_factory=dict)
    subscribers: dict[str, Callable[[Message], None]] = field(default_factory=dict)

    def subscribe(self, topic: str, take: Callable[[Message], None], **_: Any) -> None:
        self.subscribers[topic] = take
        for name, part in self.parts.items():
            if name.rpartition("/")[0] == topic.rpartition("/")[0]:
                take(Message(name, part, 1, retain=True))

    def unsubscribe(self, topic: str) -> None:
        self.subscribers.pop(topic)

    def send(self, name: str, part: bytes) -> None:
        self.parts[name] = part
        for topic, take in list(self.subscribers.items()):
            if name.rpartition("/")[0] == topic.rpartition("/")[0]:
                take(Message(name, part, 1, retain=False))


@dataclass(frozen=True)
class Version:
    """A version of the fleet."""

    name: str
    blob: bytes

    def manifest(self, counter: int, share: float = 1.0, withdrawn: tuple[str, ...] = ()) -> bytes:
        policy = FleetPolicy(
            group="arms", counter=counter, version=self.name, parent=None, sha256=hashlib.sha256(self.blob).hexdigest(),
            size=len(self.blob), spec=SPEC_DIGEST, encoder_versions={}, withdrawn=list(withdrawn), share=share,
            min_daemon="0.1", expires_s=time.time() + 1e6,
        )  # fmt: skip
        return sign(policy, learning.KEY)

    def topic(self, number: int | str) -> str:
        return TOPICS.blob(hashlib.sha256(self.blob).hexdigest(), number)

    def parts(self) -> dict[str, bytes]:
        starts = range(0, len(self.blob), BLOB_PART_BYTES)
        return {self.topic(i): self.blob[start : start + BLOB_PART_BYTES] for i, start in enumerate(starts)}


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    """Three versions of one fleet."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("fleet"), learning.KEY)
    made = []
    for scale in (1.0, 2.0, 3.0):
        weights = {name: x * scale for name, x in learning.SmallPolicy(learning.SPEC).state_dict().items()}
        name = checkpoints.save({"policy": weights}, {"spec": orjson.loads(learning.SPEC.to_json())})
        made.append(Version(name, pack_blob(checkpoints.folder / name)))
    return made


def device(state: Path, link: RetainedParts) -> PolicyReceiver:
    identity = UplinkIdentity("arms", "robot", SPEC_DIGEST, "0.1.0")
    outbox = Outbox(state / "learner" / "outbox")
    return PolicyReceiver(state, link, TOPICS, learning.KEY.public_key(), lambda: identity, outbox)  # type: ignore[arg-type]


async def take(receiver: PolicyReceiver, *messages: bytes) -> None:
    """Pass messages to a running receiver until it has done all of them."""
    before = receiver.refused + receiver.repeated
    for message in messages:
        await asyncio.wait_for(receiver._take(message), 60)
    assert receiver.refused + receiver.repeated - before < len(messages)


async def test_an_older_manifest_is_refused_behind_one_that_is_out_of_its_wave(
    tmp_path: Path, versions: list[Version]
) -> None:
    good, bad, _ = versions
    receiver = device(tmp_path, RetainedParts(good.parts() | bad.parts()))
    await take(receiver, good.manifest(3, share=1e-12, withdrawn=(bad.name,)))
    with pytest.raises(FleetPolicyRefused, match="counter 2 is not above 3"):
        await take(receiver, bad.manifest(2))
    assert receiver.counter() == 3
    assert received(tmp_path) is None
    assert withdrawn(tmp_path) == {bad.name}


async def test_a_version_that_is_withdrawn_before_the_learner_took_it_is_not_offered(
    tmp_path: Path, versions: list[Version]
) -> None:
    good, bad, _ = versions
    receiver = device(tmp_path, RetainedParts(bad.parts()))
    await take(receiver, bad.manifest(2))
    assert received(tmp_path) is not None
    await take(receiver, good.manifest(3, share=1e-12, withdrawn=(bad.name,)))
    assert received(tmp_path) is None


async def test_a_restart_collects_the_blob_of_the_newest_manifest(tmp_path: Path, versions: list[Version]) -> None:
    version, manifest = versions[0], versions[0].manifest(2)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(device(tmp_path, RetainedParts())._take(manifest), 0.01)
    receiver = device(tmp_path, RetainedParts(version.parts()))
    assert receiver.counter() == 2
    await take(receiver, manifest)
    assert received(tmp_path) is not None
    await receiver._take(manifest)
    assert receiver.repeated == 1


async def test_an_examined_version_is_not_collected_for_a_wider_wave(tmp_path: Path, versions: list[Version]) -> None:
    receiver = device(tmp_path, RetainedParts(versions[0].parts()))
    await take(receiver, versions[0].manifest(1))
    found = received(tmp_path)
    assert found is not None
    forget_received(tmp_path, found, is_examined=True)
    await take(receiver, versions[0].manifest(2))
    assert receiver.counter() == 2
    assert not found.exists()


async def test_only_the_newest_version_stays_where_no_learner_takes_them(
    tmp_path: Path, versions: list[Version]
) -> None:
    for number, version in enumerate(versions, 1):
        await take(device(tmp_path, RetainedParts(version.parts())), version.manifest(number))
    folders = [path.name for path in (tmp_path / "uplink/policies").iterdir() if path.is_dir()]
    assert folders == [versions[-1].name]


@pytest.mark.parametrize("number", ["999", "00", "-1", "٣", "9" * 5_000, "1e3"])
async def test_a_part_with_a_wrong_number_is_left_out(tmp_path: Path, versions: list[Version], number: str) -> None:
    version = versions[0]
    wrong = {version.topic(number): b"x"}
    await take(device(tmp_path, RetainedParts(wrong | version.parts())), version.manifest(1))
    assert received(tmp_path) is not None


async def test_only_a_newer_manifest_ends_the_wait_for_a_blob(tmp_path: Path, versions: list[Version]) -> None:
    first, second, third = versions
    link = RetainedParts()
    receiver = device(tmp_path, link)
    running = asyncio.create_task(receiver.run())
    link.send(TOPICS.policy, second.manifest(2))
    await eventually(lambda: second.topic("+") in link.subscribers, "a wait for the blob")
    for number, message in enumerate((b"garbage" * 20, first.manifest(1)), 1):
        link.send(TOPICS.policy, message)
        await eventually(lambda number=number: receiver.refused == number, "a refusal")  # type: ignore[misc]
    for topic, part in second.parts().items():
        link.send(topic, part)
    await eventually(lambda: receiver.accepted is not None, "the policy")
    link.send(TOPICS.policy, first.manifest(3))
    await eventually(lambda: first.topic("+") in link.subscribers, "a wait for the next blob")
    link.parts |= third.parts()
    link.send(TOPICS.policy, third.manifest(4))
    await eventually(lambda: receiver.accepted is not None and receiver.accepted.counter == 4, "the newest policy")
    running.cancel()
    await asyncio.wait([running])
    found = received(tmp_path)
    assert found is not None
    assert found.name == third.name


async def test_a_refused_blob_is_collected_again_after_a_pause(tmp_path: Path, versions: list[Version]) -> None:
    right = versions[0].parts()
    broken = {name: bytes(len(part)) for name, part in right.items()}
    link = RetainedParts(broken)
    receiver = device(tmp_path, link)
    receiver.retry_s = (0.01, 0.02)
    running = asyncio.create_task(receiver.run())
    link.send(TOPICS.policy, versions[0].manifest(1))
    await eventually(lambda: receiver.refused >= 2, "two refusals")
    link.parts = right
    await eventually(lambda: receiver.accepted is not None, "the whole blob")
    running.cancel()
    await asyncio.wait([running])
    found = received(tmp_path)
    assert found is not None
    assert found.name == versions[0].name
