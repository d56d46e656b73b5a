"""Build the agent from its settings, leaf to root: every component gets its collaborators as constructor arguments.

The only place that builds the agent. Nothing runs yet when this returns: `jobs.py` lists what runs, `subscriptions.py` which
topic goes to which handler.
"""

from __future__ import annotations

import socket
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry

from actuators.config import conditions_of
from actuators.expressions import Expression
from learners.checkpoints.store import open_checkpoints
from learners.config import TopicReward
from learners.experience.store import Store
from learners.ipc.outbox import Outbox
from learners.ipc.policy_spec import write_policy_spec
from learners.rewards import build_rewards, known
from learners.safeguards.reward_ledger import Ledger
from learners.safeguards.source_consistency import Quarantine, source_rules
from runtime.agent.components import Components
from runtime.agent.subscriptions import subscribe
from runtime.config.loader import LoadedConfig
from runtime.config.schema import Config
from runtime.control.actuator_conditions import Conditions
from runtime.control.frozen_streams import FrozenReporter
from runtime.control.inbox import Inbox
from runtime.control.payload_decoder import PayloadDecoder
from runtime.control.sender_stamps import SenderStamps
from runtime.control.tick import ControlLoop, TickListener, Utterances
from runtime.deploy import promotion_history
from runtime.deploy.encoder_updater import EncoderUpdater
from runtime.deploy.experiment_controller import ExperimentController
from runtime.deploy.experiment_rules import ExperimentRules
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
from runtime.monitoring.health import Health
from runtime.monitoring.home_assistant import Announcer, Discovery
from runtime.monitoring.metrics import Metrics
from runtime.monitoring.previews import Previews, Viewer
from runtime.monitoring.reporter import Reporter
from runtime.monitoring.storage import StorageMonitor
from runtime.mqtt import Address, Connection
from runtime.mqtt.topics import Topics
from runtime.process.log import Scrubber
from runtime.process.pacing import MonotonicClock, Pacer
from runtime.requests.explain import Explainer
from runtime.requests.finetune import FinetuneQueue
from runtime.requests.gallery import Gallery
from runtime.requests.handlers import Requests
from runtime.requests.record import RecordingController
from sensors.base import Sensor, TopicSensor
from sensors.streams.fault_injection import apply_fault, parse_fault
from sensors.streams.registry import build as build_sensor
from sensors.streams.task_output import TaskOutputSensor

if TYPE_CHECKING:
    from runtime.agent.task_outputs import TaskOutputs


CONTROL_PACKET = 2_097_152
"""Largest packet in bytes of texts, telemetry, rewards, labels and requests; the broker drops larger ones."""
MEDIA_PACKET = 16_777_216
"""Largest packet in bytes of pictures and sound."""
MEDIA_INCOMING = 128
"""Packets of pictures and sound that wait for their handlers: 2 GiB in the worst case."""


async def build(
    loaded: LoadedConfig,
    gate_end: socket.socket,
    faults: Iterable[str],
    decoders: Executor,
    *,
    wall: Callable[[], float] = time.time,
) -> Components:
    """Build every component and load the live policy; takes seconds, the models off the event loop.

    Args:
        loaded: the settings.
        gate_end: the agent's end of the socket to the gate.
        faults: sensor faults to inject, as `--fault` gives them.
        decoders: threads that decode and encode media.
        wall: Unix seconds.

    Raises:
        ValueError: settings that fail only when they are used, such as a fault for an unknown stream.
    """
    config, topics, clock = loaded.config, Topics(loaded.config.agent), MonotonicClock()
    state_dir, session = config.state_dir, uuid.uuid4().hex[:12]

    control, media = _connection(config, "agent"), _connection(config, "media")
    registry = CollectorRegistry()
    reporter = Reporter(control, topics, _metrics(config, registry), scrub=Scrubber(loaded.secrets).strings)
    history = PromotionHistory.opened(state_dir / promotion_history.FILE, decoders, wall)
    emit = history.emitting(reporter.event)

    sensors = _sensors(config, faults)
    inbox = Inbox(config.streams, align=config.policy.align)
    topic_sensors = {
        n: (sensor, config.streams[n].kind) for n, sensor in sensors.items() if isinstance(sensor, TopicSensor)
    }
    stamps = {name: SenderStamps(config.streams[name], wall, clock.now) for name in topic_sensors}
    decoder = PayloadDecoder(topic_sensors, inbox.put, decoders, emit, clock.now, stamps)

    store = Store(state_dir / "experience", config.experience, on_event=emit)
    checkpoints = open_checkpoints(state_dir, config.promotion)
    rewards = build_rewards(config.rewards, config.streams, config.actuators)
    ledger, quarantine = Ledger(config.learner.reward_delay_s), Quarantine(source_rules(config.rewards))
    sources = SourceQuarantine(quarantine, store, ledger, state_dir, emit, wall)
    sources.start()
    experiments = ExperimentController(_experiment_rules(config), checkpoints, state_dir, emit, wall, quarantine)
    outcomes = OutcomeTracker(ledger, sources, experiments, wall)
    queries = UncertaintyQueries(config.policy.query_margin, emit)
    feedback = Feedback(
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
        now=clock.now,
        wall=wall,
    )

    engine = await build_acting_engine(config, checkpoints, emit)
    engine.seed = exploration_seed(config.agent, session)
    utterances = Utterances()
    gallery = Gallery(
        state_dir / "experience", state_dir / "learner" / "tasks", config.tasks, store, RecentResults(), wall
    )
    task_outputs = _task_outputs(config, control, topics, reporter, utterances, sensors, gallery.results)
    task_updater = await _task_updater(state_dir, task_outputs)
    outbox = Outbox(state_dir / "learner" / "outbox")
    answers = (
        {} if task_updater is None else {"task_promoted": task_updater.sync}
    )  # whoever reads it gets the new version
    learner_events = LearnerEvents(outbox, emit, {"source_quarantined": sources.report}, answers)
    policy_updater = PolicyUpdater(checkpoints, engine, experiments, learner_events, emit)
    await policy_updater.start()
    encoder_updater = EncoderUpdater(config, engine, emit)
    await encoder_updater.start()
    engine.calibrations.convert_here = False  # from here on ticks pass, and a conversion would delay them

    viewer = Viewer(Previews(), media, topics, decoders)
    drift = DriftWatch(
        config.drift, tuple(config.streams), lambda: experiments.live, state_dir, emit, wall, checkpoints
    )
    listeners: list[TickListener] = [
        reporter.ticked,
        outcomes.ticked,
        RewardFaultReporter(rewards, emit, clock.now).ticked,
        FrozenReporter(inbox.frozen, emit).ticked,
        RawCapture(store, streams_to_keep(config), decoders).ticked,
        drift.ticked,
        queries.ticked,
        viewer.ticked,
    ]
    if task_outputs is not None:
        listeners.append(task_outputs.ticked)

    gate = GateLink(gate_end)
    control_loop = ControlLoop(
        session=session,
        pacer=Pacer(config.tick.period_s, clock),
        clock=clock,
        wall=wall,
        inbox=inbox,
        engine=engine,
        gate=gate,
        store=store,
        rewards=rewards,
        utterances=utterances,
        listeners=tuple(listeners),
        conditions=_conditions(config),
        choose=experiments.choose,
        mode=config.mode,
        shadow=lambda: policy_updater.is_untried or drift.is_careful,
    )
    storage = StorageMonitor(
        state_dir,
        int(config.storage.max_gb * 1e9),
        int(config.experience.max_gb * 1e9),
        checkpoints,
        store,
        emit,
        control_loop.degraded,
        recording=lambda: reporter.recorder.path if reporter.recorder is not None else None,
        wall=wall,
    )
    health = Health(
        control_loop=control_loop,
        inbox=inbox,
        decoder=decoder,
        sensors=sensors,
        store=store,
        feedback=feedback,
        rewards=rewards,
        experiments=experiments,
        sources=sources,
        storage=storage,
        drift=drift,
        progress_file=state_dir / "learner" / "progress.json",
        learner_enabled=config.learner.enabled,
        wall=wall,
    )
    requests = Requests(
        connection=control,
        topics=topics,
        checkpoints=checkpoints,
        tasks=TaskVersions.of(config),
        sources=sources,
        drift=drift,
        emit=emit,
        explainer=Explainer(state_dir / "experience", checkpoints, engine, config.learner.seed),
        recording=RecordingController(config, control_loop, reporter),
        finetuning=FinetuneQueue(config),
        gallery=gallery,
        history=history.newest,
        task_updater=task_updater,
    )
    parts = Components(
        config=config,
        control=control,
        media=media,
        registry=registry,
        reporter=reporter,
        sensors=sensors,
        inbox=inbox,
        decoder=decoder,
        store=store,
        checkpoints=checkpoints,
        experiments=experiments,
        sources=sources,
        outcomes=outcomes,
        feedback=feedback,
        learner_events=learner_events,
        engine=engine,
        policy_updater=policy_updater,
        encoder_updater=encoder_updater,
        task_outputs=task_outputs,
        task_updater=task_updater,
        viewer=viewer,
        gate=gate,
        control_loop=control_loop,
        storage=storage,
        drift=drift,
        write_spec=partial(write_policy_spec, state_dir, engine.spec),
        health=health,
        requests=requests,
        announcer=Announcer(Discovery(config, installed_version("reflexd")), control, health, gate)
        if config.discovery
        else None,
    )
    subscribe(parts, topics)
    return parts


def _conditions(config: Config) -> Conditions:
    texts = {text for actuator in config.actuators.values() for text in conditions_of(actuator.requires)}
    readings = known(config.streams, {})
    named = (Expression(text).names for text in config.gate.forbid)
    return Conditions(sorted(texts), readings, frozenset().union(*named).intersection(readings) - set(config.actuators))


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
            address, identifier, response_prefix=prefix, max_packet=MEDIA_PACKET, max_incoming=MEDIA_INCOMING
        )
    return Connection(address, identifier, response_prefix=prefix, max_packet=CONTROL_PACKET)


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
    if outputs is None:
        return None
    updater = TaskUpdater(state_dir / "learner" / "tasks", outputs.runner)
    await updater.sync()
    return updater


def _task_outputs(
    config: Config,
    control: Connection,
    topics: Topics,
    reporter: Reporter,
    utterances: Utterances,
    sensors: Mapping[str, Sensor | TopicSensor],
    results: RecentResults,
) -> TaskOutputs | None:
    if not config.tasks:
        return None
    from runtime.agent.task_outputs import TaskOutputs  # noqa: PLC0415 - a second of imports that only tasks need

    fed = {name: sensor for name, sensor in sensors.items() if isinstance(sensor, TaskOutputSensor)}
    return TaskOutputs(config, control, topics, reporter.event, utterances, fed=fed, results=results)
