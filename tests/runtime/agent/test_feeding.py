"""A task that feeds the policy: its answers are a stream of their own, beside the tick, and what is decided depends on them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinymodels
import torch

from fakes import eventually
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendSettings
from learners.model.policy import Policy
from learners.task_serving.runner import TaskRunner
from learners.task_serving.versions import TaskVersionStore
from learners.tasks.task_classes import open_task
from runtime.agent.task_outputs import TaskOutputs
from runtime.config.schema import Config
from runtime.control.inbox import Inbox
from runtime.control.tick import Utterances
from runtime.deploy.task_updater import TaskUpdater
from runtime.inference.build import build_spec
from runtime.inference.torch_engine import TorchEngine
from runtime.mqtt.topics import Topics
from sensors.base import Sensor
from sensors.config import TelemetrySettings
from sensors.readings import Telemetry, Text
from sensors.streams.registry import build
from sensors.streams.task_output import TaskOutputSensor


def settings(tmp_path: Path, **task: Any) -> dict[str, Any]:
    model = str(tmp_path / "model")
    received = {
        "kind": "text-classification",
        "stream": "orders",
        "model": model,
        "labels": ["move", "halt"],
        "feeds_policy": True,
    }
    return {
        "agent": "a",
        "state_dir": str(tmp_path / "state"),
        "streams": {
            "joints": {"kind": "telemetry", "source": "topic", "fields": ["q"]},
            "orders": {"kind": "text", "source": "topic", "ttl_s": 30, "encoder": "language"},
        },
        "encoders": {"language": {"model": model}},
        "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
        "tasks": {"intents": received | task},
    }


def test_the_settings_have_a_stream_more(tmp_path: Path) -> None:
    config = Config.model_validate(settings(tmp_path))
    fed = config.streams["intents"]
    assert isinstance(fed, TelemetrySettings)
    assert (fed.source, fed.fields, fed.max_age_s) == ("task:intents", ("move", "halt"), 30.0)
    assert Config.model_validate(config.model_dump()) == config, "read again, as the learner does"
    assert isinstance(build("intents", fed), TaskOutputSensor)
    assert set(Config.model_validate(settings(tmp_path, feeds_policy=False)).streams) == {"joints", "orders"}


@pytest.mark.parametrize(
    ("task", "word"),
    [
        ({"labels": []}, "fixed `labels`"),
        ({"kind": "text-generation"}, "only a classification task"),
        ({"stream": None}, "with a `stream`"),
    ],
)
def test_what_cannot_feed_is_refused(tmp_path: Path, task: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Config.model_validate(settings(tmp_path, **task))


def test_a_name_is_used_once(tmp_path: Path) -> None:
    body = settings(tmp_path)
    body["streams"]["intents"] = {"kind": "telemetry", "source": "topic", "fields": ["x"]}
    with pytest.raises(ValueError, match="a stream already has this name"):
        Config.model_validate(body)


@dataclass
class Link:
    """Takes what is published."""

    posted: list[str] = field(default_factory=list)

    def enqueue(self, topic: str, _payload: bytes, **_: Any) -> bool:
        self.posted.append(topic)
        return True


def engine_of(config: Config) -> TorchEngine:
    torch.manual_seed(0)
    spec = build_spec(
        config.model_copy(update={"policy": config.policy.model_copy(update={"width": 32, "history": 1})}), {}
    )
    return TorchEngine(Policy(spec), {}, {}, Calibrations(None, BackendSettings("torch", "float32")), lambda _: None)  # type: ignore[arg-type,return-value]


async def test_an_answer_is_seen_at_the_next_tick_and_counts(tmp_path: Path) -> None:
    tinymodels.bert(tmp_path / "model")
    config = Config.model_validate(settings(tmp_path))
    versions = TaskVersionStore(config.state_dir / "learner" / "tasks" / "intents")
    task = open_task(
        "text-classification", tmp_path / "model", labels=("halt", "move", "later")
    )  # a head that has grown since
    versions.promote(versions.add(task, 1))
    wanted = task.predict([{"text": "please go"}])[0].probabilities
    inbox, sensor = Inbox(config.streams), build("intents", config.streams["intents"])
    assert isinstance(sensor, TaskOutputSensor)
    assert isinstance(sensor, Sensor)
    link = Link()
    language = TaskOutputs(
        config, link, Topics("a"), lambda *_: None, Utterances(), TaskRunner, fed={"intents": sensor}
    )  # type: ignore[arg-type]
    assert await TaskUpdater(versions.folder.parent, language.runner, lambda *_: None).sync()
    sensor.take({"move": 1.0}, 0.0)
    assert sensor.drops == {"not_running": 1}
    jobs = [
        asyncio.create_task(sensor.run(inbox.put, lambda _: None, lambda: None)),
        asyncio.create_task(language.runner.run()),
    ]
    try:
        language.runner.offer({"orders": Text("orders", 5.0, 0, "please go")}, frozenset({"orders"}), "s-1")
        await eventually(lambda: inbox.latest("intents") is not None, "the answer")
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.wait(jobs)
    seen = inbox.observe(1, 7.0)
    reading = seen.readings["intents"]
    assert isinstance(reading, Telemetry)
    assert reading.values.tolist() == pytest.approx([wanted["move"], wanted["halt"]])
    assert seen.ages_s["intents"] == 2.0, "as old as the order it is about"
    assert "intents" in seen.fresh
    assert "intents" in inbox.observe(2, 36.0).missing, "no longer in force than the order"
    assert link.posted == ["reflexd/a/task/intents"]


async def test_the_policy_decides_by_it(tmp_path: Path) -> None:
    tinymodels.bert(tmp_path / "model")
    body = settings(tmp_path)
    config = Config.model_validate(body)
    only = config.model_copy(update={"streams": {n: s for n, s in config.streams.items() if n != "orders"}})
    engine = engine_of(only)
    try:
        assert {stream.name: stream.width for stream in engine.spec.streams} == {"joints": 1, "intents": 2}
        values = []
        for tick, chances in enumerate(([1.0, 0.0], [0.0, 1.0])):
            inbox = Inbox(only.streams)
            inbox.put(Telemetry("joints", 0.0, 0, ("q",), np.zeros(1, np.float32)))
            inbox.put(Telemetry("intents", 0.0, 0, ("move", "halt"), np.array(chances, np.float32)))
            decided = await engine.decide(inbox.observe(tick, 0.5))
            assert decided.tokens["intents"].tolist() == [chances]
            values.append(decided.value)
        assert values[0] != values[1]
    finally:
        engine.close()
