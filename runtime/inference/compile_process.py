"""Compile graphs and end: `python -m runtime.inference.compile_process`, with work as lines of JSON on standard input.

`graph_compiler.py` starts it while the agent acts, `graph_store.py` before. Graphs and choices of backends lie in the cache
folders afterwards. Each line is answered on standard output by `{"error": reason}`, empty without one. On an error the last line
on standard error is the reason too.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from learners.checkpoints.manifest import load as load_version
from learners.checkpoints.safetensors_torch import pack, shapes_of
from learners.checkpoints.signing import credentials_folder, load_key
from learners.config.policy import EncoderSettings
from learners.model.backends.calibration_cache import Calibrations, shared_cache
from learners.model.backends.fastest_backend import BackendSettings
from learners.model.policy import Policy, build
from learners.model.policy_graph import example_inputs
from learners.model.spec import PolicySpec
from learners.reencoding.encoder_versions import find_state
from learners.task_serving.versions import TaskVersionStore
from runtime.inference.compiled_policy import compile_policy
from runtime.inference.graph_store import (
    FILTERS,
    FOLDER,
    TOKENIZER,
    WEIGHTS,
    EncoderRecord,
    NotPrepared,
    record_file,
    write_sealed,
)
from runtime.inference.torch_engine import untrained
from runtime.process import child


def main() -> int:
    """Run the process; return its exit code."""
    child.set_process_title("compiler")
    code = 0
    for line in sys.stdin.buffer:
        reason = _done(orjson.loads(line))
        code = 1 if reason else 0
        if reason:
            sys.stderr.write(f"{reason}\n")
        with suppress(BrokenPipeError):
            sys.stdout.buffer.write(orjson.dumps({"error": reason}) + b"\n")
            sys.stdout.flush()
    return code


def _done(work: Mapping[str, Any]) -> str:
    """Do one piece of work; return why it failed, or nothing."""
    settings = BackendSettings(**work["settings"])
    torch.set_num_threads(settings.threads)
    shared = Path(work["shared"]) if "shared" in work else shared_cache()
    spare = None if work.get("spare") is None else Path(work["spare"])
    calibrations = Calibrations(Path(work["state_dir"]), settings, shared, spare=spare)
    kinds = {"encoder": prepare_encoder, "untrained": prepare_untrained}
    try:
        if "prepare" in work:
            kinds[work["prepare"]](work, calibrations)
        elif "encoder" in work:
            compile_encoder(work, calibrations)
        else:
            compile_version(work, calibrations)
    except Exception as error:  # noqa: BLE001 - whatever a library raises on a model is the answer
        text = " ".join(str(error).split())
        return (
            text if text and not isinstance(error, LookupError) else f"{type(error).__name__}: {text}"
        )  # of one, the text is a key
    return ""


def prepare_encoder(work: Mapping[str, Any], calibrations: Calibrations) -> None:
    """Measure and convert a pretrained encoder, and describe it.

    Raises:
        NotPrepared: it has a form that only torch runs.
        NoBackend: its graph differs too much from torch.
        OSError: the model cannot be read, or nothing can be written.
    """
    from learners.model.encoders.pretrained import load  # noqa: PLC0415 - transformers: seconds that a policy does not need

    settings = EncoderSettings.model_validate(work["encoder"])
    encoder = load(settings, work["tokens"], torch.device("cpu"), window_s=work["window_s"])
    record, files = described(encoder)
    assert encoder.module is not None
    calibrations.runner(encoder.module, encoder.examples(), encoder.version, shared=True)
    write_sealed(calibrations.sealed(FOLDER, shared=True), work["key"], files | record_file(record))


def described(encoder: Any) -> tuple[EncoderRecord, dict[str, bytes]]:
    """Return the description of an encoder and the files that reading its inputs needs.

    Raises:
        NotPrepared: it has a form that only torch runs.
    """
    from learners.model.encoders.pretrained import AudioEncoder, LanguageEncoder, VisionEncoder  # noqa: PLC0415 - as above

    base = EncoderRecord("", encoder.modality, encoder.version, encoder.tokens, encoder.width, encoder.tokens)
    if isinstance(encoder, VisionEncoder):
        return replace(base, kind="picture", columns=encoder.columns, size=encoder.size, flips=encoder.flips), {}
    if isinstance(encoder, AudioEncoder):
        if encoder.mel is None:
            return replace(base, kind="waveform", samples=encoder.samples, normalises=encoder.normalises), {}
        buffer = io.BytesIO()
        np.save(buffer, encoder.mel.filters.numpy())
        return replace(base, kind="mel", samples=encoder.samples), {FILTERS: buffer.getvalue()}
    if isinstance(encoder, LanguageEncoder) and hasattr(encoder.tokenizer, "backend_tokenizer"):
        content = encoder.tokenizer.backend_tokenizer.to_str().encode()
        pad = int(encoder.tokenizer.pad_token_id or 0)
        return replace(base, kind="text", limit=encoder.limit, pad=pad), {TOKENIZER: content}
    raise NotPrepared(f"{type(encoder).__name__} has no form without torch")


def prepare_untrained(work: Mapping[str, Any], calibrations: Calibrations) -> None:
    """Store the untrained weights of a spec, and convert their fused part.

    Raises:
        NoBackend: its graph differs too much from torch.
        OSError: nothing can be written.
    """
    spec = PolicySpec.from_json(work["spec"])
    policy = untrained(spec, work["seed"])
    if not spec.plain:
        compile_policy(calibrations, policy, example_inputs(spec), first=True)
    write_sealed(calibrations.sealed(FOLDER, shared=True), work["key"], {WEIGHTS: pack(policy.state_dict())})


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
