"""The queue of fine-tune requests: bounded, in order, and leftovers of the former folder are read once."""

from __future__ import annotations

from pathlib import Path

from learners.ipc.outbox import Outbox
from learners.ipc.requests import LIMIT, FinetuneRequests


def test_requests_come_in_order_and_are_gone_once_acknowledged(tmp_path: Path) -> None:
    agent, learner = FinetuneRequests(tmp_path), FinetuneRequests(tmp_path)
    assert agent.add("intents")
    assert agent.add(None)
    waiting = learner.waiting()
    assert [request.fields["task"] for request in waiting] == ["intents", None]
    waiting[0].acknowledge()
    assert [request.fields["task"] for request in learner.waiting()] == [None]


def test_a_full_queue_refuses(tmp_path: Path) -> None:
    queue = FinetuneRequests(tmp_path)
    assert [queue.add("intents") for _ in range(LIMIT + 1)] == [True] * LIMIT + [False]
    assert len(queue.waiting()) == LIMIT


def test_files_of_the_former_folder_are_taken_over_once(tmp_path: Path) -> None:
    former = Outbox(tmp_path / "learner" / "wishes")
    former.post("finetune", {"task": "moods"})
    former.post("finetune", {"task": "intents"})
    queue = FinetuneRequests(tmp_path)
    assert [request.fields["task"] for request in queue.waiting()] == ["moods", "intents"]
    assert not (tmp_path / "learner" / "wishes").exists()
    for request in queue.waiting():
        request.acknowledge()
    assert FinetuneRequests(tmp_path).waiting() == []
