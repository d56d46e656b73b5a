"""Run a torch module on the fastest backend that computes the same numbers.

`calibrate` measures every allowed backend on inputs of real size against float32 torch. It chooses the fastest that stays
within the tolerance; `calibration_cache.py` stores the choice. OpenVINO's graph is converted from the live module and stored
on disk (`openvino.py`). bfloat16 is tried only where the processor has instructions for it. On a GPU: autocast, and CUDA graphs
(`cuda.py`).

Difference means the largest absolute difference over the largest absolute value of the reference.
"""

from __future__ import annotations

import hashlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from learners.checkpoints.manifest import GraphFiles
from learners.model.backends.openvino import (
    OpenVinoRun,
    Precision,
    bfloat16_capable,
    convert,
    graph_of,
    read_graph,
)

Backend = Literal["torch", "openvino"]
Inputs = tuple[Tensor, ...]
Run = Callable[..., Tensor]
REPEATS = 7
FAR = 1e30
"""The difference of what did not run or was not a number; JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement of a backend on a module: median milliseconds, and the distance from float32 torch."""

    backend: Backend
    precision: Precision
    ms: float
    cosine: float
    difference: float
    failed: str = ""
    """Why it could not run; empty where it did."""


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """The settings under `engine`."""

    backend: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 1
    tolerance: float = 0.02


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """The backend chosen for a module, and all measurements."""

    backend: Backend
    precision: Precision
    measured: tuple[Measured, ...]


class NoBackend(ValueError):  # noqa: N818 - reads as what happened
    """The required backend cannot run the module or exceeds the tolerance; `str` has the numbers."""


class NotCompiled(Exception):  # noqa: N818 - reads as what happened
    """No graph or no choice of a backend is on disk, and this process does not convert; `str` says of what."""


class EncoderNotCompiled(NotCompiled):
    """The same of an encoder: its name in the settings, and its version."""

    def __init__(self, name: str, version: str, reason: str) -> None:
        super().__init__(f"encoder {name}: {reason}")
        self.name, self.version = name, version


def processor() -> str:
    """Describe the processor: model name, a digest of its instructions, and whether it computes in bfloat16."""
    path = Path("/proc/cpuinfo")
    facts = dict(_field(line) for line in reversed(path.read_text().splitlines())) if path.is_file() else {}
    flags = hashlib.sha256(" ".join(sorted(facts.get("flags", "").split())).encode()).hexdigest()[:8]
    return f"{facts.get('model name') or platform.processor()} {flags} bf16={int(has_bfloat16())}"


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def has_bfloat16() -> bool:
    """Return whether the processor has bfloat16 instructions (avx512_bf16 or amx)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bfloat16_capable()


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
            start = time.perf_counter()
            run(*inputs)
            times.append(time.perf_counter() - start)
        milliseconds += 1_000 * statistics.median(times)
    return (milliseconds, *compare(reference, outputs))


def candidates(settings: BackendSettings, device: torch.device) -> list[tuple[Backend, Precision]]:
    """List the backends that the settings and the machine allow, the reference first."""
    backends: list[Backend] = ["torch", "openvino"] if settings.backend == "auto" else [settings.backend]
    if device.type != "cpu":
        backends = ["torch"]
    allowed: list[Precision] = ["float32", "bfloat16"] if settings.precision == "auto" else [settings.precision]
    has = has_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported()
    return [(backend, p) for backend in backends for p in allowed if p == "float32" or has]


@torch.inference_mode()
def calibrate(
    module: nn.Module, examples: Sequence[Inputs], settings: BackendSettings, version: str, folders: Sequence[Path] = ()
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


def in_float32(choice: BackendChoice) -> BackendChoice:
    """Return the fastest backend in float32 among those measured."""
    whole = [m for m in choice.measured if m.precision == "float32" and not m.failed]
    best = min(whole, key=lambda m: m.ms, default=None)
    return replace(choice, backend="torch" if best is None else best.backend, precision="float32")


def build(
    module: nn.Module,
    examples: Sequence[Inputs],
    backend: Backend,
    precision: Precision,
    threads: int,
    version: str,
    folders: Sequence[Path] = (),
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
        make = partial(convert, module, examples[-1]) if convert_here else partial(_missing, version)
        graph = graph_of(version, folders, make) if files is None else _readable(version, files)
        run = OpenVinoRun(graph, precision, threads, background=not convert_here)
    with torch.inference_mode():
        for inputs in examples:
            run(*inputs)
    return run


def _readable(version: str, files: GraphFiles) -> Any:
    try:
        return read_graph(files)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise NotCompiled(f"{version}: its graph cannot be read: {reason}") from None


def _missing(version: str) -> NoReturn:
    raise NotCompiled(f"{version}: no graph of this version is on disk")
