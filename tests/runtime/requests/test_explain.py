"""A process explains decisions: without torch for an agent on graphs, ended when idle, and an answer whatever becomes of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from actuators.actions import ActionSpace, Choice
from fakes import eventually
from learners.checkpoints.signing import credentials_folder, load_key
from learners.checkpoints.store import Checkpoints
from learners.experience.reader import Row
from learners.experience.store import Store
from learners.experience.transition import Transition
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.definitions import BackendSettings
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from runtime.cli.agent_verbs import verdict
from runtime.inference.numpy_policy.input_statistics import InputStatistics
from runtime.mqtt.rpc import RequestFailed
from runtime.process.child import NICENESS
from runtime.requests.explain import START_S, STORE_S, Explainer, description
from runtime.requests.explain_process import Explanations, notes_of
from runtime.requests.handlers import EXPLAIN_S as ANSWERED_WITHIN_S

SPEC = PolicySpec(
    streams=(StreamSpec("joints", "telemetry", 1, 2),),
    actions=ActionSpace((Choice("head", ("left", "right")),)),
    hidden=(8,),
    history=2,
)
"""A plain policy: it needs no graph."""
STATISTICS = InputStatistics(SPEC).pack()


def tick(number: int, policy: str, session: str = "s") -> Transition:
    return Transition(
        session,
        number,
        f"{session}-{number}",
        1e9 + number / 10,
        policy,
        tokens={"joints": np.full((1, 2), number % 7, np.float32)},
        present={"joints": True},
        ages_s={"joints": 0.01},
        actions={"head": "left"},
        by={"head": "policy"},
    )


class Agent:
    """A state folder with one version and its decisions, and what an explainer needs of the engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        checkpoints = Checkpoints(folder / "checkpoints", load_key(folder, credentials_folder()))
        spec = {"spec": json.loads(SPEC.to_json())}
        self.version = checkpoints.save({"policy": Policy(SPEC).state_dict()}, spec)
        self.store = Store(folder / "experience")
        self.append(range(100))
        self.engine: Any = SimpleNamespace(
            calibrations=Calibrations(folder, BackendSettings("openvino", "float32")),
            runtime="compiled",
            spec=SPEC,
            input_statistics=lambda: STATISTICS,
        )

    def append(self, numbers: range, session: str = "s") -> None:
        for number in numbers:
            self.store.append(tick(number, self.version, session))
        assert self.store.flush()

    def explanations(self) -> Explanations:
        return Explanations.described(description(self.folder, self.engine, 0))

    @asynccontextmanager
    async def explainer(self, **limits: float) -> AsyncIterator[Explainer]:
        made = Explainer.of(self.folder, self.engine, 0, lambda decision: decision.startswith("now-"))
        made.start_s = 300.0  # a busy machine
        for name, value in limits.items():
            setattr(made, name, value)
        running = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            running.cancel()
            await asyncio.wait([running])


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    made = Agent(tmp_path_factory.mktemp("agent"))
    yield made
    made.store.close()


def explained(explanations: Explanations, decision: str, wait_s: float = 0.0) -> dict[str, Any]:
    return explanations.answer({"decision": decision, "wait_s": wait_s}, safetensors.numpy.save(STATISTICS))


def mapped(process: int | None) -> str:
    """Return the files that a process has mapped; nothing if it has ended."""
    try:
        return Path(f"/proc/{process}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def test_a_process_without_torch_and_at_low_priority_explains_and_ends_when_it_is_idle(agent: Agent) -> None:
    async with agent.explainer(idle_s=0.2) as explainer:
        answer = await explainer.explain("s-99")
        process = explainer.process
        assert process is not None
        assert "libtorch" not in mapped(process)
        assert os.getpriority(os.PRIO_PROCESS, process) == max(
            os.getpriority(os.PRIO_PROCESS, 0), NICENESS["background"]
        )
        await eventually(lambda: explainer.process is None, "the end of the idle process")
    assert not mapped(process)
    assert answer == explained(agent.explanations(), "s-99")["answer"]
    streams = answer["parts"]["head"]["streams"]
    assert streams["joints"] == pytest.approx(answer["parts"]["head"]["score"] - answer["parts"]["head"]["baseline"])


async def test_a_process_that_dies_or_hangs_costs_its_request_an_error_and_the_next_one_is_answered(
    agent: Agent,
) -> None:
    async with agent.explainer() as explainer:
        await explainer.explain("s-99")
        os.kill(explainer.process, signal.SIGSTOP)  # type: ignore[arg-type]
        explainer.limit_s = 0.1
        with pytest.raises(RequestFailed, match=r"s-98: no result within 0\.1 s"):
            await explainer.explain("s-98")
        assert explainer.process is None
        asking = asyncio.create_task(explainer.explain("s-97"))
        await eventually(lambda: explainer.process is not None, "another process")
        os.kill(explainer.process, signal.SIGKILL)  # type: ignore[arg-type]
        with pytest.raises(RequestFailed, match="s-97: the process that explains decisions ended"):
            await asking
        assert (await explainer.explain("s-96"))["decision"] == "s-96"
        process = explainer.process
    assert not mapped(process), "the process ends with the agent"


async def test_a_process_that_is_slow_to_start_serves_the_next_request(agent: Agent) -> None:
    async with agent.explainer() as explainer:
        start_s, explainer.start_s = explainer.start_s, 0.1
        process = (await explainer._started()).pid
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(
            RequestFailed, match=r"s-99: no result within 0\.1 s; the process that .* is still starting"
        ):
            await explainer.explain("s-99")
        assert explainer.process == process
        os.kill(process, signal.SIGCONT)
        explainer.start_s = start_s
        assert (await explainer.explain("s-98"))["decision"] == "s-98", "not the answer to the request before"
        assert explainer.process == process
        assert (await explainer.explain("s-97"))["decision"] == "s-97"


async def test_a_process_that_never_starts_is_killed_in_the_end(agent: Agent) -> None:
    async with agent.explainer() as explainer:
        explainer.start_s = 0.1
        os.kill((await explainer._started()).pid, signal.SIGSTOP)
        with pytest.raises(RequestFailed, match="still starting"):
            await explainer.explain("s-99")
        with pytest.raises(RequestFailed, match="still starting"):
            await explainer.explain("s-98")
        with pytest.raises(RequestFailed, match="the machine is busy"):
            await explainer.explain("s-97")
        assert explainer.process is None


def test_the_request_waits_longer_than_the_process_may_take() -> None:
    assert START_S + STORE_S < ANSWERED_WITHIN_S


async def test_a_decision_that_is_on_its_way_to_the_disk_is_awaited(agent: Agent) -> None:
    explanations = agent.explanations()
    later = threading.Timer(0.3, agent.append, [range(3), "now"])
    later.start()
    answer = await asyncio.to_thread(explained, explanations, "now-2", 30.0)
    later.join()
    assert answer["answer"]["decision"] == "now-2"


@pytest.mark.parametrize(
    ("decision", "reason"),
    [
        ("s-7000", "s-7000: no stored decision has this id; it was deleted (experience.max_gb), or the id is mistyped"),
        (
            "now-9",
            "now-9: this decision is not stored 0.2 s after the request: the disk is slow, or the experience store",
        ),
    ],
)
def test_the_reason_for_an_unknown_decision_is_true(agent: Agent, decision: str, reason: str) -> None:
    answer = explained(agent.explanations(), decision, 0.2 if decision.startswith("now") else 0.0)
    assert answer["error"].startswith(reason)


def test_the_second_decision_of_all_is_explained(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    explanations = agent.explanations()
    assert "there are no other ticks to compare with yet" in explained(explanations, "s-0")["error"]
    assert explained(explanations, "s-1")["answer"]["parts"]["head"]["streams"].keys() == {"joints"}
    agent.store.close()


def test_a_deleted_version_is_named(agent: Agent) -> None:
    agent.store.append(tick(500, "000009-aaaaaaaa"))
    assert agent.store.flush()
    assert explained(agent.explanations(), "s-500")["error"].startswith("s-500: checkpoint 000009-aaaaaaaa: missing")


def one_tick(number: int, policy: str, **changes: Any) -> Transition:
    return dataclasses.replace(tick(number, policy, "verdicts"), proposed={"head": "right"}, **changes)


def test_what_was_refused_overridden_or_not_executed_is_explained_as_that(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    verdicts: list[dict[str, Any]] = [
        {"actions": {"head": "right"}, "by": {"head": "policy"}},
        {"actions": {}, "by": {"head": "none"}, "armed": False},
        {"actions": {"head": "left"}, "by": {"head": "override"}, "intervention": True},
        {"actions": {"head": "left"}, "by": {"head": "gate"}, "refused": {"head": "min_hold"}},
    ]
    for number, changes in enumerate(verdicts):
        agent.store.append(one_tick(number, agent.version, **changes))
    assert agent.store.flush()
    explanations = agent.explanations()
    answers = [explained(explanations, f"verdicts-{n}")["answer"] for n in range(4)]
    assert [answer["parts"]["head"]["action"] for answer in answers] == ["right", "right", "left", "left"]
    assert [answer["actions"] for answer in answers] == [each["actions"] for each in verdicts]
    assert [answer["proposed"] for answer in answers] == [{"head": "right"}] * 4
    assert [answer["refused"] for answer in answers] == [{}, {}, {}, {"head": "min_hold"}]
    assert [verdict(answer, "head") for answer in answers] == [
        "by policy",
        "proposed, not executed",
        "by override, proposed right",
        "by gate, proposed right, refused: min_hold",
    ]
    agent.store.close()


def test_an_explanation_says_where_it_is_not_of_what_the_policy_saw(tmp_path: Path) -> None:
    """The history of two ticks is stored whole, with a hole, or without its begin."""
    agent = Agent(tmp_path)
    explanations = agent.explanations()
    assert explained(explanations, "s-99")["answer"]["notes"] == []
    assert explained(explanations, "s-1")["answer"]["notes"] == []
    agent.append(range(101, 102))
    assert explained(explanations, "s-101")["answer"]["notes"] == [
        "no tick is stored from s-99 to s-101: one that was decided there is not shown"
    ]
    agent.append(range(1), "t")
    assert explained(explanations, "t-0")["answer"]["notes"] == [], "a session begins with its first tick"
    assert agent.store.close()
    with closing(sqlite3.connect(tmp_path / "experience" / "experience.db")) as db:
        db.execute("DELETE FROM transitions WHERE tick = 49 AND session = 's'")
        db.commit()
    assert explained(explanations, "s-50")["answer"]["notes"] == [
        "the ticks before s-50 are deleted, so the history repeats this one instead"
    ]
    untrained = Row(1, tick(0, "untrained"))
    assert notes_of(untrained, [untrained], [untrained.transition], 2) == [
        "the untrained policy scales telemetry by all that it has seen until now, not until this decision"
    ]
