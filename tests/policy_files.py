"""A policy as a folder without a manifest, and what it does on recorded features."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from learners.model.features import Features
from learners.model.heads import HeadOutput
from learners.model.policy import Policy, build
from learners.model.spec import PolicySpec

WEIGHTS, SPEC = "policy.safetensors", "spec.json"


def save(policy: Policy, folder: Path) -> None:
    """Write weights and spec."""
    save_file({name: x.contiguous() for name, x in policy.state_dict().items()}, folder / WEIGHTS)
    (folder / SPEC).write_bytes(policy.spec.to_json())


def load(folder: Path) -> Policy:
    """Read what `save` wrote."""
    return build(PolicySpec.from_json((folder / SPEC).read_bytes()), load_file(folder / WEIGHTS))


@torch.no_grad()
def forward_scores(policy: Policy, features: Features) -> HeadOutput:
    """What a policy does on recorded features, best actions only, without encoders."""
    return policy.act(features, generator=torch.Generator().manual_seed(0), explore=False)
