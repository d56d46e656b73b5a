"""Build the sensors, the inbox that they fill, and what turns readings into texts and goals: speech and the deliberator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from learners.config.rewards import DecisionReward
from learners.goal_models.config import GOAL, TaskBackend
from learners.rewards.tick_rewards import expression_names
from runtime.agent.build_context import AgentContext
from runtime.agent.build_publishing import Publishing
from runtime.agent.speech_outputs import SpeechOutputs
from runtime.config.schema import Config
from runtime.control.inbox import Inbox
from runtime.control.payload_decoder import PayloadDecoder
from runtime.control.sender_stamps import SenderStamps
from runtime.deliberation.deliberator import Deliberator
from runtime.deliberation.reward_judge import RewardJudge
from runtime.deliberation.state_text import state_text
from runtime.deliberation.task_goals import TaskGoals
from runtime.drift.watch import DriftWatch
from runtime.feedback.receiver import Feedback
from runtime.models.goal_client import GoalClient
from runtime.mqtt.topics import encode
from sensors.base import Sensor, TopicSensor
from sensors.config import TextSettings
from sensors.streams.fault_injection import apply_fault, parse_fault
from sensors.streams.registry import build as build_sensor
from sensors.streams.speech import SpeechText
from sensors.streams.task_output import TaskOutputSensor


@dataclass(frozen=True, slots=True)
class Perception:
    """The sensors and the inbox that they fill."""

    sensors: Mapping[str, Sensor | TopicSensor]
    inbox: Inbox
    decoder: PayloadDecoder


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
    context: AgentContext,
    publishing: Publishing,
    perception: Perception,
    drift: DriftWatch,
    feedback: Feedback,
) -> Deliberator | None:
    """Build what asks a slow model for the goal, and for rewards; None without such settings."""
    config, goal = context.config, perception.sensors.get(GOAL)
    if config.deliberator is None or not isinstance(goal, TaskOutputSensor):
        return None
    backend, meanings, task = (
        config.deliberator.backend,
        config.deliberator.meanings,
        config.deliberator.correction_task,
    )

    def correct(*, text: str, goal: str, source: str) -> None:
        feedback.label(encode({"task": task, "label": goal, "text": text, "source": source}))

    made = Deliberator(
        config.deliberator,
        expression_names(config.streams, config.actuators),
        partial(TaskGoals, backend.task, meanings)
        if isinstance(backend, TaskBackend)
        else partial(GoalClient, meanings),
        goal,
        lambda body: publishing.control.enqueue(context.topics(GOAL), encode(body), qos=1, retain=True, keep="latest"),
        publishing.emit,
        context.degraded,
        drift.figures,
        {name: stream.ttl_s for name, stream in config.streams.items() if isinstance(stream, TextSettings)},
        context.clock.now,
        context.wall,
        None if task is None else correct,
        state_dir=context.state_dir,
    )
    rewards = tuple(reward for reward in config.rewards if isinstance(reward, DecisionReward))
    if rewards and isinstance(made.model, GoalClient):
        judge = RewardJudge(
            rewards, made.model, lambda: state_text(made.state()), feedback.judged, context.degraded, context.clock.now,
            context.wall,
        )  # fmt: skip
        made.judge, made.model.answered_yes, made.model.failed_yes = judge, judge.answered, judge.failed
    return made


def _sensors(config: Config, faults: Iterable[str]) -> dict[str, Sensor | TopicSensor]:
    """Build the sensors, those with an injected fault wrapped in it."""
    sensors = {name: build_sensor(name, settings) for name, settings in config.streams.items()}
    for text in faults:
        fault = parse_fault(text)
        if fault.stream not in sensors:
            raise ValueError(f"--fault {text}: no stream {fault.stream!r}; there are {sorted(sensors)}")
        sensors[fault.stream] = apply_fault(sensors[fault.stream], fault)
    return sensors
