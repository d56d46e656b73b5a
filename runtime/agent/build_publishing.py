"""Build the connections to the broker, and what publishes events, decisions, metrics and previews over them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version as installed_version
from typing import Literal

from prometheus_client import CollectorRegistry

from runtime.agent.build_context import AgentContext
from runtime.config.schema import Config
from runtime.control.payload_decoder import MAX_PAYLOAD
from runtime.deploy import promotion_history
from runtime.deploy.promotion_history import PromotionHistory
from runtime.gate.client import GateLink
from runtime.monitoring.agent_card import AgentCard
from runtime.monitoring.health import Health
from runtime.monitoring.home_assistant import Announcer, Discovery
from runtime.monitoring.metrics import Metrics
from runtime.monitoring.previews import Previews, Viewer
from runtime.monitoring.reporter import Reporter
from runtime.mqtt import Address, Connection
from runtime.mqtt.topics import Topics
from runtime.process.emit import Emit
from runtime.process.log import Scrubber

CONTROL_PAYLOAD = 2_097_152
"""Largest payload in bytes of texts, telemetry, rewards, labels and requests; a larger one is refused."""
MEDIA_PAYLOAD = MAX_PAYLOAD
"""Largest payload in bytes of pictures and sound."""
LARGEST_PACKET = 67_108_864
"""Bytes up to which the broker delivers packets, so that the agent can count and name those that are too large."""
MEDIA_INCOMING = 128
"""Packets of pictures and sound that wait for their handlers: 2 GiB in the worst case."""


@dataclass(frozen=True, slots=True)
class Publishing:
    """The connections to the broker, and everything that reports over them."""

    control: Connection
    media: Connection
    registry: CollectorRegistry
    reporter: Reporter
    history: PromotionHistory
    emit: Emit
    """Publishes an event; verdicts on versions go into the history too."""
    viewer: Viewer


def build_publishing(context: AgentContext) -> Publishing:
    """Build the connections, and what publishes events, decisions, metrics and previews."""
    config = context.config
    control, media = _connection(config, "agent"), _connection(config, "media")
    registry = CollectorRegistry()
    scrub = Scrubber(context.loaded.secrets).strings
    reporter = Reporter(control, context.topics, _metrics(config, registry), scrub=scrub)
    history = PromotionHistory.opened(context.state_dir / promotion_history.FILE, context.decoders, context.wall)
    viewer = Viewer(Previews(), media, context.topics, context.decoders)
    return Publishing(control, media, registry, reporter, history, history.emitting(reporter.event), viewer)


def build_announcer(config: Config, publishing: Publishing, health: Health, gate: GateLink) -> Announcer | None:
    """Build what announces the agent to Home Assistant; None where `discovery` is off."""
    if not config.discovery:
        return None
    return Announcer(Discovery(config, installed_version("reflexd")), publishing.control, health, gate)


def build_agent_card(config: Config, publishing: Publishing) -> AgentCard | None:
    """Build what publishes the agent's card for other agents; None without `a2a`."""
    if config.a2a is None:
        return None
    return AgentCard(config.a2a, config, installed_version("reflexd"), publishing.control)


def _connection(config: Config, part: Literal["agent", "media"]) -> Connection:
    """Make the connection for control, or the one for media: a broker drops a connection for one oversized packet.

    A broker that ties identifiers to users (`use_username_as_clientid`) needs a user of its own for the second one.
    """
    address = Address.of(config.mqtt, "agent")
    if part == "media" and address.credentials is not None:
        address = replace(address, credentials=address.credentials.for_media())
    prefix = Topics(config.agent)("response") + "/"
    identifier = f"reflexd-{config.agent}-{part}"
    if part == "media":
        return Connection(
            address,
            identifier,
            response_prefix=prefix,
            max_packet=LARGEST_PACKET,
            max_payload=MEDIA_PAYLOAD,
            max_incoming=MEDIA_INCOMING,
        )
    return Connection(
        address, identifier, response_prefix=prefix, max_packet=LARGEST_PACKET, max_payload=CONTROL_PAYLOAD
    )


def _metrics(config: Config, registry: CollectorRegistry) -> Metrics:
    metrics = Metrics(registry, agent=config.agent, version=installed_version("reflexd"))
    metrics.period_seconds.set(config.tick.period_s)
    return metrics
