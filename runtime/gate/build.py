"""Builds the gate's side of the daemon from the settings: the gate with its latches, its connection, and the host of both.

Nothing runs yet when this is done.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actuators.safety.gate import Gate
from actuators.wire import Commands
from runtime.config.schema import Config
from runtime.gate import latches
from runtime.gate.host import GateHost
from runtime.mqtt import Address, Connection, Will
from runtime.mqtt.topics import Topics, encode
from runtime.process.systemd import Feeder, Notifier


def assemble(config: Config, notifier: Notifier, describe: Callable[[str, str], dict[str, Any]]) -> GateHost:
    """Build the host; `describe` gives the `info` payload for a policy version and a mode. Call it inside the running loop."""
    latch_file = config.state_dir / "latches.json"
    boot = f"{int(time.time())}-{uuid.uuid4().hex[:8]}"
    return GateHost(
        config,
        _gate(config, latch_file),
        Commands(Topics(config.agent).base, config.actuators, boot),
        _connection(config),
        latch_file,
        Feeder(notifier, config.required_streams),
        describe=describe,
    )


def _gate(config: Config, latch_file: Path) -> Gate:
    gate = Gate(
        config.actuators,
        config.gate,
        config.required_streams,
        period_s=config.tick.period_s,
        now_s=time.monotonic(),
        mode=config.mode,
    )
    remembered = latches.load(latch_file)
    if remembered is not None:
        gate.restore(remembered)
    return gate


def _connection(config: Config) -> Connection:
    """The only one that may write actuator topics; no answer to a request may go there."""
    topics = Topics(config.agent)
    foreign = {each.topic for each in config.actuators.values() if each.topic}
    credentials = config.mqtt.credentials("gate")
    return Connection(
        Address.of(config.mqtt, "gate"),
        credentials.username if credentials else f"reflexd-{config.agent}-gate",
        will=Will(topics("status"), encode({"state": "offline", "reasons": ["the daemon vanished"]})),
        is_protected=lambda topic: topic in foreign or (topic.startswith("reflexd/") and "/response/" not in topic),
    )
