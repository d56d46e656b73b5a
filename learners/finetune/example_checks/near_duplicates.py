"""Recognise a picture or a sound of the held-out file that comes back as a label: what evaluates must not train.

Pictures are compared by the colours of their parts, so a lamp that is on differs from one that is off, and
a small object from one at another place. Pictures of different classes are the same only pixel by pixel. Sounds are compared by a fingerprint (Haitsma & Kalker 2002): for each frame, whether
the energy rises from band to band, compared with the frame before. Two recordings of one sound differ in few bits at the right shift,
also after noise, compression and another volume. Two sounds of one kind differ in almost half of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.experience.reading_similarity import differences, part_colours
from learners.tasks.base import EncodedMedia, Example
from learners.tasks.inputs.pictures import read_picture
from learners.tasks.inputs.sounds import read_sound
from sensors.codecs.resampling import RATE_HZ, resampled

EQUAL_PICTURE = 1e-3
"""Difference of pictures of equal pixels: one changed pixel makes more."""
FRAME, HOP = 1_024, 128
"""Samples at 16 kHz: frames that overlap this much have nearly the same bits wherever they begin."""
BANDS_HZ = np.geomspace(200.0, 6_000.0, 34)
"""Borders of 33 bands, from which 32 bits follow."""
SAME_SOUND, SAME_SHORT_SOUND = 0.24, 0.1
"""Share of bits that may differ; independent sounds differ in half."""
SHORT, LEAST_FRAMES = 16, 4
"""Compared frames below which chance makes more bits equal, and below which nothing is compared."""


class NearDuplicates:
    """The pictures and sounds of a held-out file.

    Args:
        examples: of the file; texts are left out.

    Raises:
        DataError: a picture or sound cannot be read.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        examples = list(examples)
        shown = [example for example in examples if "picture" in example]
        self._pictures = np.array([part_colours(_pixels(example["picture"])) for example in shown], np.float32)
        self._classes = [example.get("label") for example in shown]
        self._sounds = [fingerprint(_samples(example)) for example in examples if "sound" in example]
        self._found: dict[str, bool] = {}

    @property
    def digest(self) -> bytes:
        """Return a digest of all pictures and sounds."""
        return hashlib.sha256(self._pictures.tobytes() + b"".join(sound.tobytes() for sound in self._sounds)).digest()

    def has(self, key: str, example: Example) -> bool:
        """Return whether the file has a picture or sound that is nearly the one of an example.

        Args:
            key: digest of the example's content, by which the answer is cached.
            example: with `picture` or `sound`; others are not compared.
        """
        key = f"{key} {example.get('label')}"
        if key not in self._found:
            self._found[key] = self._compare(example)
        return self._found[key]

    def _compare(self, example: Example) -> bool:
        if "picture" in example and len(self._pictures):
            apart = differences(self._pictures, part_colours(_pixels(example["picture"])))
            mine = example.get("label")
            limits = [1.0 if mine is None or of in {None, mine} else EQUAL_PICTURE for of in self._classes]
            return bool((apart <= limits).any())
        if "sound" in example and self._sounds:
            mine = fingerprint(_samples(example))
            return any(same_sound(mine, other) for other in self._sounds)
        return False


def fingerprint(samples_N: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return one number of 32 bits for each frame of a sound at 16 kHz; none of a sound that is shorter than two frames."""
    if len(samples_N) < FRAME + HOP:
        return np.zeros(0, np.uint32)
    windows = np.lib.stride_tricks.sliding_window_view(samples_N, FRAME)[::HOP] * np.hanning(FRAME).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(windows, axis=1)))
    borders = np.round(BANDS_HZ * FRAME / RATE_HZ).astype(int)
    energy = np.add.reduceat(power, borders, axis=1)[:, :-1]
    rises = np.diff(energy, axis=1)
    bits = np.diff(rises, axis=0) > 0.0
    return np.packbits(bits, axis=1).view(np.uint32).ravel()


def same_sound(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> bool:
    """Return whether the middle half of the shorter fingerprint lies somewhere in the longer one."""
    short, long = sorted((one, other), key=len)
    middle = short[len(short) // 4 : len(short) - len(short) // 4]
    if len(middle) < LEAST_FRAMES:
        return False
    places = np.lib.stride_tricks.sliding_window_view(long, len(middle))
    apart = float(np.bitwise_count(places ^ middle).mean(1).min()) / 32.0
    return apart <= (SAME_SOUND if len(middle) >= SHORT else SAME_SHORT_SOUND)


def _pixels(picture: Any) -> NDArray[np.uint8]:
    if isinstance(picture, EncodedMedia):
        picture = picture.decode()["picture"]
    return read_picture(Path(picture)) if isinstance(picture, str | Path) else picture


def _samples(example: Example) -> NDArray[np.float32]:
    sound = example["sound"]
    if isinstance(sound, EncodedMedia):
        example = sound.decode()
        sound = example["sound"]
    if isinstance(sound, str | Path):
        return read_sound(Path(sound))
    return resampled(np.asarray(sound, np.float32), example.get("rate_hz", RATE_HZ))
