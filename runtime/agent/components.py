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
from runtime.control.payload_decoder import Intake
from runtime.control.tick import Ticker
from runtime.deploy.policy_updater import Swap
from runtime.deploy.probation import Watch
from runtime.feedback.outcomes import Outcomes
from runtime.feedback.receiver import Feedback
from runtime.feedback.source_quarantine import Sources
from runtime.inference.engine import Engine
from runtime.monitoring.health import Health
from runtime.monitoring.reporter import Reporter
from runtime.mqtt import Connection
from runtime.requests.handlers import Requests
from sensors.base import Sensor, TopicSensor


@dataclass(slots=True)
class Parts:
    """What was built, in the order the data flows."""

    config: Config
    sensors: Mapping[str, Sensor | TopicSensor]
    inbox: Inbox
    intake: Intake
    engine: Engine
    ticker: Ticker
    store: Store
    feedback: Feedback
    checkpoints: Checkpoints
    swap: Swap
    watch: Watch
    sources: Sources
    outcomes: Outcomes
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


def unready(parts: Parts) -> list[str]:
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
