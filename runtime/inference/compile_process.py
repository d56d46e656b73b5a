"""Compile one graph and end: `python -m runtime.inference.compile_process`, with the work as JSON on standard input.

`graph_compiler.py` starts it. The graph and the choice of a backend lie in the cache folders afterwards. On an error the last
line on standard error is the reason.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import torch

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.manifest import load as load_version
from learners.checkpoints.signing import credentials_folder, load_key
from learners.checkpoints.tensors import shapes_of
from learners.config import EncoderSettings
from learners.continual.versions import TaskVersionStore
from learners.model.backends.calibration_cache import Calibrations, shared_cache
from learners.model.backends.selection import BackendSettings, NoBackend, NotCompiled
from learners.model.compiled import example_inputs
from learners.model.policy import Policy, build
from learners.model.spec import PolicySpec
from learners.reencoding.encoder_versions import find_state
from runtime.inference.compiled_policy import compile_policy
from runtime.process import child


def main() -> int:
    """Run the process; return its exit code."""
    child.set_process_title("compiler")
    work = orjson.loads(sys.stdin.buffer.read())
    settings = BackendSettings(**work["settings"])
    torch.set_num_threads(settings.threads)
    calibrations = Calibrations(Path(work["state_dir"]), settings, shared_cache())
    try:
        compile_encoder(work, calibrations) if "encoder" in work else compile_version(work, calibrations)
    except (CheckpointRefused, NoBackend, NotCompiled, OSError, ValueError, RuntimeError) as error:
        sys.stderr.write(f"{' '.join(str(error).split()) or type(error).__name__}\n")
        return 1
    return 0


def compile_version(work: Mapping[str, Any], calibrations: Calibrations) -> None:
    """Convert the fused part of a checkpoint and store the graph.

    Raises:
        CheckpointRefused: the checkpoint may not be loaded.
        NotCompiled: the graph could not be stored.
    """
    spec, state_dir = PolicySpec.from_json(work["spec"]), Path(work["state_dir"])
    public = load_key(state_dir, credentials_folder()).public_key()
    shapes = {"policy": shapes_of(Policy(spec).state_dict())}
    loaded = load_version(state_dir / "checkpoints" / work["version"], public, shapes, spec.meaning())
    policy = build(spec, loaded.tensors["policy"])
    for convert_here in (True, False):  # the second time as the agent does it: from the disk
        calibrations.convert_here = convert_here
        compile_policy(calibrations, policy, example_inputs(spec), first=False)


def compile_encoder(work: Mapping[str, Any], calibrations: Calibrations) -> None:
    """Measure and convert an encoder with the weights of a task's version.

    Raises:
        ValueError: the version is not on disk.
        NotCompiled: the graph could not be stored.
    """
    from learners.model.encoders.pretrained import load  # noqa: PLC0415 - transformers: seconds that a policy does not need

    settings, device = EncoderSettings.model_validate(work["encoder"]), torch.device("cpu")
    encoder = load(settings, work["tokens"], device, window_s=work["window_s"])
    state = find_state(settings, encoder, TaskVersionStore(Path(work["versions"])), work["encoder_version"])
    if state is None or encoder.module is None:
        raise ValueError(f"{settings.model}: version {work['encoder_version']} is not on disk")
    encoder.load_state(state)
    for convert_here in (True, False):
        calibrations.convert_here = convert_here
        calibrations.runner(encoder.module, encoder.examples(), encoder.version)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # everything is on disk; the libraries' own end takes seconds on a busy core
