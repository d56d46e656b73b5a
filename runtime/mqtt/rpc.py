"""Request and response over MQTT 5: the verbs, the envelope of a response, and what every handler of requests refuses.

The gate and the agent serve `request/<verb>` with it. It knows no verb's meaning.
"""

from __future__ import annotations

from typing import Any

from runtime.mqtt.connection import Connection
from runtime.mqtt.connection_types import Message
from runtime.mqtt.topics import Refused, Topics, encode

Answer = dict[str, Any]
EXPLAIN_S = 65.0
"""Seconds that a client waits for an explanation. The agent may have to start a process first; it answers within 60 s."""

GATE_VERBS = ("arm", "disarm", "mode", "end_override", "reload")
AGENT_VERBS = (
    *("promote", "rollback", "checkpoints", "explain", "record", "finetune", "release", "accept_drift"),
    *("readings", "label_readings", "labels", "correct_labels"),
)


class RequestFailed(Exception):  # noqa: N818 - reads as what happened
    """A request that cannot be fulfilled; `str` is the response's error."""


def ok(data: Answer) -> Answer:
    """Return the envelope of a response with data."""
    return {"status": "ok", "data": data}


def error(reason: object) -> Answer:
    """Return the envelope of a response that says why not."""
    return {"status": "error", "error": str(reason).encode("utf-8", "replace").decode()}


def last_level(message: Message) -> str:
    """Return the last level of the topic: a request's verb, an override's actuator."""
    return message.topic.rsplit("/", 1)[-1]


def refuse_retained(message: Message) -> None:
    """Refuse a message that the broker may have stored, because its age is unknown.

    Raises:
        Refused: the message is retained.
    """
    if message.retain:
        raise Refused("a retained message is ignored: publish it without the retain flag")


def respond(connection: Connection, topics: Topics, message: Message, answer: Answer) -> None:
    """Publish a response on the request's response topic, else on `response/<last level>`."""
    connection.reply(message, encode(answer), topics("response", last_level(message)))
