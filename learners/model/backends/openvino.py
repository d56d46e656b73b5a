"""Convert torch modules to OpenVINO graphs, store and run them. The only importer of openvino.

Graphs are stored because a conversion takes seconds. `selection.py` decides whether a graph is fast and exact enough.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from learners.checkpoints.manifest import GraphFiles
from learners.files import new_folder

# None makes openvino use its own silent stub: the real one reports every use to its maker, from a fork of this process
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402 - after the line above

Precision = Literal["float32", "bfloat16"]
LIBRARY: str = openvino.__version__
NICE = 10
"""Of a compilation beside the ticks; the learner has more."""


_CORES: list[Any] = []


def _core() -> Any:
    """Return OpenVINO's core, created at first use, because loading its plugins is slow."""
    if not _CORES:
        _CORES.append(openvino.Core())
    return _CORES[0]


def bfloat16_capable() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this processor."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoRun:
    """A compiled OpenVINO graph with the call of its module; not safe for two threads at once.

    Args:
        graph: as OpenVINO reads or converts it.
        precision: in which it computes.
        threads: of inference.
        background: compile at low priority. Python itself should not run at low priority beside a tick: it holds the
            interpreter lock while other processes have the core.
    """

    def __init__(self, graph: Any, precision: Precision, threads: int, *, background: bool = False) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the learner and the broker need the cores too
        }
        if background:  # this thread waits without the interpreter lock, at its own priority
            with ThreadPoolExecutor(1, "compile", _lower_priority) as thread:
                self._compiled = thread.submit(_core().compile_model, graph, "CPU", options).result()
        else:
            self._compiled = _core().compile_model(graph, "CPU", options)
        self._request = self._compiled.create_infer_request()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run on the inputs' own memory; return a copy of the output."""
        held = [tensor.contiguous() for tensor in inputs]  # the request reads them without a copy
        for i, tensor in enumerate(held):
            self._request.set_input_tensor(i, openvino.Tensor(tensor.numpy(), shared_memory=True))
        self._request.infer()
        return torch.from_numpy(self._request.get_output_tensor(0).data.copy())


def _lower_priority() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def read_graph(files: GraphFiles) -> Any:
    """Return the graph that these bytes hold.

    Raises:
        RuntimeError: they are not a graph of this library.
    """
    return _core().read_model(files.xml, files.weights)


def graph_files(graph: Any) -> GraphFiles:
    """Return a converted graph as bytes.

    Raises:
        OSError: the folder for temporary files cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="reflexd-graph-") as folder:
        path = Path(folder) / "graph.xml"
        openvino.save_model(graph, path, compress_to_fp16=False)
        return GraphFiles(path.read_bytes(), path.with_suffix(".bin").read_bytes())


def convert(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """Convert the module to an OpenVINO graph with free batch and length.

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
    """Release the traced module: torch would hold each one for ever, with its type (9 MB for the demo's policy)."""
    torch._C._jit_clear_class_registry()  # what torch's own tests do between two of them
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()


def graph_of(version: str, folders: Sequence[Path], make: Callable[[], Any]) -> Any:
    """Return the graph from the first of `folders` that has it; else convert, and store it in the first writable one.

    Its name contains `version`, so a graph of other weights is never used; an unreadable one is converted again.
    """
    name = f"{version}-ov{LIBRARY.partition('-')[0]}"
    for folder in folders:
        if (graph := _read(folder / name)) is not None:
            return graph
    graph = make()
    # read back: the first start computes with the same file as every later one
    return next((stored for folder in folders if (stored := _store(graph, folder / name)) is not None), graph)


def _read(folder: Path) -> Any:
    """Read the graph in a folder; None where there is no readable one."""
    if not (folder / "graph.xml").is_file():
        return None
    with suppress(OSError):
        os.utime(folder)  # used now: the longest unused are removed first
    try:
        return _core().read_model(folder / "graph.xml")
    except RuntimeError:
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _store(graph: Any, target: Path) -> Any:
    """Store a graph and read it back; None where the folder cannot be written. Another process may have stored it first."""
    try:
        with new_folder(target) as draft:
            openvino.save_model(graph, draft / "graph.xml", compress_to_fp16=False)
            if not (target / "graph.xml").is_file():
                shutil.rmtree(target, ignore_errors=True)  # damaged: without its graph
    except OSError:
        return _read(target)
    return _read(target)
