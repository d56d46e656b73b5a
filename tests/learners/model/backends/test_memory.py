"""Converting a policy again and again, as a daemon does that learns for months, costs no memory."""

from __future__ import annotations

import gc

import psutil
import torch

from actuators.actions import ActionSpace, Choice
from learners.model.backends.openvino import OpenVinoRun, convert
from learners.model.policy import Policy
from learners.model.policy_graph import FlatPolicyModule
from learners.model.spec import PolicySpec, StreamSpec

ROUNDS, MEGABYTES = 12, 3.0
"""Stored traces would cost 12 MB each here."""


def test_weights_that_change_leave_nothing_behind() -> None:
    streams = (StreamSpec("front", "image", 49, 64, 7), StreamSpec("orders", "text", 1, 32))
    torch.manual_seed(0)
    policy = Policy(
        PolicySpec(streams, ActionSpace((Choice("head", ("left", "right")),)), width=32, hidden=(32,))
    ).eval()
    example = (
        torch.ones(1, 2, dtype=torch.bool),
        torch.full((1, 2), 0.1),
        torch.randn(1, 49, 64),
        torch.randn(1, 1, 32),
    )
    outputs, sizes = [], []
    for _ in range(ROUNDS):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.01)
        run = OpenVinoRun(convert(FlatPolicyModule(policy), example), "float32", 1)
        with torch.inference_mode():
            outputs.append(run(*example))
            assert torch.allclose(outputs[-1], FlatPolicyModule(policy)(*example), atol=1e-2)
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss / 1e6)
    assert not torch.equal(outputs[0], outputs[-1])
    assert sizes[-1] - sizes[2] < MEGABYTES, sizes
