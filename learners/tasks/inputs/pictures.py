"""Convert image files and frames to the input of the models, by each model's own processor, and augment them for training.

Shapes: C colours (3), Y and X of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from learners.data_error import DataError
from learners.model.encoders.image_processor import load_image_processor
from learners.tasks.augmentation.pictures import changed
from sensors.base import PayloadRefused
from sensors.codecs.images import decode_file

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm"})
MAX_PIXELS = 100_000_000
OVERLAP = 0.25
"""Share of a tile that its neighbour shows too."""
DETAIL = 2
"""How many times the model's resolution a picture has at most when it is changed."""
PROBE = 64
"""Edge of the picture that shows which size the processor makes."""


class PictureProcessor:
    """A model's own image processor; a picture is changed for training, and cut into tiles, before the processor reads it.

    Args:
        processor: of transformers, with its PIL backend.

    Raises:
        ValueError: it makes other inputs than pixels, for instance patches.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        probe = self._read(np.zeros((PROBE, PROBE, 3), np.uint8))
        if probe.dim() != 3 or len(probe) != 3:
            shape = list(probe.shape)
            raise ValueError(f"{type(processor).__name__} makes inputs of shape {shape}; tasks read pixels [3, Y, X]")
        self.high, self.wide = probe.shape[1:]

    @classmethod
    def from_pretrained(cls, source: Path | str) -> PictureProcessor:
        """Load the processor of a folder or id.

        Raises:
            OSError: it has none.
            ValueError: its processor is not installed.
        """
        return cls(load_image_processor(source))

    def save_pretrained(self, folder: Path) -> None:
        """Write the settings as transformers has them."""
        self.processor.save_pretrained(folder)

    def __call__(
        self,
        image_YXC: NDArray[np.uint8],
        rng: np.random.Generator | None = None,
        names: Collection[str] = (),
        *,
        flip: bool = False,
    ) -> Tensor:
        """Return a uint8 RGB image as float32 [C, high, wide], by the processor's settings; `rng` augments it by the names."""
        return self._read(image_YXC if rng is None else self._changed(image_YXC, rng, names, flip=flip))

    def _read(self, image_YXC: NDArray[np.uint8]) -> Tensor:
        made = self.processor(np.ascontiguousarray(image_YXC), return_tensors="pt", input_data_format="channels_last")
        pixels: Tensor = made["pixel_values"][0]
        return pixels.float()

    def _changed(
        self, image_YXC: NDArray[np.uint8], rng: np.random.Generator, names: Collection[str], *, flip: bool
    ) -> NDArray[np.uint8]:
        """Change a picture at no more than twice the resolution that the model sees."""
        pixels_CYX = torch.from_numpy(np.array(image_YXC)).permute(2, 0, 1).float() / 255
        scale = DETAIL * max(self.high, self.wide) / min(pixels_CYX.shape[1:])
        if scale < 1:
            size = [max(1, round(edge * scale)) for edge in pixels_CYX.shape[1:]]
            pixels_CYX = F.interpolate(pixels_CYX[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        moved_CYX = changed(pixels_CYX, rng, names, flip=flip)
        moved: NDArray[np.uint8] = (moved_CYX * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return moved


def tiles_of(image_YXC: NDArray[np.uint8], count: int) -> list[NDArray[np.uint8]]:
    """Return the whole picture, and `count` rows and columns of tiles that overlap by a quarter; the picture alone for 1."""
    if count == 1:
        return [image_YXC]
    spans = [_spans(edge, count) for edge in image_YXC.shape[:2]]
    return [image_YXC, *(image_YXC[top:bottom, left:right] for top, bottom in spans[0] for left, right in spans[1])]


def _spans(edge: int, count: int) -> list[tuple[int, int]]:
    size = math.ceil(edge / (1 + (count - 1) * (1 - OVERLAP)))
    return [(round(at), round(at) + size) for at in np.linspace(0, edge - size, count)]


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture file as RGB, by the reader of the live streams: what a model trained on is what it sees.

    Raises:
        DataError: it cannot be read, is cut, or has more than `MAX_PIXELS` pixels.
    """
    try:
        return decode_file(path.read_bytes(), MAX_PIXELS)
    except PayloadRefused as reason:
        raise DataError(f"{path}: {reason}; delete it or copy it again") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; name a readable picture") from None
