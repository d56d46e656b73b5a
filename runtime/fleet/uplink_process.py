"""Build the uplink of a device from its settings, run it until a signal, and report the device as offline at the end.

At the agent's broker it only passes on a stop of the fleet, and reads the status (`stop/relay.py`).
"""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import structlog

from learners.checkpoints.trusted_keys import read_public
from learners.fleet_data.uplink_queue import UplinkQueue
from learners.ipc.outbox import Outbox
from learners.ipc.policy_spec import spec_path
from runtime.config.fleet_settings import FleetSettings
from runtime.config.schema import Config
from runtime.fleet.policy_receiver import PolicyReceiver
from runtime.fleet.stop.messages import StopTopics
from runtime.fleet.stop.pending import PendingStops
from runtime.fleet.stop.relay import SESSION_S, StopRelay
from runtime.fleet.topics import FleetTopics
from runtime.fleet.uplink import ByteBudget, Uplink, identity_of, report_payload
from runtime.mqtt import Address, Connection, Will
from runtime.mqtt.topics import encode

log = structlog.get_logger(__name__)


def daemon_version() -> str:
    """Return the version of reflexd."""
    try:
        return version("reflexd")
    except PackageNotFoundError:
        return "0"


def build(config: Config, settings: FleetSettings) -> Uplink:
    """Build the uplink; call it inside the loop.

    Raises:
        OSError: the state folder or a certificate cannot be read.
        ValueError: the address or the fleet's key cannot be used.
    """
    topics, per_hour = FleetTopics(settings.group), settings.upload_kib_per_hour * 1_024.0
    link = Connection(
        Address.of(settings.mqtt(), "agent"),
        f"reflexd-fleet-{config.agent}",
        Will(topics.report(config.agent), encode({"agent": config.agent, "state": "offline"})),
    )
    queue = UplinkQueue(config.state_dir, bytes_per_hour=per_hour, max_age_s=settings.backlog_h * 3_600)
    identity = partial(identity_of, config.state_dir, settings.group, config.agent, daemon_version())
    outbox = Outbox(config.state_dir / "learner" / "outbox")
    policies = None
    if settings.key is not None and config.learner.enabled:  # else nothing would examine them
        policies = PolicyReceiver(config.state_dir, link, topics, read_public(settings.key), identity, outbox)
    relay = stop_relay(config, settings, outbox)
    uplink = Uplink(
        queue=queue,
        link=link,
        topics=topics,
        agent=config.agent,
        identity=identity,
        outbox=outbox,
        stops=relay,
        policies=policies,
        spec_file=spec_path(config.state_dir),
        state_dir=config.state_dir,
        budget=ByteBudget(per_hour, burst=2.0 * queue.max_bytes),
        report=lambda: report_payload(uplink, identity(), {}),
    )
    return uplink


def stop_relay(config: Config, settings: FleetSettings, outbox: Outbox) -> StopRelay:
    """Build what passes a stop of the fleet on to the agent; where it cannot, it answers with the reason.

    Raises:
        OSError, ValueError: the address of the fleet's broker cannot be used.
    """
    link = Connection(
        Address.of(settings.mqtt(), "agent"),
        f"reflexd-fleet-{config.agent}-stop",
        session_s=SESSION_S,
        max_payload=4_096,
        handlers_acknowledge=True,
    )
    local, refusal = None, "fleet.stop is false on this device"
    if settings.stop:
        try:
            local = Connection(Address.of(config.mqtt, "fleet"), f"reflexd-{config.agent}-fleet")
        except (OSError, ValueError) as error:
            refusal = str(error)
            log.warning(
                "uplink.no_stop", reason=refusal, effect="this device answers a stop of the fleet with a refusal"
            )
    pending = PendingStops.of(config.state_dir)
    return StopRelay(link, local, StopTopics(settings.group), config.agent, outbox, pending, refusal)


async def serve(config: Config, settings: FleetSettings) -> None:
    """Send until SIGTERM or SIGINT."""
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    uplink = build(config, settings)
    sending = asyncio.create_task(uplink.run(), name="uplink")
    waiting = asyncio.create_task(ending.wait(), name="signal")
    await asyncio.wait((sending, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not sending.done():
        uplink.link.enqueue(
            uplink.topics.report(config.agent), encode({"agent": config.agent, "state": "offline"}), qos=1, retain=True
        )
        await uplink.link.drained(1.0)
        sending.cancel()
        await asyncio.wait((sending,))
        return
    await sending
