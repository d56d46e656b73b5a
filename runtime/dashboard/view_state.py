"""Store what the page shows: the newest message of each of the agent's topics, in bounded memory.

Fed with raw MQTT messages; read as sections, of which a browser is sent only what changed. It knows neither MQTT nor HTTP and
publishes nothing. Payloads are untrusted: a message that is not of the expected shape is counted and left out.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from runtime.dashboard.sections import Sections
from runtime.dashboard.streams import StreamViews
from runtime.dashboard.time_series import MAX_POINTS, Returns, TimeSeries
from runtime.mqtt.connection_types import wild
from runtime.mqtt.daemon_messages import (
    MAX_ENTRIES,
    DecisionMessage,
    EventMessage,
    GoalMessage,
    HealthMessage,
    HoldMessage,
    Info,
    ProposalMessage,
    StatusMessage,
)
from runtime.mqtt.event_sentences import sentence
from runtime.mqtt.topics import Refused, Reward, Topics, parse

EVENTS = 100
QUESTIONS = 20
MAX_JSON = 262_144
MAX_JSON_OF_STREAMS = 2_097_152
"""Of `info` and `health`, which have an entry for each of up to 512 streams: as much as the page's connection takes."""
MAX_CAUSES = 64
"""Causes of refused messages that are counted one by one."""
DECISION_EVERY_S = 0.2
"""The browsers get at most five decisions a second."""
FAST_SERIES = frozenset({"latency", "value", "reward"})
"""Series with a value each tick: their points are means of 2 s at first; those of other series of 0.5 s."""
M = TypeVar("M", bound=BaseModel)


@dataclass(slots=True)
class ViewState:
    """Sections by name."""

    topics: Topics
    wall: Callable[[], float] = time.time
    refused: Counter[str] = field(default_factory=Counter)
    """Malformed messages by topic and cause."""
    stream_views: StreamViews = field(default_factory=StreamViews)
    _sections: Sections = field(default_factory=Sections)
    _waiting: dict[tuple[str, str], tuple[bytes, float]] = field(default_factory=dict)
    """By actuator, and `set` or `state`: the newest message and when it came. It is read when a browser asks for news."""
    _foreign: dict[str, tuple[str, str]] = field(default_factory=dict)
    _questions: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)
    _series: dict[str, TimeSeries] = field(default_factory=dict)
    _returns: Returns = field(default_factory=Returns)
    _decision_s: float = -math.inf

    @property
    def sections(self) -> Sections:
        """What the browsers show, with everything that has arrived."""
        waiting, self._waiting = self._waiting, {}
        for (name, what), (payload, at_s) in waiting.items():
            with self._counted("act"):
                self._actuator(name, what, payload, at_s)
        return self._sections

    def set(self, section: str, value: Any) -> None:
        """Replace a section."""
        self._sections.set(section, value)

    def foreign_topics(self) -> list[str]:
        """Return topics outside the agent's own that belong to its actuators and streams."""
        return sorted(self._foreign)

    def take(self, topic: str, payload: bytes) -> None:
        """Take one message from the broker. Whatever it is, nothing is raised: what cannot be used is counted."""
        if topic in self._foreign:
            what, name = self._foreign[topic]
            parts = ["in", name] if what == "in" else ["act", name, what]
        else:
            parts = topic.removeprefix(self.topics.base + "/").split("/")
        with self._counted(parts[0]):
            self._route(parts, payload)

    @contextmanager
    def _counted(self, part: str) -> Iterator[None]:
        try:
            yield
        except (Refused, ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
            cause = f"{part[:64]}: {type(error).__name__}"
            self.refused[cause if cause in self.refused or len(self.refused) < MAX_CAUSES else "others"] += 1
            self.set("refused", dict(self.refused))

    def _route(self, parts: list[str], payload: bytes) -> None:  # noqa: C901, PLR0912 - one case a topic
        match parts:
            case ["in" | "preview" as kind, stream]:
                if self.stream_views.take(kind, stream, payload, self.wall()):
                    self._sections.put("streams", stream, self.stream_views.contents[stream])
            case ["act", name, "set" | "state" as what]:
                if len(payload) > MAX_JSON or (
                    len(self._waiting) >= 2 * MAX_ENTRIES and (name, what) not in self._waiting
                ):
                    raise Refused("too large, or too many actuators")
                self._waiting[name, what] = (payload, self.wall())
            case ["proposal", name]:
                self._entry("proposals", name, _model(ProposalMessage, payload))
            case ["hold", name]:
                self._entry("holds", name, _model(HoldMessage, payload))
            case ["goal"]:
                self.set("goal", {**_model(GoalMessage, payload), "at": self.wall()})
            case ["task", name]:
                self._entry("tasks", name, _object(payload))
            case ["status"]:
                self.set("status", {**_model(StatusMessage, payload), "at": self.wall()})
            case ["info"]:
                self._info(Info.model_validate(parse(payload, MAX_JSON_OF_STREAMS)))
            case ["health"]:
                self._health(_model(HealthMessage, payload, MAX_JSON_OF_STREAMS))
            case ["decision"]:
                self._decision(_model(DecisionMessage, payload))
            case ["event"]:
                self._event(_model(EventMessage, payload))
            case ["reward"]:
                reward = Reward.model_validate(parse(payload))
                self._reward(reward.value, done=reward.done or reward.truncated)
            case _:
                raise KeyError("unknown topic")

    def _entry(self, section: str, name: str, value: dict[str, Any]) -> None:
        known = self._sections.tables.get(section, {})
        if name in known or len(known) < MAX_ENTRIES:
            self._sections.put(section, name, {**value, "at": self.wall()})

    def _info(self, info: Info) -> None:
        foreign: dict[str, tuple[str, str]] = {}
        for name, stream in info.streams.items():
            if stream.source.startswith("topic:"):
                foreign[stream.source.removeprefix("topic:")] = ("in", name)
        for name, actuator in info.actuators.items():
            for topic, what in ((actuator.topic, "set"), (actuator.state_topic, "state")):
                if topic:
                    foreign[topic] = (what, name)
        self._foreign = {topic: use for topic, use in foreign.items() if topic and not wild(topic) and topic[0] != "$"}
        self.stream_views.streams = {name: stream.model_dump() for name, stream in info.streams.items()}
        self.set("info", info.model_dump())

    def _health(self, value: dict[str, Any]) -> None:
        self.set("health", {**value, "at": self.wall()})
        learner = value["learner"]
        loss = learner.get("loss")
        self.add_point("loss", sum(loss.values()) if isinstance(loss, dict) else loss)
        self.add_point("q", learner.get("q"))
        self.add_point("reward_mean", learner.get("reward_mean"))

    def _decision(self, value: dict[str, Any]) -> None:
        self.add_point("latency", value["latency_ms"])
        self.add_point("value", value["value"])
        reward = value.get("reward")
        if isinstance(reward, int | float) and not isinstance(reward, bool):
            self._reward(float(reward), done=False)
        now_s = self.wall()
        if now_s - self._decision_s >= DECISION_EVERY_S or now_s < self._decision_s:
            self._decision_s = now_s
            self.set("decision", value)

    def _event(self, value: dict[str, Any]) -> None:
        words = sentence(value["type"], value["data"])
        self._sections.append("events", {**value, "at": self.wall(), "text": words.text, "tone": words.tone}, EVENTS)
        if value["type"] == "label_requested":
            self.ask(value["data"])

    def ask(self, question: dict[str, Any]) -> None:
        """Store a query of the agent until it is answered or newer ones push it out.

        Raises:
            KeyError: it names neither itself nor a decision.
        """
        name = str(question.get("id") or question["decision"])
        self._questions[name] = {**question, "id": name, "at": self.wall()}
        while len(self._questions) > QUESTIONS:
            self._questions.popitem(last=False)
        self.set("questions", list(self._questions.values()))

    def answered(self, name: str) -> None:
        """Remove a query."""
        if self._questions.pop(name, None) is not None:
            self.set("questions", list(self._questions.values()))

    def _reward(self, reward: float, *, done: bool) -> None:
        self.add_point("reward", reward)
        total = self._returns.add(self.wall(), reward, done=done)
        if total is not None:
            self.add_point("return", total)

    def add_point(self, name: str, value: object) -> None:
        """Add a value to a series; anything but a finite number is left out."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return
        series = self._series.setdefault(name, TimeSeries(span_s=2.0 if name in FAST_SERIES else 0.5))
        match series.add(self.wall(), float(value)):
            case "appended":
                self._sections.append(f"series/{name}", series.points[-1], MAX_POINTS)
            case "merged":
                self._sections.replace(f"series/{name}", series.points, MAX_POINTS)

    def _actuator(self, name: str, what: str, payload: bytes, at_s: float) -> None:
        value = _object(payload, plain=True)
        known = self._sections.tables.get("actuators", {})
        if name in known or len(known) < MAX_ENTRIES:
            self._sections.put("actuators", name, {**known.get(name, {}), what: {**value, "at": at_s}})


def _model(model: type[M], payload: bytes, limit: int = MAX_JSON) -> dict[str, Any]:
    return model.model_validate(parse(payload, limit)).model_dump()


def _object(payload: bytes, *, plain: bool = False) -> dict[str, Any]:
    """Parse a JSON object; with `plain`, any other value of a foreign device becomes `value`."""
    try:
        value = parse(payload, MAX_JSON)
    except Refused:
        if not plain:
            raise
        return {"value": payload[:200].decode(errors="replace")}
    if isinstance(value, dict):
        return value
    if plain:
        return {"value": value}
    raise TypeError("not an object")
