"""Pictures that OpenCV does not decode as people see them: with transparency, or in formats of files only.

The caller judges PNG headers; here Pillow reads the header of any format, and the size is judged before a pixel is made.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sensors.base import PayloadRefused
from sensors.codecs.file_kinds import file_kind

FORMATS = ("BMP", "GIF", "PPM", "WEBP")
"""What pictures in training folders have besides JPEG and PNG; the first frame counts."""


def decode(payload: bytes, max_pixels: int, formats: Sequence[str] = FORMATS) -> NDArray[np.uint8]:
    """Decode a picture to RGB uint8 (height, width, 3): orientation applied, transparent parts white, 16 bits cut to 8.

    Raises:
        PayloadRefused: `not_an_image`, `too_many_pixels` or `undecodable`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of sizes, which the caller judges, and of damaged EXIF data, which are not read
            image = Image.open(io.BytesIO(payload), formats=list(formats))
    except Image.DecompressionBombError as error:
        raise PayloadRefused("too_many_pixels", str(error)) from None
    except (OSError, ValueError, SyntaxError, struct.error):
        kind = file_kind(payload)
        if kind is not None and kind.upper() in formats:
            raise PayloadRefused(
                "undecodable", f"its first bytes are those of {kind}, and its header is cut or damaged"
            ) from None
        seen = "" if kind is None else f", but {kind}"
        wanted = ", ".join(("JPEG", "PNG", *FORMATS[:-1]))
        raise PayloadRefused(
            "not_an_image", f"neither {wanted} nor {FORMATS[-1]}{seen}; convert it to JPEG or PNG"
        ) from None
    with image:
        if image.width * image.height > max_pixels:
            raise PayloadRefused(
                "too_many_pixels", f"it claims {image.width} x {image.height} pixels; max_pixels allows {max_pixels}"
            )
        try:
            return _rgb(ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError, struct.error, IndexError, EOFError) as error:
            raise PayloadRefused("undecodable", f"Pillow cannot decode it: {error}") from None


def equal_jpegs(one: bytes, other: bytes) -> bool:
    """Return whether two JPEGs decode to equal pixels; also where Pillow decodes neither, and nothing can be compared."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(one), formats=["JPEG"]) as first,
            Image.open(io.BytesIO(other), formats=["JPEG"]) as second,
        ):
            return bool(np.array_equal(np.asarray(first), np.asarray(second)))
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        return True


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ValueError("its numbers have no black and white that are known")
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversions clip them
        values = np.asarray(image).astype(np.uint32)
        grey = (values >> 8).clip(0, 255).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
    return np.asarray(image.convert("RGB"))
