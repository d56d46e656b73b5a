"""Runs a torch module on the fastest backend that gives the same numbers.

`calibrate` measures every allowed backend on real-sized inputs against float32 torch and keeps the fastest whose tokens stay
within the tolerance; `calibrations.py` remembers what it found. OpenVINO's graph is converted from the live module and kept on
disk, because converting takes seconds. bfloat16 is tried only where the processor has instructions for it. On a GPU: autocast,
and CUDA graphs.

Difference means the largest absolute difference over the largest absolute value of the reference.
"""

# torch.cuda is typed in parts only
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

# None makes openvino use its own silent stub: the real one reports every use to its maker, from a fork of this process
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402 - after the line above

Backend = Literal["torch", "openvino"]
Precision = Literal["float32", "bfloat16"]
Inputs = tuple[Tensor, ...]
Run = Callable[..., Tensor]
REPEATS = 7
FAR = 1e30
"""The difference of what did not run or was not a number; JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One backend on one module: milliseconds (median), and how far from float32 torch."""

    backend: Backend
    precision: Precision
    ms: float
    cosine: float
    difference: float
    failed: str = ""
    """Why it could not run; empty where it did."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The settings under `engine`."""

    backend: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 1
    tolerance: float = 0.02


@dataclass(frozen=True, slots=True)
class Choice:
    """What will run a module, and everything that was measured."""

    backend: Backend
    precision: Precision
    measured: tuple[Measured, ...]


class NoBackend(ValueError):  # noqa: N818 - reads as what happened
    """The wanted backend cannot run the module or leaves the tolerance; `str` has the numbers."""


def processor() -> str:
    """The processor's model name, a digest of the instructions it has, and whether it computes in bfloat16."""
    path = Path("/proc/cpuinfo")
    told = dict(_field(line) for line in reversed(path.read_text().splitlines())) if path.is_file() else {}
    flags = hashlib.sha256(" ".join(sorted(told.get("flags", "").split())).encode()).hexdigest()[:8]
    return f"{told.get('model name') or platform.processor()} {flags} bf16={int(has_bfloat16())}"


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def has_bfloat16() -> bool:
    """Whether the processor has bfloat16 instructions (avx512_bf16 or amx)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and "BF16" in _core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    )


_CORES: list[Any] = []


def _core() -> Any:
    """OpenVINO's core, made at first use: loading its plugins takes a while."""
    if not _CORES:
        _CORES.append(openvino.Core())
    return _CORES[0]


def torch_run(module: nn.Module, precision: Precision) -> Run:
    """Eager torch, on the module's device; bfloat16 by autocast, the output float32 again."""
    device = next((p.device.type for p in module.parameters()), "cpu")
    if precision == "float32":
        return module

    def run(*inputs: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            out: Tensor = module(*inputs)
        return out.float()

    return run


class OpenVinoRun:
    """A compiled OpenVINO graph called like the module it came from; not safe for two threads at once."""

    def __init__(self, graph: Any, precision: Precision, threads: int) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the learner and the broker need the cores too
        }
        self._compiled = _core().compile_model(graph, "CPU", options)
        self._request = self._compiled.create_infer_request()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run on the inputs' own memory; the output is a copy."""
        held = [tensor.contiguous() for tensor in inputs]  # the request reads them without a copy
        for i, tensor in enumerate(held):
            self._request.set_input_tensor(i, openvino.Tensor(tensor.numpy(), shared_memory=True))
        self._request.infer()
        return torch.from_numpy(self._request.get_output_tensor(0).data.copy())


def convert(module: nn.Module, example: Inputs) -> Any:
    """The module as an OpenVINO graph with free batch and length.

    Raises:
        RuntimeError: a construct the converter does not know.
    """
    # the converter of OpenVINO 2026 traces with what torch 2.13 calls deprecated; the two are pinned together
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return openvino.convert_model(module, example_input=tuple(torch.cat((x, x)) for x in example))
    finally:
        _forget_traces()


def _forget_traces() -> None:
    """Let go of the traced module: torch keeps every one for ever, with a type of its own (9 MB for the demo's policy)."""
    torch._C._jit_clear_class_registry()  # what torch's own tests do between two of them
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()


def graph_of(module: nn.Module, example: Inputs, version: str, folders: Sequence[Path]) -> Any:
    """The converted graph: from the first of `folders` that has it, else converted and kept in the first that can be written.

    The name it is kept under carries `version`, so a graph of other weights is never taken; one that does not read is made anew.
    """
    name = f"{version}-ov{openvino.__version__.split('-')[0]}"
    for folder in folders:
        if (graph := _read(folder / name)) is not None:
            return graph
    graph = convert(module, example)
    # read back: the first start computes with the same file as every later one
    return next((kept for folder in folders if (kept := _keep(graph, folder / name)) is not None), graph)


def _read(kept: Path) -> Any:
    """The graph in a folder; None where there is none that reads."""
    if not (kept / "graph.xml").is_file():
        return None
    with suppress(OSError):
        os.utime(kept)  # used now: the longest unused go first
    try:
        return _core().read_model(kept / "graph.xml")
    except RuntimeError:
        shutil.rmtree(kept, ignore_errors=True)
        return None


def _keep(graph: Any, target: Path) -> Any:
    """Write a graph beside its place and rename it, then read it; None where the folder cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            openvino.save_model(graph, made / "graph.xml", compress_to_fp16=False)
            if not (target / "graph.xml").is_file():  # else another process was quicker
                shutil.rmtree(target, ignore_errors=True)  # left behind half made
                made.rename(target)
    except OSError:
        return _read(target)
    return _read(target)


def compare(reference: Sequence[Tensor], got: Sequence[Tensor]) -> tuple[float, float]:
    """Lowest cosine and largest difference over pairs of outputs."""
    cosines, differences = [], []
    for want, have in zip(reference, got, strict=True):
        cosines.append(float(torch.cosine_similarity(want.double().flatten(), have.double().flatten(), dim=0)))
        differences.append(float((want - have).abs().max() / want.abs().max().clamp(min=1e-12)))
    # NaN must not pass a comparison with the tolerance: max() may hide it
    cosine = min(c if c == c else 0.0 for c in cosines)  # noqa: PLR0124 - NaN
    return cosine, FAR if any(d != d for d in differences) else min(FAR, max(differences))  # noqa: PLR0124 - NaN


def measure(run: Run, examples: Sequence[Inputs], reference: Sequence[Tensor]) -> tuple[float, float, float]:
    """Milliseconds (sum of the medians over the examples), cosine and difference."""
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


def candidates(wanted: Wanted, device: torch.device) -> list[tuple[Backend, Precision]]:
    """What the settings and the machine allow, the reference first."""
    backends: list[Backend] = ["torch", "openvino"] if wanted.backend == "auto" else [wanted.backend]
    if device.type != "cpu":
        backends = ["torch"]
    allowed: list[Precision] = ["float32", "bfloat16"] if wanted.precision == "auto" else [wanted.precision]
    has = has_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported()
    return [(backend, p) for backend in backends for p in allowed if p == "float32" or has]


@torch.inference_mode()
def calibrate(
    module: nn.Module, examples: Sequence[Inputs], wanted: Wanted, version: str, folders: Sequence[Path] = ()
) -> Choice:
    """Measure every candidate and choose.

    Raises:
        NoBackend: none of them runs within the tolerance.
    """
    device = examples[0][0].device
    reference = [module(*inputs) for inputs in examples]
    measured: list[Measured] = []
    for backend, precision in candidates(wanted, device):
        try:
            run = build(module, examples, backend, precision, wanted.threads, version, folders)
            measured.append(Measured(backend, precision, *measure(run, examples, reference)))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0][:200]
            measured.append(Measured(backend, precision, 0.0, 0.0, FAR, reason))
    good = [m for m in measured if m.difference <= wanted.tolerance]
    if not good:
        found = "; ".join(
            f"{m.backend} {m.precision}: {m.failed or f'difference {m.difference:.3g}'}" for m in measured
        )
        raise NoBackend(
            f"no backend within engine.tolerance {wanted.tolerance}: {found or 'none allowed'}; change engine.*"
        )
    best = min(good, key=lambda m: m.ms)
    return Choice(best.backend, best.precision, tuple(measured))


def build(
    module: nn.Module,
    examples: Sequence[Inputs],
    backend: Backend,
    precision: Precision,
    threads: int,
    version: str,
    folders: Sequence[Path] = (),
) -> Run:
    """Something that runs the module, warmed up on every example."""
    run: Run
    if backend == "torch":
        run = torch_run(module, precision)
    else:
        run = OpenVinoRun(graph_of(module, examples[-1], version, folders), precision, threads)
    with torch.inference_mode():
        for inputs in examples:
            run(*inputs)
    return run


class CudaGraphRun:
    """A module captured as one CUDA graph for inputs of fixed shapes (torch.cuda.CUDAGraph): one launch a call."""

    def __init__(self, module: nn.Module, example: Inputs) -> None:
        self._inputs = tuple(x.clone() for x in example)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.inference_mode():  # warm up away from the capture, as documented
            for _ in range(3):
                module(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), torch.inference_mode():
            self._output = module(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Copy in, replay, copy out."""
        for held, fresh in zip(self._inputs, inputs, strict=True):
            held.copy_(fresh, non_blocking=True)
        self._graph.replay()
        out: Tensor = self._output.clone()
        return out


def stream_of(device: torch.device) -> Any:
    """A context in which work goes to a stream of its own on a GPU; nothing on a CPU."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
