"""Compile the fused part of a policy for its fastest backend, and cache the graphs of the last few weights on disk.

Which backend is fastest depends on shapes alone and is calibrated once for a spec; the converted graph depends on the weights.
A checkpoint of the learner carries its graph, and compiling that takes no interpreter lock. Other graphs are converted, which
takes up to a second, and cached. All daemons of this user share the graph of the initial weights. Graphs of checkpoints are in
`state_dir` until `MAX_GRAPHS` newer ones were used.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from learners.checkpoints.manifest import GraphFiles
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.checkpoint_graph import FIRST, LATER, NO_GRAPH, StoredGraph
from learners.model.backends.definitions import in_float32
from learners.model.backends.fastest_backend import BackendChoice, Inputs, NotCompiled, Run, build, calibrate
from learners.model.policy import Policy
from learners.model.policy_graph import Window, digest, module_of, same_decisions

MAX_GRAPHS = 3
"""Graphs of checkpoints on disk: the live one, the one before it, and one that was rolled back."""


def compile_policy(
    calibrations: Calibrations,
    policy: Policy,
    example: Inputs,
    *,
    first: bool,
    windows: Sequence[Window] = (),
    stored: StoredGraph = NO_GRAPH,
) -> tuple[Run, BackendChoice]:
    """Compile `Policy.estimate`; return a callable and the backend that runs it.

    A reduced precision is approved for these weights alone, by decisions on recorded observations. The verdict is stored, so
    that a restart and a replay run the same precision. Without observations float32 runs.

    Args:
        calibrations: stores choices and names the cache folders.
        policy: the weights.
        example: one input of every kind, on the policy's device.
        first: these are the weights a daemon starts with.
        windows: recorded observations, of `history` ticks each.
        stored: the graph of the checkpoint.

    Raises:
        NoBackend: none of them runs within the tolerance.
        NotCompiled: there is no graph, and this process may not convert.
    """
    module, examples, settings = module_of(policy), [example], calibrations.settings
    shape = hashlib.sha256(policy.spec.to_json()).hexdigest()[:16]
    version = f"{FIRST if first else LATER}-{digest(policy)}"
    device = example[0].device
    choice, folders = calibrations.recall(shape, device), calibrations.folders(shared=first)

    def run_of(one: BackendChoice, files: GraphFiles | None = stored.files) -> Run:
        allowed = calibrations.convert_here
        arguments = (module, examples, one.backend, one.precision, settings.threads, version, folders)
        try:
            return build(*arguments, files=files, convert_here=allowed)
        except NotCompiled:
            if files is None or not allowed:
                raise
            return run_of(one, None)

    if choice is None:
        if not calibrations.convert_here:
            raise NotCompiled(f"{version}: no choice of a backend is stored")
        choice = calibrate(module, examples, settings, version, folders)
        calibrations.remember(shape, device, choice)
    if choice.precision != "float32" and settings.precision == "auto":
        verdict = stored.same_decisions
        if verdict is None:
            verdict = _remembered(calibrations, policy, version, choice, windows, run_of)
        choice = choice if verdict else in_float32(choice)
    run = run_of(choice)
    if not first:
        for folder in folders:
            _prune(folder.path)
    return run, choice


def _remembered(
    calibrations: Calibrations,
    policy: Policy,
    version: str,
    choice: BackendChoice,
    windows: Sequence[Window],
    run_of: Callable[[BackendChoice], Run],
) -> bool:
    """Return whether these weights may run in the reduced precision of `choice`, by a stored verdict or by the windows."""
    device = windows[0][0].present.device if windows else torch.device("cpu")
    known = calibrations.recall(version, device)
    if known is None and windows and calibrations.convert_here:
        same = same_decisions(policy, run_of(choice), windows, calibrations.settings.tolerance)
        known = choice if same else in_float32(choice)
        calibrations.remember(version, device, known)
    return known is not None and known.precision == choice.precision


def _prune(folder: Path) -> None:
    """Delete all graphs but those used last."""
    with suppress(OSError):  # another process prunes too, or the folder cannot be written
        known = sorted(folder.glob(f"{LATER}-*-o*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in known[MAX_GRAPHS:]:
            shutil.rmtree(old)
