"""Check the streams that tasks read, and add the stream of each task that feeds the policy, and that of the goal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from actuators.config import AnyActuator
from actuators.expressions import Expression, ExpressionError
from learners.config.rewards import BY_MODEL, AnyReward, DecisionReward, TopicReward, rank_of
from learners.config.tasks import TaskSettings
from learners.goal_models.config import GOAL, DeliberatorSettings, EmbeddingBackend, TaskBackend
from learners.task_kinds import KINDS, reading
from sensors.config import PREFIX, AnyStream, Settings, fields_of


def check_task(name: str, task: TaskSettings, streams: Mapping[str, AnyStream]) -> None:
    """Check a task against the streams that it names.

    Raises:
        ValueError: a stream is missing, of a kind that the task does not read, or has a taken name.
    """
    if task.stream is not None and task.stream not in streams:
        raise ValueError(f"tasks.{name}.stream: {task.stream!r} is not under streams: {sorted(streams)}")
    if task.stream is not None:
        _check_kind(name, task, streams[task.stream].kind)
    if task.context is not None:
        _check_context(name, task, streams)
    if task.feeds_policy:
        _check_fed(name, task, streams)


def _check_kind(name: str, task: TaskSettings, stream: str) -> None:
    """Check that a task can read a stream of this kind; a plug-in may deliver any kind."""
    declared = KINDS[task.kind]
    reads = declared.stream
    if stream not in {reads, "plugin"}:
        fitting = reading(stream)
        remedy = f"; write {fitting[0]}" if fitting and declared.classifies else ""
        raise ValueError(f"tasks.{name}.kind: {task.kind} reads a {reads} stream; {task.stream} is {stream}{remedy}")


def _check_context(name: str, task: TaskSettings, streams: Mapping[str, AnyStream]) -> None:
    if len(KINDS[task.kind].inputs) < 2:
        raise ValueError(f"tasks.{name}.context: {task.kind} reads no context; leave it out")
    kind = streams[task.context].kind if task.context is not None and task.context in streams else None
    if kind not in {"text", "plugin"} or task.context == task.stream:
        texts = sorted(known for known, stream in streams.items() if stream.kind == "text" and known != task.stream)
        raise ValueError(f"tasks.{name}.context: {task.context!r} is not another text stream; there are {texts}")


def _check_fed(name: str, task: TaskSettings, streams: Mapping[str, AnyStream]) -> None:
    if not (KINDS[task.kind].classifies and task.stream and task.labels):
        raise ValueError(
            f"tasks.{name}.feeds_policy: only a classification task with a `stream` and fixed `labels` can feed the policy"
        )
    if getattr(streams[name], "source", None) != f"{PREFIX}{name}":
        raise ValueError(f"tasks.{name}.feeds_policy: a stream already has this name; rename one of them")


def with_fed_streams(body: dict[str, Any]) -> dict[str, Any]:
    """Add a telemetry stream to the raw settings for each task that feeds the policy; the model reports malformed settings.

    Such a stream has the task's name and labels, and the same time limit as the stream that the task reads.
    """
    tasks, streams = body.get("tasks"), body.get("streams")
    if not isinstance(tasks, dict) or not isinstance(streams, dict):
        return body
    raw = {name: task.model_dump() if isinstance(task, TaskSettings) else task for name, task in tasks.items()}
    made = {
        name: _fed_stream(name, task, streams)
        for name, task in raw.items()
        if isinstance(task, dict) and task.get("feeds_policy") and task.get("labels") and name not in streams
    }
    return {**body, "streams": {**streams, **made}} if made else body


def _fed_stream(name: str, task: dict[str, Any], streams: dict[str, Any]) -> dict[str, Any]:
    read = streams.get(str(task.get("stream")))
    read = read.model_dump() if isinstance(read, Settings) else read
    known = read if isinstance(read, dict) else {}
    limit = known.get("ttl_s", 60.0) if known.get("kind") == "text" else known.get("max_age_s", 1.0)
    return {"kind": "telemetry", "source": f"{PREFIX}{name}", "fields": list(task["labels"]), "max_age_s": limit}


GOAL_AGE_S = 5.0
"""The deliberator repeats the goal every second."""


def check_goal(
    deliberator: DeliberatorSettings,
    streams: Mapping[str, AnyStream],
    actuators: Mapping[str, AnyActuator],
    tasks: Collection[str],
) -> None:
    """Check that only the deliberator has the name of the goal's stream and topics, and that its conditions can be evaluated.

    Raises:
        ValueError: a stream of another source, a task or an actuator has the name, or a condition cannot be used.
    """
    if getattr(streams[GOAL], "source", None) != f"{PREFIX}{GOAL}" or GOAL in tasks or GOAL in actuators:
        raise ValueError(
            f"deliberator: the name `{GOAL}` is that of its stream and topic; rename the stream, task or actuator"
        )
    names: dict[str, Any] = {name: fields_of(one) for name, one in streams.items() if fields_of(one) and name != GOAL}
    names |= {name: len(one.low) if one.kind == "continuous" else None for name, one in actuators.items()}
    for goal, condition in deliberator.conditions.items():
        try:
            Expression(condition, names)
        except ExpressionError as error:
            raise ValueError(f"deliberator.goals.{goal}.done: {error}") from None


def check_corrections(deliberator: DeliberatorSettings, tasks: Mapping[str, TaskSettings]) -> None:
    """Check the task that answers for the deliberator or that goals of people train.

    Raises:
        ValueError: there is no such task, it reads no text stream, or its labels are not the goals.
    """
    backend = deliberator.backend
    named = {"backend.task": backend.task if isinstance(backend, TaskBackend) else None}
    for where, name in (named | {"corrections": deliberator.corrections}).items():
        if name is None:
            continue
        task = tasks.get(name)
        if task is None:
            raise ValueError(f"deliberator.{where}: {name!r} is not under tasks: {sorted(tasks)}")
        if task.kind != "text-classification" or task.multi_label or task.stream is None:
            raise ValueError(
                f"deliberator.{where}: tasks.{name} must be a text-classification task with a `stream` and one label an example"
            )
        if set(task.labels) != set(deliberator.goals):
            raise ValueError(
                f"deliberator.{where}: the labels of tasks.{name} must be the goals; write labels: [{', '.join(deliberator.goals)}]"
            )


def check_rewards(rewards: Sequence[AnyReward], deliberator: DeliberatorSettings | None) -> None:
    """Check that rewards of kind `decision` have a model that answers, that other rewards judge the policy, and who outranks whom.

    Raises:
        ValueError: they do not, a model has more authority than a person may have, or a source on the topic has a model's name.
    """
    asked = [reward for reward in rewards if isinstance(reward, DecisionReward)]
    given = [(topic.name, source) for topic in rewards if isinstance(topic, TopicReward) for source in topic.sources]
    for name, source in given:
        if source.startswith(BY_MODEL):
            raise ValueError(
                f"rewards: {name}.sources.{source}: names with {BY_MODEL} are those of rewards of kind decision"
            )
    if not asked:
        return
    if deliberator is None or isinstance(deliberator.backend, EmbeddingBackend | TaskBackend):
        raise ValueError(
            f"rewards: {asked[0].name} is of kind decision, which needs `deliberator.backend` of kind decision, systemone or openai"
        )
    if len(asked) == len(rewards):
        raise ValueError(
            f"rewards: {asked[0].name} is of kind decision, and no promotion is judged by a model alone; add a reward of another kind"
        )
    for reward in asked:
        _check_authority(reward, rewards)


def _check_authority(reward: DecisionReward, rewards: Sequence[AnyReward]) -> None:
    """Check that a model has no more authority than a source that may be a person: all but those named program or sensor."""
    if reward.authority == "operator":
        raise ValueError(f"rewards: {reward.name}.authority: operator is for people; write program, sensor or a number")
    rank = rank_of(reward.authority)
    for topic in rewards:
        for name, source in topic.sources.items() if isinstance(topic, TopicReward) else ():
            other = None if source.authority in {"program", "sensor"} else rank_of(source.authority)
            if source.rates == reward.rates and rank is not None and other is not None and rank > other:
                raise ValueError(
                    f"rewards: {reward.name}.authority: {reward.authority} ({rank}) is above {topic.name}.sources.{name} ({other}), "
                    f"which rates the same and may be a person, whom a model would quarantine; write at most {other}"
                )


def with_goal_stream(body: dict[str, Any]) -> dict[str, Any]:
    """Add the telemetry stream `goal`, one field for each goal of the deliberator, to the raw settings."""
    settings, streams = body.get("deliberator"), body.get("streams")
    raw = settings.model_dump() if isinstance(settings, DeliberatorSettings) else settings
    goals = raw.get("goals") if isinstance(raw, dict) else None
    if not isinstance(goals, dict) or not isinstance(streams, dict) or GOAL in streams:
        return body
    made = {
        "kind": "telemetry",
        "source": f"{PREFIX}{GOAL}",
        "fields": [str(name) for name in goals],
        "max_age_s": GOAL_AGE_S,
    }
    return {**body, "streams": {**streams, GOAL: made}}
