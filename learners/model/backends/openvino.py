"""Convert torch modules to OpenVINO graphs, store and run them. The only importer of openvino.

Only a conversion imports torch: an agent that reads graphs needs none. Graphs are stored because a conversion takes seconds. `fastest_backend.py` decides whether a graph is fast and exact enough.
"""

from __future__ import annotations

import ctypes
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
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from learners.checkpoints.manifest import GraphFiles
from learners.checkpoints.seal import SEAL, SealBroken, SealedFolder, check_seal, write_seal
from learners.files import new_folder, private_folder

# None makes openvino use its own silent stub: the real one reports every use to its maker, from a fork of this process
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
# openvino imports its converter if it finds it: 5 MB and .3 s that only a conversion needs
sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]
import openvino  # noqa: E402 - after the lines above

del sys.modules["openvino.tools.ovc"]

if TYPE_CHECKING:
    from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]
LIBRARY: str = openvino.__version__
MADV_DONTNEED = 4
GRAPH_WEIGHTS = "/graph.bin"
JOINED = ["reflexd", "joined"]
"""Where a graph says which arguments each of its inputs joins: `0,1,2+4+5,3`."""
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
            "CPU_DENORMALS_OPTIMIZATION": True,  # they made one model 14 times slower
        }
        if background:  # this thread waits without the interpreter lock, at its own priority
            with ThreadPoolExecutor(1, "compile", _lower_priority) as thread:
                self._compiled = thread.submit(_core().compile_model, graph, "CPU", options).result()
        else:
            self._compiled = _core().compile_model(graph, "CPU", options)
        self._request = self._compiled.create_infer_request()
        self._joined = _joined_inputs(graph)
        self._inputs: dict[int, NDArray[Any]] = {}
        """The arrays of the last run, which the request reads: one that comes again is not handed over again."""

    def arrays(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run on the inputs' own memory, which must be contiguous; return a copy of the output.

        Raises:
            RuntimeError: the graph takes other inputs.
        """
        for i, array in enumerate(self._as_graph(inputs)):
            if self._inputs.get(i) is not array:
                self._request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))
                self._inputs[i] = array
        self._request.infer()
        out: NDArray[Any] = self._request.get_output_tensor(0).data.copy()
        return out

    def _as_graph(self, inputs: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """Return the arrays that the graph takes."""
        joined, count = self._joined, len(self._compiled.inputs)
        if joined is not None and len(inputs) == 1 + max(max(places) for places in joined):
            inputs = [
                inputs[places[0]] if len(places) == 1 else np.concatenate([inputs[i] for i in places], axis=1)
                for places in joined
            ]
        if len(inputs) != count:
            raise RuntimeError(f"the graph takes {count} inputs, not {len(inputs)}")
        return inputs

    def warm_up(self, *inputs: NDArray[Any]) -> None:
        """Run once, so that OpenVINO makes its own copies of the weights, and release the memory of the graph file."""
        self.arrays(*inputs)
        _drop_read_pages()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run on tensors of the CPU."""
        import torch  # noqa: PLC0415 - only for callers that have torch already

        return torch.from_numpy(self.arrays(*(tensor.contiguous().numpy() for tensor in inputs)))


def _joined_inputs(graph: Any) -> list[list[int]] | None:
    """Return which arguments each input of a graph joins, if it says so.

    Raises:
        RuntimeError: it says something else.
    """
    if not graph.has_rt_info(JOINED):
        return None
    text = str(graph.get_rt_info(JOINED).value)
    try:
        found = [[int(i) for i in places.split("+")] for places in text.split(",")]
    except ValueError:
        found = []
    if sorted(i for places in found for i in places) != list(range(sum(map(len, found)))) or not found:
        raise RuntimeError(f"the graph joins its inputs in an unknown way: {text[:80]}")
    return found


def _drop_read_pages() -> None:
    """Release the memory of weights that OpenVINO mapped from graph files: it has its own copies (100 MB in the demo).

    A page that is needed again is read from its file.
    """
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for line in maps.read_text().splitlines():
        span, rights, *_, path = line.split(maxsplit=5) if line.count(" ") > 5 else (line, "", "")
        if path.endswith(GRAPH_WEIGHTS) and rights.startswith("r--"):
            start, end = (int(number, 16) for number in span.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


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

    A module that joins arguments has `joined`, which is converted, and `inputs`: which arguments each argument of `joined` joins.

    Raises:
        RuntimeError: a construct the converter does not know.
    """
    import torch  # noqa: PLC0415 - only a conversion needs it
    from openvino.tools.ovc import convert_model  # noqa: PLC0415 - only a conversion needs it

    places: list[list[int]] | None = getattr(module, "inputs", None)
    if places is not None:
        module, example = module.joined, tuple(torch.cat([example[i] for i in joined], dim=1) for joined in places)  # type: ignore[assignment]
    # the converter of OpenVINO 2026 traces with what torch 2.13 calls deprecated; the two are pinned together
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = convert_model(module, example_input=tuple(torch.cat((x, x)) for x in example))
    finally:
        _forget_traces()
    if places is not None:
        graph.set_rt_info(",".join("+".join(map(str, joined)) for joined in places), JOINED)
    return graph


def _forget_traces() -> None:
    """Release the traced module: torch would hold each one for ever, with its type (9 MB for the demo's policy)."""
    import torch  # noqa: PLC0415 - only a conversion needs it

    torch._C._jit_clear_class_registry()  # what torch's own tests do between two of them
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()


def graph_of(version: str, folders: Sequence[SealedFolder], make: Callable[[], Any]) -> Any:
    """Return the graph from the first of `folders` that has it; else convert, and store it in the first writable one.

    Its name contains `version`, so a graph of other weights is never used. A graph with other files than
    those that were sealed, and one that the library cannot read, is removed and converted again.
    """
    name = f"{version}-ov{LIBRARY.partition('-')[0]}"
    for folder in folders:
        if (graph := _read(folder, name)) is not None:
            return graph
    graph = make()
    # read back: the first start computes with the same file as every later one
    return next((stored for folder in folders if (stored := _store(graph, folder, name)) is not None), graph)


def _read(place: SealedFolder, name: str) -> Any:
    """Read the graph in a folder; None where there is no readable one."""
    folder = place.path / name
    if not folder.is_dir():
        return None
    try:
        check_seal(folder, name, place.key)
        with suppress(OSError):
            os.utime(folder)  # used now: the longest unused are removed first
        return _core().read_model(folder / "graph.xml")
    except FileNotFoundError:  # another process removed it
        return None
    except OSError as error:  # such as too many open files: the folder may be good
        place.refused(str(folder), str(error)[:200])
        return None
    except (SealBroken, RuntimeError) as error:
        place.refused(str(folder), str(error).strip().splitlines()[0][:200])
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _store(graph: Any, place: SealedFolder, name: str) -> Any:
    """Store a graph and read it back; None where the folder cannot be written. Another process may have stored it first."""
    with suppress(OSError):
        private_folder(place.path)
        with new_folder(place.path / name, mode=0o700) as draft:
            openvino.save_model(graph, draft / "graph.xml", compress_to_fp16=False)
            write_seal(draft, name, place.key)
            if not (place.path / name / SEAL).is_file():
                shutil.rmtree(place.path / name, ignore_errors=True)  # damaged: without its seal
    return _read(place, name)
