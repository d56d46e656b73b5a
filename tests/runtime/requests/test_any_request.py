"""No request ends the agent: whatever is asked, in whatever state, is answered once; rollbacks wait for no explanation."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actuators.actions import ActionSpace, Choice
from learners.checkpoints.signing import credentials_folder, load_key
from learners.checkpoints.store import Checkpoints
from learners.config.tasks import TaskSettings
from learners.experience.store import Store
from learners.experience.transition import Transition
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendSettings
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from runtime.config.schema import Config
from runtime.deploy.promotion_history import PromotionHistory
from runtime.deploy.task_versions import TaskVersions
from runtime.feedback.recent_results import RecentResults
from runtime.inference.torch_engine import TorchEngine
from runtime.mqtt import Message
from runtime.mqtt.rpc import RequestFailed
from runtime.mqtt.topics import Topics
from runtime.requests.explain import description
from runtime.requests.explain_process import Explanations
from runtime.requests.finetune import FinetuneQueue
from runtime.requests.handlers import Requests
from runtime.requests.labelling import Gallery
from runtime.requests.record import RecordingController

VERBS = (
    *("promote", "rollback", "checkpoints", "explain", "record", "finetune", "release", "accept_drift"),
    *("readings", "label_readings", "labels", "correct_labels"),
)
TASKS = {"intents": TaskSettings(kind="text-classification", model="m", stream="orders")}
ACTIONS = ActionSpace((Choice("head", ("left", "stay", "right")),))
SPEC = PolicySpec(
    streams=(StreamSpec("joints", "telemetry", 1, 2), StreamSpec("more", "telemetry", 1, 2)),
    actions=ACTIONS,
    width=16,
    heads=2,
    hidden=(16,),
    history=2,
)


def config_of(folder: Path) -> Config:
    return Config.model_validate(
        {
            "agent": "demo",
            "state_dir": folder,
            "streams": {"joints": {"kind": "telemetry", "source": "topic", "fields": ["a", "b"]}},
            "actuators": {"head": {"kind": "choice", "choices": ["left", "stay", "right"], "safe": "stay"}},
        }
    )


@dataclass
class Link:
    """Keeps what is answered."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)

    def subscribe(self, _topic: str, _handler: Any) -> None: ...

    def reply(self, _message: Message, payload: bytes, _fallback: str) -> bool:
        self.answers.append(json.loads(payload))
        self.more.set()
        return True


class Reporter:
    """Holds the recording, as the agent's reporter does."""

    def __init__(self) -> None:
        self.recorder: Any = None
        self.events: list[str] = []

    def event(self, kind: str, _data: dict[str, Any]) -> None:
        self.events.append(kind)


def tick(number: int, policy: str) -> Transition:
    tokens = {name: np.full((1, 2), number, np.float32) for name in SPEC.names}
    return Transition(
        "s",
        number,
        f"s-{number}",
        1e9 + number / 10,
        policy,
        tokens=tokens,
        present=dict.fromkeys(SPEC.names, True),
        ages_s=dict.fromkeys(SPEC.names, 0.01),
        actions={"head": "left"},
        probabilities={"head": 1.0},
        by={"head": "policy"},
    )


class ExplainerInThisProcess:
    """Explains as the agent does, without a process."""

    def __init__(self, folder: Path, engine: TorchEngine) -> None:
        self._explanations = Explanations.described(description(folder, engine, seed=0))
        self._statistics = safetensors.numpy.save(engine.input_statistics())

    async def explain(self, decision: str) -> dict[str, Any]:
        answer = self._explanations.answer({"decision": decision, "wait_s": 0.0}, self._statistics)
        if "error" in answer:
            raise RequestFailed(answer["error"])
        found: dict[str, Any] = answer["answer"]
        return found


class World:
    """A state folder with versions of two widths and a hundred decisions, and the handlers of a running agent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = Checkpoints(folder / "checkpoints", load_key(folder, credentials_folder()))
        wider = replace(SPEC, width=32)
        documents = {"spec": json.loads(wider.to_json())}
        self.wide = self.checkpoints.save({"policy": Policy(wider).state_dict()}, documents)
        self.strange = self.checkpoints.save({"policy": {"w": torch.ones(3)}}, {})
        self.checkpoints.promote(self.wide)
        store = self.store = Store(folder / "experience")
        for number in range(100):
            store.append(tick(number, (self.wide, self.strange, "untrained", "gone")[number % 4]))
        assert store.flush()
        calibrations = Calibrations(None, BackendSettings("torch", "float32"))
        self.engine = TorchEngine(Policy(SPEC), {}, {}, calibrations, self.checkpoints.load)
        self.explainer = ExplainerInThisProcess(folder, self.engine)
        self.config = config_of(folder)
        self.ticker = SimpleNamespace(session="s", engine=self.engine, degraded={})

    def requests(self, link: Link) -> tuple[Requests, Reporter]:
        reporter = Reporter()
        made = Requests(
            connection=link,  # type: ignore[arg-type]
            topics=Topics("demo"),
            checkpoints=self.checkpoints,
            history=PromotionHistory(self.folder / "promotions.jsonl", ThreadPoolExecutor(1)),
            tasks=TaskVersions(self.folder / "tasks", ("intents",)),
            emit=reporter.event,
            explainer=self.explainer,  # type: ignore[arg-type]
            recording=RecordingController(self.config, self.ticker, reporter),  # type: ignore[arg-type]
            finetuning=FinetuneQueue(self.config),
            gallery=Gallery(self.folder / "experience", self.folder / "tasks", TASKS, self.store, RecentResults()),
            sources=SimpleNamespace(release=lambda source: source == "kept"),  # type: ignore[arg-type]
            drift=SimpleNamespace(accept=lambda stream: stream == "front"),  # type: ignore[arg-type]
        )
        return made, reporter


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.engine.close()
    made.store.close()


async def ask(requests: Requests, link: Link, requested: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """Send all requests at once and wait for as many answers."""
    running = asyncio.create_task(requests.run())
    for verb, payload in requested:
        requests.take(Message(f"reflexd/demo/request/{verb}", payload, 1, retain=False))
    async with asyncio.timeout(60):
        while len(link.answers) < len(requested):
            link.more.clear()
            await link.more.wait()
    assert not running.done()
    running.cancel()
    await asyncio.wait([running])
    return link.answers


names = st.sampled_from(["s-0", "s-1", "s-2", "s-3", "s-99", "newest", "intents", "kept", "..", "\0", "x" * 128])
values = st.none() | st.booleans() | st.integers(-2, 2**65) | st.floats(allow_nan=False) | st.text(max_size=8) | names
bodies = st.dictionaries(
    st.sampled_from(
        ["version", "task", "decision", "on", "source", "x", "readings", "label", "labels", "numbers", "count"]
    ),
    values,
    max_size=3,
)
payloads = st.binary(max_size=20) | (bodies | st.lists(values, max_size=2) | values).map(
    lambda x: json.dumps(x).encode()
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.tuples(st.sampled_from(VERBS), payloads), min_size=1, max_size=10), st.sampled_from(["", "dead"]))
def test_every_request_is_answered_once_and_none_ends_the_agent(
    world: World, requested: list[tuple[str, bytes]], state: str
) -> None:
    async def run() -> None:
        link = Link()
        requests, reporter = world.requests(link)
        if state == "dead":
            await requests.recording.begin()
            await asyncio.to_thread(reporter.recorder.close)
            reporter.recorder.path.unlink()
        answers = await ask(requests, link, requested)
        assert len(answers) == len(requested)
        assert {answer["status"] for answer in answers} <= {"ok", "error"}
        assert all(answer.get("error", "-") for answer in answers)
        if reporter.recorder is not None:
            await requests.recording.end()

    asyncio.run(run())


async def test_a_decision_of_a_version_of_another_width_is_explained_by_its_own_spec(world: World) -> None:
    link = Link()
    requests, _ = world.requests(link)
    both = [("explain", b'{"decision": "s-97"}'), ("explain", b'{"decision": "s-96"}')]
    answers = await ask(requests, link, both)  # the newest comes first
    assert answers[0]["status"] == "ok", answers[0]
    assert answers[0]["data"]["policy"] == world.wide
    assert answers[1]["status"] == "error"
    assert f"{world.strange}: its weights do not fit its spec" in answers[1]["error"]


async def test_an_unforeseen_error_is_an_answer_and_the_next_request_is_served(world: World) -> None:
    link = Link()
    requests, _ = world.requests(link)

    async def breaks(_decision: str) -> dict[str, Any]:
        raise ZeroDivisionError("a secret")

    requests.explainer = SimpleNamespace(explain=breaks)  # type: ignore[assignment]
    answers = await ask(
        requests, link, [("explain", b"{}"), ("explain", b'{"decision": "x"}')]
    )  # the newest comes first
    assert answers[0] == {
        "status": "error",
        "error": "explain: internal error (ZeroDivisionError); see the agent's log",
    }
    assert "decision" in answers[1]["error"]


async def test_a_rollback_waits_for_no_explanation(world: World) -> None:
    link = Link()
    requests, _ = world.requests(link)
    release = threading.Event()

    async def slow(_decision: str) -> dict[str, Any]:
        await asyncio.to_thread(release.wait, 30)
        return {}

    requests.explainer = SimpleNamespace(explain=slow)  # type: ignore[assignment]
    running = asyncio.create_task(requests.run())
    for verb in ("explain", "explain", "rollback"):
        requests.take(Message(f"reflexd/demo/request/{verb}", b'{"decision": "x"}', 1, retain=False))
    async with asyncio.timeout(60):
        await link.more.wait()
    assert len(link.answers) == 1
    assert "no earlier version that acted is loadable" in link.answers[0]["error"]
    release.set()
    running.cancel()
    await asyncio.wait([running])
