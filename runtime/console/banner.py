"""Render the banner and the live line of the console from what the daemon publishes. Pure: it neither reads nor prints."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from runtime.config.schema import Config
from runtime.console.status import COLOURS, STALE_S, LatestMessages, plain
from runtime.mqtt import Message
from runtime.mqtt.daemon_messages import EventMessage
from runtime.mqtt.event_sentences import Sentence, sentence

RATE_S = 5.0
"""The rate on the line is counted over this time."""
TONES = {"good": "green", "bad": "bold red", "plain": ""}


@dataclass(slots=True)
class LiveSeen(LatestMessages):
    """What the line shows; counts decisions and passes events on.

    Args:
        on_event: called with each event.
        now: monotonic seconds.
    """

    on_event: Callable[[EventMessage], None] = lambda _event: None
    now: Callable[[], float] = time.monotonic
    _decisions: deque[float] = field(default_factory=lambda: deque(maxlen=2_048))

    def take(self, message: Message) -> None:
        """Store a message.

        Raises:
            Refused: it is malformed; the connection counts it.
        """
        LatestMessages.take(self, message)
        if message.topic.endswith("/decision"):
            self._decisions.append(self.now())
        elif message.topic.endswith("/event") and self.events:
            self.on_event(self.events[-1])

    def rate_hz(self) -> float | None:
        """Return how many decisions a second came lately; None before there are two."""
        now_s = self.now()
        recent = [stamp_s for stamp_s in self._decisions if now_s - stamp_s <= RATE_S]
        if len(recent) < 2 or recent[-1] <= recent[0]:
            return None
        return (len(recent) - 1) / (recent[-1] - recent[0])


def banner(config: Config, settings: Path, link: str | None, log_file: Path) -> Text:
    """Return the lines of the start: what runs, the page, how to stop, where the log is."""
    streams, actuators = ", ".join(config.streams), ", ".join(config.actuators)
    rows = [
        ("reflexd", f"{config.agent} ({settings.name}), mode {config.mode}, {config.tick.rate_hz:g} Hz"),
        ("reads", streams or "nothing"),
        ("acts on", f"{actuators or 'nothing'} over {config.mqtt.url}"),
        ("page", link or "none; add `dashboard: {}` to the settings"),
        ("log", str(log_file)),
        ("stop", "Ctrl-C; the actuators get their safe values first"),
    ]
    text = Text()
    for name, value in rows:
        text.append(f"{name:>8}  ", "bold cyan").append_text(plain(value, 300)).append("\n")
    if link is not None:
        text.append("          The link signs one browser in, once, within an hour.\n", "dim")
    return text


def line(seen: LatestMessages, *, rate_hz: float | None, connected: bool, streams: int, now_s: float) -> Text:
    """Return the live line: state, rate, p99, streams, policy, reward, learner.

    Args:
        seen: the newest messages.
        rate_hz: decisions a second; None where there are none yet.
        connected: whether this console has a connection to the broker.
        streams: number of streams in the settings.
        now_s: monotonic seconds.
    """
    state = seen.status.state if seen.status else "starting"
    if not connected:
        state = "starting" if seen.status is None else "no connection to the broker"
    text = plain(f"● {state}")
    text.stylize(f"bold {COLOURS.get(state, 'red')}")
    health, parts = seen.health, []
    if seen.decision is not None and now_s - seen.decision_s > STALE_S:
        parts.append(f"last decision {now_s - seen.decision_s:.0f} s ago")
    elif rate_hz is not None:
        parts.append(f"{rate_hz:.1f} Hz")
    if health is not None:
        fresh = sum(not stream.stale for stream in health.streams.values())
        parts += [f"p99 {_number(health.tick.p99_ms)} ms", f"streams {fresh}/{max(streams, len(health.streams))}"]
        parts += [f"policy {health.policy or 'untrained'}", *_learner(health.learner)]
    elif seen.status is None:
        parts.append("the first start converts the models and takes a minute")
    for part in parts:
        text.append(" · ", "dim").append_text(plain(part))
    if seen.status is not None and seen.status.reasons:
        text.append(" · ", "dim").append_text(plain("; ".join(seen.status.reasons)))
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _learner(learner: dict[str, Any]) -> list[str]:
    state = str(learner.get("state") or "off")
    rate = learner.get("updates_per_s")
    working = f"learner {state}" + (f", {_number(rate)} updates/s" if isinstance(rate, int | float) else "")
    return [f"reward {_number(learner.get('reward_mean'))}", working]


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) and not isinstance(value, bool) else "-"


def event_line(event: EventMessage) -> Text | None:
    """Return an event as a line with its time of day; None for one that needs no attention."""
    found = sentence(event.type, event.data)
    return sentence_line(found, event.stamp) if found.notable else None


def sentence_line(found: Sentence, stamp: float | None) -> Text:
    """Return a sentence with the time of day before it."""
    try:
        clock = time.strftime("%H:%M:%S", time.localtime(stamp))
    except (OverflowError, ValueError, OSError):
        clock = "        "
    return Text.assemble((f"{clock}  ", "dim"), Text.assemble(plain(found.text, 300), style=TONES[found.tone]))
