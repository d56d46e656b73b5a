"""List the agent's subscriptions: connection, topic, handler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from learners.goal_models.config import GOAL
from runtime.agent.components import Components
from runtime.monitoring.home_assistant import BIRTH_TOPIC
from runtime.mqtt import Connection, Handler, Limit
from runtime.mqtt.topics import Topics
from sensors.base import TopicSensor

GOALS = Limit(rate_hz=1.0, burst=5)
"""Goals that people set; between two of them the newest wins."""


@dataclass(frozen=True, slots=True)
class Route:
    """One row: messages of `topic` on a connection go to `handler`."""

    connection: Connection
    topic: str
    handler: Handler
    qos: Literal[0, 1] = 1
    retained: Literal["send", "ignore"] = "ignore"
    limit: Limit | None = None
    as_published: bool = True
    """False: the retain flag distinguishes a stored message from a new one."""


def routes(parts: Components, topics: Topics) -> Iterator[Route]:
    """List every subscription of the agent."""
    control = parts.control
    for name, sensor in parts.sensors.items():
        if isinstance(sensor, TopicSensor):
            kind = parts.config.streams[name].kind
            connection = control if kind in {"text", "telemetry"} else parts.media
            topic, handler = sensor.topic or topics("in", name), partial(parts.decoder.offer, name)
            # a sensor of a home reports when something changes: what the broker stores is all that is known at the start
            retained: Literal["send", "ignore"] = "send" if kind == "telemetry" else "ignore"
            # many devices publish each reading with the retain flag: it is stored, and new all the same
            yield Route(connection, topic, handler, qos=0, retained=retained, as_published=False)
    yield Route(control, topics("reward"), lambda message: parts.feedback.reward(message.payload))
    yield Route(control, topics("label"), lambda message: parts.feedback.label(message.payload))
    if parts.deliberator is not None:
        yield Route(control, topics("override", GOAL), parts.deliberator.set_goal, limit=GOALS)
    yield Route(control, topics("preview", "subscribe"), parts.viewer.watch, qos=0)
    for verb in parts.requests.verbs:
        yield Route(control, topics("request", verb), parts.requests.take)
    if parts.announcer is not None:
        yield Route(control, BIRTH_TOPIC, parts.announcer.home_assistant_started, as_published=False)
        yield Route(control, topics("status"), parts.announcer.status_changed, retained="send")


def subscribe(parts: Components, topics: Topics) -> None:
    """Subscribe to every topic of the table; takes effect when the connections run."""
    for route in routes(parts, topics):
        route.connection.subscribe(
            route.topic,
            route.handler,
            qos=route.qos,
            retained=route.retained,
            limit=route.limit,
            as_published=route.as_published,
        )
