"""Publish decisions, events and health; update the metrics, the log and the recording.

Publishes through two connections, control and media, so that an oversized picture can never cost the control one. Events
may come from any thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from runtime.control.tick import TickResult
from runtime.monitoring.health import Health
from runtime.monitoring.metrics import Metrics
from runtime.mqtt import Connection
from runtime.mqtt.topics import Topics, encode
from runtime.process.log import shows_debug
from runtime.recording.recorder import Note, Recorder, TickRecord

HEALTH_EVERY_S = 10.0
_LOG = structlog.get_logger(__name__)


@dataclass(slots=True)
class Reporter:
    """Publishes what happens in the agent. Create it inside the running loop."""

    control: Connection
    topics: Topics
    metrics: Metrics
    recorder: Recorder | None = None
    scrub: Callable[[Any], Any] = lambda data: data
    """Removes secrets from an event's data: reasons come from drivers and plugins, which may repeat their settings."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Publish an event, from any thread."""
        self._loop.call_soon_threadsafe(self._event, kind, data)

    def _event(self, kind: str, data: dict[str, Any]) -> None:
        data = self.scrub(data)
        body = {"type": kind, "stamp": time.time(), "data": data}
        _LOG.info("event", type=kind, **{name: value for name, value in data.items() if name != "reading"})
        self.metrics.observe_event(kind, data)
        self.control.enqueue(self.topics("event"), encode(body), qos=1, keep="all")
        if self.recorder is not None:
            self.recorder.put(Note(time.time_ns(), "event", body))

    def ticked(self, ticked: TickResult) -> None:
        """Publish one finished tick: decision, metrics, recording, log."""
        body = decision_body(ticked)
        self.control.enqueue(self.topics("decision"), encode(body))
        self._measure(ticked)
        self._record(ticked, body)
        self._log(body)

    async def health(self, health: Health) -> None:
        """Publish health until cancelled, the first one at once."""
        while True:
            body = await asyncio.to_thread(health.payload)
            recorder = self.recorder
            body["recording"] = recorder and {"path": str(recorder.path), "written": recorder.written}
            body["process"] = {"tasks": len(asyncio.all_tasks()), "threads": threading.active_count()}
            self.metrics.observe_health(body)
            self.metrics.observe_link(connected=self.control.connected, connects=self.control.connects)
            self.metrics.observe_refused({kind_of(self.topics, name): n for name, n in self.control.refused.items()})
            self.control.enqueue(self.topics("health"), encode(body))
            await asyncio.sleep(HEALTH_EVERY_S)

    def _measure(self, ticked: TickResult) -> None:
        observation, verdict = ticked.observation, ticked.verdict
        self.metrics.tick_seconds.observe(ticked.latency_s)
        for encoder, took_s in ticked.decided.encode_s.items():
            self.metrics.encoder_seconds.labels(encoder).observe(took_s)
        self.metrics.observe_ages(observation.ages_s, observation.missing)
        if verdict is None:
            return
        self.metrics.observe_gate(armed=verdict.armed, stopped=verdict.stopped, mode=ticked.mode)
        self.metrics.observe_totals(verdict.refused, verdict.restarts, verdict.events)
        for name, outcome in verdict.outcomes.items():
            if outcome.sent:
                self.metrics.commands.labels(name, outcome.by).inc()
        if any(outcome.sent and outcome.by == "policy" for outcome in verdict.outcomes.values()):
            used = {name: observation.ages_s[name] for name in observation.readings}
            self.metrics.observe_acted(used, observation.fresh, ticked.answered_s)

    def _record(self, ticked: TickResult, body: dict[str, Any]) -> None:
        if self.recorder is None:
            return
        observation = ticked.observation
        names = sorted(observation.fresh if self.recorder.begun else observation.readings)
        self.recorder.begun = True
        fresh = tuple(observation.readings[name] for name in names)
        more = {
            "stamp_s": observation.stamp_s,
            "explore": ticked.explore,
            "encoders": ticked.decided.encoders,
            "ages_s": dict(observation.ages_s),
            "fresh": sorted(observation.fresh),
            "allowed": dict(observation.allowed),
            "used": {name: reading.seq for name, reading in observation.readings.items()},
            "outcomes": {name: asdict(outcome) for name, outcome in ticked.verdict.outcomes.items()}
            if ticked.verdict
            else {},
        }
        self.recorder.put(TickRecord(int(ticked.stamp_unix_s * 1e9), fresh, body | more))

    def _log(self, body: dict[str, Any]) -> None:
        """Log the tick at debug (`--verbose`): the log of every day has no line for it; `health` and `decision` show it."""
        if not shows_debug():
            return
        line = {key: body[key] for key in ("id", "policy", "mode", "latency_ms", "missing")}
        line["actions"] = {name: action["value"] for name, action in body["actions"].items()}
        _LOG.debug("tick", **line)


def kind_of(topics: Topics, subscription: str) -> str:
    """Return the kind of a subscription: the first part of the topic below the base, or `stream` for a foreign topic."""
    below = subscription.removeprefix(f"{topics.base}/")
    return "stream" if below == subscription else below.split("/")[0]


def decision_body(ticked: TickResult) -> dict[str, Any]:
    """Compose the `decision` message."""
    observation, decided = ticked.observation, ticked.decided
    return {
        "id": ticked.decision,
        "tick": observation.tick,
        "stamp": ticked.stamp_unix_s,
        "policy": decided.policy,
        "mode": ticked.mode,
        "actions": decided.actions_message(),
        "value": decided.value,
        "reward": ticked.reward,
        "ages_ms": {name: round(age * 1e3, 1) for name, age in observation.ages_s.items()},
        "skew_ms": round(observation.skew_s * 1e3, 1),
        "missing": sorted(observation.missing),
        "latency_ms": round(ticked.latency_s * 1e3, 3),
        "experiment": ticked.arm.fields() if ticked.arm is not None else None,
        "other": ticked.other.fields() if ticked.other is not None else None,
    }
