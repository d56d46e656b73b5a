"""Store the tokens of each position in arrays of this process.

Shapes: N positions, T tokens of a stream, W their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.model.spec import PolicySpec

Shapes = dict[str, tuple[int, int, str]]
"""By stream: T, W and the type of the numbers."""


def token_shapes(spec: PolicySpec) -> Shapes:
    """Return shape and type of the tokens of each stream; float16 except for telemetry."""
    return {s.name: (s.tokens, s.width, "float32" if s.modality == "telemetry" else "float16") for s in spec.streams}


class TokenStorage(Protocol):
    """What the columns of a replay buffer need."""

    @property
    def arrays(self) -> Sequence[NDArray[Any]]:
        """The arrays by position."""

    def write(self, at: int, stream: str, tokens_TW: NDArray[Any]) -> None:
        """Write the tokens of a stream at a position."""

    def move(self, at: int, to: int) -> None:
        """Put what is at a position at another one; the first one is written next."""

    def expect(self, at: NDArray[np.int64]) -> None:
        """Prepare for `gather` of these positions."""

    def gather(self, at: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the tokens at positions, by stream, float32 in the dimensions of `at`, then T, W."""


class LocalTokens:
    """N positions in this process.

    Args:
        spec: the policy's streams.
        rows: N.
    """

    def __init__(self, spec: PolicySpec, rows: int) -> None:
        self._by_stream = {name: np.zeros((rows, t, w), kind) for name, (t, w, kind) in token_shapes(spec).items()}

    @property
    def arrays(self) -> Sequence[NDArray[Any]]:
        """The arrays by position."""
        return list(self._by_stream.values())

    def write(self, at: int, stream: str, tokens_TW: NDArray[Any]) -> None:
        """Write the tokens of a stream at a position."""
        self._by_stream[stream][at] = tokens_TW

    def move(self, at: int, to: int) -> None:
        """Copy what is at a position to another one."""
        for array in self._by_stream.values():
            array[to] = array[at]

    def expect(self, at: NDArray[np.int64]) -> None:
        """Do nothing: the tokens are here."""

    def gather(self, at: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the tokens at positions, by stream, float32 in the dimensions of `at`, then T, W."""
        # torch widens float16 several times faster than numpy
        return {name: torch.from_numpy(array[at]).float() for name, array in self._by_stream.items()}
