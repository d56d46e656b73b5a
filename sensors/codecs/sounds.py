"""Sound files from strangers as float32 mono samples, and samples as FLAC.

A header may claim any number of samples, channels and hertz. The decoder reads in blocks and counts what comes, so a
claim costs nothing. Used for stored readings and for labels; knows no device and no stream.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import soundfile
from numpy.typing import NDArray

from sensors.base import PayloadRefused
from sensors.codecs.resampling import check_scale
from sensors.drivers.mono_mix import ChannelMixer
from sensors.drivers.sound_files import open_sound, sound_error

MAX_SOUND_S = 600.0
MAX_CHANNELS = 32
RATES_HZ = (1_000, 384_000)
_BLOCK = 65_536


def decode_sound(data: bytes, max_s: float = MAX_SOUND_S) -> tuple[NDArray[np.float32], int]:
    """Decode an untrusted sound file to float32 mono, shape (samples,), and its rate in Hz; channels are averaged, unless they cancel.

    Raises:
        PayloadRefused: `undecodable`, `bad_header`, `too_long`, `empty`, `not_finite` or `too_loud`.
    """
    try:
        with open_sound(data) as file:
            rate_hz, channels = int(file.samplerate), int(file.channels)
            if channels > MAX_CHANNELS or not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
                raise PayloadRefused(
                    "bad_header",
                    f"the sound claims {channels} channels at {rate_hz} Hz; "
                    f"at most {MAX_CHANNELS} channels at {RATES_HZ[0]} to {RATES_HZ[1]} Hz are decoded",
                )
            samples = _mono(file, round(max_s * rate_hz), max_s)
    except soundfile.SoundFileError as error:
        raise PayloadRefused("undecodable", f"libsndfile cannot decode it: {sound_error(error)}") from None
    if not len(samples):
        raise PayloadRefused("empty", "the sound file holds no samples")
    if not np.isfinite(samples).all():
        raise PayloadRefused("not_finite", "the sound holds samples that are not finite")
    return samples, rate_hz


def encode_sound(samples: NDArray[np.float32], rate_hz: int) -> bytes:
    """Encode float32 mono samples as 16-bit FLAC; values beyond [-1, 1] are clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1.0, 1.0), rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _mono(file: soundfile.SoundFile, limit: int, max_s: float) -> NDArray[np.float32]:
    """Average the channels; return the loudest where they cancel each other (a cable with swapped wires)."""
    mixer = ChannelMixer(file.channels)
    blocks, total = [np.empty(0, np.float32)], 0
    for block in _blocks(file):
        total += len(block)
        if total > limit:
            raise PayloadRefused("too_long", f"the sound lasts longer than {max_s:g} s")
        if not np.isfinite(block).all():
            raise PayloadRefused("not_finite", "the sound holds samples that are not finite")
        check_scale(block)
        blocks.append(mixer.average(block))
    if not mixer.is_cancelled:
        return np.concatenate(blocks)
    file.seek(0)
    return np.concatenate([block[:, mixer.loudest] for block in _blocks(file)])


def _blocks(file: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    while len(block := file.read(_BLOCK // file.channels or 1, dtype="float32", always_2d=True)):
        yield block
