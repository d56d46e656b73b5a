"""One request to a running daemon over the broker, for verbs of the command line."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from runtime.config.loader import Loaded
from runtime.mqtt import Address, Connection, MqttLost
from runtime.mqtt.topics import Topics, encode, parse

MAX_ANSWER = 4_194_304


class NoAnswer(Exception):  # noqa: N818 - reads as what happened
    """The daemon did not answer, or refused; `str` says which and what to do."""


def ask(loaded: Loaded, verb: str, body: dict[str, Any], *, timeout_s: float = 30.0) -> dict[str, Any]:
    """Send `request/<verb>` and return the answer's data.

    Raises:
        NoAnswer: no broker, no daemon, or an error as the answer.
    """
    try:
        answer = asyncio.run(_ask(loaded, verb, body, timeout_s))
    except (TimeoutError, MqttLost):
        url = loaded.config.mqtt.url
        raise NoAnswer(f"no answer to request/{verb} within {timeout_s:g} s; is `reflexd run` up, on {url}?") from None
    if answer.get("status") != "ok":
        raise NoAnswer(str(answer.get("error", "the answer is no answer")))
    return dict(answer.get("data") or {})


async def _ask(loaded: Loaded, verb: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    config = loaded.config
    topics = Topics(config.agent)
    link = Connection(Address.of(config.mqtt, "dashboard"), f"reflexd-cli-{os.getpid()}")
    running = asyncio.create_task(link.run(), name="cli mqtt")
    try:
        async with asyncio.timeout(timeout_s):
            await link.up()
            reply_to = topics("response", f"cli-{os.getpid()}")
            message = await link.request(topics("request", verb), encode(body), reply_to=reply_to, timeout_s=timeout_s)
    finally:
        running.cancel()
        await asyncio.wait([running])
    answer = parse(message.payload, MAX_ANSWER)
    return answer if isinstance(answer, dict) else {}
