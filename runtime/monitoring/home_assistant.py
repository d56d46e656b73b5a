"""Publish the agent to Home Assistant: one retained discovery message that makes it a device there, and its state.

Written to the device discovery format of Home Assistant 2024.11 and later (`dev`, `o`, `cmps`, `avty`;
https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload). All components read one small state topic,
`homeassistant/state`, published at most every 10 s, so that a tick rate never reaches Home Assistant's database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actuators.safety.decisions import MODES
from runtime.config.schema import Config
from runtime.gate.client import GateLink
from runtime.monitoring.health import Health
from runtime.mqtt import Connection, Message
from runtime.mqtt.topics import Status, Topics, decode, encode

BIRTH_TOPIC = "homeassistant/status"
EVERY_S = 10.0
SUPPORT_URL = "https://www.home-assistant.io/integrations/mqtt/"


@dataclass(frozen=True, slots=True)
class Discovery:
    """Composes the messages of one agent."""

    config: Config
    version: str

    @property
    def topic(self) -> str:
        """`homeassistant/device/reflexd_<agent>/config`."""
        return f"homeassistant/device/{self.identifier}/config"

    @property
    def identifier(self) -> str:
        """The device's name inside Home Assistant; stays the same for ever."""
        return f"reflexd_{self.config.agent}"

    @property
    def state_topic(self) -> str:
        """Where `state` is published."""
        return Topics(self.config.agent)("homeassistant", "state")

    def payload(self) -> bytes:
        """Return the discovery message, to be retained."""
        return encode(self.message())

    def message(self) -> dict[str, Any]:
        """Return the discovery message as an object."""
        topics = Topics(self.config.agent)
        return {
            "dev": {
                "ids": [self.identifier],
                "name": f"reflexd {self.config.agent}",
                "mf": "reflexd",
                "mdl": "learning reflex agent",
                "sw": self.version,
            },
            "o": {"name": "reflexd", "sw": self.version, "url": SUPPORT_URL},
            "avty": [
                {
                    "t": topics("status"),
                    "val_tpl": "{{ 'offline' if value_json.state == 'offline' else 'online' }}",
                }
            ],
            "stat_t": self.state_topic,
            "qos": 1,
            "cmps": {**self._sensors(), **self._controls(topics), **self._actuators()},
        }

    def _component(self, platform: str, key: str, name: str, **more: Any) -> dict[str, Any]:
        return {"p": platform, "unique_id": f"{self.identifier}_{key}", "name": name, **more}

    def _sensors(self) -> dict[str, Any]:
        def sensor(key: str, name: str, **more: Any) -> dict[str, Any]:
            return {key: self._component("sensor", key, name, val_tpl=f"{{{{ value_json.{key} }}}}", **more)}

        return {
            **sensor("status", "Status", ic="mdi:heart-pulse", ent_cat="diagnostic"),
            **sensor("policy", "Policy version", ic="mdi:brain", ent_cat="diagnostic"),
            **sensor("reward", "Reward", ic="mdi:trophy-outline", stat_cla="measurement"),
            **sensor(
                "latency_ms",
                "Tick latency",
                dev_cla="duration",
                unit_of_meas="ms",
                stat_cla="measurement",
                ent_cat="diagnostic",
            ),
        }

    def _controls(self, topics: Topics) -> dict[str, Any]:
        mode = self._component(
            "select",
            "mode",
            "Mode",
            ops=list(MODES),
            cmd_t=topics("request", "mode"),
            cmd_tpl='{"mode": "{{ value }}"}',
            val_tpl="{{ value_json.mode }}",
            ic="mdi:robot-outline",
        )
        stop = self._component(
            "switch",
            "stop",
            "Software stop",
            cmd_t=topics("stop"),
            pl_on='{"engaged": true}',
            pl_off='{"engaged": false}',
            stat_on="ON",
            stat_off="OFF",
            val_tpl="{{ 'ON' if value_json.stopped else 'OFF' }}",
            ic="mdi:stop-circle-outline",
        )
        arm = self._component(
            "button", "arm", "Arm", cmd_t=topics("request", "arm"), pl_prs="{}", ic="mdi:shield-check-outline"
        )
        promote = self._component(
            "button",
            "promote",
            "Promote newest policy",
            cmd_t=topics("request", "promote"),
            pl_prs='{"version": "newest"}',
            ic="mdi:arrow-up-bold-circle-outline",
            ent_cat="config",
        )
        rollback = self._component(
            "button",
            "rollback",
            "Roll back policy",
            cmd_t=topics("request", "rollback"),
            pl_prs="{}",
            ic="mdi:arrow-u-left-top",
            ent_cat="config",
        )
        return {"mode": mode, "stop": stop, "arm": arm, "promote": promote, "rollback": rollback}

    def _actuators(self) -> dict[str, Any]:
        return {
            f"act_{name}": self._component(
                "sensor",
                f"act_{name}",
                f"{name}: last action",
                val_tpl="{{ value_json.actions['" + name + "'] | default('none') }}",
                ic="mdi:gesture-tap",
            )
            for name in self.config.actuators
        }

    @staticmethod
    def state(status: str, health: Mapping[str, Any], actions: Mapping[str, Any]) -> bytes:
        """Return the state that all components read: `status`, the last `health`, and the last command of each actuator."""
        learner = health.get("learner") or {}
        return encode(
            {
                "status": status,
                "policy": health.get("policy") or "none",
                "mode": health.get("mode") or "shadow",
                "stopped": bool(health.get("stopped")) or status == "stopped",
                "reward": learner.get("reward_mean"),
                "latency_ms": (health.get("tick") or {}).get("p50_ms"),
                "actions": {name: _short(value) for name, value in actions.items()},
            }
        )


def _short(value: object) -> str:
    """Format a value as Home Assistant can store it: at most 255 characters."""
    if isinstance(value, list | tuple):
        return ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in value)[:255]
    return str(value)[:255]


@dataclass(slots=True)
class Announcer:
    """Publishes discovery and state. Create it inside the running loop."""

    discovery: Discovery
    link: Connection
    health: Health
    gate: GateLink
    period_s: float = EVERY_S
    status: str = "starting"
    _connects: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self.link.up()
            if self.link.connects != self._connects:
                self._connects = self.link.connects
                self._announce()
            health = await asyncio.to_thread(self.health.payload)
            state = self.discovery.state(self.status, health, self._commands())
            self.link.enqueue(self.discovery.state_topic, state, qos=1)
            self._wake.clear()
            try:
                async with asyncio.timeout(self.period_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _announce(self) -> None:
        self.link.enqueue(self.discovery.topic, self.discovery.payload(), qos=1, retain=True)

    def _commands(self) -> dict[str, Any]:
        """Return what each actuator was last commanded."""
        verdict = self.gate.latest
        return {name: outcome.value for name, outcome in verdict.outcomes.items()} if verdict else {}

    def home_assistant_started(self, message: Message) -> None:
        """Publish discovery and state again when Home Assistant's birth message says `online`."""
        if message.payload == b"online" and not message.retain:
            self._announce()
            self._wake.set()

    def status_changed(self, message: Message) -> None:
        """Take the agent's own status, as its gate published it."""
        self.status = decode(Status, message.payload).state
