"""Builds the agent from its settings: sensors, inbox, engine, store, connections, and who listens to whom.

The only place that builds them. Reads top-down as the data flows; does nothing by itself once it has returned.
"""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version as installed_version
from typing import Any, Literal

from aiohttp import web
from prometheus_client import CollectorRegistry

from learners.checkpoints import CheckpointRefused, Checkpoints
from learners.experience import Store
from learners.handover import hand_over
from learners.ledger import Ledger
from learners.outbox import Outbox
from learners.probation import Probation
from learners.quarantine import Quarantine
from learners.rewards import build_rewards
from runtime.announcer import Announcer
from runtime.brain import build_engine
from runtime.clock import MonotonicClock, Pacer
from runtime.config import Loaded
from runtime.discovery import Discovery
from runtime.engine import Engine
from runtime.explaining import Explainer
from runtime.feedback import Feedback
from runtime.gatelink import GateLink
from runtime.health import Health
from runtime.inbox import Inbox
from runtime.intake import Intake
from runtime.metrics import Metrics
from runtime.metrics_http import application, serve
from runtime.mqtt import Address, Connection, Message
from runtime.outcomes import Outcomes
from runtime.preview import Previews
from runtime.probation import Watch
from runtime.raw import RawKeeper, streams_to_keep
from runtime.reporter import Reporter
from runtime.requests import Answer, RequestFailed, Requests
from runtime.sessions import Sessions
from runtime.settings import Config
from runtime.sources import Sources
from runtime.swap import Swap
from runtime.tick import Ticker
from runtime.topics import Topics
from runtime.tuning import Tuning
from runtime.versions import open_checkpoints
from runtime.viewer import Viewer
from sensors import opencv
from sensors.base import Sensor, TopicSensor
from sensors.faults import apply_fault, parse_fault
from sensors.registry import build


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


async def assemble(loaded: Loaded, end: socket.socket, faults: list[str], decoders: ThreadPoolExecutor) -> Parts:
    """Build the agent; loading and calibrating the models takes seconds, off the loop.

    Raises:
        ValueError: settings that only show when used, such as a fault for an unknown stream.
    """
    config = loaded.config
    topics = Topics(config.agent)
    clock = MonotonicClock()
    control, media = (_connection(config, "agent"), _connection(config, "media"))
    registry = CollectorRegistry()
    metrics = Metrics(registry, agent=config.agent, version=installed_version("reflexd"))
    metrics.period_seconds.set(config.tick.period_s)
    reporter = Reporter(control, topics, metrics)
    checkpoints = open_checkpoints(config)
    sensors = {name: build(name, settings) for name, settings in config.streams.items()}
    sensors |= _with_faults(sensors, faults)
    inbox = Inbox(config.streams)
    intake = Intake(
        {n: (s, config.streams[n].kind) for n, s in sensors.items() if isinstance(s, TopicSensor)}, inbox.put, decoders
    )
    watch = Watch(_probation(config), checkpoints, config.state_dir, reporter.event, time.time)
    await asyncio.to_thread(watch.start)
    engine = await _engine(config, checkpoints, reporter, watch)
    store = Store(config.state_dir / "experience", config.experience, on_event=reporter.event)
    rewards = build_rewards(config.rewards, config.streams, config.actuators)
    outcomes = Outcomes(rewards, Ledger(config.learner.settle_s), time.time)
    sources = Sources(Quarantine(), store, outcomes.ledger, config.state_dir, reporter.event, time.time)
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
    ticker = Ticker(
        session=uuid.uuid4().hex[:12],
        pacer=Pacer(config.tick.period_s, clock),
        clock=clock,
        inbox=inbox,
        engine=engine,
        gate=GateLink(end),
        memory=store,
        rewards=rewards,
        report=reporter.ticked,
        mode=config.mode,
    )
    progress = config.state_dir / "learner" / "progress.json"
    health = Health(
        ticker,
        inbox,
        intake,
        sensors,
        store,
        feedback,
        progress,
        config.learner.enabled,
        watch.figures,
        sources.figures,
    )
    parts = Parts(
        config=config,
        sensors=sensors,
        inbox=inbox,
        intake=intake,
        engine=engine,
        ticker=ticker,
        store=store,
        feedback=feedback,
        checkpoints=checkpoints,
        swap=Swap(checkpoints, engine, reporter.event, watcher=watch),
        watch=watch,
        sources=sources,
        outcomes=outcomes,
        outbox=Outbox(config.state_dir / "learner" / "outbox"),
        control=control,
        media=media,
        reporter=reporter,
        requests=_requests(config, control, topics, checkpoints, reporter, ticker, sources),
        health=health,
    )
    _judge(parts)
    _listen(parts, topics, decoders)
    _measure(parts, registry)
    return parts


def _requests(
    config: Config,
    control: Connection,
    topics: Topics,
    checkpoints: Checkpoints,
    reporter: Reporter,
    ticker: Ticker,
    sources: Sources,
) -> Requests:
    experience = config.state_dir / "experience"
    return Requests(
        connection=control,
        topics=topics,
        checkpoints=checkpoints,
        emit=reporter.event,
        explain=Explainer(experience, checkpoints, ticker.engine, config.learner.seed),
        record=Sessions(config, ticker, reporter),
        finetune=partial(_wish_finetune, config),
        release=sources.release,
    )


def _probation(config: Config) -> Probation:
    """What the settings say of it; left out of `promotion.steps`, it is over at once."""
    promotion = config.promotion
    lasts_s = promotion.probation_s if "probation" in promotion.steps else 0.0
    return Probation(lasts_s, promotion.margin, 1.0 - promotion.confidence)


def _judge(parts: Parts) -> None:
    """Tell those who judge policies and sources what came of each decision."""
    parts.sources.start()
    parts.watch.quarantined = parts.sources.names
    parts.outcomes.listeners += [parts.sources.settled, parts.watch.settled]
    parts.outcomes.late = parts.sources.late
    parts.reporter.on_tick.append(parts.outcomes.ticked)
    parts.jobs["probation"] = parts.watch.run(parts.swap.follow)
    parts.jobs["sources"] = parts.sources.run()


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


async def _engine(config: Config, checkpoints: Checkpoints, reporter: Reporter, watch: Watch) -> Engine:
    """The engine with the live policy, else untrained weights, which the run says aloud."""
    engine = await asyncio.to_thread(build_engine, config, checkpoints)
    hand_over(config.state_dir, engine.spec)

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
        await watch.coming(loaded.manifest.version)
        await engine.load(checkpoints.folder / loaded.manifest.version)
    return engine


def _listen(parts: Parts, topics: Topics, decoders: ThreadPoolExecutor) -> None:
    """Route every topic to whoever takes it."""
    for name, sensor in parts.sensors.items():
        if isinstance(sensor, TopicSensor):
            link = parts.control if parts.config.streams[name].kind in {"text", "telemetry"} else parts.media
            link.on(sensor.topic or topics("in", name), partial(_offer, parts.intake, name), qos=0)
    parts.control.on(topics("reward"), lambda message: parts.feedback.reward(message.payload))
    parts.control.on(topics("label"), lambda message: parts.feedback.label(message.payload))
    parts.requests.listen()
    keeper = RawKeeper(parts.store, streams_to_keep(parts.config), opencv.encode, decoders)
    if keeper.streams:
        parts.reporter.on_tick.append(keeper.ticked)
    if parts.config.tasks:
        from runtime.language import Language  # noqa: PLC0415 - a second of imports that only tasks need

        language = Language(parts.config, parts.control, topics, parts.reporter.event, parts.ticker.utterances)
        parts.reporter.on_tick.append(language.ticked)
        parts.jobs["tasks"] = language.runner.run()
    parts.jobs["encoders"] = Tuning(parts.config, parts.engine, parts.reporter.event).run()
    if parts.config.discovery:
        discovery = Discovery(parts.config, installed_version("reflexd"))
        announcer = Announcer(discovery, parts.control, parts.health.payload, partial(_told, parts))
        announcer.listen()
        parts.jobs["home assistant"] = announcer.run()
    viewer = Viewer(Previews(opencv.encode), parts.media, topics, decoders)
    parts.control.on(topics("watch"), viewer.watch, qos=0)
    parts.reporter.on_tick.append(viewer.ticked)


async def _wish_finetune(config: Config, task: str | None) -> Answer:
    """Leave the wish for the learner, which answers with events."""
    if not config.learner.enabled:
        raise RequestFailed("learner.enabled is false: there is nobody to fine-tune")
    if task is not None and task not in config.tasks:
        raise RequestFailed(f"{task!r} is not under tasks: {sorted(config.tasks)}")
    wishes = Outbox(config.state_dir / "learner" / "wishes", limit=16)
    if not await asyncio.to_thread(wishes.post, "finetune", {"task": task}):
        raise RequestFailed("16 wishes are waiting; the learner is busy or gone")
    return {"task": task, "state": "asked"}


def _told(parts: Parts) -> dict[str, Any]:
    """What each actuator was last told."""
    verdict = parts.ticker.gate.latest
    return {name: outcome.value for name, outcome in verdict.outcomes.items()} if verdict else {}


def _offer(intake: Intake, stream: str, message: Message) -> None:
    intake.offer(stream, message.payload, message.stamp_s)


def _measure(parts: Parts, registry: CollectorRegistry) -> None:
    metrics = parts.config.metrics
    if metrics is not None:
        parts.jobs["metrics"] = _serve(application(registry, partial(unready, parts)), metrics.listen)


async def _serve(app: web.Application, listen: str) -> None:
    async with serve(app, listen):
        await asyncio.Event().wait()


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
