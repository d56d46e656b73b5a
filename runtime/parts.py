"""The parts of an agent, as `assembly.py` builds them, `wiring.py` connects them and `agent.py` runs them."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from learners.checkpoints import Checkpoints
from learners.experience import Store
from learners.outbox import Outbox
from runtime.engine import Engine
from runtime.feedback import Feedback
from runtime.health import Health
from runtime.inbox import Inbox
from runtime.intake import Intake
from runtime.mqtt import Connection
from runtime.outcomes import Outcomes
from runtime.probation import Watch
from runtime.reporter import Reporter
from runtime.requests import Requests
from runtime.settings import Config
from runtime.sources import Sources
from runtime.swap import Swap
from runtime.tick import Ticker
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
