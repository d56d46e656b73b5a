"""The parts of an agent, as `assembly.py` builds them, `wiring.py` connects them and `agent.py` runs them."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from learners.checkpoints.store import Checkpoints
from learners.experience.store import Store
from learners.ipc.outbox import Outbox
from runtime.config.schema import Config
from runtime.control.inbox import Inbox
from runtime.control.payload_decoder import PayloadDecoder
from runtime.control.tick import ControlLoop
from runtime.deploy.policy_updater import PolicyUpdater
from runtime.deploy.probation import ProbationMonitor
from runtime.feedback.outcomes import OutcomeTracker
from runtime.feedback.receiver import Feedback
from runtime.feedback.source_quarantine import SourceQuarantine
from runtime.inference.engine import Engine
from runtime.monitoring.health import Health
from runtime.monitoring.reporter import Reporter
from runtime.mqtt import Connection
from runtime.requests.handlers import Requests
from sensors.base import Sensor, TopicSensor


@dataclass(slots=True)
class Components:
    """What was built, in the order the data flows."""

    config: Config
    sensors: Mapping[str, Sensor | TopicSensor]
    inbox: Inbox
    intake: PayloadDecoder
    engine: Engine
    ticker: ControlLoop
    store: Store
    feedback: Feedback
    checkpoints: Checkpoints
    swap: PolicyUpdater
    watch: ProbationMonitor
    sources: SourceQuarantine
    outcomes: OutcomeTracker
    outbox: Outbox
    control: Connection
    media: Connection
    reporter: Reporter
    requests: Requests
    health: Health
    jobs: dict[str, Coroutine[Any, Any, None]] = field(default_factory=dict)
    """Further tasks: metrics, language tasks, previews."""

    def put_away(self) -> None:
        """Commit and close everything that holds data; takes up to a few seconds."""
        if self.reporter.recorder is not None:
            self.reporter.recorder.close()
        self.watch.close()
        self.sources.close()
        self.store.close()
        self.engine.close()


def unready(parts: Components) -> list[str]:
    """What keeps the agent from being ready, in words."""
    ticker, verdict = parts.ticker, parts.ticker.gate.latest
    reasons = [
        f"stream {name} is stale" for name in parts.inbox.stale(ticker.clock.now()) if name in parts.inbox.required
    ]
    if not parts.control.connected:
        reasons.append("no connection to the broker")
    if verdict is None:
        reasons.append("no tick was answered by the gate yet")
    elif not verdict.armed and parts.config.gate.arm == "auto" and ticker.mode == "autonomous":
        reasons.append("stopped" if verdict.stopped else "not armed")
    return reasons
