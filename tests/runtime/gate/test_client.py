"""The agent's end of the link: verdicts find their proposals, silence is not waited out, end-of-file is noticed."""

from __future__ import annotations

import asyncio
import socket

import pytest

from actuators.safety.decisions import Proposal
from runtime.gate import ipc
from runtime.gate.client import GateGone, GateLink


def _verdict(decision: str) -> bytes:
    return ipc.pack(ipc.GateVerdict(decision, armed=True, stopped=False, mode={"head": "autonomous"}))


async def _answer(gate: socket.socket, *decisions: str) -> Proposal:
    loop = asyncio.get_running_loop()
    proposal = ipc.unpack(await loop.sock_recv(gate, ipc.MAX_MESSAGE))
    for decision in decisions:
        gate.send(_verdict(decision))
    assert isinstance(proposal, Proposal)
    return proposal


async def test_a_verdict_finds_its_proposal_past_an_older_one() -> None:
    gate, agent = ipc.pair()
    with gate, agent:
        end = GateLink(agent, "a1")
        listening = asyncio.create_task(end.listen())
        answering = asyncio.create_task(_answer(gate, "d0", "d1"))
        verdict = await end.propose(Proposal(1, "d1", "p", 0.0, {"head": "left"}), patience_s=60)
        assert verdict is not None
        assert verdict.decision == "d1"
        assert end.latest == verdict
        assert (await answering).actions == {"head": "left"}
        gate.close()
        with pytest.raises(GateGone):
            await listening


async def test_a_silent_gate_does_not_hold_the_tick() -> None:
    gate, agent = ipc.pair()
    with gate, agent:
        end = GateLink(agent, "a1")
        assert await end.propose(Proposal(1, "d1", "p", 0.0), patience_s=0.01) is None
        assert end.unanswered == 1


async def test_a_stuck_gate_is_counted_and_a_dead_one_raised() -> None:
    gate, agent = ipc.pair()
    with agent:
        end = GateLink(agent, "a1")
        proposal = Proposal(1, "d1", "p", 0.0, {"say": "x" * 200_000})
        while end.send(proposal):
            pass
        assert end.unsent == 1
        assert await end.propose(proposal, patience_s=1) is None
        gate.close()
        with pytest.raises(GateGone):
            end.send(proposal)


def test_foreign_datagrams_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown message"):
        ipc.unpack(b'{"kind":"Other"}')
    with pytest.raises(ValueError, match="at most"):
        ipc.pack(Proposal(1, "d", "p", 0.0, {"say": "x" * ipc.MAX_MESSAGE}))


@pytest.mark.parametrize("text", ["x" * ipc.MAX_MESSAGE, "\udcff"])
async def test_a_proposal_that_no_message_can_hold_is_counted(text: str) -> None:
    gate, agent = ipc.pair()
    with gate, agent:
        end = GateLink(agent, "a1")
        assert await end.propose(Proposal(1, "d1", "p", 0.0, {"say": text}), patience_s=60) is None
        assert end.unsent == 1
        assert end.send(Proposal(2, "d2", "p", 0.0))


@pytest.mark.parametrize(
    ("text", "short"), [("full", "full"), ("x" * 257, "x" * 255 + "…"), ("x" * 256, "x" * 256), ("/\udcff", "/?")]
)
def test_a_reason_of_any_length_and_content_fits_into_a_message(text: str, short: str) -> None:
    assert ipc.shortened(text) == short
    proposal = Proposal(1, "d", "p", 0.0, degraded=(ipc.shortened(text),))
    assert ipc.unpack(ipc.pack(proposal)) == proposal
