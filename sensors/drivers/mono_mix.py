"""Make mono of several channels: their mean, or the loudest channel where they cancel each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CANCELLED = 0.1
"""Share of the loudest channel's energy below which the mean of the channels has lost the sound."""


class ChannelMixer:
    """Averages the channels of a sound that comes in blocks; takes the loudest one while they have cancelled each other so far."""

    def __init__(self, channels: int) -> None:
        self.energies_C = np.zeros(channels)
        self.mean_energy = 0.0

    @property
    def is_cancelled(self) -> bool:
        """Whether the mean of the channels has lost the sound (a cable with swapped wires)."""
        return len(self.energies_C) > 1 and self.mean_energy < CANCELLED * self.energies_C.max()

    @property
    def loudest(self) -> int:
        """The number of the loudest channel."""
        return int(self.energies_C.argmax())

    def average(self, block_NC: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean of the channels of a block, and note the energies of its finite samples."""
        mean_N: NDArray[np.float32] = block_NC.mean(axis=1, dtype=np.float32)
        finite_N = np.isfinite(block_NC).all(axis=1)
        self.energies_C += np.square(block_NC[finite_N], dtype=np.float64).sum(axis=0)
        self.mean_energy += float(np.square(mean_N[finite_N], dtype=np.float64).sum())
        return mean_N

    def mix(self, block_NC: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a block of a sound that plays, float32 mono."""
        mean_N = self.average(block_NC)
        return block_NC[:, self.loudest].copy() if self.is_cancelled else mean_N
