"""`reflexd status` and `reflexd top`: what the daemon says of itself on the broker, for a person in a terminal.

An MQTT client like any other: it shows what was published and knows nothing more.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import click
import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from runtime.config.loader import Loaded
from runtime.mqtt import Address, Connection, Message
from runtime.mqtt.topics import Refused, Topics, parse

MAX_HEALTH = 1_048_576
COLOURS = {"online": "green", "starting": "yellow", "degraded": "yellow", "stopped": "red", "offline": "red"}


@dataclass(slots=True)
class Seen:
    """The last message of each kind."""

    status: dict[str, Any] = field(default_factory=dict)
    health: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    health_raw: bytes = b""
    got_health: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, message: Message) -> None:
        """Sort a message in; anything malformed is refused to the connection, which counts it."""
        kind = message.topic.rsplit("/", 1)[-1]
        body = parse(message.payload, MAX_HEALTH)
        if not isinstance(body, dict):
            raise Refused(f"{kind} is no object")
        if kind == "event":
            self.events = [*self.events, body][-8:]
            return
        setattr(self, kind, body)
        if kind == "health":
            self.health_raw = message.payload
            self.got_health.set()


def connection(loaded: Loaded, seen: Seen) -> Connection:
    """A connection that fills `seen`; call it inside the loop."""
    config = loaded.config
    link = Connection(Address.of(config.mqtt, "dashboard"), f"reflexd-terminal-{os.getpid()}")
    topics = Topics(config.agent)
    link.subscribe(topics("status"), seen.take, retained="send")
    for name in ("health", "decision", "event"):
        link.subscribe(topics(name), seen.take, qos=0)
    return link


def show_status(loaded: Loaded, *, as_json: bool, timeout_s: float) -> int:
    """Print one health message; 0 when online, 1 when not, 3 when nothing answered."""
    seen = asyncio.run(_wait(loaded, timeout_s))
    if not seen.health:
        said = seen.status.get("state", "nothing on the broker")
        click.echo(
            f"no health message within {timeout_s:g} s; status: {said}. Is `reflexd run` up, on {loaded.config.mqtt.url}?",
            err=True,
        )
        return 3
    if as_json:
        sys.stdout.buffer.write(seen.health_raw + b"\n")
    else:
        Console().print(picture(loaded.config.agent, seen))
    return 0 if seen.status.get("state") == "online" else 1


async def _wait(loaded: Loaded, timeout_s: float) -> Seen:
    seen = Seen()
    link = connection(loaded, seen)
    running = asyncio.create_task(link.run(), name="terminal mqtt")
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await seen.got_health.wait()
    running.cancel()
    await asyncio.wait([running])
    return seen


def watch(loaded: Loaded) -> int:
    """Show the daemon until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        asyncio.run(_watch(loaded))
    return 0


async def _watch(loaded: Loaded) -> None:
    seen = Seen()
    link = connection(loaded, seen)
    async with asyncio.TaskGroup() as group:
        group.create_task(link.run(), name="terminal mqtt")
        with Live(picture(loaded.config.agent, seen), auto_refresh=False, screen=True) as live:
            while True:
                await asyncio.sleep(0.25)
                live.update(picture(loaded.config.agent, seen, connected=link.connected), refresh=True)


def picture(agent: str, seen: Seen, *, connected: bool = True) -> Panel:
    """Everything at a glance."""
    state = str(seen.status.get("state", "no status yet")) if connected else "no connection to the broker"
    reasons = ", ".join(map(str, seen.status.get("reasons", [])))
    head = Text.assemble((state, f"bold {COLOURS.get(state, 'red')}"), f"  {reasons}")
    parts: list[RenderableType] = [
        head,
        _streams(seen.health),
        _actuators(seen.decision),
        _figures(seen.health),
        _events(seen.events),
    ]
    return Panel(Group(*parts), title=f"reflexd {agent}", title_align="left")


def _streams(health: dict[str, Any]) -> Table:
    table = Table("stream", "age s", "state", "drops", box=None, title="streams", title_justify="left")
    for name, stream in health.get("streams", {}).items():
        drops = " ".join(f"{cause}:{count}" for cause, count in stream.get("drops", {}).items())
        stale = Text("stale", "red") if stream.get("stale") else Text("fresh", "green")
        table.add_row(name, str(stream.get("age_s")), stale, drops)
    return table


def _actuators(decision: dict[str, Any]) -> Table:
    table = Table("actuator", "value", "probability", box=None, title="last decision", title_justify="left")
    for name, action in decision.get("actions", {}).items():
        table.add_row(name, str(action.get("value")), f"{action.get('probability', 0):.3f}")
    return table


def _figures(health: dict[str, Any]) -> Table:
    tick, learner = health.get("tick", {}), health.get("learner", {})
    table = Table(box=None, show_header=False)
    table.add_row(
        "tick p50 / p99", f"{tick.get('p50_ms')} / {tick.get('p99_ms')} ms", "overruns", str(tick.get("overruns"))
    )
    table.add_row(
        "policy",
        str(health.get("policy")),
        "mode",
        f"{health.get('mode')}, {'armed' if health.get('armed') else 'disarmed'}",
    )
    table.add_row("learner", str(learner.get("state")), "updates", str(learner.get("updates")))
    table.add_row("memory", f"{health.get('memory_mb')} MB", "reward", str(learner.get("reward_mean")))
    return table


def _events(events: list[dict[str, Any]]) -> Table:
    table = Table("when", "event", "data", box=None, title="events", title_justify="left")
    for event in events:
        when = time.strftime("%H:%M:%S", time.localtime(float(event.get("stamp", 0))))
        table.add_row(when, str(event.get("type")), orjson.dumps(event.get("data")).decode()[:90])
    return table
