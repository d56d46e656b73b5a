"""Sound files from strangers as float32 mono samples, and samples as FLAC.

A header may claim any number of samples, channels and hertz. The decoder reads in blocks and counts what comes, so a
claim costs nothing. Used for stored readings and for labels; knows no device and no stream.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
import soundfile
from numpy.typing import NDArray

from sensors.base import PayloadRefused

MAX_SOUND_S = 600.0
MAX_CHANNELS = 32
RATES_HZ = (1_000, 384_000)
CANCELLED = 1e-3
"""Share of the loudest channel's energy below which the mean of the channels is no sound any more."""
_BLOCK = 65_536


def decode_sound(data: bytes, max_s: float = MAX_SOUND_S) -> tuple[NDArray[np.float32], int]:
    """Decode an untrusted sound file to float32 mono, shape (samples,), and its rate in Hz; channels are averaged, unless they cancel.

    Raises:
        PayloadRefused: `undecodable`, `bad_header`, `too_long`, `empty` or `not_finite`.
    """
    try:
        with soundfile.SoundFile(_Bytes(_with_length(data))) as file:
            rate_hz, channels = int(file.samplerate), int(file.channels)
            if channels > MAX_CHANNELS or not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
                raise PayloadRefused(
                    "bad_header",
                    f"the sound claims {channels} channels at {rate_hz} Hz; "
                    f"at most {MAX_CHANNELS} channels at {RATES_HZ[0]} to {RATES_HZ[1]} Hz are decoded",
                )
            samples = _mono(file, round(max_s * rate_hz), max_s)
    except soundfile.SoundFileError as error:
        raise PayloadRefused("undecodable", f"libsndfile cannot decode it: {error}") from None
    if not len(samples):
        raise PayloadRefused("empty", "the sound file holds no samples")
    if not np.isfinite(samples).all():
        raise PayloadRefused("not_finite", "the sound holds samples that are not finite")
    return samples, rate_hz


class _Bytes(io.BytesIO):
    """Bytes for libsndfile, which asks for places before the begin when a header lies; Python would print a traceback."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move there, at the least to the begin."""
        start = (0, self.tell(), self.getbuffer().nbytes)[whence]
        return super().seek(max(0, start + offset))


def encode_sound(samples: NDArray[np.float32], rate_hz: int) -> bytes:
    """Encode float32 mono samples as 16-bit FLAC; values beyond [-1, 1] are clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1.0, 1.0), rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _with_length(data: bytes) -> bytes:
    """Correct the length of a WAV that claims no bytes, as a killed writer or a pipe leaves it, to "until the end"."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return data
    chunks = list(_chunks(data))
    at, length = next(((at, length) for at, kind, length in chunks if kind == b"data"), (0, 1))
    last, _, last_length = chunks[-1] if chunks else (0, b"", 0)
    if length or last + 8 + last_length == len(data):  # it says a length, or the file ends where its chunks end
        return data
    return data[: at + 4] + b"\xff\xff\xff\xff" + data[at + 8 :]


def _chunks(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield offset, kind and length of each chunk of a WAV, as far as they follow each other."""
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield at, kind, length
        at += 8 + length + length % 2


def _mono(file: soundfile.SoundFile, limit: int, max_s: float) -> NDArray[np.float32]:
    """Average the channels; return the loudest where they cancel each other (a cable with swapped wires)."""
    energies = np.zeros(file.channels)
    blocks, total, mean_energy = [np.empty(0, np.float32)], 0, 0.0
    for block in _blocks(file):
        total += len(block)
        if total > limit:
            raise PayloadRefused("too_long", f"the sound lasts longer than {max_s:g} s")
        if not np.isfinite(block).all():
            raise PayloadRefused("not_finite", "the sound holds samples that are not finite")
        blocks.append(block.mean(axis=1, dtype=np.float32))
        energies += np.square(block, dtype=np.float64).sum(axis=0)
        mean_energy += float(np.square(blocks[-1], dtype=np.float64).sum())
    if file.channels == 1 or not mean_energy < CANCELLED * energies.max():
        return np.concatenate(blocks)
    file.seek(0)
    loudest = int(energies.argmax())
    return np.concatenate([block[:, loudest] for block in _blocks(file)])


def _blocks(file: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    while len(block := file.read(_BLOCK // file.channels or 1, dtype="float32", always_2d=True)):
        yield block
