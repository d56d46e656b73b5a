"""Publish the agent card of A2A over MQTT: one retained message by which other agents find this one on the broker.

Written to EMQX's specification 0.1 of A2A over MQTT (topic `$a2a/v1/discovery/{org_id}/{unit_id}/{agent_id}`, published retained) and
to the agent card of A2A 1.0. The card names our own topics as its only interface: this agent takes no tasks of A2A.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from runtime.config.schema import AgentCardSettings, Config
from runtime.mqtt import Connection
from runtime.mqtt.topics import Topics, encode

BINDING = "urn:reflexd:mqtt-requests:1"
"""Name of our interface: texts on `in/<stream>`, MQTT 5 requests on `request/<verb>`."""
CHECK_S = 1.0


@dataclass(slots=True)
class AgentCard:
    """Publishes the card of one agent after every connect.

    Args:
        settings: organization and unit.
        config: the daemon's settings.
        version: of reflexd.
        link: the agent's connection.
    """

    settings: AgentCardSettings
    config: Config
    version: str
    link: Connection

    @property
    def topic(self) -> str:
        """`$a2a/v1/discovery/<organization>/<unit>/<agent>`."""
        return f"$a2a/v1/discovery/{self.settings.organization}/{self.settings.unit}/{self.config.agent}"

    def card(self) -> dict[str, Any]:
        """Return the card."""
        config, mqtt = self.config, self.config.mqtt
        scheme = "mqtts" if mqtt.scheme == "mqtts" else "mqtt"
        texts = sorted(name for name, stream in config.streams.items() if stream.kind == "text")
        control = f"Reads {', '.join(config.streams)} and moves {', '.join(config.actuators)} through a gate; explains each decision."
        skills = [_skill("control", "Control a machine", control, "control", "explanation")]
        if config.deliberator is not None:
            meanings = "; ".join(f"{name}: {means}" for name, means in config.deliberator.meanings.items())
            skills.append(_skill("goals", "Pursue a listed goal", meanings, "goals", *texts))
        return {
            "name": f"reflexd {config.agent}",
            "description": f"A daemon that controls the machine {config.agent} and learns while it runs.",
            "version": self.version,
            "supportedInterfaces": [
                {
                    "url": f"{scheme}://{mqtt.host}:{mqtt.port}/{Topics(config.agent).base}",
                    "protocolBinding": BINDING,
                    "protocolVersion": "1.0",
                }
            ],
            "capabilities": {"streaming": False, "pushNotifications": False},
            "defaultInputModes": ["text/plain", "application/json"],
            "defaultOutputModes": ["application/json"],
            "skills": skills,
        }

    async def run(self) -> None:
        """Publish after every connect, until cancelled: a broker without persistence forgets the card."""
        connects = 0
        while True:
            await self.link.up()
            if self.link.connects != connects:
                connects = self.link.connects
                self.link.enqueue(self.topic, encode(self.card()), qos=1, retain=True)
            await asyncio.sleep(CHECK_S)


def _skill(name: str, title: str, description: str, *tags: str) -> dict[str, Any]:
    return {"id": name, "name": title, "description": description, "tags": list(tags)}
