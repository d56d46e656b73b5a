"""Compile the fused part of a policy for its fastest backend, and cache the graphs of the last few weights on disk.

Which backend is fastest depends on shapes alone and is calibrated once for a spec; the converted graph depends on the weights.
Converting takes up to a second, so graphs are cached, and a restart with the live weights converts nothing. The graph of the
initial weights is cached for all daemons of this user. The graphs of checkpoints are cached in `state_dir` until `MAX_GRAPHS`
newer ones were used.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.selection import Choice, Inputs, Run, build, calibrate
from learners.model.features import Features
from learners.model.policy import Policy
from runtime.inference.decision import FlatPolicyModule

MAX_GRAPHS = 3
"""Graphs of checkpoints on disk: the live one, the one before it, and one that was rolled back."""
FIRST, LATER = "untrained", "policy"
Window = Sequence[Features]
"""Features [1] of `history` consecutive ticks, oldest first."""


def compile_policy(
    calibrations: Calibrations,
    policy: Policy,
    example: Inputs,
    *,
    first: bool,
    windows: Sequence[Window] = (),
) -> tuple[Run, Choice]:
    """Compile `Policy.estimate`; return a callable and the backend that runs it.

    A reduced precision is approved for these weights alone, by decisions on recorded observations. The verdict is stored, so
    that a restart and a replay run the same precision. Without observations float32 runs.

    Args:
        calibrations: stores choices and names the cache folders.
        policy: the weights.
        example: one input of every kind, on the policy's device.
        first: these are the weights a daemon starts with.
        windows: recorded observations, of `history` ticks each.

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
    if choice.precision != "float32" and settings.precision == "auto":
        verdict = calibrations.recall(version, device)
        if verdict is None and windows:
            fast = build(module, examples, choice.backend, choice.precision, settings.threads, version, folders)
            verdict = choice if same_decisions(policy, fast, windows, settings.tolerance) else _full(choice)
            calibrations.remember(version, device, verdict)
        choice = verdict or _full(choice)
    run = build(module, examples, choice.backend, choice.precision, settings.threads, version, folders)
    if not first:
        for folder in folders:
            _prune(folder)
    return run, choice


def _full(choice: Choice) -> Choice:
    """Return the fastest backend in float32 among those measured."""
    whole = [m for m in choice.measured if m.precision == "float32" and not m.failed]
    best = min(whole, key=lambda m: m.ms, default=None)
    return replace(choice, backend="torch" if best is None else best.backend, precision="float32")


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
    names, decided = policy.spec.names, []
    for fuse in (run, exact):
        states = [fuse(tick.present, tick.ages, *(tick.tokens[name] for name in names)) for tick in window]
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
