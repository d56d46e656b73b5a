"""Turn stored ticks into the arrays that a policy reads. Imports no torch; `features.recorded` makes tensors of them.

Shapes: B ticks, S streams in the order of the spec, T tokens of a stream, W their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.model.spec import PolicySpec


@dataclass(frozen=True, slots=True)
class FeatureArrays:
    """`tokens[name]`: float32 [..., T, W]; `present`: bool [..., S]; `ages`: float32 seconds [..., S]."""

    tokens: dict[str, NDArray[np.float32]]
    present: NDArray[np.bool_]
    ages: NDArray[np.float32]


def recorded_arrays(
    spec: PolicySpec,
    tokens: Sequence[Mapping[str, NDArray[Any]]],
    present: Sequence[Mapping[str, bool]],
    ages_s: Sequence[Mapping[str, float]],
) -> FeatureArrays:
    """Return features [B] of B stored ticks (the fields of `Transition`); a stream without tokens is missing.

    Raises:
        ValueError: stored tokens have another shape than the spec says (another encoder or setting made them).
    """
    rows, count = len(tokens), len(spec.streams)
    found = {s.name: np.zeros((rows, s.tokens, s.width), np.float32) for s in spec.streams}
    there_BS, age_BS = np.zeros((rows, count), bool), np.full((rows, count), np.inf, np.float32)
    for s, stream in enumerate(spec.streams):
        out_BTW = found[stream.name]
        for b, arrays in enumerate(tokens):
            array = arrays.get(stream.name)
            if array is None or not present[b].get(stream.name, False):
                continue
            if array.shape != out_BTW.shape[1:]:
                raise ValueError(
                    f"{stream.name}: stored tokens {array.shape}, the policy needs {out_BTW.shape[1:]}; "
                    "re-encode the experience or start a new state_dir"
                )
            np.copyto(out_BTW[b], array)
            there_BS[b, s] = True
            age_BS[b, s] = ages_s[b].get(stream.name, 0.0)
    return FeatureArrays(found, there_BS, age_BS)
