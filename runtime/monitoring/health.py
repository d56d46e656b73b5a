"""Compose the `health` message, published every ten seconds: what the page and monitoring need to judge the agent.

Reads the figures of the other components; measures nothing but memory.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from learners.experience.store import Store
from learners.ipc.progress import read_progress
from learners.rewards.tick_rewards import TickRewards
from runtime.control.inbox import Inbox
from runtime.control.payload_decoder import PayloadDecoder
from runtime.control.tick import ControlLoop
from runtime.deploy.experiments.controller import ExperimentController
from runtime.drift.watch import DriftWatch
from runtime.feedback.receiver import Feedback
from runtime.feedback.source_quarantine import SourceQuarantine
from runtime.monitoring.disk_budget import StorageMonitor
from sensors.base import Sensor, TopicSensor

PROGRESS_STALE_S = 30.0
"""Age of the progress file, or time without one, after which the learner is reported as `dead`."""


@dataclass(slots=True)
class Health:
    """Composes the `health` message from the other components."""

    control_loop: ControlLoop
    inbox: Inbox
    decoder: PayloadDecoder
    sensors: Mapping[str, Sensor | TopicSensor]
    store: Store
    feedback: Feedback
    rewards: TickRewards
    experiments: ExperimentController
    sources: SourceQuarantine
    storage: StorageMonitor
    drift: DriftWatch
    progress_file: Path
    learner_enabled: bool
    wall: Callable[[], float]
    """Unix seconds."""
    clock: Callable[[], float] = time.monotonic
    model_counts: Mapping[str, Counter[str]] = field(default_factory=dict)
    """What `tasks` and `speech` did with readings, by cause; without a task or a text stream from speech, there is no entry."""
    _progress: tuple[int, float] | None = None
    """When the learner's progress was last written by the file system, and seen here, by `clock`."""
    _awaited_s: float | None = None
    """Since when there is no progress of the learner, by `clock`."""

    def payload(self) -> dict[str, Any]:
        """Return the `health` message; takes milliseconds, so call it off the event loop."""
        loop = self.control_loop
        verdict = loop.gate.latest
        return {
            "tick": self.tick(),
            "streams": self.streams(),
            "memory_mb": round(psutil.Process().memory_info().rss / 1e6, 1),
            "learner": self.learner(),
            "experience": self.experience(),
            "storage": self.storage.figures(),
            "feedback": dict(self.feedback.counts),
            "reward_faults": dict(self.rewards.faults),
            "models": self.models(),
            "sources": self.sources.figures(),
            "drift": self.drift.figures(),
            "policy": self.experiments.live,
            "exploration": self.exploration(),
            "experiments": self.experiments.state.figures(),
            "mode": loop.mode,
            "armed": verdict.armed if verdict else False,
            "stopped": verdict.stopped if verdict else False,
            "gate": {
                "unsent": loop.gate.unsent,
                "unanswered": loop.gate.unanswered,
                "refusals": by_rule(verdict.refused) if verdict else {},
            },
            "restarts": dict(verdict.restarts) if verdict else {},
        }

    def models(self) -> dict[str, dict[str, int]]:
        """Return how many readings tasks and speech to text used or lost, by cause."""
        counts = {name: counter.copy() for name, counter in self.model_counts.items()}  # a worker thread counts too
        return {name: {cause: count for cause, count in one.items() if count} for name, one in counts.items()}

    def exploration(self) -> float | None:
        """Return how much the acting policy explores: the share of random choices, else the factor on its noise; None for a bandit.

        It is 0 outside the mode `autonomous`.
        """
        loop = self.control_loop
        if not loop.explore or loop.mode != "autonomous":
            return 0.0
        share = loop.engine.exploration_share()
        return None if share is None else round(share, 4)

    def tick(self) -> dict[str, Any]:
        """Return the latency of recent ticks in ms, and how many were late."""
        loop = self.control_loop
        p50, p99 = percentiles(list(loop.latencies_s))
        return {
            "p50_ms": round(p50 * 1e3, 2),
            "p99_ms": round(p99 * 1e3, 2),
            "overruns": loop.pacer.overruns,
            "skipped": loop.pacer.skipped,
            "count": loop.count,
        }

    def streams(self) -> dict[str, Any]:
        """Return the age, staleness and drops of each stream."""
        now = self.control_loop.clock.now()
        stale = self.inbox.stale(now)
        return {name: self._stream(name, now, stale) for name in self.inbox.drops}

    def _stream(self, name: str, now: float, stale: Mapping[str, float | None]) -> dict[str, Any]:
        latest = self.inbox.latest(name)
        age = None if latest is None else round(now - latest.stamp_s, 3)
        figures: dict[str, Any] = {"age_s": age, "stale": name in stale, "drops": dict(self.drops(name))}
        if (equal := self.inbox.frozen.figures().get(name)) is not None:
            figures["frozen"] = equal
        if latest is not None:
            figures["stamp_source"] = latest.stamp_source
        if name in self.decoder.stamps:
            figures |= self.decoder.stamps[name].figures()
        refusal = self.decoder.refusals.get(name)
        return figures if refusal is None else {**figures, "last_refusal": refusal}

    def drops(self, name: str) -> Counter[str]:
        """Sum what a stream lost anywhere on its way, by cause."""
        total = Counter(self.inbox.drops[name])
        total.update(self.decoder.drops.get(name, Counter()))
        if name in self.sensors:
            total.update(self.sensors[name].drops)
        total["not_encoded"] += self.control_loop.engine.arrivals.failures[name]
        return Counter({cause: count for cause, count in total.items() if count})

    def learner(self) -> dict[str, Any]:
        """Return the learner's progress; its state is `dead` when it no longer writes."""
        if not self.learner_enabled:
            return {"state": "off"}
        progress = read_progress(self.progress_file)
        if progress is None:
            now_s = self.clock()
            self._awaited_s = now_s if self._awaited_s is None else self._awaited_s
            return {"state": "starting" if now_s - self._awaited_s <= PROGRESS_STALE_S else "dead"}
        if self._age_s() > PROGRESS_STALE_S:
            progress["state"] = "dead"
        return progress

    def _age_s(self) -> float:
        """Return the age of the progress; only the first look trusts the wall clock, which may step."""
        try:
            written_ns = self.progress_file.stat().st_mtime_ns
        except OSError:
            return float("inf")
        now_s = self.clock()
        if self._progress is None:
            self._progress = (written_ns, now_s - max(0.0, self.wall() - written_ns / 1e9))
        elif self._progress[0] != written_ns:
            self._progress = (written_ns, now_s)
        return now_s - self._progress[1]

    def experience(self) -> dict[str, Any]:
        """Return how many transitions are stored, and what was dropped by cause."""
        return {"committed": self.store.committed, "drops": dict(self.store.drops)}


def by_rule(refused: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Sum the gate's refusals by rule over all actuators."""
    total: Counter[str] = Counter()
    for rules in refused.values():
        total.update(rules)
    return dict(total)


def percentiles(values: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile; zeros for no values."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 0.0)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]
