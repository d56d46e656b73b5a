"""The wire contract's decoding refuses what it must; the agent-gate link survives a round trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actuators.safety.decisions import Proposal
from runtime.gate import ipc
from runtime.mqtt import topics


@pytest.mark.parametrize(
    "payload",
    [
        b"NaN",
        b'{"value":Infinity}',
        b'{"value":1e999}',
        b"[" * 40 + b"]" * 40,
        b"\xff",
        b"",
        b"{" * 100_000,
        b'"' + b"a" * 70_000 + b'"',
    ],
)
def test_hostile_json_is_refused(payload: bytes) -> None:
    with pytest.raises(topics.Refused):
        topics.parse(payload)


def _reward_or_reason(payload: bytes) -> topics.Reward | str:
    try:
        return topics.decode(topics.Reward, payload)
    except topics.Refused as refusal:
        return str(refusal)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_reward_or_refused_with_a_reason(payload: bytes) -> None:
    result = _reward_or_reason(payload)
    assert result
    assert isinstance(result, str) or isinstance(result.value, float)


def test_topics_are_named_by_the_design() -> None:
    names = topics.Topics("demo")
    assert names.command("head") == "reflexd/demo/act/head/set"
    assert names("in", "front") == "reflexd/demo/in/front"


def test_messages_survive_the_link() -> None:
    proposal = Proposal(
        3,
        "d3",
        "p1",
        1.5,
        {"head": "left", "arm": (0.5, -1.0)},
        stale=("room",),
        degraded=("recording: the disk is full",),
        readings={"window": {"open": 1.0}},
        shadow=True,
    )
    verdict = ipc.GateVerdict(
        "d3",
        armed=True,
        stopped=False,
        mode={"head": "autonomous"},
        outcomes={"head": ipc.Outcome(True, None, "left", "policy")},
        allowed={"lamp": ("OFF",)},
    )
    gate, agent = ipc.pair()
    with gate, agent:
        agent.send(ipc.pack(proposal))
        gate.send(ipc.pack(verdict))
        assert ipc.unpack(gate.recv(ipc.MAX_MESSAGE)) == proposal
        assert ipc.unpack(agent.recv(ipc.MAX_MESSAGE)) == verdict
