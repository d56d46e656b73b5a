"""The agent card on a real broker: the topic of EMQX's specification, the fields that A2A 1.0 requires, again after a restart."""

from __future__ import annotations

import asyncio
import json

import jsonschema
import pytest
from pydantic import ValidationError
from wire_helpers import Collector, address, running

from fakes import Mosquitto, eventually
from fakes_agent import config
from runtime.monitoring.agent_card import AgentCard
from runtime.mqtt import Connection

A2A = {"organization": "com.example", "unit": "home"}
TEXT = {"type": "string", "minLength": 1}
REQUIRED = {
    "name": TEXT,
    "description": TEXT,
    "version": TEXT,
    "supportedInterfaces": {
        "type": "array",
        "minItems": 1,
        "items": {"type": "object", "required": ["url", "protocolBinding", "protocolVersion"]},
    },
    "capabilities": {"type": "object"},
    "defaultInputModes": {"type": "array", "minItems": 1, "items": TEXT},
    "defaultOutputModes": {"type": "array", "minItems": 1, "items": TEXT},
    "skills": {
        "type": "array",
        "minItems": 1,
        "items": {"type": "object", "required": ["id", "name", "description", "tags"]},
    },
}
SCHEMA = {"type": "object", "required": list(REQUIRED), "properties": REQUIRED}


async def test_the_card_is_retained_and_comes_back_after_a_restart_of_the_broker(broker: Mosquitto) -> None:
    deliberator = {"goals": {"idle": "nothing to do", "greet": "greet the visitor"}, "default": "idle"}
    settings = config(broker.url, a2a=A2A, deliberator=deliberator)
    assert settings.a2a is not None
    link = Connection(address(broker.port), "agent")
    card = AgentCard(settings.a2a, settings, "0.1.0", link)
    for _ in range(2):
        async with running(link), running(Connection(address(broker.port), "client")) as client:
            publishing = asyncio.create_task(card.run())
            seen = Collector()
            client.subscribe("$a2a/v1/discovery/com.example/home/+", seen, retained="send")
            await eventually(lambda seen=seen: bool(seen.messages), "the card")  # type: ignore[misc]
            publishing.cancel()
            await asyncio.wait([publishing])
        message = seen.messages[0]
        assert message.topic == "$a2a/v1/discovery/com.example/home/demo"
        body = json.loads(message.payload)
        jsonschema.validate(body, SCHEMA)
        assert [skill["id"] for skill in body["skills"]] == ["control", "goals"]
        assert "greet the visitor" in body["skills"][1]["description"]
        assert body["supportedInterfaces"][0]["url"] == f"mqtt://127.0.0.1:{broker.port}/reflexd/demo"
        broker.stop()
        broker.start()


def test_names_that_are_no_level_of_a_topic_are_refused() -> None:
    for bad in ("a/b", "a+", "", "a b", "#"):
        with pytest.raises(ValidationError, match="organization"):
            config("mqtt://127.0.0.1:1", a2a=A2A | {"organization": bad})
