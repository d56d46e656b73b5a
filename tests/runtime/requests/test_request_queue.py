"""Askers take turns: whoever floods a lane delays another by one request; of explanations the newest of an asker win."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.mqtt import Message
from runtime.requests.request_queue import RequestQueue

CAPACITY = 16


def queue_of(served: list[str], newest: int | None) -> RequestQueue:
    async def serve(payload: bytes) -> dict[str, Any]:
        served.append(payload.decode())
        return {"served": payload.decode()}

    return RequestQueue({"explain": serve}, (), limit_s=5.0, capacity=CAPACITY, newest=newest)


def request(asker: str, number: int) -> Message:
    name = f"{asker}{number}"
    return Message("reflexd/demo/request/explain", name.encode(), 1, retain=False, response_topic=f"response/{asker}")


async def answers_to(queue: RequestQueue, requests: list[Message]) -> dict[str, list[dict[str, Any]]]:
    """Put all requests at once, and return every answer by the payload of its request."""
    answers: dict[str, list[dict[str, Any]]] = {}
    done = asyncio.Event()

    def reply(_verb: str, message: Message, answer: dict[str, Any]) -> None:
        answers.setdefault(message.payload.decode(), []).append(answer)
        if sum(map(len, answers.values())) == len(requests):
            done.set()

    for one in requests:
        if (dropped := queue.put("explain", one)) is not None:
            (verb, message), reason = dropped
            reply(verb, message, {"status": "error", "error": reason})
    running = asyncio.create_task(queue.run(reply))
    async with asyncio.timeout(30):
        await done.wait()
    running.cancel()
    await asyncio.wait([running])
    return answers


def test_the_newest_explanations_of_an_asker_win_and_another_is_second_at_most() -> None:
    served: list[str] = []
    requests = [*(request("flood", n) for n in range(50)), request("person", 0)]
    answers = asyncio.run(answers_to(queue_of(served, newest=4), requests))
    assert served == ["flood49", "person0", "flood48", "flood47", "flood46"]
    assert answers["flood0"] == [{"status": "error", "error": "explain: replaced by a newer request of the same asker"}]


def test_a_full_lane_of_commands_takes_the_request_of_another_asker() -> None:
    served: list[str] = []
    requests = [*(request("flood", n) for n in range(50)), request("person", 0), request("person", 1)]
    answers = asyncio.run(answers_to(queue_of(served, newest=None), requests))
    assert served[:4] == ["flood0", "person0", "flood1", "person1"], "each asker's commands in their order"
    assert served[-1] == "flood13"
    assert answers["flood14"][0]["error"] == f"{CAPACITY} requests are waiting; try again"


@pytest.mark.parametrize("newest", [None, 1, 4])
@settings(max_examples=40, deadline=None)
@given(askers=st.lists(st.integers(0, 30), min_size=1, max_size=80))
def test_every_request_is_answered_once_and_no_asker_waits_for_two_of_another(
    askers: list[int], newest: int | None
) -> None:
    served: list[str] = []
    requests = [request(f"{asker}-", n) for n, asker in enumerate(askers)]
    answers = asyncio.run(answers_to(queue_of(served, newest), requests))
    assert len(answers) == len(requests)
    assert all(len(each) == 1 for each in answers.values())
    assert 0 < len(served) <= CAPACITY
    turns = [name.split("-")[0] for name in served]
    for asker in {*turns}:
        firsts = turns[: turns.index(asker)]
        assert len(firsts) == len({*firsts}), "no asker had a second turn before this asker's first"
