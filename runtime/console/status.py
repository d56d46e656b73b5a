"""`reflexd status` and `reflexd top`: what the daemon publishes about itself, for a person in a terminal.

An MQTT client like any other: it shows what was published and knows nothing more. Everything that comes over the broker is
untrusted: it is validated, shown as plain text without markup or control characters, and never ends the terminal.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from runtime.config.loader import LoadedConfig
from runtime.console.client import NoAnswer, Tool, connect, connected, off
from runtime.mqtt import Connection, Message
from runtime.mqtt.daemon_messages import DecisionMessage, EventMessage, HealthMessage, StatusMessage
from runtime.mqtt.event_sentences import sentence
from runtime.mqtt.topics import Refused, Topics, parse

MAX_HEALTH = 1_048_576
MAX_CELL = 120
"""Characters of a published text in one cell."""
EVENTS = 8
STALE_S = 3.0
"""A decision older than this is shown as old."""
COLOURS = {"online": "green", "starting": "yellow", "degraded": "yellow", "stopped": "red", "offline": "red"}
MODELS: dict[str, type[BaseModel]] = {
    "status": StatusMessage,
    "health": HealthMessage,
    "decision": DecisionMessage,
    "event": EventMessage,
}


@dataclass(slots=True)
class LatestMessages:
    """The last message of each kind."""

    status: StatusMessage | None = None
    health: HealthMessage | None = None
    decision: DecisionMessage | None = None
    events: list[EventMessage] = field(default_factory=list)
    health_raw: bytes = b""
    health_s: float = 0.0
    """Monotonic seconds of the last health message."""
    decision_s: float = 0.0
    got_health: asyncio.Event = field(default_factory=asyncio.Event)
    ended: str = ""
    """Why the connection must not be tried again; empty while it may."""

    def take(self, message: Message) -> None:
        """Store a message.

        Raises:
            Refused: it is malformed; the connection counts it.
        """
        kind = message.topic.rsplit("/", 1)[-1]
        try:
            body = MODELS[kind].model_validate(parse(message.payload, MAX_HEALTH))
        except ValidationError as error:
            raise Refused(f"{kind}: {error.error_count()} fields are malformed") from None
        match body:
            case EventMessage():
                self.events = [*self.events, body][-EVENTS:]
            case StatusMessage():
                self.status = body
                if body.state == "offline":
                    self.got_health.set()  # nothing more comes
            case DecisionMessage():
                self.decision, self.decision_s = body, time.monotonic()
            case HealthMessage():
                self.health, self.health_s = body, time.monotonic()
                self.health_raw = message.payload
                self.got_health.set()

    def end(self, reason: str) -> None:
        """Note that the connection must not be tried again."""
        self.ended = reason
        self.got_health.set()


def plain(value: object, limit: int = MAX_CELL) -> Text:
    """Return a published value as text of at most `limit` characters: no markup, no control characters."""
    text = str(value)[: limit + 1]
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return Text(shown[:limit] + ("…" if len(shown) > limit else ""))


def subscribe(loaded: LoadedConfig, tool: Tool, seen: LatestMessages) -> Connection:
    """Return a connection that fills `seen`; call it inside the loop.

    Raises:
        NoAnswer: the tool has no login.
    """
    link = connect(loaded, tool, ended=seen.end)
    topics = Topics(loaded.config.agent)
    link.subscribe(topics("status"), seen.take, retained="send")
    for name in ("health", "decision", "event"):
        link.subscribe(topics(name), seen.take, qos=0)
    return link


def show_status(loaded: LoadedConfig, *, as_json: bool, timeout_s: float) -> int:
    """Print one health message; return 0 when online, 1 when not, 2 without a login, 3 without an answer."""
    try:
        seen = asyncio.run(_wait(loaded, timeout_s))
    except NoAnswer as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if seen.health is None:
        state = seen.status.state if seen.status else "nothing on the broker"
        reason = seen.ended or off(loaded)
        sys.stderr.write(f"no health message; status: {plain(state)}; {reason}\n")
        return 3
    if as_json:
        sys.stdout.buffer.write(seen.health_raw + b"\n")
    else:
        Console().print(picture(loaded.config.agent, seen))
    return 0 if seen.status is not None and seen.status.state == "online" else 1


async def _wait(loaded: LoadedConfig, timeout_s: float) -> LatestMessages:
    seen = LatestMessages()
    link = subscribe(loaded, "status", seen)
    running = asyncio.create_task(link.run(), name="terminal mqtt")
    try:
        await connected(link, loaded, timeout_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await seen.got_health.wait()
    except NoAnswer as error:
        seen.ended = str(error)
    finally:
        running.cancel()
    await asyncio.wait([running])
    return seen


def watch(loaded: LoadedConfig) -> int:
    """Show the daemon until Ctrl-C; return 2 without a login, 3 when another client took the login over."""
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(_watch(loaded))
    except NoAnswer as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except _Ended as error:
        sys.stderr.write(f"{error}\n")
        return 3
    return 0


class _Ended(Exception):  # noqa: N818 - reads as what happened
    """Another client took over the login."""


async def _watch(loaded: LoadedConfig) -> None:
    seen = LatestMessages()
    link = subscribe(loaded, "top", seen)
    running = asyncio.create_task(link.run(), name="terminal mqtt")
    try:
        with Live(picture(loaded.config.agent, seen), auto_refresh=False, screen=True) as live:
            while not seen.ended:
                await asyncio.wait([running], timeout=0.25)
                if running.done():
                    running.result()
                live.update(picture(loaded.config.agent, seen, connected=link.connected), refresh=True)
    finally:
        running.cancel()
        await asyncio.wait([running])
    raise _Ended(seen.ended)


def picture(agent: str, seen: LatestMessages, *, connected: bool = True) -> Panel:
    """Return everything at a glance."""
    state = "no connection to the broker" if not connected else seen.status.state if seen.status else "no status yet"
    reasons = ", ".join(seen.status.reasons) if seen.status else ""
    head = plain(state)
    head.stylize(f"bold {COLOURS.get(state, 'red')}")
    health = seen.health or HealthMessage()
    parts: list[RenderableType] = [
        Text.assemble(head, "  ", plain(reasons)),
        _streams(health),
        _actuators(seen),
        _figures(health, _age(seen.health_s)),
        _events(seen.events),
    ]
    return Panel(Group(*parts), title=plain(f"reflexd {agent}"), title_align="left")


def _age(then_s: float) -> str:
    return f"{time.monotonic() - then_s:.0f} s ago" if then_s else "never"


def _streams(health: HealthMessage) -> Table:
    table = Table("stream", "age s", "state", "drops", box=None, title="streams", title_justify="left")
    for name, stream in health.streams.items():
        drops = " ".join(f"{cause}:{count}" for cause, count in stream.drops.items())
        stale = Text("stale", "red") if stream.stale else Text("fresh", "green")
        table.add_row(plain(name), plain(stream.age_s), stale, plain(drops))
    return table


def _actuators(seen: LatestMessages) -> Table:
    old = seen.decision is not None and time.monotonic() - seen.decision_s > STALE_S
    title = f"last decision, {_age(seen.decision_s)}" if old else "last decision"
    table = Table("actuator", "value", "probability", box=None, title=title, title_justify="left")
    table.style = "dim" if old else "none"
    for name, action in (seen.decision.actions if seen.decision else {}).items():
        probability = "" if action.probability is None else f"{action.probability:.3f}"
        table.add_row(plain(name), plain(action.value), probability)
    return table


def _figures(health: HealthMessage, age: str) -> Table:
    tick, learner = health.tick, health.learner
    table = Table(box=None, show_header=False)
    pace = f"{tick.p50_ms} / {tick.p99_ms} ms"
    mode = f"{health.mode}, {'armed' if health.armed else 'disarmed'}"
    table.add_row("tick p50 / p99", pace, "overruns", plain(tick.overruns))
    table.add_row("policy", plain(health.policy), "mode", plain(mode))
    table.add_row("learner", plain(_learner_state(learner)), "updates", _figure(learner.get("updates")))
    table.add_row("memory", plain(f"{health.memory_mb} MB"), "reward", _figure(learner.get("reward_mean")))
    table.add_row("health", age)
    return table


def _figure(value: object) -> Text:
    return plain("none yet" if value is None else value)


def _learner_state(learner: Mapping[str, Any]) -> object:
    """Return the state in words; one that has never reported most likely waits for a core."""
    if learner.get("state") == "dead" and learner.get("updates") is None:
        return "no report since its start; it waits while other programs use all cores"
    return learner.get("state")


def _events(events: list[EventMessage]) -> Table:
    table = Table("when", "what happened", box=None, title="events since this began to listen", title_justify="left")
    for event in events:
        table.add_row(_clock(event.stamp), plain(sentence(event.type, event.data).text))
    return table


def _clock(stamp: float | None) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(stamp or 0.0))
    except (OverflowError, ValueError, OSError):
        return "?"
