"""Choose the library of graphs: OpenVINO, and ONNX Runtime where OpenVINO is not installed.

A library is imported when it is asked for. One that does not import counts as not installed.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Literal

from learners.model.backends.graphs import GraphLibrary, LibraryName

LIBRARIES: dict[LibraryName, str] = {"openvino": "OpenVino", "onnxruntime": "OnnxRuntime"}
"""In the order in which `auto` tries them; the class of each, in the module of its name."""
NONE_INSTALLED = "neither OpenVINO nor ONNX Runtime is installed"
REMEDY = "pip install openvino, or pip install 'reflexd[onnx]'"


def graph_library(wanted: Literal["auto", "torch"] | LibraryName) -> GraphLibrary | None:
    """Return the library that runs graphs under this `engine.backend`; None where it is not installed.

    `torch` runs no graphs; what is stored for it names the library that `auto` would take.
    """
    names = (wanted,) if wanted in LIBRARIES else tuple(LIBRARIES)
    return next((found for name in names if (found := _imported(name)) is not None), None)


def missing_reason(wanted: Literal["auto", "torch"] | LibraryName) -> str:
    """Say that no library is installed for this `engine.backend`, and what to install."""
    if wanted == "onnxruntime":
        return "ONNX Runtime is not installed: pip install 'reflexd[onnx]'"
    return "OpenVINO is not installed: pip install openvino" if wanted == "openvino" else f"{NONE_INSTALLED}: {REMEDY}"


@cache
def _imported(name: LibraryName) -> GraphLibrary | None:
    try:
        module = importlib.import_module(f"learners.model.backends.{name}")
    except ImportError:
        return None
    library: GraphLibrary = getattr(module, LIBRARIES[name])()
    return library
