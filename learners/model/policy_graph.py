"""Convert a policy to the graph that the agent acts on: flat arguments, a digest of the weights, and a comparison with torch.

The learner converts a candidate here and stores the graph in its checkpoint. The agent reads the graph, so that it converts
nothing while it acts.

Shapes: B batch, S streams, K tokens of all streams, F telemetry numbers, D state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from learners.checkpoints.manifest import GraphFiles
from learners.model.backends.checkpoint_graph import DOCUMENT, POLICY, GraphNote, digest_of
from learners.model.backends.fastest_backend import Inputs, Run, compare, has_bfloat16, processor
from learners.model.backends.graphs import GraphLibrary
from learners.model.features import Features
from learners.model.fusion import MAX_AGE_S, masked
from learners.model.normalizer import CLIP, UNSEEN
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


class GroupedPolicyModule(nn.Module):
    """`FlatPolicyModule` of a policy in `eval()`, with the telemetry streams of one width as one batch of matrices.

    A graph has about fifty nodes for each stream that runs alone. A house has hundreds of sensors, and each node costs microseconds.
    It computes what the policy computes, but for rounding. Its graph is that of `joined`.

    Args:
        policy: the weights, which must not change afterwards.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.joined = JoinedPolicyModule(policy)
        self.inputs = policy.spec.graph_inputs()
        """For each argument of `joined`, the arguments of this module that it joins."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the state [B, D]."""
        return self.joined(*(torch.cat([inputs[i] for i in places], dim=1) for places in self.inputs))  # type: ignore[no-any-return]


class JoinedPolicyModule(nn.Module):
    """`GroupedPolicyModule` with one array [B, G, W] of each group of telemetry streams as arguments, then the tokens of the others.

    A graph takes microseconds to be handed an input, however short it is.

    Args:
        policy: the weights, which must not change afterwards.
    """

    tokens: Tensor
    """The places of the tokens in the order of the spec, K."""
    numbers: Tensor
    """The places of the telemetry numbers in the order of the spec, F."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        assert policy.fusion is not None
        self.policy, streams = policy, policy.spec.streams
        self.counts = [stream.tokens for stream in streams]
        places = policy.spec.telemetry_groups()
        self.groups = nn.ModuleList(_TelemetryGroup(policy, group) for group in places)
        order = [i - 2 for joined in policy.spec.graph_inputs()[2:] for i in joined]
        self.alone = order[sum(map(len, places)) :]
        self.register_buffer("tokens", _sorted_places(order, dict(enumerate(self.counts))), persistent=False)
        widths = {s: stream.width for s, stream in enumerate(streams) if stream.modality == "telemetry"}
        self.register_buffer("numbers", _sorted_places([s for s in order if s in widths], widths), persistent=False)

    def forward(self, present_BS: Tensor, ages_BS: Tensor, *inputs: Tensor) -> Tensor:
        """Return the state [B, D]."""
        fusion, streams = self.policy.fusion, self.policy.spec.streams
        assert fusion is not None
        count = len(self.groups)
        made = [group(present_BS, ages_BS, x) for group, x in zip(self.groups, inputs[:count], strict=True)]
        adapted, numbers = [one[0] for one in made], [one[1] for one in made]
        for s, tokens in zip(self.alone, inputs[count:], strict=True):
            here_B = present_BS[:, s]
            adapted.append(fusion.adapters[s](tokens, here_B, ages_BS[:, s]) + fusion.streams[s])
            if streams[s].modality == "telemetry":
                normal = fusion.adapters[s].normalise(masked(tokens, here_B))  # type: ignore[operator]
                numbers.append(masked(normal, here_B).flatten(1))
        x_BKD = torch.cat(adapted, dim=1).index_select(1, self.tokens)
        raw_BF = torch.cat(numbers, dim=1).index_select(1, self.numbers)
        fused_BD = fusion.how(torch.split(x_BKD, self.counts, dim=1), present_BS)
        return torch.cat((fused_BD, raw_BF), dim=-1)


class _TelemetryGroup(nn.Module):
    """Telemetry streams of one width; G streams in the group, W their width."""

    def __init__(self, policy: Policy, places: Sequence[int]) -> None:
        super().__init__()
        fusion: Any = policy.fusion
        adapters = [fusion.adapters[s] for s in places]
        stacked = {
            "index": torch.tensor(list(places)),
            "seen": torch.stack([one.normalise.count > 0 for one in adapters])[:, None],
            "count": torch.stack([one.normalise.count for one in adapters])[:, None],
            "mean": torch.stack([one.normalise.mean for one in adapters]),
            "scatter": torch.stack([one.normalise.scatter for one in adapters]),
            "eps": adapters[0].normalise.eps,
            "resolution": adapters[0].normalise.resolution,
            "weight": torch.stack([one.project.weight.T for one in adapters]),
            "bias": torch.stack([one.project.bias + one.place[0] + one.age.bias for one in adapters])
            + fusion.streams[list(places)],
            "age": torch.stack([one.age.weight.T for one in adapters]),
        }
        for name, values in stacked.items():
            self.register_buffer(name, values.detach().clone(), persistent=False)

    def forward(self, present_BS: Tensor, ages_BS: Tensor, x_BGW: Tensor) -> tuple[Tensor, Tensor]:
        """Return adapted tokens [B, G, D] and normalised numbers [B, G W]."""
        b: Any = self
        present_BG1 = present_BS.index_select(1, b.index)[..., None]
        x_BGW = torch.where(present_BG1, x_BGW, torch.zeros_like(x_BGW))
        var_GW = torch.where(b.seen, b.scatter / b.count.clamp(min=1).to(x_BGW.dtype), torch.ones_like(b.scatter))
        deviation_GW = (var_GW + (b.eps + (b.resolution * b.mean).square())).sqrt()
        normal_BGW = ((x_BGW - b.mean) / deviation_GW).clamp(-CLIP, CLIP)
        normal_BGW = torch.where(b.seen, normal_BGW, x_BGW.clamp(-UNSEEN, UNSEEN))
        ages_BG1 = ages_BS.index_select(1, b.index)[..., None]
        ages_BG1 = torch.where(present_BG1, ages_BG1, torch.zeros_like(ages_BG1)).clamp(0.0, MAX_AGE_S)
        ages_BG2 = torch.cat((ages_BG1.log1p(), torch.exp(-ages_BG1)), dim=-1)
        adapted_BGD = (normal_BGW[:, :, None] @ b.weight + ages_BG2[:, :, None] @ b.age).squeeze(2) + b.bias
        return adapted_BGD, torch.where(present_BG1, normal_BGW, torch.zeros_like(normal_BGW)).flatten(1)


def _sorted_places(order: Sequence[int], counts: Mapping[int, int]) -> Tensor:
    """Return where the items of each stream lie that are concatenated in `order`, in the order of the streams."""
    begins, begin = dict[int, int](), 0
    for stream in order:
        begins[stream], begin = begin, begin + counts[stream]
    return torch.tensor([begins[stream] + item for stream in sorted(order) for item in range(counts[stream])])


def module_of(policy: Policy) -> nn.Module:
    """Return the module that backends convert for a policy in `eval()`, which must not change afterwards.

    Modules of one `structure` differ in their weights alone.
    """
    grouped = bool(policy.spec.telemetry_groups())
    module: Any = GroupedPolicyModule(policy) if grouped else FlatPolicyModule(policy)
    spec = policy.spec
    module.structure = repr(
        (spec.streams, spec.fusion, spec.width, spec.latents, spec.layers, spec.heads, spec.history)
    )
    made: nn.Module = module.eval()
    return made


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
    policy: Policy, windows: Sequence[Window], library: GraphLibrary, *, threads: int, tolerance: float
) -> tuple[GraphFiles, dict[str, Any]]:
    """Convert the fused part of a policy on the CPU; return the graph and its `GraphNote` as JSON.

    Args:
        policy: the weights, in `eval()` on the CPU.
        windows: recorded observations, of `history` ticks each.
        library: with which the agent runs graphs.
        threads: of inference.
        tolerance: of continuous actuators in bfloat16, as a share of half their range.

    Raises:
        GraphDiffers: the graph does not compute torch's numbers.
        RuntimeError: the converter does not know a construct.
        OSError: temporary files cannot be written.
    """
    module, example = FlatPolicyModule(policy).eval(), example_inputs(policy.spec)
    files = library.files(library.convert(module_of(policy), [example]))
    run = library.run(library.read(files), "float32", threads)
    inputs = [example, *(flat(window[-1], policy.spec) for window in windows)]
    _, difference = compare([module(*x) for x in inputs], [run(*x) for x in inputs])
    if difference > TOLERANCE:
        raise GraphDiffers(f"the graph differs from torch by {difference:.2g}, more than {TOLERANCE:g}")
    same: dict[str, bool] = {}
    if windows and has_bfloat16() and "bfloat16" in library.precisions:
        fast = library.run(library.read(files), "bfloat16", threads)
        same[processor()] = same_decisions(policy, fast, windows, tolerance)
    return files, asdict(GraphNote(library.note, difference, same, len(windows)))


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
