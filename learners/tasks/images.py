"""Convert image files and frames to normalised squares, the input of the models, and augment them for training.

Reads `preprocessor_config.json` (size, mean, deviation) without transformers, because its processors require torchvision.

Shapes: C colours (3), Y and X of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.hub import cached_file

from learners.tasks.base import DataError
from sensors.base import PayloadRefused
from sensors.codecs.images import decode_file

CONFIG = "preprocessor_config.json"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm"})
MAX_PIXELS = 100_000_000
BRIGHTNESS, SHIFT, SCALE = 0.2, 0.08, 0.15


class PictureProcessor:
    """Size and normalisation of a model's pictures; saved as transformers has it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)
        size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size", 224)
        self.high, self.wide = _size(size)
        self.mean_C11 = torch.tensor(settings.get("image_mean", [0.5] * 3)).view(3, 1, 1)
        self.std_C11 = torch.tensor(settings.get("image_std", [0.5] * 3)).view(3, 1, 1)

    @classmethod
    def from_pretrained(cls, source: Path | str) -> PictureProcessor:
        """Read the settings of a folder or id."""
        path = Path(source) / CONFIG if Path(source).is_dir() else Path(str(cached_file(str(source), CONFIG)))
        return cls(orjson.loads(path.read_bytes()))

    def save_pretrained(self, folder: Path) -> None:
        """Write the settings."""
        (folder / CONFIG).write_bytes(orjson.dumps(self.settings, option=orjson.OPT_INDENT_2))

    def __call__(
        self, image_YXC: NDArray[np.uint8], rng: np.random.Generator | None = None, *, flip: bool = False
    ) -> Tensor:
        """Return a uint8 RGB image as float32 [C, high, wide], normalised; `rng` augments it."""
        pixels_CYX = torch.from_numpy(np.array(image_YXC)).permute(2, 0, 1)[None].float() / 255
        pixels_CYX = F.interpolate(pixels_CYX, (self.high, self.wide), mode="bilinear", antialias=True)[0].clamp(0, 1)
        if rng is not None:
            pixels_CYX = changed(pixels_CYX, rng, flip=flip)
        return (pixels_CYX - self.mean_C11) / self.std_C11


def _size(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge", 224)
        return int(size.get("height", edge)), int(size.get("width", edge))
    return int(size), int(size)


def changed(pixels_CYX: Tensor, rng: np.random.Generator, *, flip: bool) -> Tensor:
    """Scaled, shifted and brightened a little, mirrored where `flip` allows it; edges are repeated."""
    zoom_y, zoom_x = 1 + rng.uniform(-SCALE, SCALE, 2)
    shift_y, shift_x = rng.uniform(-2 * SHIFT, 2 * SHIFT, 2)
    if flip and rng.random() < 0.5:
        zoom_x = -zoom_x
    turn = torch.tensor([[zoom_x, 0.0, shift_x], [0.0, zoom_y, shift_y]], dtype=torch.float32)
    grid = F.affine_grid(turn[None], [1, *pixels_CYX.shape], align_corners=False)
    moved = F.grid_sample(pixels_CYX[None], grid, padding_mode="border", align_corners=False)[0]
    return (moved * float(1 + rng.uniform(-BRIGHTNESS, BRIGHTNESS))).clamp(0, 1)


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
