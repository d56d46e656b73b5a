"""JPEGs that are alike as two frames of one camera are, or that differ as two scenes do."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48


def picture(seed: int, noise: int = 0, spread: int = 1) -> bytes:
    """A smooth picture of its own for each `seed`; `noise` is what a camera adds from frame to frame, at most `spread` a pixel."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
    added = np.random.default_rng(noise).integers(-spread, spread + 1, (HEIGHT, WIDTH, 3))
    out = io.BytesIO()
    Image.fromarray((np.asarray(small, np.int16) + added).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()
