"""Compile a candidate in the learner, so that its checkpoint carries the graph with which the agent acts.

Event: `graph_missing`, when the graph cannot be made; the candidate then has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from learners.checkpoints.manifest import GraphFiles
from learners.experience.transition import Transition
from learners.ipc.settings import Backend
from learners.model.backends.graph_libraries import graph_library
from learners.model.features import recorded
from learners.model.policy import build
from learners.model.policy_graph import DOCUMENT, POLICY, GraphDiffers, Window, compile_for_checkpoint
from learners.model.spec import PolicySpec

WINDOWS = 256
"""Recorded observations on which the decisions of a reduced precision are compared with those of float32."""
APART = 2
"""Ticks between two of them."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """The graphs of a candidate and the document that describes them; both empty where the agent uses none."""

    graphs: dict[str, GraphFiles]
    documents: dict[str, Any]
    problem: str = ""
    """Why there is no graph, where there should be one."""


NOTHING = Compiled({}, {})


def compile_candidate(
    spec: PolicySpec, weights: Mapping[str, Tensor], settings: Backend, newest: Sequence[Transition]
) -> Compiled:
    """Convert the fused part of a candidate for the agent on this machine.

    A policy without fusion has no graph: its few additions stay in torch. So does every policy where no library of graphs is
    installed.

    Args:
        spec: of the policy.
        weights: by name.
        settings: how the agent runs its models.
        newest: transitions, oldest first, on which decisions are compared.
    """
    library = None if settings.backend == "torch" else graph_library(settings.backend)
    if spec.plain or library is None:
        return NOTHING
    policy = build(spec, {name: x.detach().cpu() for name, x in weights.items()})
    try:
        files, note = compile_for_checkpoint(
            policy, _windows(spec, newest), library, threads=settings.threads, tolerance=settings.tolerance
        )
    except (GraphDiffers, RuntimeError, OSError) as error:
        return Compiled({}, {}, " ".join(str(error).split())[:300])
    return Compiled({POLICY: files}, {DOCUMENT: {POLICY: note}})


def _windows(spec: PolicySpec, newest: Sequence[Transition]) -> list[Window]:
    """Return histories of consecutive ticks; a history across the end of a session is an observation too."""
    found: list[Window] = []
    for end in range(len(newest), spec.history - 1, -APART):
        ticks = newest[end - spec.history : end]
        try:
            window = [recorded(spec, [t.tokens], [t.present], [t.ages_s]) for t in ticks]
        except ValueError:  # tokens of an older encoder
            break
        found.append(window)
        if len(found) == WINDOWS:
            break
    return found
