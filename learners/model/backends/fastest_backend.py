"""Run a torch module on the fastest backend that computes the same numbers.

`calibrate` measures every allowed backend on inputs of real size against float32 torch. It chooses the fastest that stays
within the tolerance; `calibration_cache.py` stores the choice. A graph is converted from the live module and stored on disk, by
OpenVINO, else by ONNX Runtime (`graph_libraries.py`). bfloat16 is tried only where the processor has instructions for it. On a GPU: autocast, and CUDA graphs
(`cuda.py`).

Difference means the largest absolute difference over the largest absolute value of the reference.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor, nn

from learners.checkpoints.manifest import GraphFiles
from learners.checkpoints.sealed_folder import SealedFolder
from learners.model.backends.cuda import wait_for
from learners.model.backends.definitions import (
    FAR,
    Backend,
    BackendChoice,
    BackendSettings,
    EncoderNotCompiled,
    Measured,
    NoBackend,
    NotCompiled,
    has_bfloat16,
    processor,
    readable_graph,
)
from learners.model.backends.graph_libraries import graph_library, missing_reason
from learners.model.backends.graphs import GraphLibrary, Precision

__all__ = [
    "Backend",
    "BackendChoice",
    "BackendSettings",
    "EncoderNotCompiled",
    "Measured",
    "NoBackend",
    "NotCompiled",
    "has_bfloat16",
    "processor",
]
Inputs = tuple[Tensor, ...]
Run = Callable[..., Tensor]
REPEATS = 7


def torch_run(module: nn.Module, precision: Precision) -> Run:
    """Run eager torch on the module's device; bfloat16 by autocast, with float32 output."""
    device = next((p.device.type for p in module.parameters()), "cpu")
    if precision == "float32":
        return module

    def run(*inputs: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            out: Tensor = module(*inputs)
        return out.float()

    return run


def compare(reference: Sequence[Tensor], got: Sequence[Tensor]) -> tuple[float, float]:
    """Return the lowest cosine and the largest difference over pairs of outputs."""
    cosines, differences = [], []
    for want, have in zip(reference, got, strict=True):
        cosines.append(float(torch.cosine_similarity(want.double().flatten(), have.double().flatten(), dim=0)))
        differences.append(float((want - have).abs().max() / want.abs().max().clamp(min=1e-12)))
    # NaN must not pass a comparison with the tolerance: max() may hide it
    cosine = min(c if c == c else 0.0 for c in cosines)  # noqa: PLR0124 - NaN
    return cosine, FAR if any(d != d for d in differences) else min(FAR, max(differences))  # noqa: PLR0124 - NaN


def measure(run: Run, examples: Sequence[Inputs], reference: Sequence[Tensor]) -> tuple[float, float, float]:
    """Measure milliseconds (sum of the medians over the examples), cosine and difference."""
    milliseconds, outputs = 0.0, []
    for inputs in examples:
        outputs.append(run(*inputs))
        times: list[float] = []
        for _ in range(REPEATS):
            wait_for(inputs[0].device)
            start = time.perf_counter()
            run(*inputs)
            wait_for(inputs[0].device)
            times.append(time.perf_counter() - start)
        milliseconds += 1_000 * statistics.median(times)
    return (milliseconds, *compare(reference, outputs))


def candidates(settings: BackendSettings, device: torch.device) -> list[tuple[Backend, Precision]]:
    """List the backends that the settings and the machine allow, the reference first."""
    library = graph_library(settings.backend)
    backends: list[Backend] = [settings.backend] if settings.backend != "auto" else ["torch"]
    if settings.backend == "auto" and library is not None:
        backends.append(library.name)
    if device.type != "cpu":
        backends = ["torch"]
    allowed: list[Precision] = ["float32", "bfloat16"] if settings.precision == "auto" else [settings.precision]
    has = has_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported()

    def computes(backend: Backend, precision: Precision) -> bool:
        in_it = backend == "torch" or library is None or precision in library.precisions
        return in_it and (precision == "float32" or has)

    return [(backend, p) for backend in backends for p in allowed if computes(backend, p)]


@torch.inference_mode()
def calibrate(
    module: nn.Module,
    examples: Sequence[Inputs],
    settings: BackendSettings,
    version: str,
    folders: Sequence[SealedFolder] = (),
) -> BackendChoice:
    """Measure every candidate and choose.

    Raises:
        NoBackend: none of them runs within the tolerance.
    """
    device = examples[0][0].device
    reference = [module(*inputs) for inputs in examples]
    measured: list[Measured] = []
    for backend, precision in candidates(settings, device):
        try:
            run = build(module, examples, backend, precision, settings.threads, version, folders)
            measured.append(Measured(backend, precision, *measure(run, examples, reference)))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0][:200]
            measured.append(Measured(backend, precision, 0.0, 0.0, FAR, reason))
    good = [m for m in measured if m.difference <= settings.tolerance]
    if not good:
        found = "; ".join(
            f"{m.backend} {m.precision}: {m.failed or f'difference {m.difference:.3g}'}" for m in measured
        )
        raise NoBackend(
            f"no backend within engine.tolerance {settings.tolerance}: {found or 'none allowed'}; change engine.*"
        )
    best = min(good, key=lambda m: m.ms)
    return BackendChoice(best.backend, best.precision, tuple(measured))


def build(
    module: nn.Module,
    examples: Sequence[Inputs],
    backend: Backend,
    precision: Precision,
    threads: int,
    version: str,
    folders: Sequence[SealedFolder] = (),
    *,
    files: GraphFiles | None = None,
    convert_here: bool = True,
) -> Run:
    """Build a callable that runs the module, warmed up on every example.

    Args:
        module: what is run.
        examples: inputs of every frequent shape.
        backend: what runs it.
        precision: in which it computes.
        threads: that it uses.
        version: of its weights.
        folders: where converted graphs are stored.
        files: the converted graph, where the caller has it.
        convert_here: whether this process may convert a graph, which holds the interpreter lock for up to seconds.

    Raises:
        NotCompiled: there is no graph, and this process may not convert.
    """
    run: Run
    if backend == "torch":
        run = torch_run(module, precision)
    else:
        library = installed_library(backend)
        make = partial(library.convert, module, examples) if convert_here else partial(_missing, version)
        graph = library.graph_of(version, folders, make) if files is None else readable_graph(version, files, library)
        try:
            run = library.run(graph, precision, threads, background=not convert_here)
        except RuntimeError as error:
            if files is None:
                raise
            raise NotCompiled(f"{version}: its graph cannot be read: {error}") from None
    with torch.inference_mode():
        for inputs in examples:
            run(*inputs)
    return run


def installed_library(backend: Backend) -> GraphLibrary:
    """Return the library of this name.

    Raises:
        RuntimeError: it is not installed.
    """
    library = graph_library(backend)
    if library is None:
        raise RuntimeError(missing_reason(backend))
    return library


def _missing(version: str) -> NoReturn:
    raise NotCompiled(f"{version}: no graph of this version is on disk")
