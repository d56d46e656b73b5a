"""Hold the components of the agent, as `build.py` built and connected them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from learners.checkpoints.store import Checkpoints
from learners.experience.store import Store
from runtime.config.schema import Config
from runtime.control.inbox import Inbox
from runtime.control.payload_decoder import PayloadDecoder
from runtime.control.tick import ControlLoop
from runtime.deliberation.deliberator import Deliberator
from runtime.deploy.encoder_updater import EncoderUpdater
from runtime.deploy.experiments.controller import ExperimentController
from runtime.deploy.learner_events import LearnerEvents
from runtime.deploy.policy_updater import PolicyUpdater
from runtime.deploy.task_updater import TaskUpdater
from runtime.drift.watch import DriftWatch
from runtime.feedback.outcomes import OutcomeTracker
from runtime.feedback.receiver import Feedback
from runtime.feedback.source_quarantine import SourceQuarantine
from runtime.gate.client import GateLink
from runtime.inference.engine import Engine
from runtime.monitoring.agent_card import AgentCard
from runtime.monitoring.disk_budget import StorageMonitor
from runtime.monitoring.health import Health
from runtime.monitoring.home_assistant import Announcer
from runtime.monitoring.previews import Viewer
from runtime.monitoring.reporter import Reporter
from runtime.mqtt import Connection
from runtime.requests.handlers import Requests
from sensors.base import Sensor, TopicSensor

if TYPE_CHECKING:
    from runtime.agent.task_outputs import TaskOutputs


@dataclass(frozen=True, slots=True)
class Components:
    """Everything that was built, in the order the data flows."""

    config: Config
    control: Connection
    media: Connection
    registry: CollectorRegistry
    reporter: Reporter
    sensors: Mapping[str, Sensor | TopicSensor]
    inbox: Inbox
    decoder: PayloadDecoder
    store: Store
    checkpoints: Checkpoints
    experiments: ExperimentController
    sources: SourceQuarantine
    outcomes: OutcomeTracker
    feedback: Feedback
    learner_events: LearnerEvents
    engine: Engine
    policy_updater: PolicyUpdater
    encoder_updater: EncoderUpdater
    task_outputs: TaskOutputs | None
    task_updater: TaskUpdater | None
    deliberator: Deliberator | None
    viewer: Viewer
    gate: GateLink
    control_loop: ControlLoop
    storage: StorageMonitor
    drift: DriftWatch
    write_spec: Callable[[], bool]
    """Writes the policy spec for the learner."""
    health: Health
    requests: Requests
    announcer: Announcer | None
    agent_card: AgentCard | None

    def close(self, *, clean: bool) -> None:
        """Commit and close everything that holds data; takes up to a few seconds.

        Args:
            clean: the agent stops on request; otherwise it ends by an exception, which the experiments count as a crash.
        """
        if self.reporter.recorder is not None:
            self.reporter.recorder.close()
        self.experiments.close(clean=clean)
        self.sources.file.write()
        self.drift.file.write()
        if self.deliberator is not None:
            self.deliberator.file.write()
        self.store.close()
        self.engine.close()
