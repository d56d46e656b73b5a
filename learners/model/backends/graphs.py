"""What every library of graphs does, and the store of graphs on disk. Imports no such library, and no torch but for a conversion.

`openvino.py` and `onnxruntime.py` are the libraries; `graph_libraries.py` chooses one. Graphs are stored because a conversion takes
seconds. `fastest_backend.py` decides whether a graph is fast and exact enough.
"""

from __future__ import annotations

import os
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from learners.checkpoints.manifest import GraphFiles
from learners.checkpoints.sealed_folder import SEAL, SealBroken, SealedFolder, check_seal, write_seal
from learners.files import new_folder, private_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]
LibraryName = Literal["openvino", "onnxruntime"]
NICE = 10
"""Of a compilation beside the ticks; the learner has more."""

_Made = TypeVar("_Made")


class GraphRun(ABC):
    """A graph that is ready to run, with the call of its module; not safe for two threads at once."""

    _joined: list[list[int]] | None
    """Which arguments each input of the graph joins; None where it joins none."""

    @abstractmethod
    def arrays(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Run on contiguous arrays; return the output as an array of its own.

        Raises:
            RuntimeError: the graph takes other inputs.
        """

    def warm_up(self, *inputs: NDArray[Any]) -> None:
        """Run once, and release what only the preparation needed."""
        self.arrays(*inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run on tensors of the CPU."""
        import torch  # noqa: PLC0415 - only for callers that have torch already

        return torch.from_numpy(self.arrays(*(tensor.contiguous().numpy() for tensor in inputs)))

    def _as_graph(self, inputs: Sequence[NDArray[Any]], count: int) -> Sequence[NDArray[Any]]:
        """Return the arrays that a graph with `count` inputs takes.

        Raises:
            RuntimeError: it takes another number.
        """
        joined = self._joined
        if joined is not None and len(inputs) == 1 + max(max(places) for places in joined):
            inputs = [
                inputs[places[0]] if len(places) == 1 else np.concatenate([inputs[i] for i in places], axis=1)
                for places in joined
            ]
        if len(inputs) != count:
            raise RuntimeError(f"the graph takes {count} inputs, not {len(inputs)}")
        return inputs


class GraphLibrary(ABC):
    """A library that converts modules to graphs, and runs them. A graph is what its own methods return."""

    name: ClassVar[LibraryName]
    """As in `engine.backend`; also the folder of its graphs."""
    mark: ClassVar[str]
    """In the names of its stored graphs."""
    precisions: ClassVar[tuple[Precision, ...]]
    """In which it computes, where the processor does."""
    version: str
    """Of the library."""
    note: str
    """How the description of a graph in a checkpoint names library and version."""

    @abstractmethod
    def convert(self, module: nn.Module, examples: Sequence[tuple[Tensor, ...]]) -> Any:
        """Convert a module to a graph with free batch and length.

        A module that joins arguments has `joined`, which is converted, and `inputs`: which arguments each argument of `joined` joins.

        Args:
            module: in `eval()`, on the CPU.
            examples: inputs of every frequent shape.

        Raises:
            RuntimeError: the converter is not installed, or does not know a construct.
        """

    @abstractmethod
    def run(self, graph: Any, precision: Precision, threads: int, *, background: bool = False) -> GraphRun:
        """Return a graph ready to run.

        Args:
            graph: as this library reads or converts it.
            precision: in which it computes.
            threads: of inference.
            background: compile at low priority. Python itself should not run at low priority beside a tick: it holds the
                interpreter lock while other processes have the core.

        Raises:
            RuntimeError: the library cannot run it.
        """

    @abstractmethod
    def read(self, files: GraphFiles) -> Any:
        """Return the graph that these bytes hold.

        Raises:
            RuntimeError: they are not a graph of this library.
        """

    @abstractmethod
    def files(self, graph: Any) -> GraphFiles:
        """Return a converted graph as bytes.

        Raises:
            OSError: the folder for temporary files cannot be written.
        """

    @abstractmethod
    def read_folder(self, folder: Path) -> Any:
        """Return the graph that `write_folder` stored.

        Raises:
            OSError: a file cannot be read.
            RuntimeError: it is not a graph of this library.
        """

    @abstractmethod
    def write_folder(self, graph: Any, folder: Path) -> None:
        """Store a graph in an empty folder.

        Raises:
            OSError: the folder cannot be written.
        """

    def graph_of(self, version: str, folders: Sequence[SealedFolder], make: Callable[[], Any]) -> Any:
        """Return the graph from the first of `folders` that has it; else convert, and store it in the first writable one.

        Its name contains `version`, so a graph of other weights is never used. A graph with other files than
        those that were sealed, and one that the library cannot read, is removed and converted again.
        """
        name = f"{version}-{self.mark}{self.version.partition('-')[0]}"
        for folder in folders:
            if (graph := self._read(folder, name)) is not None:
                return graph
        graph = make()
        # read back: the first start computes with the same file as every later one
        return next((stored for folder in folders if (stored := self._store(graph, folder, name)) is not None), graph)

    def _read(self, place: SealedFolder, name: str) -> Any:
        """Read the graph in a folder; None where there is no readable one."""
        folder = place.path / name
        if not folder.is_dir():
            return None
        try:
            check_seal(folder, name, place.key)
            with suppress(OSError):
                os.utime(folder)  # used now: the longest unused are removed first
            return self.read_folder(folder)
        except FileNotFoundError:  # another process removed it
            return None
        except OSError as error:  # such as too many open files: the folder may be good
            place.refused(str(folder), str(error)[:200])
            return None
        except (SealBroken, RuntimeError) as error:
            place.refused(str(folder), str(error).strip().splitlines()[0][:200])
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def _store(self, graph: Any, place: SealedFolder, name: str) -> Any:
        """Store a graph and read it back; None where the folder cannot be written. Another process may have stored it first."""
        with suppress(OSError):
            private_folder(place.path)
            with new_folder(place.path / name, mode=0o700) as draft:
                self.write_folder(graph, draft)
                write_seal(draft, name, place.key)
                if not (place.path / name / SEAL).is_file():
                    shutil.rmtree(place.path / name, ignore_errors=True)  # damaged: without its seal
        return self._read(place, name)


def joined_of(text: str | None) -> list[list[int]] | None:
    """Return which arguments each input of a graph joins, from what the graph says of it.

    Args:
        text: such as `0,1,2+4+5,3`; None where the graph says nothing.

    Raises:
        RuntimeError: it says something else.
    """
    if text is None:
        return None
    try:
        found = [[int(i) for i in places.split("+")] for places in text.split(",")]
    except ValueError:
        found = []
    if sorted(i for places in found for i in places) != list(range(sum(map(len, found)))) or not found:
        raise RuntimeError(f"the graph joins its inputs in an unknown way: {text[:80]}")
    return found


def joined_text(places: Sequence[Sequence[int]]) -> str:
    """Return what `joined_of` reads."""
    return ",".join("+".join(map(str, joined)) for joined in places)


def at_low_priority(make: Callable[[], _Made]) -> _Made:
    """Run `make` in a thread of low priority; this one waits without the interpreter lock, at its own."""
    with ThreadPoolExecutor(1, "compile", _lower_priority) as thread:
        return thread.submit(make).result()


def _lower_priority() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
