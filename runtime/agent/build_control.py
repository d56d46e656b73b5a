"""Build the control loop, and what watches and serves it: storage, the `health` message, and the requests."""

from __future__ import annotations

from actuators.config import conditions_of
from learners.model.spec import fields_version
from learners.rewards.tick_rewards import expression_names
from runtime.agent.build_context import AgentContext
from runtime.agent.build_feedback import FeedbackChain
from runtime.agent.build_models import LiveModels
from runtime.agent.build_perception import Perception
from runtime.agent.build_publishing import Publishing
from runtime.agent.speech_outputs import SpeechOutputs
from runtime.agent.task_outputs import TaskOutputs
from runtime.config.frame_size import named_fields
from runtime.config.schema import Config
from runtime.control.actuator_conditions import Conditions
from runtime.control.frozen_streams import FrozenReporter
from runtime.control.sender_stamps import ClockReporter
from runtime.control.tick import ControlLoop, TickListener
from runtime.deliberation.deliberator import Deliberator
from runtime.deploy.task_versions import TaskVersions
from runtime.drift.watch import DriftWatch
from runtime.feedback.raw_capture import RawCapture, streams_to_keep
from runtime.feedback.reward_faults import RewardFaultReporter
from runtime.gate.client import GateLink
from runtime.monitoring.disk_budget import StorageMonitor
from runtime.monitoring.health import Health
from runtime.process.pacing import Pacer
from runtime.requests.explain import Explainer
from runtime.requests.finetune import FinetuneQueue
from runtime.requests.handlers import Requests
from runtime.requests.record import RecordingController
from sensors.config import policy_fields_of


def build_control_loop(
    context: AgentContext,
    publishing: Publishing,
    perception: Perception,
    feedback: FeedbackChain,
    models: LiveModels,
    drift: DriftWatch,
    deliberator: Deliberator | None,
    gate: GateLink,
) -> ControlLoop:
    """Build the loop that runs the ticks, with everything that listens to them."""
    config, clock, emit = context.config, context.clock, publishing.emit
    listeners: list[TickListener] = [
        publishing.reporter.ticked,
        feedback.outcomes.ticked,
        RewardFaultReporter(feedback.rewards, emit, clock.now).ticked,
        FrozenReporter(perception.inbox.frozen, emit).ticked,
        ClockReporter(perception.decoder.stamps, emit, context.degraded).ticked,
        RawCapture(feedback.store, streams_to_keep(config), context.decoders).ticked,
        drift.ticked,
        feedback.queries.ticked,
        publishing.viewer.ticked,
    ]
    if models.task_outputs is not None:
        listeners.append(models.task_outputs.ticked)
    if deliberator is not None:
        listeners.append(deliberator.ticked)
    return ControlLoop(
        session=context.session,
        pacer=Pacer(config.tick.period_s, clock),
        clock=clock,
        wall=context.wall,
        inbox=perception.inbox,
        engine=models.engine,
        gate=gate,
        store=feedback.store,
        rewards=feedback.rewards,
        utterances=models.utterances,
        listeners=tuple(listeners),
        conditions=_conditions(config),
        refuse=perception.decoder.refuse,
        field_versions={
            name: fields_version(fields) for name, s in config.streams.items() if (fields := policy_fields_of(s))
        },
        choose=feedback.experiments.choose,
        mode=config.mode,
        degraded=context.degraded,
        shadow=lambda: models.policy_updater.is_untried or drift.is_careful,
    )


def build_storage_monitor(
    context: AgentContext, publishing: Publishing, feedback: FeedbackChain, control_loop: ControlLoop
) -> StorageMonitor:
    """Build what bounds and reports the state folder."""
    config, reporter = context.config, publishing.reporter
    return StorageMonitor(
        context.state_dir,
        int(config.storage.max_gb * 1e9),
        int(config.experience.max_gb * 1e9),
        feedback.checkpoints,
        feedback.store,
        publishing.emit,
        control_loop.degraded,
        recording=lambda: reporter.recorder.path if reporter.recorder is not None else None,
        wall=context.wall,
    )


def build_health(
    context: AgentContext,
    perception: Perception,
    feedback: FeedbackChain,
    control_loop: ControlLoop,
    storage: StorageMonitor,
    drift: DriftWatch,
    tasks: TaskOutputs | None,
    speech: SpeechOutputs | None,
    deliberator: Deliberator | None,
) -> Health:
    """Build what composes the `health` message."""
    return Health(
        control_loop=control_loop,
        inbox=perception.inbox,
        decoder=perception.decoder,
        sensors=perception.sensors,
        store=feedback.store,
        feedback=feedback.receiver,
        rewards=feedback.rewards,
        experiments=feedback.experiments,
        sources=feedback.sources,
        storage=storage,
        drift=drift,
        progress_file=context.state_dir / "learner" / "progress.json",
        learner_enabled=context.config.learner.enabled,
        wall=context.wall,
        model_counts={
            **({"tasks": tasks.runner.counts} if tasks is not None and tasks.config.tasks else {}),
            **({"speech": speech.client.counts} if speech is not None else {}),
            **({"deliberator": deliberator.counts} if deliberator is not None else {}),
            **(
                {"judge": deliberator.judge.counts} if deliberator is not None and deliberator.judge is not None else {}
            ),
        },
    )


def build_requests(
    context: AgentContext,
    publishing: Publishing,
    feedback: FeedbackChain,
    models: LiveModels,
    control_loop: ControlLoop,
    drift: DriftWatch,
) -> Requests:
    """Build the handlers of `request/<verb>`."""
    config, checkpoints = context.config, feedback.checkpoints
    return Requests(
        connection=publishing.control,
        topics=context.topics,
        checkpoints=checkpoints,
        tasks=TaskVersions.of(config),
        sources=feedback.sources,
        drift=drift,
        emit=publishing.emit,
        explainer=Explainer.of(
            context.state_dir,
            models.engine,
            config.learner.seed,
            lambda decision: decision.rpartition("-")[0] == context.session,
        ),
        recording=RecordingController(config, control_loop, publishing.reporter),
        finetuning=FinetuneQueue(config),
        gallery=models.gallery,
        history=publishing.history,
        task_updater=models.task_updater,
    )


def _conditions(config: Config) -> Conditions:
    texts = {text for actuator in config.actuators.values() for text in conditions_of(actuator.requires)}
    readings = expression_names(config.streams, {})
    streams = readings.keys() - config.actuators.keys()
    return Conditions(sorted(texts), readings, named_fields(config.gate.forbid, streams))
