"""Telemetry streams of one width as one batch of matrices compute what each stream alone computes, in torch and as a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from actuators.actions import ActionSpace, Choice
from learners.model.backends.openvino import JOINED, OpenVinoRun, convert, graph_files, read_graph
from learners.model.policy import Policy
from learners.model.policy_graph import FlatPolicyModule, example_inputs, module_of
from learners.model.spec import PolicySpec, StreamSpec

ACTIONS = ActionSpace((Choice("head", ("left", "stay", "right")),))
PICTURE, ORDER = StreamSpec("front", "image", 4, 12, columns=2), StreamSpec("orders", "text", 1, 8)
NUMBERS = [StreamSpec(f"s{i}", "telemetry", 1, width) for i, width in enumerate((3, 2, 3, 5, 3, 2))]


def policy_of(fusion: Any) -> Policy:
    """A policy with random weights and statistics; its telemetry lies between the other streams."""
    streams = (NUMBERS[0], PICTURE, NUMBERS[1], NUMBERS[2], ORDER, *NUMBERS[3:])
    torch.manual_seed(3)
    policy = Policy(PolicySpec(streams=streams, actions=ACTIONS, fusion=fusion, width=16, latents=3, heads=2)).eval()
    for name, normaliser in policy.normalisers().items():
        if name != "s2":  # one that has seen nothing
            normaliser.observe(torch.randn(50, len(normaliser.mean)) * 3 + 1)
    return policy


@pytest.mark.parametrize("fusion", ["latent-attention", "low-rank-bilinear"])
@torch.inference_mode()
def test_grouped_streams_compute_what_single_ones_do(fusion: str) -> None:
    policy = policy_of(fusion)
    assert policy.spec.telemetry_groups() == [[0, 3, 6], [2, 7]]
    exact, grouped, example = FlatPolicyModule(policy).eval(), module_of(policy), example_inputs(policy.spec)
    run = OpenVinoRun(convert(grouped, example), "float32", 1)
    count = len(policy.spec.streams)
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        present = torch.rand(1, count, generator=generator) > 0.3
        ages = torch.rand(1, count, generator=generator) * 100
        ages[~present] = float("inf")
        tokens = [torch.randn(x.shape, generator=generator) * 4 for x in example[2:]]
        tokens[0][:] = torch.where(present[0, 0], tokens[0], torch.nan)  # what is missing has no part in it
        wanted = exact(present, ages, *tokens)
        assert torch.isfinite(wanted).all()
        for found in (grouped(present, ages, *tokens), run(present, ages, *tokens)):
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_an_array_that_comes_again_counts_as_it_is_now() -> None:
    """Readings of slow sensors are the same arrays for many ticks; others change, and some are changed in place."""
    policy = policy_of("latent-attention")
    example = example_inputs(policy.spec)
    lasting, fresh = (OpenVinoRun(convert(module_of(policy), example), "float32", 1) for _ in range(2))
    rng, count = np.random.default_rng(0), len(policy.spec.streams)
    arrays = [np.ones((1, count), bool), np.full((1, count), 0.1, np.float32), *(x.numpy().copy() for x in example[2:])]
    before = None
    for tick in range(30):
        for place in rng.choice(np.arange(2, len(arrays)), 2, replace=False):
            changed = rng.normal(size=arrays[place].shape).astype(np.float32)
            if tick % 3:
                arrays[place] = changed
            else:
                arrays[place][:] = changed
        found, wanted = lasting.arrays(*arrays), fresh.arrays(*(x.copy() for x in arrays))
        assert np.array_equal(found, wanted), tick
        assert before is None or not np.array_equal(found, before)
        before = found


def test_streams_of_different_widths_run_alone() -> None:
    policy = Policy(PolicySpec(streams=(NUMBERS[0], NUMBERS[1], ORDER), actions=ACTIONS))
    assert isinstance(module_of(policy), FlatPolicyModule)
    assert policy.spec.graph_inputs() == [[0], [1], [2], [3], [4]]


@torch.inference_mode()
def test_a_stored_graph_takes_each_group_as_one_array_and_an_older_one_each_stream() -> None:
    policy = policy_of("latent-attention")
    example = example_inputs(policy.spec)
    graph = read_graph(graph_files(convert(module_of(policy), example)))
    assert policy.spec.graph_inputs() == [[0], [1], [2, 5, 8], [4, 9], [3], [6], [7]]
    assert len(graph.inputs) == 7
    older = read_graph(graph_files(convert(FlatPolicyModule(policy).eval(), example)))
    assert len(older.inputs) == len(example) == 10
    now, before = OpenVinoRun(graph, "float32", 1), OpenVinoRun(older, "float32", 1)
    assert torch.allclose(now(*example), before(*example), rtol=1e-4, atol=1e-5)
    for run in (now, before):
        with pytest.raises(RuntimeError, match=r"takes (7|10) inputs, not 9"):
            run(*example[:-1])


@pytest.mark.parametrize("text", ["", "0,1,x", "0,1,2+2,3,4,5,6", "0,1,3", "-1,0,1", "0,,1"])
@torch.inference_mode()
def test_a_graph_that_joins_in_an_unknown_way_is_refused(text: str) -> None:
    graph = convert(torch.nn.Linear(4, 3).eval(), (torch.ones(1, 4),))
    graph.set_rt_info(text, JOINED)
    with pytest.raises(RuntimeError, match="unknown way"):
        OpenVinoRun(graph, "float32", 1)
