"""The learner of a group: it trains on the rows of all agents, resumes exactly, and its versions reach devices in waves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import learning
import orjson
import pytest
import torch
from fleet_world import BEGUN_S

from fakes import Mosquitto, eventually
from learners.experience.reader import Row
from learners.fleet_data.merging.experience_merger import ExperienceMerger
from learners.fleet_data.parquet_log import ParquetLog
from learners.fleet_data.policy_manifest import FleetPolicy
from learners.fleet_data.segment import SegmentHeader, SentRow, pack, unpack
from learners.ipc.policy_spec import write_policy_spec
from learners.worker.fleet_loop import FleetLearnerLoop
from runtime.fleet.group_learner import MAX_SPECS, GroupLearner, learner_config
from runtime.fleet.server_settings import FleetServerSettings
from runtime.fleet.topics import FleetTopics
from runtime.fleet.wave_runner import PAUSED
from runtime.fleet.waves import VerdictReport, Wave
from runtime.mqtt import Address, Connection, Message, MqttLost
from runtime.mqtt.topics import Refused, encode

SPEC = replace(learning.SPEC, width=16, heads=2, latents=2, layers=1, hidden=(16,))
LEARNER = {"batch": 16, "warmup": 40, "replay_gb": 1e-4, "update_every_s": 0.02, "promote_every_s": 0.05}
TOPICS = FleetTopics("arms")


def settings_of(folder: Path, url: str = "mqtt://127.0.0.1:1") -> FleetServerSettings:
    body = {
        "group": "arms", "data": str(folder), "mqtt": {"url": url}, "device": "cpu", "learner": LEARNER,
        "promotion": {"steps": ["integrity", "sanity"]}, "waves": {"hold_s": 0.0},
    }  # fmt: skip
    return FleetServerSettings.model_validate(body)


def send(folder: Path, agent: str, start: int, stop: int) -> None:
    """Store rows of an agent as its ingest does."""
    import hashlib

    rows = [
        SentRow(Row(number + 1, replace(learning.made(number), stamp_s=BEGUN_S + number / 10)))
        for number in range(start, stop)
    ]
    header = SegmentHeader(
        group="arms", agent=agent, boot="b" * 16, lane="rest", first=start + 1, last=stop, daemon="0.1.0",
        spec=hashlib.sha256(SPEC.to_json()).hexdigest(), encoder_versions={},
    )  # fmt: skip
    assert ParquetLog(folder, "arms").append(unpack(pack(header, rows))).outcome == "stored"


def loop_on(folder: Path, commands: Callable[[ExperienceMerger], None] = lambda _merger: None) -> FleetLearnerLoop:
    inputs = learner_config(settings_of(folder))
    write_policy_spec(inputs.state_dir, SPEC)
    merger = ExperienceMerger(folder / "arms", inputs.state_dir / "experience")
    return FleetLearnerLoop(inputs, SPEC, threading.Event(), merger, commands=commands)


def test_a_learner_that_is_killed_resumes_exactly(tmp_path: Path) -> None:
    first = loop_on(tmp_path)
    first.begin()
    send(tmp_path, "arm-1", 0, 120)
    first.step()
    first.learner.save()
    send(tmp_path, "arm-2", 0, 120)
    send(tmp_path, "arm-1", 120, 150)
    first.merger.merge()
    first.learner.ingest()
    until = first.learner.position.update + 7
    first.learner.train(float("inf"), until=until)
    weights = {name: x.clone() for name, x in first.learner.policy.state_dict().items()}
    numbers = first.learner.replay.held().main
    first.reader.close()  # as kill -9 leaves it: nothing is saved
    first.merger.close()
    again = loop_on(tmp_path)
    again.begin()
    again.learner.train(float("inf"), until=until)
    assert again.learner.position.row == 270
    assert again.learner.replay.held().main == numbers
    assert all(torch.equal(x, weights[name]) for name, x in again.learner.policy.state_dict().items())
    again.reader.close()
    again.merger.close()


def test_rows_of_an_excluded_agent_leave_the_replay(tmp_path: Path) -> None:
    rounds = iter(("train", "exclude"))

    def command(merger: ExperienceMerger) -> None:
        if next(rounds) == "exclude":
            merger.exclude("arm-1", "flipped")

    for agent in ("arm-1", "arm-2"):
        send(tmp_path, agent, 0, 60)
    loop = loop_on(tmp_path, command)
    loop.run()  # ends in the second round, because the replay has to be filled again
    assert len(loop.learner.replay) == 120
    again = loop_on(tmp_path)
    again.begin()
    assert len(again.learner.replay) == 60
    again.step()
    assert len(again.learner.replay) == 60
    again.reader.close()
    again.merger.close()


@asynccontextmanager
async def fleet(folder: Path, broker: Mosquitto) -> AsyncIterator[tuple[GroupLearner, Connection, list[FleetPolicy]]]:
    """A group's learner and a client that reads its manifests."""
    learner = GroupLearner(settings_of(folder, broker.url))
    client = Connection(Address("127.0.0.1", broker.port), "tester")
    manifests: list[FleetPolicy] = []
    client.subscribe(
        TOPICS.policy,
        lambda message: manifests.append(FleetPolicy(**orjson.loads(message.payload[64:]))),
        retained="send",
    )
    tasks = [asyncio.create_task(client.run()), asyncio.create_task(learner.run())]
    try:
        await client.up()
        yield learner, client, manifests
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def tell(client: Connection, topic: str, body: object) -> None:
    """Publish until the broker has it, also over a connection that was lost."""
    payload = body if isinstance(body, bytes) else encode(body)
    while True:
        await client.up()
        with contextlib.suppress(MqttLost, TimeoutError):
            await client.publish(topic, payload, retain=True, timeout_s=10.0)
            return


@pytest.mark.timeout(240)
async def test_a_version_is_published_in_waves_and_a_bad_one_withdrawn(tmp_path: Path, broker: Mosquitto) -> None:
    agents = [f"arm-{number}" for number in range(3)]
    for agent in agents:
        send(tmp_path, agent, 0, 60)
    (tmp_path / "arms" / PAUSED).touch()
    async with fleet(tmp_path, broker) as (learner, client, manifests):
        for agent in agents:
            await tell(client, TOPICS.report(agent), {"agent": agent, "state": "online"})
        await tell(client, TOPICS.spec("arm-0"), SPEC.to_json())
        await eventually(lambda: learner.waves.checkpoints.proposed() is not None, "a version", 120)
        assert not manifests
        (tmp_path / "arms" / PAUSED).unlink()
        await eventually(lambda: bool(manifests), "the canary", 60)
        assert manifests[0].wave == "canary"
        tried = [
            agent for agent in agents if learner.waves.wave and agent in learner.waves.agents_in(learner.waves.wave)
        ]
        assert len(tried) == 1
        good = manifests[0].version
        await tell(client, TOPICS.verdict(tried[0]), {"agent": tried[0], "version": good, "state": "live"})
        await eventually(lambda: manifests[-1].wave == "tenth", "the second stage", 60)
        for agent in agents:
            await tell(client, TOPICS.verdict(agent), {"agent": agent, "version": good, "state": "live"})
        await eventually(lambda: learner.waves.wave is not None and not learner.waves.wave.is_open, "the end", 60)
        for agent in agents:  # the updates that the first rows allow may be used up
            send(tmp_path, agent, 60, 120)
        await eventually(lambda: manifests[-1].version != good, "the next version", 60)
        assert learner.waves.checkpoints.live().version is not None
        bad = manifests[-1].version
        assert learner.waves.wave is not None
        (canary,) = learner.waves.agents_in(learner.waves.wave)
        await tell(
            client, TOPICS.verdict(canary), {"agent": canary, "version": bad, "state": "worse", "reason": "falls"}
        )
        await eventually(lambda: bad in manifests[-1].withdrawn, "the withdrawal", 60)
        assert manifests[-1].version == good
        assert manifests[-1].share == 1.0


async def test_one_agent_takes_one_place_for_specs_and_a_report_names_a_bounded_number(tmp_path: Path) -> None:
    learner = GroupLearner(settings_of(tmp_path))
    good = SPEC.to_json()

    def arrives(agent: str, payload: bytes) -> None:
        learner._spec_arrived(Message(learner.topics.spec(agent), payload, qos=1, retain=True))

    arrives("arm-1", good)
    for number in range(20):
        arrives("liar", b"%d" % number)
    assert len(learner._specs) == 2
    for number in range(MAX_SPECS - 2):
        arrives(f"liar-{number}", b"x%d" % number)
    with pytest.raises(Refused, match="more than 256 agents sent a spec"):
        arrives("one-more", b"other")
    arrives("one-more", good)
    arrives("arm-1", b"changed")
    send(tmp_path, "arm-1", 0, 10)
    assert not learner._follow_spec()
    arrives("late", good)
    arrives("liar", b"again")
    assert learner._follow_spec()
    learner.excluded = dict.fromkeys((f"arm-{number}" for number in range(10_001)), "rate")
    learner.waves.wave = Wave(learner_version="000001-aaaaaaaa", version="000001-bbbbbbbb", state="running")
    for number in range(10_001):
        name = f"arm-{number}"
        learner.verdicts[name] = VerdictReport(agent=name, version="000001-bbbbbbbb", state="live")
    report = learner.report()
    assert (len(report.verdicts), len(report.excluded), report.excluded_count) == (1_000, 1_000, 10_001)
    assert report.verdict_counts == {"live": 10_001}
