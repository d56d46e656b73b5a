"""Requests are answered once, with data or a reason; LIVE is followed; what cannot be loaded is named and left."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tinymodels
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from learners.checkpoints.store import Checkpoints
from learners.task_serving.versions import TaskVersionStore
from learners.tasks.task_classes import open_task
from runtime.deploy.promotion_history import PromotionHistory
from runtime.deploy.task_versions import TaskVersions
from runtime.mqtt import Message
from runtime.mqtt.rpc import RequestFailed
from runtime.mqtt.topics import Refused, Topics
from runtime.requests.handlers import MAX_WAITING, Requests


@dataclass
class FakeLink:
    """Keeps what is subscribed and answered."""

    answers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def reply(self, message: Message, payload: bytes, fallback: str) -> bool:
        self.answers.append((message.response_topic or fallback, json.loads(payload)))
        self.answered.set()
        return True


def _checkpoints(folder: Path, count: int) -> tuple[Checkpoints, list[str]]:
    checkpoints = Checkpoints(folder / "checkpoints", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    return checkpoints, [checkpoints.save({"policy": {"w": torch.full((2,), float(n))}}, {}) for n in range(count)]


class FakeExplainer:
    async def explain(self, decision: str) -> dict[str, Any]:
        if decision == "unknown":
            raise RequestFailed("unknown: no stored decision")
        return {"decision": decision}


class FakeRecording:
    async def begin(self) -> dict[str, Any]:
        return {"on": True}

    async def end(self) -> dict[str, Any]:
        return {"on": False}


class FakeQueue:
    async def add(self, task: str | None) -> dict[str, Any]:
        return {"task": task}


class Bench:
    def __init__(self, folder: Path) -> None:
        self.link, self.events = FakeLink(), []
        self.checkpoints, self.versions = _checkpoints(folder, 2)

        self.requests = Requests(
            connection=self.link,
            topics=Topics("demo"),
            checkpoints=self.checkpoints,
            history=PromotionHistory(folder / "promotions.jsonl", ThreadPoolExecutor(1)),
            tasks=TaskVersions(folder / "tasks", ("intents",)),
            emit=lambda kind, data: self.events.append((kind, data)),
            explainer=FakeExplainer(),
            recording=FakeRecording(),
            finetuning=FakeQueue(),
            gallery=SimpleNamespace(),
            sources=SimpleNamespace(release=lambda source: source == "kept"),
            drift=SimpleNamespace(accept=lambda stream: stream == "front"),
        )

    async def ask(self, verb: str, payload: bytes = b"") -> dict[str, Any]:
        self.link.answered.clear()
        self.requests.take(Message(f"reflexd/demo/request/{verb}", payload, 1, retain=False))
        running = asyncio.create_task(self.requests.run())
        async with asyncio.timeout(60):
            await self.link.answered.wait()
        running.cancel()
        await asyncio.wait([running])
        return self.link.answers[-1][1]


async def test_promote_list_and_roll_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, second = bench.versions
    assert (await bench.ask("promote", json.dumps({"version": first}).encode()))["status"] == "ok"
    assert (await bench.ask("promote", b'{"version": "newest"}'))["data"] == {"version": second, "before": first}
    listed = (await bench.ask("checkpoints"))["data"]
    assert listed["live"] == second
    assert [row["version"] for row in listed["checkpoints"]] == [first, second]
    assert (await bench.ask("rollback"))["data"] == {"version": first, "before": second}
    assert [kind for kind, _ in bench.events] == ["policy_promoted", "policy_promoted", "policy_rolled_back"]
    refused = await bench.ask("promote", json.dumps({"version": second}).encode())
    assert "not tried again" in refused["error"]


async def test_a_task_s_versions_are_listed_promoted_and_rolled_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    task = open_task("text-classification", tinymodels.bert(tmp_path / "model"), labels=("a", "b"))
    versions = TaskVersionStore(tmp_path / "tasks" / "intents")
    first, second = versions.add(task, 1), versions.add(task, 2)
    request = json.dumps({"task": "intents", "version": first.name}).encode()
    assert (await bench.ask("promote", request))["data"] == {"task": "intents", "version": first.name, "before": None}
    newest = (await bench.ask("promote", b'{"task": "intents", "version": "newest"}'))["data"]
    assert newest == {"task": "intents", "version": second.name, "before": first.name}
    listed = (await bench.ask("checkpoints", b'{"task": "intents"}'))["data"]
    assert listed["live"] == second.name
    assert [row["version"] for row in listed["versions"]] == [first.name, second.name]
    assert (await bench.ask("rollback", b'{"task": "intents"}'))["data"]["to"] == first.name
    assert versions.live() == first
    assert [kind for kind, _ in bench.events] == ["task_promoted", "task_promoted", "task_rolled_back"]
    assert all(data["by"] == "request" for _, data in bench.events)


@pytest.mark.parametrize(
    ("verb", "payload", "word"),
    [
        ("promote", b"", "name the version"),
        ("promote", b"[]", "payload"),
        ("promote", b'{"version": "../../etc"}', "bad_name"),
        ("rollback", b"", "nothing to roll back"),
        ("promote", b'{"task": "intents"}', "name the version"),
        ("promote", b'{"task": "intents", "version": "newest"}', "has no version 'newest'; there are []"),
        ("promote", b'{"task": "other", "version": "1-a"}', "is not under tasks: ['intents']"),
        ("rollback", b'{"task": "intents"}', "nothing to roll back to"),
        ("checkpoints", b'{"task": "../x"}', "is not under tasks"),
        ("explain", b"{}", "decision"),
        ("explain", b'{"decision": "unknown"}', "no stored decision"),
        ("record", b"NaN", "JSON"),
        ("release", b'{"source": "free"}', "not quarantined"),
        ("accept_drift", b'{"stream": "room"}', "'room' does not drift"),
    ],
)
async def test_what_cannot_be_done_is_answered_with_the_reason(
    tmp_path: Path, verb: str, payload: bytes, word: str
) -> None:
    answer = await Bench(tmp_path).ask(verb, payload)
    assert answer["status"] == "error"
    assert word in answer["error"]


async def test_the_other_verbs_reach_their_parts(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert (await bench.ask("explain", b'{"decision": "s-1"}'))["data"] == {"decision": "s-1"}
    assert (await bench.ask("record", b'{"on": false}'))["data"] == {"on": False}
    assert (await bench.ask("finetune", b'{"task": "intents"}'))["data"] == {"task": "intents"}
    assert (await bench.ask("release", b'{"source": "kept"}'))["data"] == {"source": "kept", "state": "released"}
    assert (await bench.ask("accept_drift", b'{"stream": "front"}'))["data"] == {"stream": "front", "state": "accepted"}
    assert set(bench.requests.verbs) == {
        *("promote", "rollback", "checkpoints", "explain", "record", "finetune", "release", "accept_drift"),
        *("correct_labels", "labels", "label_readings", "readings"),
    }  # fmt: skip


async def test_retained_requests_are_ignored_and_too_many_answered_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(Refused, match="retained"):
        bench.requests.take(Message("reflexd/demo/request/promote", b"{}", 1, retain=True))
    for _ in range(MAX_WAITING + 1):
        bench.requests.take(Message("reflexd/demo/request/checkpoints", b"", 1, retain=False))
    assert "waiting" in bench.link.answers[-1][1]["error"]
