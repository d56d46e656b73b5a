"""Settings with which a message between agent and gate could be too large are refused; all others fit at their largest."""

from __future__ import annotations

from typing import Any

import pytest

from actuators.safety.decisions import Proposal
from runtime.config.frame_size import MAX_FRAME, named_fields
from runtime.config.schema import Config
from runtime.gate import ipc

FIELDS = [f"group_{n:04d}/{'x' * 39}" for n in range(4_096)]
LONGEST = -2.2250738585072014e-308


def settings(actuators: dict[str, Any], forbid: tuple[str, ...] = (), fields: list[str] = FIELDS[:1]) -> Config:
    return Config.model_validate(
        {
            "agent": "a",
            "state_dir": "/var/lib/a",
            "streams": {"s": {"kind": "telemetry", "source": "topic", "fields": fields, "encoder": None}},
            "actuators": actuators,
            "gate": {"forbid": forbid},
            "tasks": {"t": {"kind": "text-generation", "stream": None, "model": "m"}},
        }
    )


def arms(count: int, components: int) -> dict[str, Any]:
    return {
        f"arm{n}": {"kind": "continuous", "low": [-1.0] * components, "high": [1.0] * components} for n in range(count)
    }


@pytest.mark.parametrize(
    ("actuators", "word"),
    [
        (arms(13, 1_024), "actuators.arm"),
        ({"say": {"kind": "text", "task": "t", "max_chars": 100_000}}, "actuators.say: messages"),
    ],
)
def test_settings_that_could_need_a_larger_message_are_refused(actuators: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"{word}.*at most {MAX_FRAME}"):
        settings(actuators)


def test_the_largest_messages_of_accepted_settings_fit() -> None:
    words = [f"\u00e4{n:03d}" * 8 for n in range(500)]
    head = {"kind": "choice", "choices": words, "safe": words[0]}
    config = settings(arms(3, 1_024) | {"say": {"kind": "text", "task": "t", "max_chars": 1_500}, "head": head})
    values: dict[str, Any] = {f"arm{n}": (LONGEST,) * 1_024 for n in range(3)} | {"say": "\0" * 1_500}
    values["head"], allowed = words[0], {"head": tuple(words[1:])}
    refused = {name: {f"unacknowledged{rule}": 10**9 for rule in range(20)} for name in values}
    outcomes = {name: ipc.Outcome(True, "unacknowledged", value, "override") for name, value in values.items()}
    modes = dict.fromkeys(config.actuators, "autonomous")
    verdict = ipc.GateVerdict("d" * 256, True, False, modes, outcomes, refused, overridden=values, allowed=allowed)
    proposal = Proposal(1, "d" * 256, "p" * 256, LONGEST, values, degraded=("\0" * 256,) * 8)
    assert all(MAX_FRAME // 8 < len(ipc.pack(message)) <= MAX_FRAME for message in (verdict, proposal))


def test_only_fields_that_rules_name_are_sent() -> None:
    rule = f"arm0[0] > 0 and s['{FIELDS[7]}'] > 1"
    config = settings(arms(1, 1), (rule,), FIELDS)
    assert named_fields(config.gate.forbid, config.streams) == {("s", FIELDS[7])}
    assert named_fields(["arm0[0] >", "s.x + other.y > 1"], config.streams) == {("s", "x")}


def test_a_longer_name_of_a_field_than_a_message_may_contain_is_refused() -> None:
    settings(arms(1, 1), fields=["f" * ipc.MAX_NAME])
    with pytest.raises(ValueError, match="at most 256 characters"):
        settings(arms(1, 1), fields=["f" * (ipc.MAX_NAME + 1)])
