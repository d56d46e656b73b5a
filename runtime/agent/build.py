"""Builds the agent from its settings: sensors, inbox, engine, store, connections, and who listens to whom.

The only place that builds them. Reads top-down as the data flows; does nothing by itself once it has returned.
"""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version as installed_version
from typing import Literal

from prometheus_client import CollectorRegistry

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints, open_checkpoints
from learners.experience.store import Store
from learners.ipc.outbox import Outbox
from learners.ipc.policy_spec import write_policy_spec
from learners.rewards import build_rewards
from learners.safeguards.probation import Probation
from learners.safeguards.reward_ledger import Ledger
from learners.safeguards.source_consistency import Quarantine
from runtime.agent.components import Components
from runtime.agent.subscriptions import wire
from runtime.config.loader import Loaded
from runtime.config.schema import Config
from runtime.control.inbox import Inbox
from runtime.control.payload_decoder import PayloadDecoder
from runtime.control.tick import ControlLoop, TickRewards
from runtime.deploy.policy_updater import PolicyUpdater
from runtime.deploy.probation import ProbationMonitor
from runtime.deploy.task_versions import TaskVersions
from runtime.feedback.outcomes import OutcomeTracker
from runtime.feedback.receiver import Feedback
from runtime.feedback.source_quarantine import SourceQuarantine
from runtime.gate.client import GateLink
from runtime.inference.build import build_engine
from runtime.inference.engine import Engine
from runtime.monitoring.health import Health
from runtime.monitoring.metrics import Metrics
from runtime.monitoring.reporter import Reporter
from runtime.mqtt import Address, Connection
from runtime.mqtt.topics import Topics
from runtime.process.log import Scrubber
from runtime.process.pacing import MonotonicClock, Pacer
from runtime.requests.explain import Explainer
from runtime.requests.handlers import Requests, request_finetune
from runtime.requests.record import RecordingController
from sensors.base import Sensor, TopicSensor
from sensors.streams.fault_injection import apply_fault, parse_fault
from sensors.streams.registry import build


async def assemble(loaded: Loaded, end: socket.socket, faults: list[str], decoders: ThreadPoolExecutor) -> Components:
    """Build the agent; loading and calibrating the models takes seconds, off the loop.

    Raises:
        ValueError: settings that only show when used, such as a fault for an unknown stream.
    """
    config, topics, clock = loaded.config, Topics(loaded.config.agent), MonotonicClock()
    control, media = (_connection(config, "agent"), _connection(config, "media"))
    registry = CollectorRegistry()
    reporter = Reporter(control, topics, _metrics(config, registry), scrub=Scrubber(loaded.secrets).strings)
    senses = _sense(config, faults, decoders)
    brain = await _think(config, reporter)
    memory = _remember(config, reporter, clock)
    ticker = _ticker(config, GateLink(end), clock, senses, brain, memory, reporter)
    parts = Components(
        config=config,
        sensors=senses.sensors,
        inbox=senses.inbox,
        intake=senses.intake,
        engine=brain.engine,
        ticker=ticker,
        store=memory.store,
        feedback=memory.feedback,
        checkpoints=brain.checkpoints,
        swap=PolicyUpdater(brain.checkpoints, brain.engine, reporter.event, watcher=brain.watch),
        watch=brain.watch,
        sources=memory.sources,
        outcomes=memory.outcomes,
        outbox=Outbox(config.state_dir / "learner" / "outbox"),
        control=control,
        media=media,
        reporter=reporter,
        requests=_requests(config, control, topics, brain.checkpoints, reporter, ticker, memory.sources),
        health=_health(config, senses, brain, memory, ticker),
    )
    wire(parts, topics, registry, decoders)
    return parts


@dataclass(frozen=True, slots=True)
class _Senses:
    sensors: dict[str, Sensor | TopicSensor]
    inbox: Inbox
    intake: PayloadDecoder


@dataclass(frozen=True, slots=True)
class _Brain:
    checkpoints: Checkpoints
    watch: ProbationMonitor
    engine: Engine


@dataclass(frozen=True, slots=True)
class _Memory:
    store: Store
    rewards: TickRewards
    outcomes: OutcomeTracker
    sources: SourceQuarantine
    feedback: Feedback


def _metrics(config: Config, registry: CollectorRegistry) -> Metrics:
    metrics = Metrics(registry, agent=config.agent, version=installed_version("reflexd"))
    metrics.period_seconds.set(config.tick.period_s)
    return metrics


def _sense(config: Config, faults: list[str], decoders: ThreadPoolExecutor) -> _Senses:
    """What perceives: sensors, some of them broken on purpose, and where their readings go."""
    sensors = {name: build(name, settings) for name, settings in config.streams.items()}
    sensors |= _with_faults(sensors, faults)
    inbox = Inbox(config.streams)
    intake = PayloadDecoder(
        {n: (s, config.streams[n].kind) for n, s in sensors.items() if isinstance(s, TopicSensor)}, inbox.put, decoders
    )
    return _Senses(sensors, inbox, intake)


async def _think(config: Config, reporter: Reporter) -> _Brain:
    """What decides: versions, who watches the one that acts, and the engine with the live one."""
    checkpoints = open_checkpoints(config.state_dir, config.promotion)
    watch = ProbationMonitor(_probation(config), checkpoints, config.state_dir, reporter.event, time.time)
    await asyncio.to_thread(watch.start)
    return _Brain(checkpoints, watch, await _engine(config, checkpoints, reporter, watch))


def _remember(config: Config, reporter: Reporter, clock: MonotonicClock) -> _Memory:
    """What keeps experience, and judges whose feedback counts in it."""
    store = Store(config.state_dir / "experience", config.experience, on_event=reporter.event)
    rewards = build_rewards(config.rewards, config.streams, config.actuators)
    outcomes = OutcomeTracker(rewards, Ledger(config.learner.settle_s), time.time)
    sources = SourceQuarantine(Quarantine(), store, outcomes.ledger, config.state_dir, reporter.event, time.time)
    feedback = Feedback(
        store,
        reporter.event,
        config.rewards,
        frozenset(config.tasks),
        clock.now,
        time.time,
        outcomes.credited,
        sources.names,
    )
    return _Memory(store, rewards, outcomes, sources, feedback)


def _ticker(
    config: Config,
    gate: GateLink,
    clock: MonotonicClock,
    senses: _Senses,
    brain: _Brain,
    memory: _Memory,
    reporter: Reporter,
) -> ControlLoop:
    return ControlLoop(
        session=uuid.uuid4().hex[:12],
        pacer=Pacer(config.tick.period_s, clock),
        clock=clock,
        inbox=senses.inbox,
        engine=brain.engine,
        gate=gate,
        memory=memory.store,
        rewards=memory.rewards,
        report=reporter.ticked,
        mode=config.mode,
    )


def _health(config: Config, senses: _Senses, brain: _Brain, memory: _Memory, ticker: ControlLoop) -> Health:
    return Health(
        ticker,
        senses.inbox,
        senses.intake,
        senses.sensors,
        memory.store,
        memory.feedback,
        config.state_dir / "learner" / "progress.json",
        config.learner.enabled,
        brain.watch.figures,
        memory.sources.figures,
    )


def _requests(
    config: Config,
    control: Connection,
    topics: Topics,
    checkpoints: Checkpoints,
    reporter: Reporter,
    ticker: ControlLoop,
    sources: SourceQuarantine,
) -> Requests:
    experience = config.state_dir / "experience"
    return Requests(
        connection=control,
        topics=topics,
        checkpoints=checkpoints,
        tasks=TaskVersions.of(config),
        emit=reporter.event,
        explain=Explainer(experience, checkpoints, ticker.engine, config.learner.seed),
        record=RecordingController(config, ticker, reporter),
        finetune=partial(request_finetune, config),
        release=sources.release,
    )


def _probation(config: Config) -> Probation:
    """What the settings say of it; left out of `promotion.steps`, it is over at once."""
    promotion = config.promotion
    lasts_s = promotion.probation_s if "probation" in promotion.steps else 0.0
    return Probation(lasts_s, promotion.margin, 1.0 - promotion.confidence)


def _connection(config: Config, part: Literal["agent", "media"]) -> Connection:
    """`agent` for control, `media` for what may be large: the broker drops a connection for one oversized packet.

    A broker that ties identifiers to users (`use_username_as_clientid`) wants a user of its own for the second one.
    """
    address = Address.of(config.mqtt, "agent")
    if part == "media" and address.credentials is not None:
        address = replace(address, credentials=address.credentials.for_media())
    return Connection(address, f"reflexd-{config.agent}-{part}")


def _with_faults(sensors: Mapping[str, Sensor | TopicSensor], faults: list[str]) -> dict[str, Sensor | TopicSensor]:
    broken: dict[str, Sensor | TopicSensor] = {}
    for text in faults:
        fault = parse_fault(text)
        if fault.stream not in sensors:
            raise ValueError(f"--fault {text}: no stream {fault.stream!r}; there are {sorted(sensors)}")
        broken[fault.stream] = apply_fault(broken.get(fault.stream, sensors[fault.stream]), fault)
    return broken


async def _engine(config: Config, checkpoints: Checkpoints, reporter: Reporter, watch: ProbationMonitor) -> Engine:
    """The engine with the live policy, else untrained weights, which the run says aloud."""
    engine = await asyncio.to_thread(build_engine, config, checkpoints)
    write_policy_spec(config.state_dir, engine.spec)

    def refused(refusal: CheckpointRefused) -> None:
        reporter.event(
            "checkpoint_refused", {"version": refusal.version, "reason": refusal.reason, "detail": refusal.detail}
        )

    loaded = await asyncio.to_thread(checkpoints.load_live, refused, engine.shapes)
    if loaded is None:
        reporter.event(
            "policy_untrained", {"remedy": "let the learner run, or put a checkpoint of `reflexd train` in place"}
        )
    else:
        await watch.before_activation(loaded.manifest.version)
        await engine.load(loaded.manifest.version)
    return engine
