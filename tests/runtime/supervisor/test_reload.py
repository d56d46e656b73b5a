"""What a reload can change."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.config.schema import Config
from runtime.supervisor.reload import compare

LIVE = {"kind": "text-classification", "stream": "orders", "model": "m"}
RESTING = LIVE | {"stream": None}


def config(**tasks: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "agent": "a",
            "state_dir": "/var/lib/a",
            "streams": {"orders": {"kind": "text", "source": "topic", "encoder": "e"}},
            "encoders": {"e": {"model": "m"}},
            "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
            "tasks": tasks,
        }
    )


@pytest.mark.parametrize(
    ("old", "new", "required"),
    [
        (config(t=RESTING), config(t=LIVE), ["tasks"]),
        (config(t=LIVE), config(t=RESTING), ["tasks"]),
        (config(), config(t=RESTING), ["tasks"]),
        (config(t=LIVE), config(t=LIVE, u=LIVE), []),
        (config(t=RESTING), config(t=RESTING, u=RESTING), []),
    ],
)
def test_a_process_for_the_models_of_tasks_begins_and_ends_with_the_daemon(
    old: Config, new: Config, required: list[str]
) -> None:
    changes = compare(old, new)
    assert (changes.changed, changes.restart_required) == (["tasks"], required)
