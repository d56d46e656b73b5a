"""Define the messages between the agent and the gate, and their private socket pair.

One datagram (SOCK_SEQPACKET) holds one message as JSON. A `Proposal` comes with every tick and is the agent's heartbeat; the
gate answers it with a `GateVerdict`. End-of-file means that the agent is gone. Stamps are monotonic seconds: both ends are on one
machine. Only the agent inherits the descriptor: a copy in another child would hide the end-of-file.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

import orjson

from actuators.actions import Value
from actuators.safety.decisions import By, Proposal
from runtime.config.frame_size import MAX_FRAME

MAX_MESSAGE = MAX_FRAME
"""Bytes of the largest message; larger ones are refused by the sender. `reflexd check` refuses settings that could need one."""
MAX_NAME = 256
"""Characters of a name, a decision's identifier or a policy version."""
RESERVED = frozenset(get_args(By))
"""Commands of the gate and of persons bear these words in place of a policy's version."""
FIELDS = frozenset(each.name for each in fields(Proposal))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one actuator at one tick."""

    sent: bool
    rule: str | None
    """The rule that refused, or None."""
    value: Value | None
    """The last command to the device, from the policy, a person or the gate."""
    by: By


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The gate's answer to one proposal."""

    decision: str
    armed: bool
    stopped: bool
    mode: Mapping[str, str]
    """Mode of each actuator."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict)
    """Refusals since the daemon's start, by actuator and rule; under "" what concerns none that is configured."""
    restarts: dict[str, int] = field(default_factory=dict)
    """How often each child was started again."""
    events: dict[str, int] = field(default_factory=dict)
    """How often the gate published each of `host.COUNTED` since the daemon's start."""
    overridden: dict[str, Value] = field(default_factory=dict)
    """What a person commanded since the proposal before, by actuator, where the hold was over by this one."""
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The choices that the gate would let pass at the next tick, by actuator; absent where these are all."""


def shortened(text: str) -> str:
    """Return a text of any length and content as one that a message may contain."""
    valid = text.encode(errors="replace").decode()  # a path may hold bytes that are no UTF-8
    return valid if len(valid) <= MAX_NAME else valid[: MAX_NAME - 1] + "…"


def pack(message: Proposal | GateVerdict) -> bytes:
    """Return a message as one datagram.

    Raises:
        ValueError: it is too large, or not valid as JSON.
    """
    content = {each.name: getattr(message, each.name) for each in fields(message)}
    try:
        data = orjson.dumps({"kind": type(message).__name__, **content})
    except orjson.JSONEncodeError as error:
        raise ValueError(f"a {type(message).__name__} that is not JSON: {error}") from None
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"a {type(message).__name__} of {len(data)} bytes; at most {MAX_MESSAGE}")
    return data


def unpack(data: bytes) -> Proposal | GateVerdict:
    """Return the message in one datagram; every field is checked before any of it counts.

    Raises:
        ValueError: it is none of ours.
    """
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"longer than {MAX_MESSAGE} bytes")
    body = orjson.loads(data)
    if not isinstance(body, dict):
        raise ValueError("not an object")  # noqa: TRY004 - one kind of error for every malformed message
    kind = body.pop("kind", None)
    if kind == "Proposal":
        return _proposal(body)
    if kind == "GateVerdict":
        try:
            body["outcomes"] = {name: Outcome(**_outcome(entry)) for name, entry in body["outcomes"].items()}
            body["overridden"] = {name: _value(value) for name, value in body.get("overridden", {}).items()}
            body["allowed"] = {name: tuple(map(str, choices)) for name, choices in body.get("allowed", {}).items()}
            return GateVerdict(**body)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"malformed verdict: {error}") from None
    raise ValueError(f"unknown message kind {str(kind)[:64]!r}")


def _proposal(body: dict[str, Any]) -> Proposal:
    if body.keys() != FIELDS:
        raise ValueError(f"a proposal has the fields {sorted(FIELDS)}, not {sorted(map(str, body))[:16]}")
    tick, stamp_s, stale, actions = body["tick"], body["stamp_s"], body["stale"], body["actions"]
    if type(tick) is not int or tick < 0:
        raise ValueError("tick: expected a whole number from 0")
    if type(stamp_s) not in {int, float}:  # JSON has no NaN and no infinity: they are null
        raise ValueError("stamp_s: expected a finite number")
    if type(body["ready"]) is not bool or type(body["shadow"]) is not bool:
        raise ValueError("ready and shadow: expected true or false")
    words = body["decision"], body["policy"], body["agreement"]
    if not isinstance(stale, list) or not all(map(_is_name, (*stale, *words))):
        raise ValueError(f"stale, decision, policy and agreement: expected strings of at most {MAX_NAME} characters")
    if body["policy"] in RESERVED:
        raise ValueError(f"policy: {body['policy']!r} is reserved for commands that no policy decided")
    if not isinstance(actions, dict) or not all(map(_is_name, actions)):
        raise ValueError("actions: expected an object of actuator names")
    values = {name: _value(value) for name, value in actions.items()}
    degraded = body["degraded"]
    if not isinstance(degraded, list) or not all(map(_is_name, degraded)):
        raise ValueError(f"degraded: expected strings of at most {MAX_NAME} characters")
    return Proposal(
        tick,
        body["decision"],
        body["policy"],
        float(stamp_s),
        values,
        tuple(stale),
        body["ready"],
        tuple(degraded),
        _readings(body["readings"]),
        body["shadow"],
        body["agreement"],
    )


def _readings(body: Any) -> dict[str, dict[str, float]]:
    """Return the readings; a number that is not finite is null in JSON and counts as unknown."""
    if not isinstance(body, dict) or not all(isinstance(fields_, dict) for fields_ in body.values()):
        raise ValueError("readings: expected an object of numbers for each stream")
    if not all(map(_is_name, (*body, *(name for fields_ in body.values() for name in fields_)))):
        raise ValueError(f"readings: expected names of at most {MAX_NAME} characters")
    values = [value for fields_ in body.values() for value in fields_.values()]
    if any(value is not None and type(value) not in {int, float} for value in values):
        raise ValueError("readings: expected a number for each field")
    return {
        stream: {name: float(value) for name, value in fields_.items() if value is not None}
        for stream, fields_ in body.items()
    }


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the gate's end and the agent's end, both non-blocking and closed on exec unless passed on."""
    gate, agent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (gate, agent):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE * 2)
    return gate, agent


def _value(value: Any) -> Value:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or any(item is not None and type(item) not in {int, float} for item in value):
        raise ValueError("actions: expected a string or a list of numbers for each actuator")
    return tuple(math.nan if item is None else float(item) for item in value)  # null means NaN, which the gate refuses


def _outcome(entry: dict[str, Any]) -> dict[str, Any]:
    value = entry["value"]
    return {**entry, "value": None if value is None else _value(value)}
