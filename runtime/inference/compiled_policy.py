"""Compile the fused part of a policy for its fastest backend, and cache the graphs of the last few weights on disk.

Which backend is fastest depends on shapes alone and is calibrated once for a spec; the converted graph depends on the weights.
Converting takes up to a second, so graphs are cached, and a restart with the live weights converts nothing. The graph of the
initial weights is cached for all daemons of this user. The graphs of checkpoints are cached in `state_dir` until `MAX_GRAPHS`
newer ones were used.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import torch

from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.selection import Choice, Inputs, Run, build, calibrate
from learners.model.policy import Policy
from runtime.inference.decision import FlatPolicyModule

MAX_GRAPHS = 3
"""Graphs of checkpoints on disk: the live one, the one before it, and one that was rolled back."""
FIRST, LATER = "untrained", "policy"


def compile_policy(calibrations: Calibrations, policy: Policy, example: Inputs, *, first: bool) -> tuple[Run, Choice]:
    """Compile `Policy.estimate`; return a callable and the backend that runs it.

    Args:
        calibrations: stores choices and names the cache folders.
        policy: the weights.
        example: one input of every kind, on the policy's device.
        first: these are the weights a daemon starts with.

    Raises:
        NoBackend: none of them runs within the tolerance.
    """
    module, examples, settings = FlatPolicyModule(policy).eval(), [example], calibrations.settings
    shape = hashlib.sha256(policy.spec.to_json()).hexdigest()[:16]
    version = f"{FIRST if first else LATER}-{digest(policy)}"
    device = example[0].device
    choice, folders = calibrations.recall(shape, device), calibrations.folders(shared=first)
    if choice is None:
        choice = calibrate(module, examples, settings, version, folders)
        calibrations.remember(shape, device, choice)
    run = build(module, examples, choice.backend, choice.precision, settings.threads, version, folders)
    if not first:
        for folder in folders:
            _prune(folder)
    return run, choice


def digest(policy: Policy) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 over the spec and every weight by name."""
    found = hashlib.sha256(policy.spec.to_json())
    for name, tensor in sorted(policy.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def _prune(folder: Path) -> None:
    """Delete all graphs but those used last."""
    known = sorted(folder.glob(f"{LATER}-*-ov*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in known[MAX_GRAPHS:]:
        shutil.rmtree(old)
