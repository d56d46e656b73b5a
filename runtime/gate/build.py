"""Build the gate's side of the daemon from the settings: the gate with its latches, its two connections, and their host.

Nothing runs yet when this is done.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from actuators.safety.gate import Gate
from actuators.wire import CommandWriter
from runtime.config.schema import Config
from runtime.gate import latches
from runtime.gate.host import GateHost
from runtime.gate.info import InfoBuilder
from runtime.mqtt import Address, Connection, Will
from runtime.mqtt.topics import Topics, encode
from runtime.process.systemd import Feeder, Notifier
from sensors.config import fields_of

SESSION_S = 86_400
"""How long the broker stores a stop that was sent while the gate was away."""


class SettingsUnusable(Exception):  # noqa: N818 - reads as what happened
    """The settings are valid and cannot be used on this machine; `str` says which."""


def build_host(
    config: Config,
    notifier: Notifier,
    info: InfoBuilder,
    *,
    now: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> GateHost:
    """Build the host.

    Raises:
        SettingsUnusable: a certificate file cannot be read.
        WireError: a `payload:` cannot be used.
    """
    latch_file = config.state_dir / "latches.json"
    latched = latches.load(latch_file)
    gate = Gate(
        config.actuators,
        config.gate,
        config.required_streams,
        period_s=config.tick.period_s,
        now_s=now(),
        mode=config.mode,
        streams={name: fields for name, stream in config.streams.items() if (fields := fields_of(stream))},
    )
    gate.start_offline()
    if latched is not None:
        gate.restore(latched)
    try:
        safety, requests = _connections(config)
    except OSError as error:  # ssl.SSLError among them
        raise SettingsUnusable(f"mqtt.ca, mqtt.cert or mqtt.key: {error}") from None
    boot = f"{int(time.time())}-{uuid.uuid4().hex[:8]}"
    return GateHost(
        config,
        gate,
        CommandWriter(Topics(config.agent).base, config.actuators, boot),
        safety,
        requests,
        latch_file,
        Feeder(notifier, config.required_streams),
        info,
        latched,
        now,
        wall,
    )


def _connections(config: Config) -> tuple[Connection, Connection]:
    """The connection of commands, status and stop, and the one of everything else; only the first may write actuator topics."""
    topics = Topics(config.agent)
    address = Address.of(config.mqtt, "gate")
    user = address.credentials
    will = Will(
        topics("status"), encode({"state": "offline", "reasons": ["connection lost without a shutdown message"]})
    )
    safety = Connection(
        address,
        user.username if user else f"reflexd-{config.agent}-gate",
        will=will,
        session_s=SESSION_S,
        handlers_acknowledge=True,
    )
    requests = Connection(
        replace(address, credentials=user.for_requests()) if user else address,
        user.requests if user and user.requests else f"{safety.identifier}-requests",
        response_prefix=topics("response") + "/",
    )
    return safety, requests
