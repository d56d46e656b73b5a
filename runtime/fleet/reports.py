"""Collect the retained reports of a group from the fleet's broker, for `reflexd fleet status`, `agents`, `stop` and `page`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.fleet.server_settings import FleetServerSettings
from runtime.fleet.stop.caller import ANSWERS_S, StopCaller
from runtime.fleet.stop.messages import StopAnswer, StopTopics
from runtime.fleet.topics import AgentReport, FleetTopics, GroupLearnerReport, IngestReport
from runtime.mqtt import Address, Connection, Message, MqttLost
from runtime.mqtt.topics import Refused, decode

CONNECT_S = 5.0
MAX_AGENTS = 10_000
"""Names that are remembered of agents and of ingests."""


@dataclass(slots=True)
class GroupReport:
    """The newest reports of a group, by name."""

    agents: dict[str, AgentReport] = field(default_factory=dict)
    ingests: dict[str, IngestReport] = field(default_factory=dict)
    learner: GroupLearnerReport | None = None


class GroupWatch:
    """Receives the retained reports of a group; run its `link`.

    Args:
        settings: of the server.

    Raises:
        OSError: a certificate cannot be read.
    """

    def __init__(self, settings: FleetServerSettings) -> None:
        self.topics, self.found = FleetTopics(settings.group), GroupReport()
        self.link = Connection(Address.of(settings.mqtt, "agent"), f"reflexd-fleet-status-{secrets.token_hex(4)}")
        self.link.subscribe(self.topics.learner, self._learner, retained="send")
        self.link.subscribe(self.topics.report("+"), self._agent, retained="send")
        self.link.subscribe(self.topics.ingest("+"), self._ingest, retained="send")

    def _agent(self, message: Message) -> None:
        report = decode(AgentReport, message.payload)
        if message.topic != self.topics.report(report.agent):
            raise Refused(f"{report.agent} wrote on {message.topic}")
        _require_room(self.found.agents, report.agent)
        self.found.agents[report.agent] = report

    def _ingest(self, message: Message) -> None:
        report = decode(IngestReport, message.payload)
        _require_room(self.found.ingests, report.name)
        self.found.ingests[report.name] = report

    def _learner(self, message: Message) -> None:
        self.found.learner = decode(GroupLearnerReport, message.payload)


def _require_room(known: Mapping[str, object], name: str) -> None:
    """Refuse further names than are remembered.

    Raises:
        Refused: there are too many.
    """
    if name not in known and len(known) >= MAX_AGENTS:
        raise Refused(f"more than {MAX_AGENTS} names")


async def collect(settings: FleetServerSettings, timeout_s: float = CONNECT_S) -> GroupReport:
    """Return what is retained at the broker.

    Raises:
        MqttLost: the broker does not answer in time.
    """
    watch = GroupWatch(settings)
    link = watch.link
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
    return watch.found


async def stop_agents(
    settings: FleetServerSettings, agent: str | None, source: str, timeout_s: float = ANSWERS_S
) -> dict[str, StopAnswer]:
    """Connect, stop one agent or all that ever reported, and return the answers by agent.

    Raises:
        MqttLost: the fleet's broker does not answer, or refuses the message.
    """
    watch = GroupWatch(settings)
    caller = StopCaller(watch.link, StopTopics(settings.group))
    running = asyncio.create_task(watch.link.run(), name="fleet stop")
    try:
        async with asyncio.timeout(CONNECT_S):
            await watch.link.up()
        if agent is None:  # the list of those who have to answer
            await watch.link.caught_up(CONNECT_S)
        return await caller.stop(agent, watch.found.agents.keys(), source, timeout_s)
    except TimeoutError:
        reason = watch.link.trouble or "no answer"
        raise MqttLost(
            f"{settings.mqtt.host}:{settings.mqtt.port}: {reason}; stop the agents on their own pages"
        ) from None
    finally:
        running.cancel()
        await asyncio.wait([running])
