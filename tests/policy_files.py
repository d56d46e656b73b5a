"""A policy as a folder without a manifest, a copy of the one that acts, and what it does on recorded features."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from learners.model.features import Features
from learners.model.heads import HeadOutput
from learners.model.policy import Policy, build
from learners.model.spec import PolicySpec
from runtime.inference.engine import UNTRAINED
from runtime.inference.torch_engine import TorchEngine

WEIGHTS, SPEC = "policy.safetensors", "spec.json"


def save(policy: Policy, folder: Path) -> None:
    """Write weights and spec."""
    save_file({name: x.contiguous() for name, x in policy.state_dict().items()}, folder / WEIGHTS)
    (folder / SPEC).write_bytes(policy.spec.to_json())


def load(folder: Path) -> Policy:
    """Read what `save` wrote."""
    return build(PolicySpec.from_json((folder / SPEC).read_bytes()), load_file(folder / WEIGHTS))


def frozen_policy(engine: TorchEngine) -> Policy:
    """Copy the acting policy, with what it has seen of telemetry where it is untrained."""
    live = engine._live
    policy: Policy = copy.deepcopy(live.policy)
    if live.version == UNTRAINED:
        for name, rows in engine._statistics.by_stream().items():
            policy.normalisers()[name].load_state_dict({key: torch.from_numpy(x) for key, x in rows.items()})
    return policy.cpu()


@torch.no_grad()
def forward_scores(policy: Policy, features: Features) -> HeadOutput:
    """What a policy does on recorded features, best actions only, without encoders."""
    return policy.act(features, generator=torch.Generator().manual_seed(0), explore=False)
