"""Decide what a message on `stop` means: it engages the stop unless it is exactly a release. The gate and the stop listener ask here."""

from __future__ import annotations

from typing import Any

from runtime.mqtt import Message
from runtime.mqtt.topics import Refused, parse

RELEASE_KEYS = {"engaged", "source"}
MAX_SOURCE = 64
"""Characters of the name of a sender."""
STOP_WORDS = ("stop", "halt")
"""A verb that does not exist and contains one of them engages the stop."""
SHOWN = 60
"""Characters of a malformed payload in a reason."""


def read_stop(message: Message) -> tuple[bool, str] | None:
    """Return whether a message on `stop` engages it, with the reason where it is not a plain one; None to ignore it.

    Raises:
        Refused: a release that the broker may have stored.
    """
    if not message.payload and message.retain:
        return None  # this is how a retained message is deleted
    try:
        body = parse(message.payload)
    except Refused:
        body = None
    engaged = body.get("engaged") if isinstance(body, dict) else None
    if engaged is False and isinstance(body, dict) and _is_plain_release(body):
        if message.retain:
            raise Refused("the gate ignores a retained release")
        if message.resumed:
            raise Refused("the gate ignores a release that was sent while it was away; send it again")
        return False, ""
    if engaged is True:
        return True, "a retained stop message" if message.retain else ""
    shown = message.payload[:SHOWN].decode(errors="replace")
    return True, f'a message on `stop` that is not a release counts as a stop: {shown!r}; write {{"engaged": true}}'


def _is_plain_release(body: dict[str, Any]) -> bool:
    """Return whether nothing but a release is in it: another key, or a source that is no name, may mean something else."""
    source = body.get("source", "")
    return body.keys() <= RELEASE_KEYS and isinstance(source, str) and len(source) <= MAX_SOURCE


def may_mean_stop(verb: str) -> bool:
    """Return whether a verb that does not exist may be meant as a stop, as `stop`, `estop` or `emergency_halt`."""
    return any(word in verb.lower() for word in STOP_WORDS)
