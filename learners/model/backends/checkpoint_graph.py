"""Read the graph of the fused part in a checkpoint, with the description that the learner stored. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.checkpoints.manifest import GraphFiles, LoadedCheckpoint
from learners.model.backends.definitions import processor
from learners.model.backends.graphs import GraphLibrary

FIRST, LATER = "untrained", "policy"
"""Openings of the names of cached graphs: of the weights a daemon starts with, and of checkpoints."""
POLICY, DOCUMENT = "policy", "graphs"
"""The stem of the fused part's graph files in a checkpoint, and of the document that describes all graphs."""


@dataclass(frozen=True, slots=True)
class GraphNote:
    """The description of a graph in a checkpoint."""

    library: str
    """What converted it: a version of OpenVINO, or `onnxruntime VERSION`. Another library or version does not use it."""
    difference: float
    """From torch, in float32."""
    same_decisions: dict[str, bool]
    """By processor, whether greedy decisions in bfloat16 were those of float32 torch, where this was measured."""
    windows: int = 0
    """Recorded observations on which decisions were compared."""


@dataclass(frozen=True, slots=True)
class StoredGraph:
    """The fused part's graph in a checkpoint, if this program can use it."""

    files: GraphFiles | None = None
    same_decisions: bool | None = None
    """Whether bfloat16 decides as float32 on this processor; None where the learner did not measure it."""
    reason: str = "the checkpoint has no graph"
    """Why there is none to use."""

    @classmethod
    def of(cls, loaded: LoadedCheckpoint, library: GraphLibrary | None) -> StoredGraph:
        """Return the graph of a verified checkpoint, if this library made it."""
        files, note = loaded.graphs.get(POLICY), note_of(loaded.documents)
        if files is None or note is None or library is None:
            return cls()
        if note.library != library.note:
            return cls(reason=f"its graph is of {_title(note.library)}, this is {_title(library.note)}")
        return cls(files, note.same_decisions.get(processor()), "")


NO_GRAPH = StoredGraph()


def _title(note: str) -> str:
    """Return the name and the version of a library, for a person."""
    other, _, version = note.partition(" ")
    return f"ONNX Runtime {version}" if other == "onnxruntime" else f"OpenVINO {note}"


def note_of(documents: Mapping[str, Any]) -> GraphNote | None:
    """Return the description of the fused part's graph in a checkpoint; None where there is none that can be read."""
    try:
        body = documents[DOCUMENT][POLICY]
        note = GraphNote(**body)
    except (KeyError, TypeError):
        return None
    sound = isinstance(note.library, str) and isinstance(note.same_decisions, dict)
    return note if sound else None


def digest_of(spec_json: bytes, weights: Mapping[str, NDArray[Any]]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 over a policy's spec and every weight by name."""
    found = hashlib.sha256(spec_json)
    for name, array in sorted(weights.items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]
