"""Define the messages of a fleet's stop. Nothing here knows a connection.

The server writes `stop` for all agents of a group, or `stop/<agent>` for one. The device answers on `stopped/<agent>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from learners.fleet_data.segment import NAME
from runtime.gate.stop.messages import MAX_SOURCE, read_stop
from runtime.mqtt import Message
from runtime.mqtt.topics import Payload, Refused, encode, parse

Outcome = Literal["stopped", "refused", "no_answer"]
MAX_ID = 32
MAX_IDS = 1_000
"""That one answer names."""
MAX_REASON = 500
WORDS: dict[Outcome, str] = {"stopped": "stopped", "refused": "refused", "no_answer": "no answer"}
"""What a person reads."""


@dataclass(frozen=True, slots=True)
class StopTopics:
    """The topics of the stop of one group."""

    group: str

    @property
    def of_all(self) -> str:
        """The topic that stops every agent of the group; the server alone may write it."""
        return f"reflexd/fleet/{self.group}/stop"

    def of(self, agent: str) -> str:
        """Return the topic that stops one agent; the server alone may write it."""
        return f"{self.of_all}/{agent}"

    def answer(self, agent: str) -> str:
        """Return the topic of an agent's answers to a stop, which this agent alone may write."""
        return f"reflexd/fleet/{self.group}/stopped/{agent}"


class StopAnswer(Payload):
    """`stopped/<agent>`: what became of a stop on one device."""

    agent: str = Field(pattern=NAME)
    ids: list[str] = Field([], max_length=MAX_IDS)
    """Of the messages that it answers."""
    outcome: Outcome
    reason: str = Field("", max_length=MAX_REASON)
    stamp: float | None = None
    """Unix seconds by the device's clock."""

    def in_words(self) -> str:
        """Return outcome and reason as one text."""
        return f"{WORDS[self.outcome]}: {self.reason}" if self.reason else WORDS[self.outcome]


def stop_payload(identifier: str, source: str) -> bytes:
    """Return the message that asks for a stop.

    Args:
        identifier: for the answer, at most `MAX_ID` characters.
        source: who asks, at most `MAX_SOURCE` characters.
    """
    return encode({"engaged": True, "id": identifier, "source": source[:MAX_SOURCE]})


def read_order(message: Message) -> tuple[str, str] | None:
    """Return id and source of a stop; None where the message only deletes a retained one.

    What is malformed is a stop, as on the stop of an agent.

    Raises:
        Refused: it is exactly a release: only a person at the agent releases.
    """
    try:
        read = read_stop(message)
    except Refused:
        read = (False, "")
    if read is None:
        return None
    if not read[0]:
        raise Refused("a fleet releases no stop; release it at the agent")
    return named(message.payload)


def named(payload: bytes) -> tuple[str, str]:
    """Return id and source of a message; empty where it has none."""
    try:
        body = parse(payload)
    except Refused:
        return "", ""
    fields = body if isinstance(body, dict) else {}
    values = (fields.get("id"), fields.get("source"))
    identifier, source = (value[:MAX_ID] if isinstance(value, str) else "" for value in values)
    return identifier, source
