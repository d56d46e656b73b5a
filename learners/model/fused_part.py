"""The fused part of a policy as backends compile it: flat arguments, a digest of its weights, graphs, and a comparison of decisions.

The learner converts a candidate here and stores the graph in its checkpoint. The agent reads the graph, so that it converts
nothing while it acts.

Shapes: B batch, S streams, D state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from learners.checkpoints.manifest import GraphFiles
from learners.model.backends.checkpoint_graph import DOCUMENT, POLICY, GraphNote, digest_of
from learners.model.backends.openvino import LIBRARY, OpenVinoRun, convert, graph_files, read_graph
from learners.model.backends.selection import Inputs, Run, compare, has_bfloat16, processor
from learners.model.features import Features
from learners.model.policy import Policy
from learners.model.spec import PolicySpec

__all__ = ["DOCUMENT", "POLICY", "Inputs"]

TOLERANCE = 1e-3
"""Largest difference of a graph in float32 from torch, over the largest absolute value of the state."""
Window = Sequence[Features]
"""Features [1] of `history` consecutive ticks, oldest first."""


class GraphDiffers(ValueError):  # noqa: N818 - reads as what happened
    """A converted graph does not compute what torch computes; `str` has the numbers."""


class FlatPolicyModule(nn.Module):
    """`Policy.estimate` with flat arguments, the form that backends convert and capture."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, present_BS: Tensor, ages_BS: Tensor, *tokens: Tensor) -> Tensor:
        """Return the state [B, D]."""
        return self.policy.estimate(list(tokens), present_BS, ages_BS)


def example_inputs(spec: PolicySpec) -> Inputs:
    """Return one input of every kind, B = 1, on the CPU; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(1, s.tokens, s.width, generator=generator) for s in spec.streams]
    count = len(spec.streams)
    return (torch.ones(1, count, dtype=torch.bool), torch.full((1, count), 0.1), *tokens)


def flat(features: Features, spec: PolicySpec) -> Inputs:
    """Return features [B] as the arguments of `FlatPolicyModule`."""
    return (features.present, features.ages, *(features.tokens[name] for name in spec.names))


@torch.inference_mode()
def compile_for_checkpoint(
    policy: Policy, windows: Sequence[Window], *, threads: int, tolerance: float
) -> tuple[GraphFiles, dict[str, Any]]:
    """Convert the fused part of a policy on the CPU; return the graph and its `GraphNote` as JSON.

    Args:
        policy: the weights, in `eval()` on the CPU.
        windows: recorded observations, of `history` ticks each.
        threads: of inference.
        tolerance: of continuous actuators in bfloat16, as a share of half their range.

    Raises:
        GraphDiffers: the graph does not compute torch's numbers.
        RuntimeError: the converter does not know a construct.
        OSError: temporary files cannot be written.
    """
    module, example = FlatPolicyModule(policy).eval(), example_inputs(policy.spec)
    files = graph_files(convert(module, example))
    run = OpenVinoRun(read_graph(files), "float32", threads)
    inputs = [example, *(flat(window[-1], policy.spec) for window in windows)]
    _, difference = compare([module(*x) for x in inputs], [run(*x) for x in inputs])
    if difference > TOLERANCE:
        raise GraphDiffers(f"the graph differs from torch by {difference:.2g}, more than {TOLERANCE:g}")
    same: dict[str, bool] = {}
    if windows and has_bfloat16():
        fast = OpenVinoRun(read_graph(files), "bfloat16", threads)
        same[processor()] = same_decisions(policy, fast, windows, tolerance)
    return files, asdict(GraphNote(LIBRARY, difference, same, len(windows)))


@torch.inference_mode()
def same_decisions(policy: Policy, run: Run, windows: Sequence[Window], tolerance: float) -> bool:
    """Return whether greedy decisions are those of float32 torch.

    Args:
        policy: the weights.
        run: computes a state from flat inputs, in the precision in question.
        windows: recorded observations, of `history` ticks each.
        tolerance: of continuous actuators, as a share of half their range; a choice may never differ.
    """
    exact = FlatPolicyModule(policy).eval()
    return all(_agree(policy, run, exact, window, tolerance) for window in windows)


def _agree(policy: Policy, run: Run, exact: Run, window: Window, tolerance: float) -> bool:
    decided = []
    for fuse in (run, exact):
        states = [fuse(*flat(tick, policy.spec)) for tick in window]
        context_BC = policy.context(torch.stack(states, dim=1))
        generator = torch.Generator(context_BC.device).manual_seed(0)
        decided.append(policy.heads.act(context_BC, generator=generator, explore=False).values)
    reduced, full = decided
    for actuator in policy.spec.actions.choices:
        if not torch.equal(reduced[actuator.name], full[actuator.name]):
            return False
    for motion in policy.spec.actions.continuous:
        reach_A = (torch.tensor(motion.high) - torch.tensor(motion.low)).to(full[motion.name].device) / 2
        if bool(((reduced[motion.name] - full[motion.name]).abs() > tolerance * reach_A).any()):
            return False
    return True


def digest(policy: Policy) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 over the spec and every weight by name."""
    weights = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in policy.state_dict().items()}
    return digest_of(policy.spec.to_json(), weights)
