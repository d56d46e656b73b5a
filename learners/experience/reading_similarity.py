"""Decide whether two readings show the same: equal bytes, or pictures that differ by noise and compression alone.

A picture is described by the mean colour of 16 x 16 parts. The largest difference of one part counts, not the mean of all: an object
that covers little of a fixed view changes few parts by much. Used by the store, the gallery and the check of held-out files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from learners.experience.records import Raw
from sensors.codecs.readings import decode_media

PICTURES = frozenset({"jpeg", "png"})
"""Encodings of pictures."""
EDGE = 16
"""Rows and columns of parts."""
DIGEST = 32
"""Bytes of a signature that are a digest of the reading; the rest are mean colours."""
LIGHT, COLOUR = 4.5, 13.0
"""Largest difference of a part, 0 to 255, in brightness and in one colour: noise and JPEG change less. JPEG stores colours coarsely."""


def signature(raw: Raw) -> bytes:
    """Return a SHA-256 of a reading and, of a picture, its 16 x 16 x 3 mean colours."""
    digest = content_digest(raw)
    try:
        picture = decode_media(raw.encoding, raw.data)["picture"] if raw.encoding in PICTURES else None
    except ValueError:  # the label's reader counts it
        picture = None
    return digest if picture is None else digest + np.round(part_colours(picture)).astype(np.uint8).tobytes()


def content_digest(raw: Raw) -> bytes:
    """Return a SHA-256 of a reading's encoding and bytes."""
    return hashlib.sha256(raw.encoding.encode() + b"\0" + raw.data).digest()


def part_colours(picture_YXC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the mean colours of 16 x 16 parts of a picture, shape (768,), 0 to 255."""
    pixels_YXC = np.asarray(picture_YXC, np.float32)
    high, wide, _ = pixels_YXC.shape
    rows = np.tensordot(_shares(high), pixels_YXC, (1, 0))
    return np.asarray(np.tensordot(rows, _shares(wide), (1, 1)).transpose(0, 2, 1), np.float32).ravel()


def differences(colours_NP: NDArray[np.generic], one_P: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return how far pictures are from one picture, shape (N,), as a multiple of the largest difference of a same picture."""
    apart = np.subtract(colours_NP, one_P, dtype=np.float32).reshape(len(colours_NP), -1, 3)
    light = np.abs(apart.mean(2)).max(1) / LIGHT
    return np.asarray(np.maximum(light, np.abs(apart).max((1, 2)) / COLOUR), np.float32)


def distances(signatures: Sequence[bytes], one: bytes) -> NDArray[np.float32]:
    """Return how far readings are from one reading, shape (N,): 0 for equal bytes, at most 1 for a same picture, else more."""
    apart = np.full(len(signatures), np.inf, np.float32)
    alike = [n for n, other in enumerate(signatures) if len(other) == len(one) > DIGEST]
    if alike:
        found = np.frombuffer(b"".join(signatures[n][DIGEST:] for n in alike), np.uint8).reshape(len(alike), -1)
        apart[alike] = np.maximum(differences(found, np.frombuffer(one, np.uint8, offset=DIGEST)), 1e-6)
    apart[[n for n, other in enumerate(signatures) if other[:DIGEST] == one[:DIGEST]]] = 0.0
    return apart


def _shares(size: int) -> NDArray[np.float32]:
    """Return the share of each row of pixels in the mean of each row of parts, shape (16, size)."""
    edges, at = np.linspace(0.0, size, EDGE + 1), np.arange(size)
    covered = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    return np.asarray(np.clip(covered, 0.0, None) * EDGE / size, np.float32)
