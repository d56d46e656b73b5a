"""Arithmetic of a ring over a range of positions. Holds no data."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Positions = TypeVar("Positions", int, NDArray[np.int64])


class RingIndex:
    """Positions `start` to `start + size`, written round and round."""

    def __init__(self, start: int, size: int) -> None:
        self.start, self.size, self.added = start, size, 0

    @property
    def stop(self) -> int:
        """The first position that is not ours."""
        return self.start + self.size

    @property
    def held(self) -> int:
        """Positions in use."""
        return min(self.added, self.size)

    @property
    def full(self) -> bool:
        """Whether the next one overwrites the oldest."""
        return self.added >= self.size

    @property
    def head(self) -> int:
        """Where the next one goes."""
        return self.start + self.added % self.size

    def after(self, at: Positions) -> Positions:
        """Return the positions written next."""
        return self.start + (at - self.start + 1) % self.size

    def before(self, at: Positions) -> Positions:
        """Return the positions written before."""
        return self.start + (at - self.start - 1) % self.size

    def age(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the age of a position, 0 for the newest."""
        return (self.added - 1 - (at - self.start)) % self.size

    def newest(self, back: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position of the one that `back` others came after."""
        return self.start + (self.added - 1 - back) % self.size

    def order(self) -> NDArray[np.int64]:
        """Return every position in use, oldest first."""
        return self.newest(np.arange(self.held)[::-1])
