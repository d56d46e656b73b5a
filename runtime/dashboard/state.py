"""What the page shows: the newest message of each of the agent's topics, in bounded memory.

Fed with raw MQTT messages, read as named sections that change independently, so that a browser is sent only what is new.
It knows neither MQTT nor HTTP, asks nothing and steers nothing. Payloads are untrusted: what is not of the expected shape
is counted and left out.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from runtime.dashboard.series import Returns, TimeSeries
from runtime.dashboard.streams import StreamViews
from runtime.mqtt.topics import Refused, Topics, parse

DECISIONS = 50
EVENTS = 100
QUESTIONS = 20
MAX_JSON = 262_144


@dataclass(slots=True)
class ViewState:
    """Sections by name, each with a version that grows when it changes."""

    topics: Topics
    wall: Callable[[], float] = time.time
    versions: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    sections: dict[str, Any] = field(default_factory=dict)
    stream_views: StreamViews = field(default_factory=StreamViews)
    _foreign: dict[str, tuple[str, str]] = field(default_factory=dict)
    _decisions: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=DECISIONS))
    _events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=EVENTS))
    _questions: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)
    _series: dict[str, TimeSeries] = field(default_factory=dict)
    _returns: Returns = field(default_factory=Returns)
    _encoded: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def set(self, section: str, value: Any) -> None:
        """Replace a section."""
        self.sections[section] = value
        self.versions[section] += 1

    def encoded(self, section: str) -> bytes:
        """A section as JSON, made once for each version however many browsers ask."""
        version, data = self._encoded.get(section, (-1, b""))
        if version != self.versions[section]:
            data = orjson.dumps(self.sections[section], option=orjson.OPT_NON_STR_KEYS)
            self._encoded[section] = (self.versions[section], data)
        return data

    def foreign_topics(self) -> list[str]:
        """Topics outside the agent's own that belong to its actuators and streams."""
        return sorted(self._foreign)

    def take(self, topic: str, payload: bytes) -> None:
        """One message from the broker."""
        if topic in self._foreign:
            what, name = self._foreign[topic]
            parts = ["in", name] if what == "in" else ["act", name, what]
        else:
            parts = topic.removeprefix(self.topics.base + "/").split("/")
        try:
            self._route(parts, payload)
        except (Refused, KeyError, TypeError, ValueError, AttributeError) as error:
            self.refused[f"{parts[0]}: {type(error).__name__}"] += 1

    def _route(self, parts: list[str], payload: bytes) -> None:
        match parts:
            case ["in" | "preview" as kind, stream]:
                if self.stream_views.take(kind, stream, payload, self.wall()):
                    self.set("streams", self.stream_views.contents)
            case ["act", name, "set" | "state" as what]:
                self._actuator(name, what, payload)
            case ["proposal", name]:
                self._entry("proposals", name, _object(payload))
            case ["task", name]:
                self._entry("tasks", name, _object(payload))
            case [("status" | "info" | "health" | "decision" | "event" | "reward") as kind]:
                getattr(self, f"_{kind}")(_object(payload))
            case _:
                self.refused["unknown topic"] += 1

    def _entry(self, section: str, name: str, value: dict[str, Any]) -> None:
        known = self.sections.setdefault(section, {})
        if name in known or len(known) < 64:
            known[name] = {**value, "at": self.wall()}
            self.versions[section] += 1

    def _status(self, value: dict[str, Any]) -> None:
        self.set("status", {**value, "at": self.wall()})

    def _info(self, value: dict[str, Any]) -> None:
        streams, actuators = dict(value.get("streams", {})), dict(value.get("actuators", {}))
        self._foreign = {}
        for name, stream in streams.items():
            source = str(stream.get("source", ""))
            if source.startswith("topic:"):
                self._foreign[source.removeprefix("topic:")] = ("in", name)
        for name, actuator in actuators.items():
            for key, what in (("topic", "set"), ("state_topic", "state")):
                if actuator.get(key):
                    self._foreign[str(actuator[key])] = (what, name)
        self.stream_views.streams = streams
        self.set("info", value)

    def _health(self, value: dict[str, Any]) -> None:
        self.set("health", {**value, "at": self.wall()})
        learner = value.get("learner") or {}
        loss = learner.get("loss")
        self.add_point("loss", sum(loss.values()) if isinstance(loss, dict) else loss)
        self.add_point("q", learner.get("q"))
        self.add_point("reward_mean", learner.get("reward_mean"))

    def _decision(self, value: dict[str, Any]) -> None:
        if not isinstance(value["id"], str):
            raise TypeError("id")
        self._decisions.append(value)
        self.set("decisions", list(self._decisions))
        self.add_point("latency", value.get("latency_ms"))
        self.add_point("value", value.get("value"))

    def _event(self, value: dict[str, Any]) -> None:
        kind, data = str(value["type"]), value.get("data") or {}
        self._events.append({**value, "type": kind, "at": self.wall()})
        self.set("events", list(self._events))
        if kind == "label_requested":
            self.ask(data)

    def ask(self, question: dict[str, Any]) -> None:
        """Keep a question the agent asked until it is answered or pushed out by newer ones."""
        name = str(question.get("id") or question["decision"])
        self._questions[name] = {**question, "id": name, "at": self.wall()}
        while len(self._questions) > QUESTIONS:
            self._questions.popitem(last=False)
        self.set("questions", list(self._questions.values()))

    def answered(self, name: str) -> None:
        """Forget a question."""
        if self._questions.pop(name, None) is not None:
            self.set("questions", list(self._questions.values()))

    def _reward(self, value: dict[str, Any]) -> None:
        reward = float(value["value"])
        self.add_point("reward", reward)
        total = self._returns.add(self.wall(), reward, done=bool(value.get("done")))
        if total is not None:
            self.add_point("return", total)

    def add_point(self, name: str, value: object) -> None:
        """Add a value to a curve; anything but a number is left out."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return
        series = self._series.setdefault(
            name, TimeSeries(span_s=2.0 if name in {"latency", "value", "reward"} else 0.5)
        )
        if series.add(self.wall(), float(value)):
            self.set(f"series/{name}", series.points)

    def _actuator(self, name: str, what: str, payload: bytes) -> None:
        value = _object(payload, plain=True)
        known = self.sections.setdefault("actuators", {})
        if name not in known and len(known) >= 64:
            return
        known.setdefault(name, {})[what] = {**value, "at": self.wall()}
        self.versions["actuators"] += 1


def _object(payload: bytes, *, plain: bool = False) -> dict[str, Any]:
    """A JSON object; with `plain` also anything else a foreign device says, as `value`."""
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
