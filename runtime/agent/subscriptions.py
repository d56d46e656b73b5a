"""Who listens to whom in the agent: topics to those who take them, finished ticks to those who work on them.

`assembly.py` builds the parts; here they are connected. Nothing runs yet when this is done.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version as installed_version
from typing import Any

from prometheus_client import CollectorRegistry

from runtime.agent.components import Components, unready
from runtime.deploy.encoder_updater import EncoderUpdater
from runtime.feedback.queries import UncertaintyQueries
from runtime.feedback.raw_capture import RawCapture, streams_to_keep
from runtime.monitoring.home_assistant import Announcer, Discovery
from runtime.monitoring.previews import Previews, Viewer
from runtime.mqtt.topics import Topics
from runtime.process.http_server import serve_metrics
from sensors.base import TopicSensor
from sensors.streams.task_output import TaskOutputSensor


def wire(parts: Components, topics: Topics, registry: CollectorRegistry, decoders: ThreadPoolExecutor) -> None:
    """Connect everything."""
    _judge(parts)
    _listen(parts, topics, decoders)
    _measure(parts, registry)


def _judge(parts: Components) -> None:
    """Tell those who judge policies and sources what came of each decision."""
    parts.sources.start()
    parts.watch.quarantined = parts.sources.names
    parts.outcomes.listeners += [parts.sources.settled, parts.watch.settled]
    parts.outcomes.late = parts.sources.late
    parts.reporter.on_tick.append(parts.outcomes.ticked)
    parts.jobs["probation"] = parts.watch.run(parts.swap.follow)
    parts.jobs["sources"] = parts.sources.run()


def _listen(parts: Components, topics: Topics, decoders: ThreadPoolExecutor) -> None:
    """Route every topic to whoever takes it."""
    for name, sensor in parts.sensors.items():
        if isinstance(sensor, TopicSensor):
            link = parts.control if parts.config.streams[name].kind in {"text", "telemetry"} else parts.media
            link.subscribe(sensor.topic or topics("in", name), partial(parts.intake.offer, name), qos=0)
    parts.control.subscribe(topics("reward"), lambda message: parts.feedback.reward(message.payload))
    parts.control.subscribe(topics("label"), lambda message: parts.feedback.label(message.payload))
    parts.requests.listen()
    _watch_ticks(parts, topics, decoders)
    parts.jobs["encoders"] = EncoderUpdater(parts.config, parts.engine, parts.reporter.event).run()
    _announce(parts)
    viewer = Viewer(Previews(), parts.media, topics, decoders)
    parts.control.subscribe(topics("watch"), viewer.watch, qos=0)
    parts.reporter.on_tick.append(viewer.ticked)


def _watch_ticks(parts: Components, topics: Topics, decoders: ThreadPoolExecutor) -> None:
    """Whoever works on finished ticks: raw readings, language tasks, questions."""
    keeper = RawCapture(parts.store, streams_to_keep(parts.config), decoders)
    if keeper.streams:
        parts.reporter.on_tick.append(keeper.ticked)
    if parts.config.tasks:
        from runtime.agent.task_outputs import TaskOutputs  # noqa: PLC0415 - a second of imports that only tasks need

        fed = {name: sensor for name, sensor in parts.sensors.items() if isinstance(sensor, TaskOutputSensor)}
        language = TaskOutputs(
            parts.config, parts.control, topics, parts.reporter.event, parts.ticker.utterances, fed=fed
        )
        parts.reporter.on_tick.append(language.ticked)
        parts.jobs["tasks"] = language.runner.run()
    asking = UncertaintyQueries(parts.config.policy.ask_below, parts.reporter.event)
    parts.reporter.on_tick.append(asking.ticked)
    parts.feedback.asked = asking.done


def _announce(parts: Components) -> None:
    """Home Assistant, where it is wanted."""
    if not parts.config.discovery:
        return
    discovery = Discovery(parts.config, installed_version("reflexd"))
    announcer = Announcer(discovery, parts.control, parts.health.payload, partial(_told, parts))
    announcer.listen()
    parts.jobs["home assistant"] = announcer.run()


def _told(parts: Components) -> dict[str, Any]:
    """What each actuator was last told."""
    verdict = parts.ticker.gate.latest
    return {name: outcome.value for name, outcome in verdict.outcomes.items()} if verdict else {}


def _measure(parts: Components, registry: CollectorRegistry) -> None:
    metrics = parts.config.metrics
    if metrics is not None:
        parts.jobs["metrics"] = serve_metrics(registry, partial(unready, parts), metrics.listen)
