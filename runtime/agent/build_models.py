"""Build the engine and the tasks, and load their live versions."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from learners.ipc.outbox import Outbox
from runtime.agent.build_context import AgentContext
from runtime.agent.build_feedback import FeedbackChain
from runtime.agent.build_perception import Perception
from runtime.agent.build_publishing import Publishing
from runtime.agent.speech_outputs import SpeechOutputs
from runtime.agent.task_outputs import TaskOutputs
from runtime.control.tick import Utterances
from runtime.deliberation.deliberator import Deliberator
from runtime.deploy.encoder_updater import EncoderUpdater
from runtime.deploy.learner_events import LearnerEvents
from runtime.deploy.policy_updater import PolicyUpdater
from runtime.deploy.task_updater import TaskUpdater
from runtime.feedback.recent_results import RecentResults
from runtime.inference.build import build_acting_engine
from runtime.inference.engine import Engine
from runtime.models.client import ModelsClient
from runtime.models.goal_client import GoalClient
from runtime.models.messages import socket_path
from runtime.process.emit import Emit
from runtime.requests.labelling import Gallery
from sensors.base import Sensor, TopicSensor
from sensors.config import TextSettings
from sensors.streams.task_output import TaskOutputSensor


@dataclass(frozen=True, slots=True)
class LiveModels:
    """The engine and the tasks, with what keeps each at its live version."""

    engine: Engine
    policy_updater: PolicyUpdater
    encoder_updater: EncoderUpdater
    learner_events: LearnerEvents
    utterances: Utterances
    gallery: Gallery
    task_outputs: TaskOutputs | None
    task_updater: TaskUpdater | None


async def load_models(
    context: AgentContext,
    publishing: Publishing,
    perception: Perception,
    feedback: FeedbackChain,
    speech: SpeechOutputs | None,
    deliberator: Deliberator | None,
) -> LiveModels:
    """Build the engine and the tasks, and load the live versions; takes seconds, off the event loop."""
    config, emit = context.config, publishing.emit
    engine = await build_acting_engine(config, feedback.checkpoints, emit)
    engine.seed = exploration_seed(config.agent, context.session)
    for stream in engine.arrivals.routes:
        perception.inbox.encode_first(stream, engine.arrivals.offer)
    utterances = Utterances()
    gallery = Gallery(
        context.state_dir / "experience",
        context.state_dir / "learner" / "tasks",
        config.tasks,
        feedback.store,
        RecentResults(),
        context.wall,
    )
    task_outputs = _task_outputs(
        context, publishing, utterances, perception.sensors, gallery.results, speech, deliberator
    )
    task_updater = await _task_updater(context.state_dir, task_outputs, publishing.emit)
    learner_events = LearnerEvents(
        Outbox(context.state_dir / "learner" / "outbox"),
        emit,
        {"source_quarantined": feedback.sources.report},
        {} if task_updater is None else {"task_promoted": task_updater.sync},  # whoever reads it gets the new version
    )
    policy_updater = PolicyUpdater(feedback.checkpoints, engine, feedback.experiments, learner_events, emit)
    await policy_updater.start()
    encoder_updater = EncoderUpdater(config, engine, emit)
    await encoder_updater.start()
    engine.calibrations.convert_here = False  # from here on ticks pass, and a conversion would delay them
    return LiveModels(
        engine, policy_updater, encoder_updater, learner_events, utterances, gallery, task_outputs, task_updater
    )


def exploration_seed(agent: str, session: str) -> int:
    """Return the seed of exploration: another one after each start, so that a restart does not repeat the same draws."""
    return zlib.crc32(f"{agent}/{session}".encode())


async def _task_updater(state_dir: Path, outputs: TaskOutputs | None, emit: Emit) -> TaskUpdater | None:
    """Make what follows the tasks' live versions, and load these."""
    if outputs is None or not outputs.config.tasks:
        return None
    updater = TaskUpdater(state_dir / "learner" / "tasks", outputs.runner, emit)
    await updater.sync()
    return updater


def _task_outputs(
    context: AgentContext,
    publishing: Publishing,
    utterances: Utterances,
    sensors: Mapping[str, Sensor | TopicSensor],
    results: RecentResults,
    speech: SpeechOutputs | None,
    deliberator: Deliberator | None,
) -> TaskOutputs | None:
    """Build what uses the models process, for tasks, speech to text and the deliberator; None where there is none of them."""
    if not context.config.tasks and speech is None and deliberator is None:
        return None
    fed = {name: sensor for name, sensor in sensors.items() if isinstance(sensor, TaskOutputSensor)}
    max_age_s = {
        name: stream.ttl_s if isinstance(stream, TextSettings) else stream.max_age_s
        for name, stream in context.config.streams.items()
    }
    return TaskOutputs(
        context.config,
        publishing.control,
        context.topics,
        publishing.reporter.event,
        utterances,
        partial(
            ModelsClient,
            path=socket_path(context.state_dir),
            degraded=context.degraded,
            speech=None if speech is None else speech.client,
            goals=deliberator.model if deliberator is not None and isinstance(deliberator.model, GoalClient) else None,
            max_age_s=max_age_s,
        ),
        fed=fed,
        on_result=(lambda _result: None) if deliberator is None else deliberator.result,
        results=results,
    )
