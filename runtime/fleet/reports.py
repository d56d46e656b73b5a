"""Collect the retained reports of a group from the fleet's broker, for `reflexd fleet status` and `reflexd fleet agents`."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

from runtime.fleet.server_settings import FleetServerSettings
from runtime.fleet.topics import AgentReport, FleetTopics, GroupLearnerReport, IngestReport
from runtime.mqtt import Address, Connection, Message, MqttLost
from runtime.mqtt.topics import decode

CONNECT_S = 5.0


@dataclass(slots=True)
class GroupReport:
    """The newest reports of a group, by name."""

    agents: dict[str, AgentReport] = field(default_factory=dict)
    ingests: dict[str, IngestReport] = field(default_factory=dict)
    learner: GroupLearnerReport | None = None


async def collect(settings: FleetServerSettings, timeout_s: float = CONNECT_S) -> GroupReport:
    """Return what is retained at the broker.

    Raises:
        MqttLost: the broker does not answer in time.
    """
    topics, found = FleetTopics(settings.group), GroupReport()
    link = Connection(Address.of(settings.mqtt, "agent"), f"reflexd-fleet-status-{secrets.token_hex(4)}")

    def agent(message: Message) -> None:
        report = decode(AgentReport, message.payload)
        if message.topic == topics.report(report.agent):
            found.agents[report.agent] = report

    def ingest(message: Message) -> None:
        report = decode(IngestReport, message.payload)
        found.ingests[report.name] = report

    def learner(message: Message) -> None:
        found.learner = decode(GroupLearnerReport, message.payload)

    link.subscribe(topics.learner, learner, retained="send")
    link.subscribe(topics.report("+"), agent, retained="send")
    link.subscribe(topics.ingest("+"), ingest, retained="send")
    running = asyncio.create_task(link.run(), name="fleet status")
    try:
        async with asyncio.timeout(timeout_s):
            await link.up()
    except TimeoutError:
        reason = link.trouble or "no answer"
        raise MqttLost(
            f"{settings.mqtt.host}:{settings.mqtt.port}: {reason}; is `reflexd fleet serve` running?"
        ) from None
    else:
        await link.caught_up(timeout_s)
    finally:
        running.cancel()
        await asyncio.wait([running])
    return found
