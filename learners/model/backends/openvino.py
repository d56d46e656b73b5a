"""Convert torch modules to OpenVINO graphs, store and run them. The only importer of openvino."""

from __future__ import annotations

import ctypes
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from learners.checkpoints.manifest import GraphFiles
from learners.model.backends.graphs import GraphLibrary, GraphRun, Precision, at_low_priority, joined_of, joined_text

# None makes openvino use its own silent stub: the real one reports every use to its maker, from a fork of this process
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
# openvino imports its converter if it finds it: 5 MB and .3 s that only a conversion needs
sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]
try:
    import openvino
finally:
    del sys.modules["openvino.tools.ovc"]

if TYPE_CHECKING:
    from torch import Tensor, nn

LIBRARY: str = openvino.__version__
MADV_DONTNEED = 4
GRAPH_XML, GRAPH_WEIGHTS = "graph.xml", "/graph.bin"
JOINED = ["reflexd", "joined"]
"""Where a graph says which arguments each of its inputs joins: `0,1,2+4+5,3`."""


_CORES: list[Any] = []


def _core() -> Any:
    """Return OpenVINO's core, created at first use, because loading its plugins is slow."""
    if not _CORES:
        _CORES.append(openvino.Core())
    return _CORES[0]


class OpenVinoRun(GraphRun):
    """A compiled OpenVINO graph with the call of its module; not safe for two threads at once.

    Args:
        graph: as OpenVINO reads or converts it.
        precision: in which it computes.
        threads: of inference.
        background: compile at low priority.
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
        compiled = partial(_core().compile_model, graph, "CPU", options)
        self._compiled = at_low_priority(compiled) if background else compiled()
        self._request = self._compiled.create_infer_request()
        self._joined = joined_of(str(graph.get_rt_info(JOINED).value) if graph.has_rt_info(JOINED) else None)
        self._inputs: dict[int, NDArray[Any]] = {}
        """The arrays of the last run, which the request reads: one that comes again is not handed over again."""

    def arrays(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run on the inputs' own memory, which must be contiguous; return a copy of the output.

        Raises:
            RuntimeError: the graph takes other inputs.
        """
        for i, array in enumerate(self._as_graph(inputs, len(self._compiled.inputs))):
            if self._inputs.get(i) is not array:
                self._request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))
                self._inputs[i] = array
        self._request.infer()
        out: NDArray[Any] = self._request.get_output_tensor(0).data.copy()
        return out

    def warm_up(self, *inputs: NDArray[Any]) -> None:
        """Run once, so that OpenVINO makes its own copies of the weights, and release the memory of the graph file."""
        self.arrays(*inputs)
        _drop_read_pages()


class OpenVino(GraphLibrary):
    """Graphs as OpenVINO's IR: `xml` and `bin`."""

    name = "openvino"
    mark = "ov"
    precisions = ("float32", "bfloat16")
    version = note = LIBRARY

    def convert(self, module: nn.Module, examples: Sequence[tuple[Tensor, ...]]) -> Any:
        """Convert a module, traced on its last example; see `GraphLibrary.convert`."""
        return convert(module, examples[-1])

    def run(self, graph: Any, precision: Precision, threads: int, *, background: bool = False) -> GraphRun:
        """Compile a graph; see `GraphLibrary.run`."""
        return OpenVinoRun(graph, precision, threads, background=background)

    def read(self, files: GraphFiles) -> Any:
        """Return the graph that these bytes hold; see `GraphLibrary.read`."""
        return read_graph(files)

    def files(self, graph: Any) -> GraphFiles:
        """Return a converted graph as bytes; see `GraphLibrary.files`."""
        return graph_files(graph)

    def read_folder(self, folder: Path) -> Any:
        """Return a stored graph, with its weights mapped; see `GraphLibrary.read_folder`."""
        return _core().read_model(folder / GRAPH_XML)

    def write_folder(self, graph: Any, folder: Path) -> None:
        """Store a graph; see `GraphLibrary.write_folder`."""
        openvino.save_model(graph, folder / GRAPH_XML, compress_to_fp16=False)


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


def read_graph(files: GraphFiles) -> Any:
    """Return the graph that these bytes hold.

    Raises:
        RuntimeError: they are not a graph of this library.
    """
    if set(files.parts) != {"xml", "bin"}:
        raise RuntimeError(f"a graph of OpenVINO has the parts xml and bin, not {' and '.join(sorted(files.parts))}")
    return _core().read_model(files.parts["xml"], files.parts["bin"])


def graph_files(graph: Any) -> GraphFiles:
    """Return a converted graph as bytes.

    Raises:
        OSError: the folder for temporary files cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="reflexd-graph-") as folder:
        path = Path(folder) / GRAPH_XML
        openvino.save_model(graph, path, compress_to_fp16=False)
        return GraphFiles({"xml": path.read_bytes(), "bin": path.with_suffix(".bin").read_bytes()})


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
        graph.set_rt_info(joined_text(places), JOINED)
    return graph


def _forget_traces() -> None:
    """Release the traced module: torch would hold each one for ever, with its type (9 MB for the demo's policy)."""
    import torch  # noqa: PLC0415 - only a conversion needs it

    torch._C._jit_clear_class_registry()  # what torch's own tests do between two of them
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
