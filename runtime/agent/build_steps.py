"""The steps that build the agent, leaf to root: publishing, perception, feedback, policy, control. `build.py` calls them in this order.

Each step returns what it built; later steps take it as an argument. Nothing runs yet, but the policy step loads the live versions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry

from actuators.config import conditions_of
from learners.checkpoints.store import Checkpoints, open_checkpoints
from learners.config import TopicReward
from learners.deliberation.config import GOAL
from learners.experience.store import Store
from learners.ipc.outbox import Outbox
from learners.model.spec import fields_version
from learners.rewards import TickRewards, build_rewards, known
from learners.safeguards.reward_ledger import Ledger
from learners.safeguards.source_consistency import Quarantine, source_rules
from runtime.agent.speech_outputs import SpeechOutputs
from runtime.agent.task_outputs import TaskOutputs
from runtime.config.frame_size import named_fields
from runtime.config.loader import LoadedConfig
from runtime.config.schema import Config
from runtime.control.actuator_conditions import Conditions
from runtime.control.frozen_streams import FrozenReporter
from runtime.control.inbox import Inbox
from runtime.control.payload_decoder import MAX_PAYLOAD, PayloadDecoder
from runtime.control.sender_stamps import ClockReporter, SenderStamps
from runtime.control.tick import ControlLoop, TickListener, Utterances
from runtime.deliberation.deliberator import Deliberator
from runtime.deploy import promotion_history
from runtime.deploy.encoder_updater import EncoderUpdater
from runtime.deploy.experiments.controller import ExperimentController
from runtime.deploy.experiments.rules import ExperimentRules
from runtime.deploy.learner_events import LearnerEvents
from runtime.deploy.policy_updater import PolicyUpdater
from runtime.deploy.promotion_history import PromotionHistory
from runtime.deploy.task_updater import TaskUpdater
from runtime.deploy.task_versions import TaskVersions
from runtime.drift.watch import DriftWatch
from runtime.feedback.outcomes import OutcomeTracker
from runtime.feedback.queries import UncertaintyQueries
from runtime.feedback.raw_capture import RawCapture, streams_to_keep
from runtime.feedback.receiver import Feedback
from runtime.feedback.recent_results import RecentResults
from runtime.feedback.reward_faults import RewardFaultReporter
from runtime.feedback.source_quarantine import SourceQuarantine
from runtime.gate.client import GateLink
from runtime.inference.build import build_acting_engine
from runtime.inference.engine import Engine
from runtime.models.client import ModelsClient
from runtime.models.goal_client import GoalClient
from runtime.models.messages import socket_path
from runtime.monitoring.health import Health
from runtime.monitoring.metrics import Metrics
from runtime.monitoring.previews import Previews, Viewer
from runtime.monitoring.reporter import Reporter
from runtime.monitoring.storage import StorageMonitor
from runtime.mqtt import Address, Connection
from runtime.mqtt.topics import Topics, encode
from runtime.process.emit import Emit
from runtime.process.log import Scrubber
from runtime.process.pacing import MonotonicClock, Pacer
from runtime.requests.explain import Explainer
from runtime.requests.finetune import FinetuneQueue
from runtime.requests.gallery import Gallery
from runtime.requests.handlers import Requests
from runtime.requests.record import RecordingController
from sensors.base import Sensor, TopicSensor
from sensors.config import TextSettings, policy_fields_of
from sensors.streams.fault_injection import apply_fault, parse_fault
from sensors.streams.registry import build as build_sensor
from sensors.streams.speech import SpeechText
from sensors.streams.task_output import TaskOutputSensor

CONTROL_PAYLOAD = 2_097_152
"""Largest payload in bytes of texts, telemetry, rewards, labels and requests; a larger one is refused."""
MEDIA_PAYLOAD = MAX_PAYLOAD
"""Largest payload in bytes of pictures and sound."""
LARGEST_PACKET = 67_108_864
"""Bytes up to which the broker delivers packets, so that the agent can count and name those that are too large."""
MEDIA_INCOMING = 128
"""Packets of pictures and sound that wait for their handlers: 2 GiB in the worst case."""


@dataclass(frozen=True, slots=True)
class AgentContext:
    """What every step needs: the settings, where state lies, the clocks, and the threads that decode."""

    loaded: LoadedConfig
    decoders: Executor
    wall: Callable[[], float]
    """Unix seconds."""
    session: str
    clock: MonotonicClock = field(default_factory=MonotonicClock)
    degraded: dict[str, str] = field(default_factory=dict)
    """Reasons for a degraded status, by the component that has them."""

    @property
    def config(self) -> Config:
        """The settings of the agent."""
        return self.loaded.config

    @property
    def state_dir(self) -> Path:
        """The folder of everything that the agent stores."""
        return self.loaded.config.state_dir

    @property
    def topics(self) -> Topics:
        """The topics of this agent."""
        return Topics(self.loaded.config.agent)


@dataclass(frozen=True, slots=True)
class Publishing:
    """The connections to the broker, and everything that reports over them."""

    control: Connection
    media: Connection
    registry: CollectorRegistry
    reporter: Reporter
    history: PromotionHistory
    emit: Emit
    """Publishes an event; verdicts on versions go into the history too."""
    viewer: Viewer


@dataclass(frozen=True, slots=True)
class Perception:
    """The sensors and the inbox that they fill."""

    sensors: Mapping[str, Sensor | TopicSensor]
    inbox: Inbox
    decoder: PayloadDecoder


@dataclass(frozen=True, slots=True)
class FeedbackChain:
    """Rewards and labels: their receiver, the store, and everything that judges by them."""

    store: Store
    checkpoints: Checkpoints
    rewards: TickRewards
    sources: SourceQuarantine
    experiments: ExperimentController
    outcomes: OutcomeTracker
    queries: UncertaintyQueries
    receiver: Feedback


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


def build_publishing(context: AgentContext) -> Publishing:
    """Build the connections, and what publishes events, decisions, metrics and previews."""
    config = context.config
    control, media = _connection(config, "agent"), _connection(config, "media")
    registry = CollectorRegistry()
    scrub = Scrubber(context.loaded.secrets).strings
    reporter = Reporter(control, context.topics, _metrics(config, registry), scrub=scrub)
    history = PromotionHistory.opened(context.state_dir / promotion_history.FILE, context.decoders, context.wall)
    viewer = Viewer(Previews(), media, context.topics, context.decoders)
    return Publishing(control, media, registry, reporter, history, history.emitting(reporter.event), viewer)


def build_perception(context: AgentContext, publishing: Publishing, faults: Iterable[str]) -> Perception:
    """Build the sensors, those with an injected fault wrapped in it, and what decodes payloads for them.

    Raises:
        ValueError: a fault for a stream that does not exist.
    """
    config, clock = context.config, context.clock
    sensors = _sensors(config, faults)
    inbox = Inbox(config.streams, align=config.policy.align)
    topic_sensors = {
        n: (sensor, config.streams[n].kind) for n, sensor in sensors.items() if isinstance(sensor, TopicSensor)
    }
    stamps = {name: SenderStamps(config.streams[name], context.wall, clock.now) for name in topic_sensors}
    decoder = PayloadDecoder(topic_sensors, inbox.put, context.decoders, publishing.emit, clock.now, stamps)
    return Perception(sensors, inbox, decoder)


def build_feedback(context: AgentContext, publishing: Publishing) -> FeedbackChain:
    """Build the store, the sources of feedback with their quarantine, the live experiments, and the receiver of rewards and labels."""
    config, emit, wall, state_dir = context.config, publishing.emit, context.wall, context.state_dir
    store = Store(state_dir / "experience", config.experience, on_event=emit)
    checkpoints = open_checkpoints(state_dir, config.promotion)
    ledger, quarantine = Ledger(config.learner.reward_delay_s), Quarantine(source_rules(config.rewards))
    sources = SourceQuarantine(quarantine, store, ledger, state_dir, emit, wall)
    sources.start()
    experiments = ExperimentController(_experiment_rules(config), checkpoints, state_dir, emit, wall, quarantine)
    outcomes = OutcomeTracker(ledger, sources, experiments, wall)
    queries = UncertaintyQueries(config.policy.query_margin, emit)
    receiver = Feedback(
        store=store,
        outcomes=outcomes,
        sources=sources,
        queries=queries,
        emit=emit,
        rewards=config.rewards,
        tasks={
            name: tuple(stream for stream in (task.stream, task.context) if stream is not None)
            for name, task in config.tasks.items()
        },
        now=context.clock.now,
        wall=wall,
    )
    rewards = build_rewards(config.rewards, config.streams, config.actuators)
    return FeedbackChain(store, checkpoints, rewards, sources, experiments, outcomes, queries, receiver)


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
    task_updater = await _task_updater(context.state_dir, task_outputs)
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


def build_speech(context: AgentContext, publishing: Publishing, perception: Perception) -> SpeechOutputs | None:
    """Connect text streams of the source `speech:STREAM` with their microphone stream; None where there are none."""
    hearing = {name: sensor for name, sensor in perception.sensors.items() if isinstance(sensor, SpeechText)}
    if not hearing:
        return None
    outputs = SpeechOutputs(context.config, publishing.control, context.topics, publishing.reporter.event, hearing)
    for source in outputs.client.sources:
        perception.inbox.listen(source, outputs.client.take)
    return outputs


def build_deliberator(
    context: AgentContext, publishing: Publishing, perception: Perception, drift: DriftWatch
) -> Deliberator | None:
    """Build what asks a slow model for the goal; None without such settings."""
    config, goal = context.config, perception.sensors.get(GOAL)
    if config.deliberator is None or not isinstance(goal, TaskOutputSensor):
        return None
    return Deliberator(
        config.deliberator,
        known(config.streams, config.actuators),
        partial(GoalClient, config.deliberator.meanings),
        goal,
        lambda body: publishing.control.enqueue(context.topics(GOAL), encode(body), qos=1, retain=True, keep="latest"),
        publishing.emit,
        context.degraded,
        drift.figures,
        {name: stream.ttl_s for name, stream in config.streams.items() if isinstance(stream, TextSettings)},
        context.clock.now,
        context.wall,
    )


def build_drift_watch(context: AgentContext, publishing: Publishing, feedback: FeedbackChain) -> DriftWatch:
    """Build what watches the streams and the policy for drift."""
    config, experiments = context.config, feedback.experiments
    return DriftWatch(
        config.drift,
        tuple(config.streams),
        lambda: experiments.live,
        context.state_dir,
        publishing.emit,
        context.wall,
        feedback.checkpoints,
    )


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
        explainer=Explainer(context.state_dir / "experience", checkpoints, models.engine, config.learner.seed),
        recording=RecordingController(config, control_loop, publishing.reporter),
        finetuning=FinetuneQueue(config),
        gallery=models.gallery,
        history=publishing.history,
        task_updater=models.task_updater,
    )


def _conditions(config: Config) -> Conditions:
    texts = {text for actuator in config.actuators.values() for text in conditions_of(actuator.requires)}
    readings = known(config.streams, {})
    streams = readings.keys() - config.actuators.keys()
    return Conditions(sorted(texts), readings, named_fields(config.gate.forbid, streams))


def exploration_seed(agent: str, session: str) -> int:
    """Return the seed of exploration: another one after each start, so that a restart does not repeat the same draws."""
    return zlib.crc32(f"{agent}/{session}".encode())


def _connection(config: Config, part: Literal["agent", "media"]) -> Connection:
    """Make the connection for control, or the one for media: a broker drops a connection for one oversized packet.

    A broker that ties identifiers to users (`use_username_as_clientid`) needs a user of its own for the second one.
    """
    address = Address.of(config.mqtt, "agent")
    if part == "media" and address.credentials is not None:
        address = replace(address, credentials=address.credentials.for_media())
    prefix = Topics(config.agent)("response") + "/"
    identifier = f"reflexd-{config.agent}-{part}"
    if part == "media":
        return Connection(
            address,
            identifier,
            response_prefix=prefix,
            max_packet=LARGEST_PACKET,
            max_payload=MEDIA_PAYLOAD,
            max_incoming=MEDIA_INCOMING,
        )
    return Connection(
        address, identifier, response_prefix=prefix, max_packet=LARGEST_PACKET, max_payload=CONTROL_PAYLOAD
    )


def _metrics(config: Config, registry: CollectorRegistry) -> Metrics:
    metrics = Metrics(registry, agent=config.agent, version=installed_version("reflexd"))
    metrics.period_seconds.set(config.tick.period_s)
    return metrics


def _sensors(config: Config, faults: Iterable[str]) -> dict[str, Sensor | TopicSensor]:
    """Build the sensors, those with an injected fault wrapped in it."""
    sensors = {name: build_sensor(name, settings) for name, settings in config.streams.items()}
    for text in faults:
        fault = parse_fault(text)
        if fault.stream not in sensors:
            raise ValueError(f"--fault {text}: no stream {fault.stream!r}; there are {sorted(sensors)}")
        sensors[fault.stream] = apply_fault(sensors[fault.stream], fault)
    return sensors


def _experiment_rules(config: Config) -> ExperimentRules:
    """Return what the settings say about experiments."""
    promotion = config.promotion
    topic = next((one for one in config.rewards if isinstance(one, TopicReward)), None)
    return ExperimentRules(
        period_s=config.tick.period_s,
        gamma=config.policy.gamma,
        settle_s=config.learner.reward_delay_s,
        silence="zero" if topic is None else topic.silence,
        anchor_share=promotion.anchor_share,
        cap_pairs=promotion.max_pairs,
        false_alarms_per_month=promotion.false_alarms_per_month,
        alternate=promotion.alternate,
        enabled=promotion.experiments,
    )


async def _task_updater(state_dir: Path, outputs: TaskOutputs | None) -> TaskUpdater | None:
    """Make what follows the tasks' live versions, and load these."""
    if outputs is None or not outputs.config.tasks:
        return None
    updater = TaskUpdater(state_dir / "learner" / "tasks", outputs.runner)
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
            goals=None if deliberator is None else deliberator.model,
            max_age_s=max_age_s,
        ),
        fed=fed,
        on_result=(lambda _result: None) if deliberator is None else deliberator.result,
        results=results,
    )
