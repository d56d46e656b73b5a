"""Change pictures: crops, brightness, colour, and RandAugment with the operations of Pillow.

Shapes: C colours (3), Y and X of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional as F

BRIGHTNESS, SHIFT, SCALE = 0.2, 0.08, 0.15
CONTRAST, SATURATION = 0.3, 0.4
GREY = (0.299, 0.587, 0.114)
"""Shares of the colours in the brightness of a picture (ITU-R BT.601)."""
OPERATIONS = 2
"""Operations of RandAugment for each picture."""
MAGNITUDE = 0.3
"""Of each operation, between 0 and 1: 9 of 30, as in the paper (Cubuk et al. 2020)."""


def changed(pixels_CYX: Tensor, rng: np.random.Generator, names: Collection[str], *, flip: bool = False) -> Tensor:
    """Return a picture in [0, 1] that is changed by the named augmentations, mirrored where `flip` allows it; edges are repeated."""
    if "crops" in names or flip:
        pixels_CYX = _moved(pixels_CYX, rng, crops="crops" in names, flip=flip)
    if "brightness" in names:
        pixels_CYX = (pixels_CYX * float(1 + rng.uniform(-BRIGHTNESS, BRIGHTNESS))).clamp(0, 1)
    if "colour" in names:
        pixels_CYX = _recoloured(pixels_CYX, rng)
    return _rand_augmented(pixels_CYX, rng) if "rand_augment" in names else pixels_CYX


def _moved(pixels_CYX: Tensor, rng: np.random.Generator, *, crops: bool, flip: bool) -> Tensor:
    zoom_y, zoom_x, shift_y, shift_x = 1.0, 1.0, 0.0, 0.0
    if crops:
        zoom_y, zoom_x = 1 + rng.uniform(-SCALE, SCALE, 2)
        shift_y, shift_x = rng.uniform(-2 * SHIFT, 2 * SHIFT, 2)
    if flip and rng.random() < 0.5:
        zoom_x = -zoom_x
    turn = torch.tensor([[zoom_x, 0.0, shift_x], [0.0, zoom_y, shift_y]], dtype=torch.float32)
    grid = F.affine_grid(turn[None], [1, *pixels_CYX.shape], align_corners=False)
    return F.grid_sample(pixels_CYX[None], grid, padding_mode="border", align_corners=False)[0].clamp(0, 1)


def _recoloured(pixels_CYX: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a picture with another contrast and another saturation."""
    contrast, saturation = float(rng.uniform(-CONTRAST, CONTRAST)), float(rng.uniform(-SATURATION, SATURATION))
    grey_YX = torch.einsum("c,cyx->yx", torch.tensor(GREY), pixels_CYX)
    pixels_CYX = grey_YX + (pixels_CYX - grey_YX) * (1 + saturation)
    mean = float(grey_YX.mean())
    return (mean + (pixels_CYX - mean) * (1 + contrast)).clamp(0, 1)


def _rand_augmented(pixels_CYX: Tensor, rng: np.random.Generator) -> Tensor:
    bytes_YXC: NDArray[np.uint8] = (pixels_CYX * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(bytes_YXC))
    for number in rng.integers(0, len(RAND_AUGMENT), OPERATIONS):
        sign = 1.0 if rng.random() < 0.5 else -1.0
        image = RAND_AUGMENT[int(number)](image, sign)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _affine(image: Image.Image, row: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, row, Image.Resampling.BILINEAR)


RAND_AUGMENT: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, _: image,
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
    lambda image, sign: image.rotate(sign * 30 * MAGNITUDE, Image.Resampling.BILINEAR),
    lambda image, _: ImageOps.posterize(image, 8 - round(4 * MAGNITUDE)),
    lambda image, _: ImageOps.solarize(image, 256 - round(256 * MAGNITUDE)),
    lambda image, sign: ImageEnhance.Color(image).enhance(1 + sign * 0.9 * MAGNITUDE),
    lambda image, sign: ImageEnhance.Contrast(image).enhance(1 + sign * 0.9 * MAGNITUDE),
    lambda image, sign: ImageEnhance.Brightness(image).enhance(1 + sign * 0.9 * MAGNITUDE),
    lambda image, sign: ImageEnhance.Sharpness(image).enhance(1 + sign * 0.9 * MAGNITUDE),
    lambda image, sign: _affine(image, (1, sign * 0.3 * MAGNITUDE, 0, 0, 1, 0)),
    lambda image, sign: _affine(image, (1, 0, 0, sign * 0.3 * MAGNITUDE, 1, 0)),
    lambda image, sign: _affine(image, (1, 0, sign * 0.45 * MAGNITUDE * image.width, 0, 1, 0)),
    lambda image, sign: _affine(image, (1, 0, 0, 0, 1, sign * 0.45 * MAGNITUDE * image.height)),
)
"""The operations of RandAugment (Cubuk et al. 2020, section 3) on an 8-bit picture, with a sign for those that have two directions."""
