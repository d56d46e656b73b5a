"""One connection and one request to a running daemon over the broker, for verbs of the command line.

Each tool has its own login and, per process, its own client identifier: no tool ends the session of another or of the page.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from runtime.config.loader import LoadedConfig
from runtime.mqtt import Address, Connection, Message, MqttLost
from runtime.mqtt.rpc import AGENT_VERBS
from runtime.mqtt.topics import Topics, encode, parse

MAX_ANSWER = 4_194_304
STEADY_S = 5.0
SHORT_SESSIONS = 3
"""Consecutive connections shorter than `STEADY_S` after which two clients seem to end each other's sessions."""
CONNECT_S = 3.0
"""For the broker to accept the connection."""
REASON_S = 10.0
"""For the reason why it does not."""
LOOK_S = 0.1
"""Between two looks at the reason."""
STATUS_S = 0.5
"""For the retained status to arrive; a client without the right to read it sends its request all the same."""
PROBE_S = 10.0
"""For the answer of an agent without a retained status, before a longer wait."""
Tool = Literal["status", "top", "request"]


class NoAnswer(Exception):  # noqa: N818 - reads as what happened
    """The daemon did not answer, or refused; `str` says which and what to do."""


def connect(loaded: LoadedConfig, tool: Tool, *, ended: Callable[[str], None] = lambda _reason: None) -> Connection:
    """Return a tool's connection, not yet running; call it inside the loop.

    Args:
        loaded: the daemon's settings.
        tool: the tool; its login is `mqtt.<tool>`.
        ended: called with the reason when another client seems to use the login. The tool must then end: two clients that
            reconnect would end each other's sessions for ever. Not every broker names the reason (mosquitto 2.0 does not).

    Raises:
        NoAnswer: the tool has no login, or a certificate file cannot be read.
    """
    try:
        address = Address.of(loaded.config.mqtt, tool)
    except (OSError, ValueError) as error:
        raise NoAnswer(str(error)) from None

    opened_s, short = 0.0, 0

    def changed(up: bool, _reason: str) -> None:  # noqa: FBT001 - the connection's own callback
        nonlocal opened_s, short
        if up:
            opened_s = time.monotonic()
            return
        short = short + 1 if time.monotonic() - opened_s < STEADY_S else 0
        if short == SHORT_SESSIONS:
            ended(
                f"the broker ended {short} connections within {STEADY_S:.0f} s of their start: another client seems to use "
                f"the same login; give each tool its own (mqtt.{tool})"
            )

    return Connection(address, f"reflexd-{tool}-{secrets.token_hex(6)}", on_connection_change=changed)


def send_request(loaded: LoadedConfig, verb: str, body: dict[str, Any], *, timeout_s: float = 30.0) -> dict[str, Any]:
    """Send `request/<verb>` and return the answer's data.

    Raises:
        NoAnswer: no broker, no daemon, no login, or an error as the answer.
    """
    try:
        answer = asyncio.run(_send_request(loaded, verb, body, timeout_s))
    except (TimeoutError, MqttLost):
        raise NoAnswer(
            f"no response to request/{verb} within {timeout_s:g} s on {loaded.config.mqtt.url}; see `reflexd status`"
        ) from None
    if answer.get("status") != "ok":
        raise NoAnswer(str(answer.get("error", "the response is malformed")))
    return dict(answer.get("data") or {})


async def _send_request(loaded: LoadedConfig, verb: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    topics = Topics(loaded.config.agent)
    link = connect(loaded, "request")
    status: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def on_status(message: Message) -> None:
        body = parse(message.payload, MAX_ANSWER)
        if isinstance(body, dict) and not status.done():
            status.set_result(body)

    link.subscribe(topics("status"), on_status, retained="send")
    running = asyncio.create_task(link.run(), name="cli mqtt")
    try:
        await connected(link, loaded, timeout_s)
        await asyncio.wait([status], timeout=STATUS_S)
        if status.done() and status.result().get("state") == "offline":
            raise NoAnswer(off(loaded))
        if not status.done() and verb in AGENT_VERBS:
            await _probe(link, loaded, topics)
        message = await link.request(
            topics("request", verb), encode(body), reply_to=topics("response", link.identifier), timeout_s=timeout_s
        )
    finally:
        running.cancel()
        await asyncio.wait([running])
    answer = parse(message.payload, MAX_ANSWER)
    return answer if isinstance(answer, dict) else {}


async def _probe(link: Connection, loaded: LoadedConfig, topics: Topics) -> None:
    """Ask what an agent answers at once, before a long wait for an agent that never published a status.

    Raises:
        NoAnswer: no agent answered.
    """
    reply_to = topics("response", link.identifier)
    try:
        await link.request(topics("request", "checkpoints"), encode({}), reply_to=reply_to, timeout_s=PROBE_S)
    except TimeoutError:
        raise NoAnswer(f"{off(loaded)} (no status and no answer within {PROBE_S:g} s)") from None


async def connected(link: Connection, loaded: LoadedConfig, timeout_s: float) -> None:
    """Wait for the connection, for `CONNECT_S`, and for up to `REASON_S` until the reason of a failure is known.

    Raises:
        NoAnswer: there is no broker; the text says why and how to start the daemon.
    """
    begun_s = time.monotonic()
    while not link.connected:
        waited_s = time.monotonic() - begun_s
        if waited_s >= min(timeout_s, CONNECT_S if link.trouble else REASON_S):
            raise NoAnswer(f"{off(loaded)} (no broker: {link.trouble or 'no answer'})")
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await link.up()


def off(loaded: LoadedConfig) -> str:
    """Return that the daemon does not run, and how to start it."""
    return f"the daemon {loaded.config.agent} is off: no agent on {loaded.config.mqtt.url}; start it with `reflexd run FILE`"
