"""An encoder: what colours a picture has, as one histogram for each quarter of it. No weights, and useful for all that.

Shapes: B pictures, T = 4 quarters, W = 3 channels x 16 bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from learners.api import EncoderSettings
from sensors.api import Frame, Reading

BINS = 16
SIDE = 32


class ColourEncoder:
    """`encode(prepare(frames))` gives B,4,48 float32; every histogram sums to 1 in each channel."""

    modality = "image"
    version = "colours-1"
    tokens = 4
    width = 3 * BINS
    module: nn.Module | None = None

    def prepare(self, readings: Sequence[Reading]) -> tuple[Tensor, ...]:
        """Pictures thinned out to at most 32 x 32 pixels a quarter, as B,4,N,3 uint8."""
        return (torch.from_numpy(np.stack([_quarters(r.image) for r in readings if isinstance(r, Frame)])),)

    def run(self, pixels: Tensor) -> Tensor:
        """Histograms of every quarter and channel."""
        bins = (pixels.long() // (256 // BINS)).movedim(-1, -2)  # B,T,3,N
        counts = torch.zeros(*bins.shape[:-1], BINS).scatter_add_(-1, bins, torch.ones_like(bins, dtype=torch.float32))
        return (counts / bins.shape[-1]).flatten(-2)

    def encode(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Tokens B,T,W float32."""
        return self.run(*inputs)

    def examples(self) -> list[tuple[Tensor, ...]]:
        """One picture: the shape the tick will ask for."""
        return [(torch.zeros(1, 4, SIDE * SIDE, 3, dtype=torch.uint8),)]

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to load."""
        if state:
            raise ValueError(f"this encoder has no weights, and was given {sorted(state)}")


def _quarters(
    image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    rows, columns = (np.linspace(0, n - 1, SIDE).astype(int) for n in (height, width))
    halves = ((0, 0), (0, width), (height, 0), (height, width))
    return np.stack([image[top + rows][:, left + columns].reshape(-1, 3) for top, left in halves])


def make(settings: EncoderSettings, tokens: int, device: torch.device) -> ColourEncoder:
    """The entry point."""
    return ColourEncoder()
