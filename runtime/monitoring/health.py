"""What the agent says of itself every ten seconds, and what a page or a monitor needs to judge it.

Gathers figures from whoever counts them; measures nothing but memory.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from learners.experience.store import Store
from learners.ipc.progress import read_progress
from runtime.control.inbox import Inbox
from runtime.control.payload_decoder import PayloadDecoder
from runtime.control.tick import ControlLoop
from runtime.feedback.receiver import Feedback
from sensors.base import Sensor, TopicSensor

PROGRESS_STALE_S = 30.0
"""A learner that has not written its progress for so long is called dead."""


@dataclass(slots=True)
class Health:
    """Everything `health` is made of."""

    ticker: ControlLoop
    inbox: Inbox
    intake: PayloadDecoder
    sensors: Mapping[str, Sensor | TopicSensor]
    store: Store | None
    feedback: Feedback | None
    progress_file: Path
    learner_enabled: bool
    probation: Callable[[], dict[str, Any]] = dict
    """The numbers of the version on probation; empty when there is none."""
    sources: Callable[[], dict[str, Any]] = dict
    """Sources of feedback that are quarantined or were released."""

    def payload(self) -> dict[str, Any]:
        """The `health` message."""
        verdict = self.ticker.gate.latest
        return {
            "tick": self.tick(),
            "streams": self.streams(),
            "memory_mb": round(psutil.Process().memory_info().rss / 1e6, 1),
            "learner": self.learner(),
            "experience": self.experience(),
            "feedback": dict(self.feedback.counts) if self.feedback else {},
            "sources": self.sources(),
            "policy": self.ticker.engine.version,
            "probation": self.probation(),
            "mode": self.ticker.mode,
            "armed": verdict.armed if verdict else False,
            "stopped": verdict.stopped if verdict else False,
            "gate": {
                "unsent": self.ticker.gate.unsent,
                "unanswered": self.ticker.gate.unanswered,
                "refusals": by_rule(verdict.refused) if verdict else {},
            },
            "restarts": dict(verdict.restarts) if verdict else {},
        }

    def tick(self) -> dict[str, Any]:
        """Latency of recent ticks in ms, and what was late."""
        p50, p99 = percentiles(list(self.ticker.latencies_s))
        return {
            "p50_ms": round(p50 * 1e3, 2),
            "p99_ms": round(p99 * 1e3, 2),
            "overruns": self.ticker.pacer.overruns,
            "skipped": self.ticker.pacer.skipped,
            "count": self.ticker.count,
        }

    def streams(self) -> dict[str, Any]:
        """Age, staleness and drops of each stream."""
        now = self.ticker.clock.now()
        stale = self.inbox.stale(now)
        return {name: self._stream(name, now, stale) for name in self.inbox.drops}

    def _stream(self, name: str, now: float, stale: Mapping[str, float | None]) -> dict[str, Any]:
        latest = self.inbox.latest(name)
        age = None if latest is None else round(now - latest.stamp_s, 3)
        figures = {"age_s": age, "stale": name in stale, "drops": dict(self.drops(name))}
        refusal = self.intake.refusals.get(name)
        return figures if refusal is None else {**figures, "last_refusal": refusal}

    def drops(self, name: str) -> Counter[str]:
        """What a stream lost anywhere on its way, by cause."""
        total = Counter(self.inbox.drops[name])
        total.update(self.intake.drops.get(name, Counter()))
        if name in self.sensors:
            total.update(self.sensors[name].drops)
        return Counter({cause: count for cause, count in total.items() if count})

    def learner(self) -> dict[str, Any]:
        """The learner's own words, and whether it still speaks."""
        if not self.learner_enabled:
            return {"state": "off"}
        progress = read_progress(self.progress_file)
        if progress is None:
            return {"state": "starting"}
        if self._age_s() > PROGRESS_STALE_S:
            progress["state"] = "dead"
        return progress

    def _age_s(self) -> float:
        try:
            written = self.progress_file.stat().st_mtime
        except OSError:
            return float("inf")
        return max(0.0, (self.feedback.wall() if self.feedback else written) - written)

    def experience(self) -> dict[str, Any]:
        """What was remembered and what was not."""
        if self.store is None:
            return {}
        return {"committed": self.store.committed, "drops": dict(self.store.drops)}


def by_rule(refused: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """The gate's refusals by rule, of all actuators together."""
    total: Counter[str] = Counter()
    for rules in refused.values():
        total.update(rules)
    return dict(total)


def percentiles(values: list[float]) -> tuple[float, float]:
    """Median and 99th percentile; zeros for nothing."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 0.0)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]
