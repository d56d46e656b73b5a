"""What the agent and the gate say to each other over their private socket pair.

One datagram (SOCK_SEQPACKET) a message, JSON. A `Proposal` comes with every tick and is also the agent's sign of life;
end-of-file means the agent is gone. Stamps are monotonic seconds: both ends are on one machine. The descriptor is passed
to the agent alone; a copy in any other child would hide the end-of-file.
"""

from __future__ import annotations

import math
import socket
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from actuators.actions import Value
from actuators.safety.decisions import By, Proposal

MAX_MESSAGE = 262_144
"""Bytes of the largest message; larger ones are refused by the sender."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one actuator at one tick."""

    sent: bool
    rule: str | None
    """The rule that refused, or None."""
    value: Value | None
    """What the device was last told, whoever said it."""
    by: By


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer to one proposal."""

    decision: str
    armed: bool
    stopped: bool
    mode: dict[str, str]
    """Mode of each actuator."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict)
    """Refusals since the daemon's start, by actuator and rule; under "" what concerns none that is configured."""
    restarts: dict[str, int] = field(default_factory=dict)
    """How often each child was started again."""


def pack(message: Proposal | Verdict) -> bytes:
    """A message as one datagram."""
    data = orjson.dumps({"kind": type(message).__name__, **asdict(message)})
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"a {type(message).__name__} of {len(data)} bytes; at most {MAX_MESSAGE}")
    return data


def unpack(data: bytes) -> Proposal | Verdict:
    """The message in one datagram.

    Raises:
        ValueError: not one of ours.
    """
    body: dict[str, Any] = orjson.loads(data)
    kind = body.pop("kind", None)
    if kind == "Proposal":
        body["stale"] = tuple(body["stale"])
        body["actions"] = {name: _value(value) for name, value in body["actions"].items()}
        return Proposal(**body)
    if kind == "Verdict":
        body["outcomes"] = {name: Outcome(**_outcome(entry)) for name, entry in body["outcomes"].items()}
        return Verdict(**body)
    raise ValueError(f"unknown message kind {kind!r}")


def pair() -> tuple[socket.socket, socket.socket]:
    """The gate's end and the agent's end, both non-blocking and closed on exec unless passed on."""
    gate, agent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (gate, agent):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE * 2)
    return gate, agent


def _value(value: Any) -> Value:
    if isinstance(value, list):  # JSON has no NaN or infinity: null is one, and the gate must see it as such
        return tuple(math.nan if v is None else float(v) for v in value)
    return str(value)


def _outcome(entry: dict[str, Any]) -> dict[str, Any]:
    value = entry["value"]
    return {**entry, "value": None if value is None else _value(value)}
