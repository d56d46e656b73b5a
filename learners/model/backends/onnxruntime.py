"""Convert torch modules to ONNX graphs, store them, and run them in ONNX Runtime on the CPU. The only importer of onnxruntime.

Only a conversion imports torch, onnx and onnxscript: an agent that reads graphs needs none of them.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from learners.checkpoints.manifest import GraphFiles
from learners.model.backends.graphs import GraphLibrary, GraphRun, Precision, at_low_priority, joined_of, joined_text

# builds from 1.29 on report every session to their maker, unless this is set before the first import
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

if TYPE_CHECKING:
    from torch import Tensor, nn

LIBRARY: str = onnxruntime.__version__
OPSET = 20
PROVIDERS = ["CPUExecutionProvider"]
SEVERE = 3
"""The lowest severity that ONNX Runtime logs: errors. Its warnings name optimisations that it left out."""
GRAPH = "graph.onnx"
JOINED = "reflexd.joined"
"""Where a graph says which arguments each of its inputs joins: `0,1,2+4+5,3`."""
INPUTS = "reflexd.inputs"
"""Where a graph says how many arguments its module takes; the graph itself has only those that the module looks at."""
LARGEST_BATCH = 1 << 16


def open_session(model: bytes | str, threads: int) -> Any:
    """Open a graph, or the file that holds it, for inference on the CPU.

    Threads of the pool sleep when they have nothing to do: spinning would take the core from the learner and the broker.

    Raises:
        RuntimeError: it is not a graph that this library runs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = SEVERE
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    try:
        return onnxruntime.InferenceSession(model, options, providers=PROVIDERS)
    except Exception as error:  # noqa: BLE001 - its exceptions have no common class
        raise RuntimeError(_first_line(error)) from None


class OnnxRun(GraphRun):
    """An ONNX graph with the call of its module; not safe for two threads at once.

    Args:
        graph: a serialized model with the inputs `x0`, `x1`, ...
        threads: of inference.
        background: prepare at low priority.

    Raises:
        RuntimeError: it is not such a graph.
    """

    def __init__(self, graph: bytes, threads: int, *, background: bool = False) -> None:
        opened = partial(open_session, graph, threads)
        # threads of a pool have the priority of who made them, and would run the ticks with it
        self._session = at_low_priority(opened) if background and threads == 1 else opened()
        described = self._session.get_modelmeta().custom_metadata_map
        self._joined = joined_of(described.get(JOINED))
        self._names = _input_names(described.get(INPUTS))
        # a graph leaves out what its module does not look at
        self._wanted = {entry.name for entry in self._session.get_inputs()}
        if not self._wanted <= set(self._names):
            raise RuntimeError(f"the graph has inputs of unknown names: {', '.join(sorted(self._wanted))[:80]}")

    def arrays(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run on contiguous arrays; return the output as an array of its own.

        Raises:
            RuntimeError: the graph takes other inputs.
        """
        given = zip(self._names, self._as_graph(inputs, len(self._names)), strict=True)
        try:
            (out, *_) = self._session.run(None, {name: array for name, array in given if name in self._wanted})
        except Exception as error:  # noqa: BLE001 - its exceptions have no common class
            raise RuntimeError(_first_line(error)) from None
        found: NDArray[Any] = np.asarray(out)
        return found


class OnnxRuntime(GraphLibrary):
    """Graphs as ONNX models in one file."""

    name = "onnxruntime"
    mark = "ort"
    precisions = ("float32",)
    version = LIBRARY
    note = f"onnxruntime {LIBRARY}"

    def convert(self, module: nn.Module, examples: Sequence[tuple[Tensor, ...]]) -> Any:
        """Export a module by torch's exporter; see `GraphLibrary.convert`."""
        return convert(module, examples)

    def run(self, graph: Any, precision: Precision, threads: int, *, background: bool = False) -> GraphRun:
        """Open a session; see `GraphLibrary.run`."""
        if precision != "float32":
            raise RuntimeError(f"ONNX Runtime computes in float32 on a CPU, not in {precision}")
        return OnnxRun(graph, threads, background=background)

    def read(self, files: GraphFiles) -> Any:
        """Return the model; see `GraphLibrary.read`."""
        if set(files.parts) != {"onnx"}:
            raise RuntimeError(f"a graph of ONNX Runtime is one onnx file, not {' and '.join(sorted(files.parts))}")
        return files.parts["onnx"]

    def files(self, graph: Any) -> GraphFiles:
        """Return the model as the only file; see `GraphLibrary.files`."""
        return GraphFiles({"onnx": graph})

    def read_folder(self, folder: Path) -> Any:
        """Return a stored model; see `GraphLibrary.read_folder`."""
        return (folder / GRAPH).read_bytes()

    def write_folder(self, graph: Any, folder: Path) -> None:
        """Store a model; see `GraphLibrary.write_folder`."""
        (folder / GRAPH).write_bytes(graph)


def convert(module: nn.Module, examples: Sequence[tuple[Tensor, ...]]) -> bytes:
    """Export the module as an ONNX model with a free batch, and free sizes where the examples differ.

    An export takes seconds of processor time. A module that says its `structure` is exported once in this process; of later ones the
    weights replace those in the model. Callers compare every model with torch.

    Raises:
        RuntimeError: the exporter is not installed, or does not know a construct.
    """
    import torch  # noqa: PLC0415 - only a conversion needs it

    for library in ("onnx", "onnxscript"):
        try:
            importlib.import_module(library)
        except ImportError:
            raise RuntimeError(f"{library} is missing: pip install 'reflexd[onnx]'") from None
    places: list[list[int]] | None = getattr(module, "inputs", None)
    structure: str | None = getattr(module, "structure", None)
    if places is not None:
        module = module.joined  # type: ignore[assignment]
        examples = [tuple(torch.cat([x[i] for i in joined], dim=1) for joined in places) for x in examples]
    weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    key = (structure, str([x.shape for x in examples[-1]]))
    model = _EXPORTED.get(key)
    if model is None or not _fits(model, weights):
        model = _exported(module, examples, optimize=structure is None)
        facts = {INPUTS: str(len(examples[-1]))} | ({} if places is None else {JOINED: joined_text(places)})
        for name, value in facts.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = name, value
        if structure is not None and _fits(model, weights):
            _EXPORTED.clear()
            _EXPORTED[key] = model
    else:
        _replace_weights(model, weights)
    serialized: bytes = model.SerializeToString()
    return serialized


_EXPORTED: dict[tuple[str | None, str], Any] = {}
"""The model that was exported last, by what modules have in common that differ in weights alone."""


def _fits(model: Any, weights: Mapping[str, Tensor]) -> bool:
    """Return whether each constant of a model is one of these weights, by name and shape."""
    shapes = {name: tuple(x.shape) for name, x in weights.items()}
    return all(shapes.get(constant.name) == tuple(constant.dims) for constant in model.graph.initializer)


def _replace_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    helper = importlib.import_module("onnx.numpy_helper")
    for constant in model.graph.initializer:
        array = weights[constant.name].detach().cpu().contiguous().numpy()
        constant.CopyFrom(helper.from_array(array, constant.name))


def _exported(module: nn.Module, examples: Sequence[tuple[Tensor, ...]], *, optimize: bool) -> Any:
    """Return the model of a module.

    Args:
        module: in `eval()`, on the CPU.
        examples: inputs of every frequent shape.
        optimize: join weights where the exporter can; otherwise each is a constant of its own name, as `_replace_weights` needs.
    """
    import torch  # noqa: PLC0415 - only a conversion needs it

    example = tuple(torch.cat((x, x)) for x in examples[-1])
    names = [f"x{i}" for i in range(len(example))]
    for name in ("onnxscript", "torch.onnx"):  # they log operators that no module of ours uses
        logging.getLogger(name).setLevel(logging.ERROR)
    # the exporter prints its steps to standard output, and names deprecated parts of itself
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            module,
            example,
            input_names=names,
            dynamic_shapes=_free_sizes(module, examples),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            optimize=optimize,
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    for node in model.graph.node:  # the exporter notes for each where it comes from: as much as the weights
        del node.metadata_props[:]
    return model


def _free_sizes(module: nn.Module, examples: Sequence[tuple[Tensor, ...]]) -> tuple[Any, ...]:
    """Return the free sizes of each argument, as `torch.export` takes them for the signature of the module."""
    import torch  # noqa: PLC0415 - only a conversion needs it

    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    sizes: list[dict[int, Any]] = []
    for i, first in enumerate(examples[0]):
        lengths = [d for d in range(1, first.dim()) if len({x[i].shape[d] for x in examples}) > 1]
        sizes.append({0: batch} | dict.fromkeys(lengths, torch.export.Dim.DYNAMIC))
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(sizes)
    alone = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*sizes[:alone], tuple(sizes[alone:]))


def _input_names(count: str | None) -> list[str]:
    """Return the names of the arguments of a graph's module.

    Raises:
        RuntimeError: the graph does not say how many there are.
    """
    if count is None or not count.isdecimal() or len(count) > 5:
        raise RuntimeError("the graph does not say how many arguments it has")
    return [f"x{i}" for i in range(int(count))]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
